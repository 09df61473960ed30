"""How does `toto_robot emulator` run an emulated robot for a person: start, a status line, Ctrl-C?"""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from deploy.emulator.client import Emulator
from deploy.emulator.process import Settings
from deploy.emulator.robot import VERSIONS

_STATUS_EVERY_S = 0.5


@dataclass(frozen=True, kw_only=True)
class EmulatorConfig:
    """Settings of `toto_robot emulator`."""

    MAY_CHANGE = (
        *("env", "robot", "address", "pacing", "seed", "cameras", "image_size", "camera_rate_hz"),
        *("preset", "randomize", "seconds"),
    )

    env: str = "franka_pick"  # the scene: franka_pick, franka_cabinet, or a gymnasium id of a franka_panda task
    robot: str = "fr3"  # whose interface: fr3 (protocol 10: franky, pylibfranka) or fer (protocol 5: panda-python)
    address: str = "127.0.0.1"  # loopback address to listen on; several emulators need several (127.0.0.2, ...)
    pacing: str = "lockstep"  # lockstep waits for the client; strict loses what does not come within 1 ms
    seed: int = 0  # of the first scene: what env.reset(seed=...) shows
    cameras: tuple[str, ...] = ()  # cameras to draw: front, wrist
    image_size: int = 128  # side of their pictures, px
    camera_rate_hz: float = 30.0  # their rate
    preset: str = "real"  # of the task
    randomize: tuple[str, ...] = ()  # axes that change the scene with the seed: lights, colors, ..., or all
    seconds: float | None = None  # end by itself after so long; null: until Ctrl-C

    def __post_init__(self) -> None:
        if self.robot not in VERSIONS:
            raise ValueError(f"robot must be one of {', '.join(VERSIONS)}, got {self.robot!r}")
        if self.seconds is not None and not self.seconds > 0:
            raise ValueError(f"seconds must be above 0 or null, got {self.seconds}")
        # The emulator's own process checks these as well; here before it starts.
        Settings(pacing=self.pacing, address=self.address, camera_rate_hz=self.camera_rate_hz)


def emulator(config: EmulatorConfig, run_dir: Path) -> int:
    """Run an emulated Franka arm with the scene of a task, for any libfranka client on this computer.

    Clients connect to the address as to a robot (with their real-time check off). Faults, resets and task success come
    over a control port: `deploy.emulator.client` has the calls. Events go to events.jsonl in the run folder.
    """
    options: dict[str, Any] = {"preset": config.preset}
    if config.randomize:
        options["randomize"] = "all" if config.randomize == ("all",) else dict.fromkeys(config.randomize, 1.0)
    robot = Emulator(
        config.env,
        robot=config.robot,
        seed=config.seed,
        pacing=config.pacing,
        address=config.address,
        cameras=config.cameras,
        image_size=config.image_size,
        camera_rate_hz=config.camera_rate_hz,
        options=options,
        event_file=run_dir / "events.jsonl",
    )
    with robot:
        print(f"{config.robot} at {robot.address} (arm 1337, hand 1338, control 1339), {config.pacing}; Ctrl-C ends it")
        for name, path in robot.cameras.items():
            print(f"camera {name}: frames in {path}")
        _watch(robot, config.seconds)
    print(f"wrote {run_dir / 'events.jsonl'}")
    return 0


def _watch(robot: Emulator, seconds: float | None) -> None:
    """Show what the robot does until it ends, the time is over, or somebody presses Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a script inherits that it is ignored
    start_s = time.monotonic()
    with tqdm(total=seconds, bar_format="{desc}" if seconds is None else None, unit="s") as line:
        try:
            while seconds is None or time.monotonic() - start_s < seconds:
                line.set_description_str(_words(robot.status()))
                if seconds is not None:
                    line.update(min(seconds, time.monotonic() - start_s) - line.n)
                time.sleep(_STATUS_EVERY_S)
        except KeyboardInterrupt:
            line.set_description_str("stopped")


def _words(status: dict[str, Any]) -> str:
    client = "client" if status["connected"] else "no client"
    errors = f" ({', '.join(status['errors'])})" if status["errors"] else ""
    done = "reached" if status["success"] else "open"
    return (
        f"{status['robot_ms'] / 1000:.1f} robot s, {status['mode']}{errors}, {client}, {status['cycles']} cycles, "
        f"{status['lost']} lost, goal {done}"
    )
