"""How often do the scripted experts succeed, over the full start ranges, with and without noise?

    python benchmarks/expert_success.py [--seeds 200] [--tasks FrankaPick ...] [--presets real pixmc] [--noise 0.0 0.1]

One JSON object a line: task, preset, noise, successes, episodes, Wilson 95 % interval, steps to success, failed seeds.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import gymnasium
import numpy as np

from policies.statistics import Rate
from toto_robot.run_folder import git_commit, machine

TASKS = ("FrankaPick", "FrankaCabinet", "KukaPick", "KukaCabinet")
FIRST_SEED = 10_000


def run(task: str, preset: str, noise: float, seeds: int) -> dict[str, Any]:
    """Roll the expert out on every seed once."""
    env: Any = gymnasium.make(f"toto_robot/{task}-v0", obs_mode="proprio", preset=preset).unwrapped
    failed, steps, began = [], [], time.perf_counter()
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        env.reset(seed=seed)
        expert = env.expert(seed, noise)
        step = 0
        while True:
            step += 1
            _, _, terminated, truncated, info = env.step(expert.act().executed)
            if info["success"] or terminated or truncated:
                break
        if info["success"]:
            steps.append(step)
        else:
            failed.append(seed)
    rate = Rate(successes=seeds - len(failed), episodes=seeds)
    return {
        "task": task,
        "preset": preset,
        "noise": noise,
        "successes": rate.successes,
        "episodes": seeds,
        "wilson95": [round(bound, 4) for bound in rate.interval],
        "steps_mean": round(float(np.mean(steps)), 1) if steps else None,
        "steps_max": max(steps, default=None),
        "failed_seeds": failed[:10],
        "seconds": round(time.perf_counter() - began, 1),
        "commit": git_commit(),
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--presets", nargs="+", choices=("real", "pixmc"), default=("real", "pixmc"))
    parser.add_argument("--noise", nargs="+", type=float, default=(0.0,))
    options = parser.parse_args()
    for preset in options.presets:
        for task in options.tasks:
            for noise in options.noise:
                print(json.dumps(run(task, preset, noise, options.seeds)), flush=True)


if __name__ == "__main__":
    main()
