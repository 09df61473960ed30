"""What did the policy see and say in each step of an episode? Kept in memory, written when the episode is over."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deploy.cameras.reader import Frame
from deploy.task_interface import Command
from toto_robot.run_folder import atomic_path


class Rows:
    """One row a policy step, as arrays (T, ...); scores of the surprise monitor apart, of steps without a plan too."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []
        self._surprises: list[tuple[float, float, float]] = []

    def add(
        self,
        state: np.ndarray,
        proprio: np.ndarray,
        action: np.ndarray,
        command: Command,
        frames: Mapping[str, Frame],
        times_s: tuple[float, float, float],
        surprise: float = float("nan"),
    ) -> None:
        """Keep a step; `times_s` are capture of the oldest frame, begin and end of inference.

        `surprise` is the monitor's score, NaN without one.
        """
        row = {
            "observation.state": proprio,
            "action": np.asarray(action, np.float32),
            "robot.q_rad": state["q_rad"],
            "robot.time_s": state["robot_time_s"],
            "robot.state_s": state["time_s"],
            "command.q_rad": command.q_rad,
            "command.gripper": command.gripper,
            "inference.capture_s": times_s[0],
            "inference.begin_s": times_s[1],
            "inference.end_s": times_s[2],
            "inference.surprise": float(surprise),
        }
        for name, frame in frames.items():
            row[f"observation.images.{name}"] = frame.image
            row[f"capture_s.{name}"] = frame.capture_s
        self._rows.append(row)

    def add_surprise(self, time_s: float, score: float, threshold: float) -> None:
        """Keep a score of the surprise monitor, of frames captured at `time_s`."""
        self._surprises.append((time_s, score, threshold))

    def write(self, path: Path) -> None:
        """Write what was kept; an episode without steps leaves at most scores of surprise."""
        keys = self._rows[0] if self._rows else {}
        arrays: dict[str, Any] = {key: np.stack([np.asarray(row[key]) for row in self._rows]) for key in keys}
        if self._surprises:
            columns = np.array(self._surprises).T
            names = ("time_s", "score", "threshold")
            arrays |= {f"surprise.{name}": column for name, column in zip(names, columns, strict=True)}
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays)
