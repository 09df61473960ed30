"""Do the emulator's cameras show what the simulation shows, and what do their faults look like?"""

import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from deploy.emulator.cameras import draw
from deploy.emulator.client import Emulator
from deploy.realtime.mailbox import Mailbox
from deploy.realtime.records import frame_dtype

SIZE = 32


def _after(box: Mailbox, number: int) -> tuple[int, np.ndarray]:
    deadline_s = time.monotonic() + 30.0
    while time.monotonic() < deadline_s:
        newest, frame = box.newest()
        if newest > number:
            return newest, frame
        time.sleep(0.01)
    pytest.fail(f"no frame after {number}")


@pytest.mark.parametrize("options", [{}, {"randomize": "all"}], ids=["plain", "randomised"])
def test_a_picture_at_rest_is_the_simulations_bit_for_bit(options: dict) -> None:
    made = gymnasium.make(
        "toto_robot/FrankaPick-v0", obs_mode="pixels", cameras=("front", "wrist"), image_size=SIZE, **options
    )
    env = made.unwrapped
    with Emulator(seed=4, cameras=("front", "wrist"), image_size=SIZE, options=options) as emulator:
        boxes = {name: Mailbox(path, frame_dtype(SIZE, SIZE)) for name, path in emulator.cameras.items()}
        for seed in (4, 9):
            emulator.reset(seed)
            reset_s = time.monotonic()
            simulated = env.reset(seed=seed)[0]["pixels"]
            for name, box in boxes.items():
                number, frame = _after(box, 0)
                while frame["capture_s"] < reset_s:
                    number, frame = _after(box, number)
                assert np.array_equal(frame["image"], simulated[name]), f"{name}, seed {seed}"
    made.close()


def test_frozen_cameras_stop_and_black_ones_go_on() -> None:
    with Emulator(cameras=("front",), image_size=SIZE) as emulator:
        box = Mailbox(emulator.cameras["front"], frame_dtype(SIZE, SIZE))
        number, frame = _after(box, 0)
        assert frame["image"].any()
        emulator.fault("camera_black")
        while frame["image"].any():
            number, frame = _after(box, number)
        emulator.fault("clear")
        while not frame["image"].any():
            number, frame = _after(box, number)
        emulator.fault("camera_freeze")
        time.sleep(0.5)  # a picture that was being drawn may still come
        frozen = box.newest()[0]
        time.sleep(0.5)
        assert box.newest()[0] == frozen
        emulator.fault("clear")
        _after(box, frozen)


def test_positions_decide_the_picture_alone() -> None:
    made = gymnasium.make("toto_robot/FrankaPick-v0", obs_mode="pixels", cameras=("front",), image_size=SIZE)
    env = made.unwrapped
    env.reset(seed=1)
    for _ in range(5):
        observation, *_ = env.step(np.array([0.5, 0.2, -0.5, 0.0, 0.0, 0.0, 1.0]))
    qpos = env.data.qpos.copy()
    env.reset(seed=1)
    assert np.array_equal(draw(env, qpos)["front"], observation["pixels"]["front"])
    made.close()


def test_a_killed_robot_takes_its_cameras_along(tmp_path: Path) -> None:
    emulator = Emulator(cameras=("front",), image_size=SIZE).start()
    try:
        children = Path(f"/proc/{emulator.pid}/task/{emulator.pid}/children").read_text().split()
        assert len(children) == 1
        _after(Mailbox(emulator.cameras["front"], frame_dtype(SIZE, SIZE)), 0)
        emulator.kill()
        deadline_s = time.monotonic() + 20.0
        while _alive(int(children[0])):
            assert time.monotonic() < deadline_s, "the drawing process outlived the robot"
            time.sleep(0.05)
    finally:
        emulator.stop()


def _alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
