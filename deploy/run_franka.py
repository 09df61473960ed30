"""How does a policy bundle run on a Franka arm, real or simulated: `toto_robot deploy`, or this file?

    python deploy/run_franka.py policy=<bundle> robot=emulator episodes=3
    python deploy/run_franka.py policy=<bundle> robot=fr3 address=172.16.0.2 cameras=[front=opencv:0,wrist=opencv:2]

Only `robot`, the address and the cameras differ. Everything that can be refused is refused before anything moves.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from deploy.cameras.reader import wait_for_first
from deploy.cameras.start import start_cameras
from deploy.deploy_config import ROBOTS, DeployConfig, control_config, preflight_config
from deploy.emulator.client import Emulator
from deploy.episode_log import append_episode
from deploy.operator_keys import OperatorKeys
from deploy.person import begun_by_person, confirm_motion, stop_signals
from deploy.policy_loop import InferenceConfig, check_rate
from deploy.preflight import require_host, require_robot
from deploy.realtime.mailbox import memory_folder
from deploy.session import Outcome, ProcessDied, Session, Watch
from deploy.simulated_cell import (
    SimulatedCell,
    emulated_cameras,
    make_emulator,
    make_twin_cell,
    prepare,
    scene_judge,
    scene_says,
)
from deploy.task_interface import check_task
from deploy.twin_cell import TwinCell, make_twin
from policies.bundle import bundle_hash, check_bundle
from policies.statistics import Rate
from toto_robot.run_folder import write_json

_SLOWEST = 8.0  # times the horizon that a simulated episode may take on a busy host


def deploy(config: DeployConfig, run_dir: Path) -> int:
    """Run a policy on a Franka arm, or on the emulator through the real client library.

    Ctrl-C, SIGTERM, a closed terminal and the keys s and q stop the arm in a ramp; e ends an episode; c confirms after
    a user stop. Writes episodes.jsonl, control.json, ticks.bin and what the policy saw; `toto_robot deploy report`
    draws them.
    """
    description = check_bundle(Path(config.policy))
    check_task(description["task"])
    require_host(preflight_config(config))
    with contextlib.ExitStack() as stack:
        stack.enter_context(stop_signals())
        folder = memory_folder()
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        cell = make_cell(config, description, folder, run_dir)
        if isinstance(cell, Emulator):
            stack.enter_context(cell)
        cameras = (
            emulated_cameras(cell, description)
            if cell
            else start_cameras(config.cameras, description["cameras"], folder, stack)
        )
        address = cell.address if isinstance(cell, Emulator) else str(config.address)
        require_robot(preflight_config(config), address)
        control = control_config(config, address, description, run_dir)
        if isinstance(cell, TwinCell):
            control = dataclasses.replace(control, driver_settings=cell.driver_settings(config.first_seed))
        inference = InferenceConfig(
            bundle=Path(config.policy),
            cameras=cameras,
            log_folder=run_dir,
            device=config.device,
            speed=config.speed,
            surprise=config.surprise,
        )
        make = make_twin if isinstance(cell, TwinCell) else None
        session = stack.enter_context(Session(folder, control, inference, make))
        measured = session.inference.wait_ready()
        check_rate(measured, float(description["task"]["control_rate_hz"]))
        session.wait_connected()
        wait_for_first(cameras, config.camera_s)
        print(f"policy: {measured['p50_ms']:.1f} ms a step (p99 {measured['p99_ms']:.1f}); {control.driver} connected")
        if cell is None and not config.dry_run:
            confirm_motion(config.address)
        outcomes = run_episodes(config, description, session, cell, run_dir)
    write_json(run_dir / "deploy.json", summary(config, description, measured, outcomes))
    rate = Rate(successes=sum(outcome["ended"] == "success" for outcome in outcomes), episodes=len(outcomes))
    print(f"{rate}; wrote {run_dir / 'deploy.json'}; next: toto_robot deploy report data={run_dir}")
    return 1 if any(outcome["ended"] == "died" for outcome in outcomes) else 0


def make_cell(config: DeployConfig, description: Any, folder: Path, run_dir: Path) -> Emulator | TwinCell | None:
    """Return the simulated cell of a run, not started; None for a real one."""
    if config.robot == "emulator":
        return make_emulator(config, description, run_dir)
    return make_twin_cell(description, folder) if config.robot == "twin" else None


def run_episodes(
    config: DeployConfig, description: Any, session: Session, cell: SimulatedCell | None, run_dir: Path
) -> list[dict[str, Any]]:
    """Run the episodes one after the other and note each as a line of episodes.jsonl."""
    task, outcomes = description["task"], []
    horizon = config.horizon or int(task["horizon_steps"])
    seconds = horizon / float(task["control_rate_hz"])
    watch = Watch(horizon_steps=horizon, longest_s=_SLOWEST * seconds if cell else 2.0 * seconds)
    with OperatorKeys(session) as keys, open(run_dir / "episodes.jsonl", "a", encoding="utf-8") as lines:
        for number in tqdm(range(1, config.episodes + 1), desc="deploy", unit="episode"):
            seed = config.first_seed + number - 1 if cell else -1
            if cell:
                prepare(cell, session, seed)
            elif number > 1 and not config.dry_run and not begun_by_person(keys, number):
                break
            judge = scene_judge(cell, keys) if cell else keys.verdict
            outcome = session.run_episode(number, seed, watch, judge)
            outcomes.append({"episode": number, "seed": seed, **asdict(outcome), **scene_says(cell)})
            lines.write(json.dumps(outcomes[-1]) + "\n")
            lines.flush()
            append_episode(run_dir, task, number, seed, outcome.ended == "success")
            if outcome.ended in ("died", "operator"):
                tqdm.write(f"ended: {outcome.ended} {outcome.reason}")
                break
    return outcomes


def summary(config: DeployConfig, description: Any, measured: Any, outcomes: Sequence[Any]) -> dict[str, Any]:
    """Return deploy.json: what ran on what, and how it went."""
    rate = Rate(successes=sum(outcome["ended"] == "success" for outcome in outcomes), episodes=len(outcomes))
    return {
        "config": {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(config).items()},
        "bundle": bundle_hash(Path(config.policy)),
        "env": description["task"]["env_id"],
        "policy_ms": measured,
        "episodes": len(outcomes),
        "successes": rate.successes,
        "wilson95": [round(bound, 4) for bound in rate.interval],
    }


__all__ = [
    "ROBOTS",
    "DeployConfig",
    "Outcome",
    "ProcessDied",
    "control_config",
    "deploy",
    "emulated_cameras",
    "make_emulator",
    "prepare",
]


if __name__ == "__main__":
    from toto_robot.cli import main

    main(["deploy", *sys.argv[1:]])
