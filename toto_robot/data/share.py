"""Which part of the work is this process's, where several do a job without talking to each other?

Process `rank` of `world_size` takes every `world_size`-th unit. Who it is, is read from what started it: torchrun, a
Slurm array, `srun`, or both of the last (each array task runs several processes).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """This process's place among all that do the same job."""

    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"expected 0 <= rank < world_size, got rank {self.rank} of {self.world_size}")

    def of(self, units: int) -> range:
        """Return the units of `units` that are this process's."""
        return range(self.rank, units, self.world_size)


def share_from(environment: Mapping[str, str] = os.environ) -> Share:
    """Read this process's share from its environment; the whole of it where nothing says otherwise.

    ValueError where a variable that should be a number is none.
    """
    if "WORLD_SIZE" in environment and "RANK" in environment:
        return Share(_number(environment, "RANK"), _number(environment, "WORLD_SIZE"))
    tasks = _number(environment, "SLURM_ARRAY_TASK_COUNT", 1)
    first, step = _number(environment, "SLURM_ARRAY_TASK_MIN", 0), _number(environment, "SLURM_ARRAY_TASK_STEP", 1)
    task = (_number(environment, "SLURM_ARRAY_TASK_ID", first) - first) // step  # --array=1-8 and --array=0-70:10 too
    processes, process = 1, 0
    if "SLURM_PROCID" in environment:
        processes, process = _number(environment, "SLURM_NTASKS", 1), _number(environment, "SLURM_PROCID")
    return Share(task * processes + process, tasks * processes)


def local_rank(environment: Mapping[str, str] = os.environ) -> int:
    """Return this process's number on its machine: which GPU is its own."""
    return _number(environment, "LOCAL_RANK", _number(environment, "SLURM_LOCALID", 0))


def processes_here(environment: Mapping[str, str] = os.environ) -> int:
    """Return how many processes of the job share this machine's cores, where that is said."""
    return max(1, _number(environment, "LOCAL_WORLD_SIZE", 1))


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name)
    if text is None and default is not None:
        return default
    try:
        return int(text or "")
    except ValueError as error:
        raise ValueError(f"expected a number in the environment variable {name}, got {text!r}") from error
