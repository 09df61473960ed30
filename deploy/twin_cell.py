"""How does a run work without any server: arm, scene and cameras of `robot=twin`?

The control process has the twin (deploy/drivers/twin.py) as its arm. Beside it a thread there tells where everything
is, to the process that draws the cameras' pictures (the emulator's) and to the one with the terminal, which asks for
resets and whether the task is done. All three exchange through mailboxes in the run's folder.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deploy.drivers.base import RobotDriver
from deploy.realtime.config import ControlConfig
from deploy.realtime.mailbox import Mailbox
from deploy.realtime.records import frame_dtype

_WISH_FILE, _TOLD_FILE = "twin_wish", "twin_told"
_WISH = np.dtype([("resets", "<u8"), ("seed", "<i8")])  # one writer: the process with the terminal
_TOLD = np.dtype(
    [
        ("resets", "<u8"),  # how many were done
        ("success", "?"),
        ("failed", "?"),
        ("success_s", "<f8"),  # NaN before
        ("since_reset_s", "<f8"),
    ]
)
_PUBLISH_S = 0.01
_RESET_S = 30.0  # the first one waits for the scene, which is composed from robosuite's models
_CAMERA_RATE_HZ = 30.0


class TwinCell:
    """The end of the process with the terminal; what `deploy.emulator.client.Emulator` is for an emulated arm."""

    def __init__(
        self, folder: Path, env_id: str, options: Mapping[str, Any], cameras: tuple[str, ...], image_size: int
    ) -> None:
        """`folder` is the run's; `options` are `gymnasium.make`'s. Makes the mailboxes, starts nothing."""
        from deploy.emulator.cameras import camera_file

        self.cameras = {name: camera_file(folder, name) for name in cameras}
        for path in self.cameras.values():
            Mailbox(path, frame_dtype(image_size, image_size), create=True).close()
        self._wish, self._resets = Mailbox(folder / _WISH_FILE, _WISH, create=True), 0
        self._told = Mailbox(folder / _TOLD_FILE, _TOLD, create=True)
        self._drawing = {
            "folder": str(folder),
            "env_id": env_id,
            "options": dict(options),
            "cameras": list(cameras),
            "image_size": image_size,
            "camera_rate_hz": _CAMERA_RATE_HZ,
        }

    def driver_settings(self, seed: int) -> dict[str, Any]:
        """Return what `make_twin` needs in `ControlConfig.driver_settings`."""
        return {"drawing": self._drawing, "seed": seed}

    def reset(self, seed: int) -> None:
        """Put the scene where `env.reset(seed=seed)` puts it; RuntimeError if the control process does not do it."""
        self._resets += 1
        self._wish.put((self._resets, seed))
        until_s = time.monotonic() + _RESET_S
        while int(self._told.newest()[1]["resets"]) < self._resets:
            if time.monotonic() > until_s:
                raise RuntimeError(f"the twin has not reset its scene within {_RESET_S:g} s: has its process ended?")
            time.sleep(_PUBLISH_S)

    def status(self) -> dict[str, Any]:
        """Return how the task stands."""
        _, told = self._told.newest()
        success_s = float(told["success_s"])
        return {
            "success": bool(told["success"]),
            "success_s": success_s if told["success"] else None,
            "failed": bool(told["failed"]),
            "since_reset_s": float(told["since_reset_s"]),
            "lost": 0,  # no packets
        }


def make_twin(config: ControlConfig) -> RobotDriver:
    """Return the twin of a control process, with the thread that shows its scene and resets it."""
    from deploy.drivers.twin import TwinDriver

    settings = dict(config.driver_settings)
    drawing, seed = settings.pop("drawing"), settings.pop("seed")
    twin = TwinDriver(robot=config.robot, env=drawing["env_id"], seed=seed, options=drawing["options"], **settings)
    _Showing(twin, drawing, seed).start()
    return twin


class _Showing(threading.Thread):
    """Publishes the twin's scene; ends with its process."""

    def __init__(self, twin: Any, drawing: dict[str, Any], seed: int) -> None:
        super().__init__(name="twin scene", daemon=True)
        from deploy.emulator.cameras import SCENE_FILE, scene_dtype

        folder = Path(drawing["folder"])
        self._twin, self._seed, self._resets = twin, seed, 0
        self._wish, self._told = Mailbox(folder / _WISH_FILE, _WISH), Mailbox(folder / _TOLD_FILE, _TOLD)
        self._scene = Mailbox(folder / SCENE_FILE, scene_dtype(len(twin.scene()["qpos"])), create=True)
        # It ends by itself when this process has gone.
        self._drawing = subprocess.Popen([sys.executable, "-m", "deploy.emulator.cameras", json.dumps(drawing)])

    def run(self) -> None:
        while True:
            _, wish = self._wish.newest()
            if int(wish["resets"]) > self._resets:
                self._seed, self._resets = int(wish["seed"]), int(wish["resets"])
                self._twin.reset(self._seed)
            found = self._twin.scene()
            self._scene.put((time.monotonic(), self._seed, False, False, found["qpos"]))
            success_s = np.nan if found["success_s"] is None else found["success_s"]
            self._told.put((self._resets, found["success"], found["failed"], success_s, found["since_reset_s"]))
            time.sleep(_PUBLISH_S)
