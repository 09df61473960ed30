"""How does an episode on the robot become one of the store that demonstrations are kept in?

Inference leaves the rows of an episode in `policy_<number>.npz` when it is over; nothing here runs while the arm moves.
The keys that a simulated demonstration has too have the same names and types, so every command that reads one
(`data info`, `data check`, `train-policy`) reads the other. Ticks of the control process stay in their own table
(`ticks.bin`, deploy/realtime/records.py: TICK): they come ten times as often.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from toto_robot.data.episodes import IMAGE_PREFIX, EpisodeStore, FeatureSpec
from toto_robot.run_folder import provenance

STORE = "episodes"  # in the run folder
_COPIED = ("observation.state", "action", "robot.q_rad", "command.q_rad")
_TIMES = ("robot.time_s", "robot.state_s", "inference.capture_s", "inference.begin_s", "inference.end_s")


def rows_file(run_dir: Path, number: int) -> Path:
    """Return where inference leaves the rows of an episode."""
    return run_dir / f"policy_{number:05d}.npz"


def read_rows(path: Path) -> dict[str, np.ndarray]:
    """Return the rows of an episode, key to (T, ...); one without a step has at most scores of surprise."""
    with np.load(path) as archive:
        return {key: archive[key] for key in archive.files}


def append_episode(
    run_dir: Path, task: Mapping[str, Any], number: int, seed: int, success: bool
) -> EpisodeStore | None:
    """Add an episode to `<run>/episodes`, made if it is not there; None for an episode without a step."""
    path = rows_file(run_dir, number)
    rows = read_rows(path) if path.exists() else {}
    if "action" not in rows:
        return None
    steps = len(rows["action"])
    arrays: dict[str, np.ndarray] = {
        **{key: rows[key].astype(np.float32) for key in _COPIED},
        **{key: rows[key].astype(np.float64) for key in _TIMES},
        "command.gripper": rows["command.gripper"].astype(np.float32),
        "next.success": np.arange(steps) == steps - 1 if success else np.zeros(steps, bool),
        **{key: rows[key] for key in rows if key.startswith((IMAGE_PREFIX, "capture_s."))},
    }
    store = _open(run_dir / STORE, task, arrays)
    store.append(arrays, {"seed": seed, "success": success, "attempt": number - 1})
    store.close()
    return store


def _open(path: Path, task: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> EpisodeStore:
    if path.exists():
        return EpisodeStore.open(path)
    names = {"observation.state": tuple(task["proprio_names"]), "action": tuple(task["action_names"])}
    features = {key: FeatureSpec(str(array.dtype), array.shape[1:], names.get(key)) for key, array in arrays.items()}
    return EpisodeStore.create(
        path, features=features, fps=float(task["control_rate_hz"]), env=dict(task), provenance=provenance()
    )
