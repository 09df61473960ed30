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
import multiprocessing
import os
import sys
import time
import types
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from toto_robot.run_folder import git_commit, machine

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


def _step_robosuite(size: int | None) -> Callable[[], None]:
    quiet = types.ModuleType("robosuite.macros_private")
    quiet.CONSOLE_LOGGING_LEVEL = "ERROR"  # type: ignore[attr-defined]
    sys.modules["robosuite.macros_private"] = quiet
    import robosuite

    env = robosuite.make(
        "Lift",
        robots="Panda",
        has_renderer=False,
        has_offscreen_renderer=size is not None,
        use_camera_obs=size is not None,
        use_object_obs=True,
        camera_names="agentview",
        camera_heights=size or 64,
        camera_widths=size or 64,
        control_freq=20,
        ignore_done=True,
    )
    env.reset()
    random = np.random.default_rng(0)
    return lambda: env.step(random.uniform(-1.0, 1.0, 7))


_MAKERS = {"ours": _step_ours, "peer": _step_robosuite, "limit": _step_mujoco}


def _serve(kind: str, size: int | None, line: Connection) -> None:
    """Answer each number of steps with steps a second, until None."""
    step = _MAKERS[kind](size)
    for _ in range(WARM_UP_STEPS):
        step()
    line.send(0.0)
    while (steps := line.recv()) is not None:
        started = time.perf_counter()
        for _ in range(steps):
            step()
        line.send(steps / (time.perf_counter() - started))


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
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # for the workers; more slow robosuite down
    context = multiprocessing.get_context("spawn")
    lines, workers = {}, []
    for kind in _MAKERS:
        lines[kind], other = context.Pipe()
        workers.append(context.Process(target=_serve, args=(kind, ROWS[name], other)))
        workers[-1].start()
        other.close()
        lines[kind].recv()  # ready
    rates: dict[str, list[float]] = {kind: [] for kind in _MAKERS}
    for _ in range(rounds):
        for kind, line in lines.items():
            line.send(steps if kind != "peer" else max(20, steps // 8))
            rates[kind].append(line.recv())
    for line, worker in zip(lines.values(), workers, strict=True):
        line.send(None)
        worker.join()
    ratios = np.array(rates["ours"]) / np.array(rates["peer"])
    return {
        "name": f"robosuite_{name}",
        "ours": round(float(np.median(rates["ours"])), 1),
        "peer": round(float(np.median(rates["peer"])), 1),
        "peer_name": "robosuite 1.5.2 Lift/Panda, OSC_POSE, as shipped",
        "unit": "env steps/s",
        "ratio": round(float(np.median(ratios)), 2),
        "ratio_range": [round(float(ratios.min()), 2), round(float(ratios.max()), 2)],
        "limit": round(float(np.median(rates["limit"])), 1),
        "limit_name": "mj_step of one control period, same model",
        "rounds": rounds,
        "commit": git_commit(),
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
    }


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
