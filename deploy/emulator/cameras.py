"""How do the emulated robot's cameras see: pictures of copied joint positions, drawn in a process of their own?

Drawing takes many milliseconds and must not hold up the robot's clock. The robot's process writes positions to a
mailbox every millisecond; this one takes the newest at the cameras' rate, draws it as the simulated task does, and
writes frames to a mailbox a camera. A frame's capture time is the time of its positions.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np

from deploy.emulator.plant import Plant
from deploy.realtime.mailbox import Mailbox
from deploy.realtime.records import frame_dtype

SCENE_FILE = "scene"


def scene_dtype(positions: int) -> np.dtype:
    """Return the dtype of the mailbox from the robot to its cameras."""
    return np.dtype(
        [("time_s", "<f8"), ("seed", "<u8"), ("frozen", "?"), ("black", "?"), ("qpos", "<f8", (positions,))]
    )


def camera_file(folder: Path, camera: str) -> Path:
    """Return where a camera's frames are."""
    return folder / f"camera_{camera}"


class Cameras:
    """The robot's end: starts the drawing process and feeds it."""

    def __init__(self, plant: Plant, settings: dict[str, Any]) -> None:
        """`settings`: folder, env_id, options, cameras, image_size, camera_rate_hz."""
        folder, size = Path(settings["folder"]), settings["image_size"]
        self._plant = plant
        self._scene = Mailbox(folder / SCENE_FILE, scene_dtype(len(plant.data.qpos)), create=True)
        self._record = np.zeros((), self._scene.dtype)
        self._frames = {
            name: Mailbox(camera_file(folder, name), frame_dtype(size, size), create=True)
            for name in settings["cameras"]
        }
        self._process = subprocess.Popen([sys.executable, "-m", "deploy.emulator.cameras", json.dumps(settings)])

    def show(self, seed: int, frozen: bool, black: bool) -> None:
        """Hand over where everything is now."""
        self._record["time_s"], self._record["seed"] = time.monotonic(), seed
        self._record["frozen"], self._record["black"] = frozen, black
        self._record["qpos"] = self._plant.data.qpos
        self._scene.put(self._record)

    def counts(self) -> dict[str, int]:
        """Return how many frames each camera has made."""
        return {name: frames.newest()[0] for name, frames in self._frames.items()}

    def close(self) -> None:
        """End the drawing process."""
        self._process.terminate()
        self._process.wait()


def draw_forever(settings: dict[str, Any]) -> None:
    """Draw the newest positions at the cameras' rate until the robot's process has gone."""
    folder, size = Path(settings["folder"]), settings["image_size"]
    names = settings["cameras"]
    made: Any = gymnasium.make(
        settings["env_id"], obs_mode="pixels", cameras=tuple(names), image_size=size, **settings["options"]
    )
    env = made.unwrapped
    scene = Mailbox(folder / SCENE_FILE, scene_dtype(env.scene.model.nq))
    boxes = {name: Mailbox(camera_file(folder, name), frame_dtype(size, size)) for name in names}
    frames = {name: np.zeros((), box.dtype) for name, box in boxes.items()}
    robot, period_s = os.getppid(), 1.0 / settings["camera_rate_hz"]
    seed, due_s = None, time.monotonic()
    while os.getppid() == robot:
        number, record = scene.newest()
        if number and not record["frozen"]:
            if seed != int(record["seed"]):
                seed = int(record["seed"])
                env.reset(seed=seed)  # a randomised task draws its looks here
            pictures = draw(env, record["qpos"])
            for name, box in boxes.items():
                frame = frames[name]
                frame["capture_s"], frame["number"] = record["time_s"], frame["number"] + 1
                frame["image"] = 0 if record["black"] else pictures[name]
                box.put(frame)
        due_s = max(due_s + period_s, time.monotonic())  # a slow picture is not followed by a burst
        time.sleep(max(0.0, due_s - time.monotonic()))


def draw(env: Any, qpos: np.ndarray) -> dict[str, np.ndarray]:
    """Return the pictures (h, w, 3) of an environment with images at joint positions (nq,)."""
    env.data.qpos[:] = qpos
    mujoco.mj_kinematics(env.scene.model, env.data)
    mujoco.mj_comPos(env.scene.model, env.data)
    mujoco.mj_camlight(env.scene.model, env.data)
    pixels: dict[str, np.ndarray] = env.observation()["pixels"]
    return pixels


if __name__ == "__main__":
    draw_forever(json.loads(sys.argv[1]))
