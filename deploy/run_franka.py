"""How does a policy bundle run on a Franka arm, real or emulated: `toto_robot deploy`, or this file?

    python deploy/run_franka.py policy=<bundle> robot=emulator episodes=3
    python deploy/run_franka.py policy=<bundle> robot=fr3 address=172.16.0.2 cameras=[front=opencv:0,wrist=opencv:2]

Only `robot`, the address and the cameras differ. Everything that can be refused is refused before anything moves.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from deploy.cameras.capture import CaptureProcess, CaptureSettings, make_source
from deploy.drivers.connect import DEFAULT
from deploy.emulator.client import Emulator
from deploy.episode_log import append_episode
from deploy.operator_keys import OperatorKeys
from deploy.policy_loop import InferenceConfig, check_rate
from deploy.preflight import PreflightConfig, require_ready
from deploy.realtime.controller import ControlConfig
from deploy.realtime.machine import MachineSettings
from deploy.realtime.mailbox import memory_folder
from deploy.realtime.records import Machine
from deploy.session import Outcome, ProcessDied, Session, Watch
from deploy.task_interface import check_task
from policies.bundle import bundle_hash, check_bundle
from policies.statistics import Rate
from toto_robot.run_folder import write_json

ROBOTS = ("emulator", "fr3", "fer")
_STATUS_S = 0.1  # between two questions to the emulator
_SETTLE_S = 0.5  # after a reset: the hand reports ten times a second
_SLOWEST = 8.0  # times the horizon that an emulated episode may take on a busy host
_EMULATED_LINK_S = 0.2
_EMULATED_COLLISION = 100.0  # a hand that closes on a thing on a table presses with more than the arm's default of 20


@dataclass(frozen=True, kw_only=True)
class DeployConfig:
    """Settings of `toto_robot deploy`."""

    policy: str  # bundle folder of a trained policy
    robot: str = "emulator"  # emulator, fr3 (Franka Research 3) or fer (Panda)
    address: str | None = None  # of a real arm; the emulator takes a free loopback address
    driver: str | None = None  # franky, pylibfranka or panda; null is the arm's default
    emulated: str = "fr3"  # the arm that robot=emulator is: fr3 (protocol 10) or fer (protocol 5)
    cameras: tuple[str, ...] = ()  # of a real arm, such as [front=opencv:0,wrist=realsense:<serial>]
    episodes: int = 1  # how many
    first_seed: int = 1_000_000  # of the emulator's scenes: first_seed, first_seed + 1, ...
    horizon: int | None = None  # policy steps of an episode; null is the bundle's
    speed: float = 0.7  # share of each action that the arm does; real arms accelerate slower, at 1 they overshoot
    collision: float | None = None  # contact threshold, N and N m (franky); null: the arm's own, 100 if emulated
    rate_hz: float = 100.0  # of the control loop
    realtime: str = "ignore"  # or enforce: refuse a kernel without real time
    realtime_priority: int = 0  # SCHED_FIFO of the control loop, 1 to 98; 0 is none
    device: str = "cpu"  # where the encoder runs
    preflight_s: float = 2.0  # of the communication test before the first motion; the emulator's takes 0.2
    surprise: str = "off"  # log, or hold the arm while the cameras show what successful episodes never did
    dry_run: bool = False  # connect, look and compute; move nothing (also --dry-run)

    def __post_init__(self) -> None:
        if self.robot not in ROBOTS:
            raise ValueError(f"robot must be one of {', '.join(ROBOTS)}, got {self.robot!r}")
        if self.emulated not in DEFAULT:
            raise ValueError(f"emulated must be one of {', '.join(DEFAULT)}, got {self.emulated!r}")
        if self.episodes < 1 or (self.horizon is not None and self.horizon < 1):
            raise ValueError(f"expected episodes and horizon of at least 1, got {self.episodes} and {self.horizon}")
        _preflight(self)  # refuses what it cannot do
        if self.surprise not in ("off", "log", "hold"):
            raise ValueError(f"surprise must be off, log or hold, got {self.surprise!r}")
        if self.robot != "emulator" and not self.address:
            raise ValueError(f"robot={self.robot} needs address=<the robot's address>, such as address=172.16.0.2")
        if self.robot == "emulator" and (self.address or self.cameras):
            raise ValueError("robot=emulator starts its own robot and cameras: leave address and cameras out")

    @property
    def arm(self) -> str:
        """Whose limits hold."""
        return self.emulated if self.robot == "emulator" else self.robot


def deploy(config: DeployConfig, run_dir: Path) -> int:
    """Run a policy on a Franka arm, or on the emulator through the real client library.

    Ctrl-C, SIGTERM, a closed terminal and the keys s and q stop the arm in a ramp; e ends an episode; c confirms after
    a user stop. Writes episodes.jsonl, control.json, ticks.bin and what the policy saw; `toto_robot deploy report`
    draws them.
    """
    description = check_bundle(Path(config.policy))
    check_task(description["task"])
    with contextlib.ExitStack() as stack:
        stack.enter_context(stop_signals())
        folder = memory_folder()
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        emulator = (
            stack.enter_context(make_emulator(config, description, run_dir)) if config.robot == "emulator" else None
        )
        cameras = (
            emulated_cameras(emulator, description) if emulator else start_cameras(config, description, folder, stack)
        )
        address = emulator.address if emulator else str(config.address)
        require_ready(_preflight(config), address)
        control = control_config(config, address, description, run_dir)
        inference = InferenceConfig(
            bundle=Path(config.policy),
            cameras=cameras,
            log_folder=run_dir,
            device=config.device,
            speed=config.speed,
            surprise=config.surprise,
        )
        session = stack.enter_context(Session(folder, control, inference))
        measured = session.inference.wait_ready()
        check_rate(measured, float(description["task"]["control_rate_hz"]))
        session.wait_connected()
        print(f"policy: {measured['p50_ms']:.1f} ms a step (p99 {measured['p99_ms']:.1f}); {control.driver} connected")
        if emulator is None and not config.dry_run:
            confirm_motion(config)
        outcomes = run_episodes(config, description, session, emulator, run_dir)
    write_json(run_dir / "deploy.json", summary(config, description, measured, outcomes))
    rate = Rate(successes=sum(outcome["ended"] == "success" for outcome in outcomes), episodes=len(outcomes))
    print(f"{rate}; wrote {run_dir / 'deploy.json'}; next: toto_robot deploy report data={run_dir}")
    return 1 if any(outcome["ended"] == "died" for outcome in outcomes) else 0


def run_episodes(
    config: DeployConfig, description: Any, session: Session, emulator: Emulator | None, run_dir: Path
) -> list[dict[str, Any]]:
    """Run the episodes one after the other and note each as a line of episodes.jsonl."""
    task, outcomes = description["task"], []
    horizon = config.horizon or int(task["horizon_steps"])
    seconds = horizon / float(task["control_rate_hz"])
    watch = Watch(horizon_steps=horizon, longest_s=_SLOWEST * seconds if emulator else 2.0 * seconds)
    with OperatorKeys(session) as keys, open(run_dir / "episodes.jsonl", "a", encoding="utf-8") as lines:
        for number in tqdm(range(1, config.episodes + 1), desc="deploy", unit="episode"):
            seed = config.first_seed + number - 1 if emulator else -1
            if emulator:
                prepare(emulator, session, seed)
            judge = emulator_judge(emulator, keys) if emulator else keys.verdict
            outcome = session.run_episode(number, seed, watch, judge)
            outcomes.append({"episode": number, "seed": seed, **asdict(outcome), **_robot_says(emulator)})
            lines.write(json.dumps(outcomes[-1]) + "\n")
            lines.flush()
            append_episode(run_dir, task, number, seed, outcome.ended == "success")
            if outcome.ended in ("died", "operator"):
                tqdm.write(f"ended: {outcome.ended} {outcome.reason}")
                break
    return outcomes


def prepare(emulator: Emulator, session: Session, seed: int) -> None:
    """Put the emulated scene where an episode begins, the control process ready for it."""
    emulator.reset(seed)
    session.confirm()  # nobody stands beside an emulated arm
    deadline_s = time.monotonic() + 10.0
    time.sleep(_SETTLE_S)
    while session.machine is not Machine.IDLE and time.monotonic() < deadline_s:
        time.sleep(0.02)


def emulator_judge(emulator: Emulator, keys: OperatorKeys) -> Callable[[], str | None]:
    """Return what asks the emulator, ten times a second, whether the task is done or lost."""
    asked_s = 0.0

    def judge() -> str | None:
        nonlocal asked_s
        now_s = time.monotonic()
        if now_s - asked_s < _STATUS_S:
            return keys.verdict()
        asked_s = now_s
        status = emulator.status()
        if status["success"]:
            return "success"
        return "failure" if status["failed"] else keys.verdict()

    return judge


def control_config(config: DeployConfig, address: str, description: Any, run_dir: Path) -> ControlConfig:
    """Return the control process's settings: an arm holds after two policy periods without a plan."""
    period_s = 1.0 / float(description["task"]["control_rate_hz"])
    driver = config.driver or DEFAULT[config.arm]
    collision = config.collision or (_EMULATED_COLLISION if config.robot == "emulator" else None)
    return ControlConfig(
        driver=driver,
        driver_settings={"collision": collision} if collision and driver == "franky" else {},
        robot=config.arm,
        address=address,
        realtime=config.realtime,
        rate_hz=config.rate_hz,
        realtime_priority=config.realtime_priority,
        machine=MachineSettings(stale_s=min(2.0 * period_s, 0.5)),
        dry_run=config.dry_run,
        log_folder=run_dir,
    )


def make_emulator(config: DeployConfig, description: Any, run_dir: Path) -> Emulator:
    """Return the emulator of the bundle's task, not started."""
    task = description["task"]
    options: dict[str, Any] = {"preset": task["preset"], **(task.get("options") or {})}
    if task.get("randomization"):
        options["randomize"] = task["randomization"]
    return Emulator(
        task["env_id"],
        robot=config.emulated,
        seed=config.first_seed,
        cameras=tuple(description["cameras"]),
        image_size=int(task["image_size"]),
        options=options,
        event_file=run_dir / "robot_events.jsonl",
    )


def confirm_motion(config: DeployConfig) -> None:
    """Ask the person at the terminal before the first motion; RuntimeError without a terminal or without a yes."""
    if not sys.stdin.isatty():
        raise RuntimeError("a real arm moves only after a person confirmed it: run this in a terminal, or dry_run=true")
    print(f"\nThe arm at {config.address} will move. Nobody within its reach? The user stop in your hand?")
    if input("type yes to begin: ").strip().lower() != "yes":
        raise RuntimeError("not confirmed; nothing has moved")


@contextlib.contextmanager
def stop_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP (a lost terminal) into what Ctrl-C is: the run ends, the arm in a ramp.

    SIGINT too: a program that a script starts in the background inherits that it is ignored, and a robot must hear it.
    """

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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


def _preflight(config: DeployConfig) -> PreflightConfig:
    return PreflightConfig(
        robot=config.robot,
        address=config.address,
        driver=config.driver,
        emulated=config.emulated,
        realtime=config.realtime,
        seconds=_EMULATED_LINK_S if config.robot == "emulator" else config.preflight_s,
    )


def emulated_cameras(emulator: Emulator, description: Any) -> dict[str, tuple[Path, tuple[int, int]]]:
    """Return mailbox and picture size of each of the emulator's cameras."""
    size = int(description["task"]["image_size"])
    return {name: (path, (size, size)) for name, path in emulator.cameras.items()}


def start_cameras(
    config: DeployConfig, description: Any, folder: Path, stack: contextlib.ExitStack
) -> dict[str, tuple[Path, tuple[int, int]]]:
    """Start a process for each camera that the bundle looks through; ValueError for a missing one."""
    given = dict(entry.split("=", 1) for entry in config.cameras if "=" in entry)
    missing = [name for name in description["cameras"] if name not in given]
    if missing or len(given) < len(config.cameras):
        raise ValueError(
            f"the bundle looks through {', '.join(description['cameras'])}: give cameras=[<name>=<source>,...], "
            f"such as [{description['cameras'][0]}=opencv:0]; got {list(config.cameras)}"
        )
    started = {}
    for name in description["cameras"]:
        settings = CaptureSettings(name=name, source=given[name])
        make_source(settings)  # an unknown kind is refused here
        process = stack.enter_context(CaptureProcess(settings, folder / f"camera_{name}"))
        started[name] = (process.path, (settings.height, settings.width))
    return started


def _robot_says(emulator: Emulator | None) -> dict[str, Any]:
    if emulator is None:
        return {}
    with contextlib.suppress(RuntimeError, OSError):  # an emulator that was killed
        status = emulator.status()
        return {key: status[key] for key in ("success", "success_s", "since_reset_s", "lost")}
    return {}


__all__ = ["DeployConfig", "Outcome", "ProcessDied", "deploy"]


if __name__ == "__main__":
    from toto_robot.cli import main

    main(["deploy", *("dry_run=true" if word == "--dry-run" else word for word in sys.argv[1:])])
