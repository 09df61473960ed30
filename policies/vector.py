"""How do several environments step together through gymnasium's vector API, on as many processes as help?

One process an environment (forkserver: GL contexts do not survive a fork; shared memory for observations) where there
are cores for it, all in this process where there are not. Every such process computes with one thread: more would fight
over the cores. An episode that ends is reset in the same step; its last observation and info stay in
`info["final_obs"]` and `info["final_info"]`, and a time limit is truncation, so that bootstrapping is possible.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from policies.environment import make_environment
from policies.processes import usable_cores
from toto_robot.one_thread import ONE_THREAD, environment_variables


def make_vector(env: str, *, num_envs: int | None = None, workers: int | None = None, **settings: Any) -> VectorEnv:
    """Make `num_envs` environments by short name or id, for `reset(seed=[...])` and `step(actions)`.

    Args:
        env: short name (`franka_pick`) or gymnasium id.
        num_envs: how many; None is one for each usable core.
        workers: 0 runs all in this process; None decides by the cores; any other number must equal `num_envs`.
        settings: of the environment (`obs_mode`, `cameras`, ...).

    ValueError for numbers that do not fit. `describe` tells what was chosen.
    """
    count = usable_cores() if num_envs is None else num_envs
    if count < 1:
        raise ValueError(f"expected num_envs of at least 1, got {num_envs}")
    if workers not in (None, 0, count):
        raise ValueError(
            f"expected workers of 0 (this process) or {count} (one an environment, gymnasium's way), got {workers}"
        )
    apart = (1 < count <= 2 * usable_cores()) if workers is None else workers > 0
    if not apart:
        here: list[Callable[[], Any]] = [partial(make_environment, env, **settings)] * count
        return SyncVectorEnv(here, autoreset_mode=AutoresetMode.SAME_STEP)
    makers: list[Callable[[], Any]] = [partial(_make, env, settings)] * count
    with environment_variables(ONE_THREAD):  # the fork server and its children inherit it
        return AsyncVectorEnv(makers, shared_memory=True, context="forkserver", autoreset_mode=AutoresetMode.SAME_STEP)


def describe(vector: VectorEnv) -> str:
    """Return one line on environments, processes and threads."""
    if isinstance(vector, AsyncVectorEnv):
        where = f"{vector.num_envs} processes (forkserver, shared memory), 1 BLAS and 1 GL thread each"
    else:
        where = "this process"
    return f"{vector.num_envs} environments in {where}; {usable_cores()} usable cores"


def _make(env: str, settings: dict[str, Any]) -> Any:
    """Make an environment in a process of its own, where the fork server was started before its variables were set."""
    os.environ.update({key: value for key, value in ONE_THREAD.items() if key not in os.environ})
    return make_environment(env, **settings)
