"""Is a RealSense opened by its serial number, stamped at its capture, and reset when it gives no frames?

The library is a stand-in with the calls of pyrealsense2 that are used: a device cannot be plugged into a test.
"""

from __future__ import annotations

import builtins
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deploy.cameras.capture import CameraError, CaptureSettings, capture, make_source
from deploy.realtime.mailbox import Mailbox
from deploy.realtime.records import frame_dtype

HEIGHT, WIDTH = 24, 32
SETTINGS = CaptureSettings(name="wrist", source="realsense:0123", width=WIDTH, height=HEIGHT, rate_hz=30.0)


class Library(ModuleType):
    """pyrealsense2 with one device."""

    def __init__(self) -> None:
        super().__init__("pyrealsense2")
        self.stream, self.format = SimpleNamespace(color="color"), SimpleNamespace(rgb8="rgb8")
        self.option = SimpleNamespace(frames_queue_size="frames_queue_size")
        self.asked: list[tuple[Any, ...]] = []  # what was called
        self.plugged, self.silent, self.colourless = True, False, False
        self.age_s, self.domain = 0.04, "timestamp_domain.global_time"
        self.picture = np.arange(HEIGHT * WIDTH * 3, dtype=np.uint8).reshape(HEIGHT, WIDTH, 3)

    def config(self) -> SimpleNamespace:
        return SimpleNamespace(
            enable_device=lambda serial: self.asked.append(("device", serial)),
            enable_stream=lambda *what: self.asked.append(("stream", *what)),
        )

    def pipeline(self) -> SimpleNamespace:
        profile = SimpleNamespace(get_device=lambda: device)
        sensor = SimpleNamespace(
            supports=lambda option: option == "frames_queue_size",
            set_option=lambda *what: self.asked.append(("option", *what)),
        )
        device = SimpleNamespace(
            query_sensors=lambda: [sensor], hardware_reset=lambda: self.asked.append(("hardware_reset",))
        )
        return SimpleNamespace(
            start=lambda config: self._start(profile),
            wait_for_frames=self._frames,
            get_active_profile=lambda: profile,
            stop=lambda: self.asked.append(("stop",)),
        )

    def _start(self, profile: Any) -> Any:
        if not self.plugged:
            raise RuntimeError("No device connected")
        return profile

    def _frames(self, timeout_ms: int) -> SimpleNamespace:
        if self.silent:
            raise RuntimeError(f"Frame didn't arrive within {timeout_ms}")
        frame = SimpleNamespace(
            get_timestamp=lambda: 1000.0 * (time.time() - self.age_s),
            get_frame_timestamp_domain=lambda: self.domain,
            get_data=lambda: memoryview(self.picture),
        )
        return SimpleNamespace(get_color_frame=lambda: None if self.colourless else frame)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    made = Library()
    monkeypatch.setitem(sys.modules, "pyrealsense2", made)
    return made


def test_it_opens_the_device_by_its_number_with_a_queue_of_one(library: Library) -> None:
    source = make_source(SETTINGS)
    source.open()
    assert library.asked == [
        ("device", "0123"),
        ("stream", "color", WIDTH, HEIGHT, "rgb8", 30),
        ("option", "frames_queue_size", 1),
    ]
    source.close()
    assert library.asked[-2:] == [("stop",), ("hardware_reset",)]
    source.close()
    assert library.asked.count(("hardware_reset",)) == 1, "twice is once"


def test_a_frame_is_as_old_as_the_library_says_and_is_a_copy(library: Library) -> None:
    source = make_source(SETTINGS)
    source.open()
    library.age_s = 0.3
    before_s = time.monotonic()
    captured_s, picture = source.read()
    assert captured_s < before_s, "captured before it was asked for"
    np.testing.assert_array_equal(picture, library.picture)
    library.picture[:] = 0
    assert picture.any()
    library.age_s = 0.8  # a stall: the oldest frames above all must not count as new
    assert source.read()[0] == pytest.approx(time.monotonic() - 0.8, abs=0.1)
    library.domain = "timestamp_domain.hardware_clock"  # not the host's clock: then the arrival counts
    before_s = time.monotonic()
    assert source.read()[0] >= before_s
    library.domain, library.age_s = "timestamp_domain.global_time", -5.0  # the wall clock was set
    before_s = time.monotonic()
    assert source.read()[0] >= before_s


def test_what_the_device_does_not_give_is_a_camera_error(library: Library) -> None:
    library.plugged = False
    with pytest.raises(CameraError, match=r"0123.*No device connected"):
        make_source(SETTINGS).open()
    library.plugged = True
    source = make_source(SETTINGS)
    source.open()
    library.colourless = True
    with pytest.raises(CameraError, match="without colour"):
        source.read()
    library.silent = True
    with pytest.raises(CameraError, match=r"Frame didn't arrive.*cable"):
        source.read()


def test_a_device_that_falls_silent_is_reset_and_opened_again(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.cameras.capture._REOPEN_S", 0.0)
    box = Mailbox(tmp_path / "wrist", frame_dtype(HEIGHT, WIDTH), create=True)
    rounds = iter(range(10))

    def ended() -> bool:
        number = next(rounds)
        library.silent = number == 3
        return number == 7

    capture(SETTINGS, tmp_path / "wrist", ended)
    assert library.asked.count(("hardware_reset",)) == 2, "after the silence, and at the end"
    assert library.asked.count(("device", "0123")) == 2
    assert box.newest()[0] == 6
    np.testing.assert_array_equal(box.newest()[1]["image"], library.picture)


def test_the_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **more: Any) -> Any:
        if name == "pyrealsense2":
            raise ImportError(name)
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(CameraError, match=r"toto-robot\[realsense\]"):
        make_source(SETTINGS).open()
