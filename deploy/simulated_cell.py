"""What stands in place of a real cell, how does an episode begin there, and who says how it ended?

The emulator in its own process, or the twin in the control process: both have a scene that can be reset, cameras that
see it, and know whether the task is done.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from deploy.cameras.start import CameraPlaces
from deploy.deploy_config import DeployConfig
from deploy.emulator.client import Emulator
from deploy.operator_keys import OperatorKeys
from deploy.realtime.records import Machine
from deploy.session import Session
from deploy.twin_cell import TwinCell

_STATUS_S = 0.1  # between two questions to the scene
_SETTLE_S = 0.5  # after a reset: the hand reports ten times a second


class SimulatedCell(Protocol):
    """An emulator, or a twin."""

    cameras: dict[str, Path]

    def reset(self, seed: int) -> None:
        """Put the scene where `env.reset(seed=seed)` puts it."""

    def status(self) -> dict[str, Any]:
        """Return `success`, `success_s`, `failed`, `since_reset_s`, `lost`, and more."""


def make_emulator(config: DeployConfig, description: Any, run_dir: Path) -> Emulator:
    """Return the emulator of the bundle's task, not started."""
    task = description["task"]
    return Emulator(
        task["env_id"],
        robot=config.emulated,
        seed=config.first_seed,
        cameras=tuple(description["cameras"]),
        image_size=int(task["image_size"]),
        options=scene_options(task),
        event_file=run_dir / "robot_events.jsonl",
    )


def make_twin_cell(description: Any, folder: Path) -> TwinCell:
    """Return the twin's cell of the bundle's task; the control process starts it."""
    task = description["task"]
    return TwinCell(folder, task["env_id"], scene_options(task), tuple(description["cameras"]), int(task["image_size"]))


def scene_options(task: Any) -> dict[str, Any]:
    """Return what `gymnasium.make` needs for the scene that a bundle was trained in."""
    options: dict[str, Any] = {"preset": task["preset"], **(task.get("options") or {})}
    if task.get("randomization"):
        options["randomize"] = task["randomization"]
    return options


def emulated_cameras(cell: SimulatedCell, description: Any) -> CameraPlaces:
    """Return mailbox and picture size of each camera of a simulated cell."""
    size = int(description["task"]["image_size"])
    return {name: (path, (size, size)) for name, path in cell.cameras.items()}


def prepare(cell: SimulatedCell, session: Session, seed: int) -> None:
    """Put the scene where an episode begins, the control process ready for it."""
    cell.reset(seed)
    session.confirm()  # nobody stands beside a simulated arm
    deadline_s = time.monotonic() + 10.0
    time.sleep(_SETTLE_S)
    while session.machine is not Machine.IDLE and time.monotonic() < deadline_s:
        time.sleep(0.02)


def scene_judge(cell: SimulatedCell, keys: OperatorKeys) -> Callable[[], str | None]:
    """Return what asks the scene, ten times a second, whether the task is done or lost."""
    asked_s = 0.0

    def judge() -> str | None:
        nonlocal asked_s
        now_s = time.monotonic()
        if now_s - asked_s < _STATUS_S:
            return keys.verdict()
        asked_s = now_s
        status = cell.status()
        if status["success"]:
            return "success"
        return "failure" if status["failed"] else keys.verdict()

    return judge


def scene_says(cell: SimulatedCell | None) -> dict[str, Any]:
    """Return what a simulated scene adds to an episode's line; nothing for a real one."""
    if cell is None:
        return {}
    with contextlib.suppress(RuntimeError, OSError):  # an emulator that was killed
        status = cell.status()
        return {key: status[key] for key in ("success", "success_s", "since_reset_s", "lost")}
    return {}
