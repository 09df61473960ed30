"""How do the scalars of a run reach Weights & Biases?

Its own settings hold: WANDB_MODE=offline keeps everything in the run folder until `wandb sync`. A continued training
continues the same W&B run. Steps that were repeated after a kill were sent before; W&B keeps the first values.
"""

from __future__ import annotations

import importlib.util
import secrets
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from toto_robot.run_folder import read_json, write_json

_FILE = "wandb.json"  # in the run folder: project and id


def check_installed() -> None:
    """Raise ValueError where the wandb package is missing; a folder called wandb, which it makes, is none."""
    found = importlib.util.find_spec("wandb")
    if found is None or found.origin is None:
        raise ValueError("wandb=<project> needs a package that is missing: pip install 'toto-robot[wandb]'")


class WandbLog:
    """One W&B run, begun or continued."""

    def __init__(self, project: str, run_dir: Path, settings: Mapping[str, Any]) -> None:
        """`settings` are shown as the run's configuration. ValueError where the run was begun in another project."""
        check_installed()
        import wandb

        path = run_dir / _FILE
        begun = read_json(path) if path.is_file() else {"project": project, "id": secrets.token_hex(4)}
        if begun["project"] != project:
            raise ValueError(f"{run_dir} logs to the W&B project {begun['project']!r}; give wandb={begun['project']}")
        write_json(path, begun)  # before the first word to W&B: a kill in between must not make a second run
        self._run = wandb.init(
            project=project, id=begun["id"], name=run_dir.name, dir=str(run_dir), config=dict(settings), resume="allow"
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Send the scalars after `step` steps."""
        self._run.log({key: float(value) for key, value in values.items()}, step=step)

    def __enter__(self) -> WandbLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run.finish(exit_code=0 if kind is None else 1)
