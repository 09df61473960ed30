"""Is a picture that cannot be believed refused, and does capturing go on after a failure?"""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from deploy.cameras.capture import CaptureProcess, CaptureSettings, make_source
from deploy.cameras.reader import CameraFault, CameraReader, CameraSettings, fit, wait_for_first
from deploy.realtime.mailbox import Mailbox
from deploy.realtime.records import frame_dtype
from toto_robot.data.video import write_mp4

Q = np.zeros(7)
PATIENCE_S = 30.0


class Eye:
    """A mailbox that a test fills, and its reader."""

    def __init__(self, folder: Path, size: int = 16, **settings: float) -> None:
        self.box = Mailbox(folder / "eye", frame_dtype(24, 32), create=True)
        self.reader = CameraReader("eye", folder / "eye", size, CameraSettings(**settings), (24, 32))
        self.number = 0

    def show(self, image: np.ndarray, age_s: float = 0.0) -> None:
        self.number += 1
        self.box.put((time.monotonic() - age_s, self.number, image))


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (24, 32, 3), np.uint8)


def test_newest_frame_comes_at_the_bundles_size_with_its_capture_time(tmp_path):
    eye = Eye(tmp_path)
    with pytest.raises(CameraFault, match="no frame yet"):
        eye.reader.newest(Q)
    before = time.monotonic()
    eye.show(picture(1))
    eye.show(picture(2))
    frame = eye.reader.newest(Q)
    assert frame.image.shape == (16, 16, 3) and frame.number == 2
    assert before <= frame.capture_s <= time.monotonic()
    np.testing.assert_array_equal(frame.image, fit(picture(2), 16))


def test_every_camera_is_waited_for_but_not_for_ever(tmp_path):
    seen, blind = tmp_path / "seen", tmp_path / "blind"
    box = Mailbox(seen, frame_dtype(24, 32), create=True)
    Mailbox(blind, frame_dtype(24, 32), create=True)
    places = {"front": (seen, (24, 32)), "wrist": (blind, (24, 32))}
    timer = threading.Timer(0.1, box.put, [(1.0, 1, picture())])
    timer.start()
    wait_for_first({"front": places["front"]}, PATIENCE_S)
    with pytest.raises(CameraFault, match=r"no frame within 0\.1 s from camera wrist:"):
        wait_for_first(places, 0.1)
    timer.join()


def test_old_and_black_pictures_are_refused(tmp_path):
    eye = Eye(tmp_path, stale_s=5.0)
    eye.show(picture(), age_s=6.0)
    with pytest.raises(CameraFault, match="old"):
        eye.reader.newest(Q)
    eye.show(np.random.default_rng(0).integers(0, 6, (24, 32, 3), np.uint8))  # a sensor's noise behind a lid
    with pytest.raises(CameraFault, match="black"):
        eye.reader.newest(Q)
    dark = np.zeros((24, 32, 3), np.uint8)
    dark[:4] = 60  # a dark scene with a lamp in it is one
    eye.show(dark)
    assert eye.reader.newest(Q).number == 3


def test_a_picture_that_stays_while_the_arm_moves_is_refused(tmp_path):
    eye = Eye(tmp_path, stale_s=60.0, frozen_rad=0.1)
    eye.show(picture())
    eye.reader.newest(Q)
    eye.show(picture())
    eye.reader.newest(Q + 0.05)
    eye.show(picture())
    with pytest.raises(CameraFault, match="frozen"):
        eye.reader.newest(Q + 0.2)
    eye.show(picture(1))
    assert eye.reader.newest(Q + 0.2).number == 4


def test_a_shrunk_picture_is_the_mean_of_its_middle_square():
    image = np.zeros((4, 8, 3), np.uint8)
    image[:, 2:4] = 100  # left half of the middle square
    np.testing.assert_array_equal(fit(image, 2)[..., 0], [[100, 0], [100, 0]])


def test_a_video_file_is_captured_in_a_process_that_waits_for_its_source(tmp_path):
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    clip = tmp_path / "clip.mp4"
    settings = CaptureSettings(name="front", source=f"file:{clip}", width=64, height=48, rate_hz=50.0)
    with CaptureProcess(settings, tmp_path / "front") as process:
        box = Mailbox(process.path, frame_dtype(48, 64))
        shades = [np.full((48, 64, 3), (value, 0, 0), np.uint8) for value in (60, 200)]
        write_mp4(tmp_path / "partial.mp4", shades * 10, 20.0)
        (tmp_path / "partial.mp4").rename(clip)  # the camera is plugged in after the process has started
        deadline_s = time.monotonic() + PATIENCE_S
        while box.newest()[0] < 60:  # longer than the clip: it begins again
            assert time.monotonic() < deadline_s, "no frames"
            time.sleep(0.02)
        frame = box.newest()[1]
    assert abs(time.monotonic() - frame["capture_s"]) < PATIENCE_S
    red, green, blue = frame["image"].reshape(-1, 3).mean(axis=0)
    assert red > 40 and green < 30 and blue < 30, "RGB, not BGR"


@pytest.mark.parametrize("source", ["usb:0", "opencv:", "file:", "0"])
def test_unknown_sources_are_refused(source):
    with pytest.raises(ValueError, match="opencv:<device>"):
        make_source(CaptureSettings(name="front", source=source))
