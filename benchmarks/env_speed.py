"""How many environment steps a second, against robosuite's Lift with the same Panda as shipped?

    python benchmarks/env_speed.py [--rounds 5] [--steps 400] [--rows state pixels_128 pixels_224]

Both run random actions at 20 Hz control, one camera where there are pixels, in one process each (robosuite's render
contexts disturb others in their process) with one BLAS thread, taking turns so that the machine's mood hits both.
Resets: ours are inside the time, robosuite's (0.7 s each) are not. `limit` is what MuJoCo alone does: our physics steps
of one control period, nothing else.
"""

from __future__ import annotations

import argparse
import json
import sys
import types
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from paired import result, step_rates

ROWS = {"state": None, "pixels_128": 128, "pixels_224": 224}
PEER_NAME = "robosuite 1.5.2 Lift/Panda, OSC_POSE, as shipped"
WARM_UP_STEPS = 60  # robosuite compiles numba code in its first steps


def _ours(size: int | None) -> Callable[[], None]:
    import gymnasium

    options: dict[str, Any] = {"obs_mode": "state"}
    if size is not None:
        options = {"obs_mode": "pixels", "image_size": size, "cameras": ("front",)}
    env = gymnasium.make("envs.registration:toto_robot/FrankaPick-v0", **options)
    env.reset(seed=0)
    env.action_space.seed(0)

    def step() -> None:
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            env.reset()

    return step


def _limit(size: int | None) -> Callable[[], None]:
    import mujoco

    from envs.pick import make_franka_pick

    env = make_franka_pick(obs_mode="proprio")
    env.reset(seed=0)
    return lambda: mujoco.mj_step(env.scene.model, env.data, nstep=env.preset.substeps)


def robosuite_lift(size: int | None) -> Callable[[], None]:
    """Return a function that steps robosuite's Lift with a Panda as shipped."""
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
    low, high = env.action_spec

    def step() -> None:
        env.step(random.uniform(low, high))

    return step


def measure(name: str, rounds: int, steps: int) -> dict[str, Any]:
    """Return one result row."""
    size = ROWS[name]
    makers = {"ours": partial(_ours, size), "peer": partial(robosuite_lift, size), "limit": partial(_limit, size)}
    rates = step_rates(makers, rounds=rounds, steps=steps, warm_up=WARM_UP_STEPS)
    return result(name, rates, peer_name=PEER_NAME, unit="env steps/s", limit_name="mj_step of one control period")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    options = parser.parse_args()
    for name in options.rows:
        print(json.dumps(measure(name, options.rounds, options.steps)), flush=True)


if __name__ == "__main__":
    main()
