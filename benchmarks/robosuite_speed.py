"""How many steps a second does a robosuite task make through our adapter, against robosuite as shipped?

    python benchmarks/robosuite_speed.py [--rounds 5] [--steps 200] [--rows state pixels_128 pixels_224]

Both run Lift with a Panda under random OSC_POSE actions at 20 Hz, one camera (agentview) where there are pixels, in
one process each (robosuite's render contexts disturb others in their process) with one BLAS thread, taking turns so
that the machine's mood hits both. The task, its physics and its control law are the same. No resets in either: ours are
in `reset_s`. `limit` is what MuJoCo alone does: the 25 physics steps of one control period, nothing else.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from env_speed import PEER_NAME, robosuite_lift
from paired import result, step_rates

ROWS = {"state": None, "pixels_128": 128, "pixels_224": 224}
WARM_UP_STEPS = 30  # numba compiles, or loads what it compiled, in the first steps
ENDLESS_STEPS = 10**9


def _ours(size: int | None) -> Any:
    from envs.robosuite_tasks import make_robosuite_env

    options: dict[str, Any] = {"obs_mode": "state"}
    if size is not None:
        options = {"obs_mode": "pixels", "image_size": size, "cameras": ("agentview",)}
    env = make_robosuite_env("Lift", horizon_steps=ENDLESS_STEPS, **options)
    assert env.fast, env.why_not_fast
    return env


def _step_ours(size: int | None) -> Callable[[], None]:
    env = _ours(size)
    env.reset(seed=0)
    random = np.random.default_rng(0)
    return lambda: env.step(random.uniform(-1.0, 1.0, 7))


def _step_mujoco(size: int | None) -> Callable[[], None]:
    import mujoco

    env = _ours(None)
    env.reset(seed=0)
    model, data = env.robosuite.sim.model._model, env.robosuite.sim.data._data
    return lambda: mujoco.mj_step(model, data, nstep=25)


def _reset_s(rounds: int) -> list[float]:
    """Return median seconds of a reset with a new cube (default) and with the same cube (hard_reset=False)."""
    from envs.robosuite_tasks import make_robosuite_env

    medians = []
    for hard in (True, False):
        env = make_robosuite_env("Lift", hard_reset=hard)
        took = []
        for seed in range(rounds):
            started = time.perf_counter()
            env.reset(seed=seed)
            took.append(time.perf_counter() - started)
        medians.append(round(float(np.median(took)), 4))
    return medians


def measure(name: str, rounds: int, steps: int) -> dict[str, Any]:
    """Return one result row."""
    size = ROWS[name]
    makers = {
        "ours": partial(_step_ours, size),
        "peer": partial(robosuite_lift, size),
        "limit": partial(_step_mujoco, size),
    }
    rates = step_rates(makers, rounds=rounds, steps=steps, warm_up=WARM_UP_STEPS)
    limit = "mj_step of one control period, same model"
    return result(f"robosuite_{name}", rates, peer_name=PEER_NAME, unit="env steps/s", limit_name=limit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    options = parser.parse_args()
    for name in options.rows:
        row = measure(name, options.rounds, options.steps)
        if name == "state":
            row["reset_s"] = dict(zip(("new_cube", "same_cube"), _reset_s(options.rounds), strict=True))
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
