"""The whole system for tests: emulator with cameras, control process, inference process, a policy that lifts the hand.

The policy is a real bundle with a small encoder, fast enough for a busy host; its action statistics are set so that it
says "up, 5 cm/s" whatever it sees, and its gripper entry is turned around every HAND_STEPS. So arm and hand move all
the time, touch nothing, and every fault finds them in motion.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from deploy.emulator.client import Emulator
from deploy.policy_loop import InferenceConfig, InferenceProcess, run_inference
from deploy.realtime.controller import ControlConfig
from deploy.realtime.machine import IN_CONTROL, MachineSettings
from deploy.realtime.mailbox import memory_folder
from deploy.realtime.records import REPORT_FILE, TICK_FILE, Machine
from deploy.realtime.ticklog import read_ticks
from deploy.session import Outcome, Session, Watch
from policies.bc import BCConfig
from policies.collect import CollectConfig, collect_episodes
from policies.encoder import EncoderConfig
from policies.evaluate import EvaluationConfig
from policies.train import TrainPolicyConfig, train_bundle
from tests.encoders.small import PX as SIZE_PX
from tests.encoders.small import save_toto
from toto_robot.run_folder import read_json, sha256_file, write_json

UP = (0.0, 0.0, 0.12, 0.0, 0.0, 0.0, -1.0)  # 2.4 mm a step
HAND_STEPS = 15  # 0.75 s: the hand takes a command every 0.6 s
STOP_S = 0.5
RATE_HZ = 100.0
MOVES_RAD_S = 1e-3
PATIENCE_S = 40.0


_made: list[Path] = []


def make_bundle(folder: Path) -> Path:
    """Return a bundle that lifts the hand, made once for all tests of a process."""
    if not _made:
        _made.append(_make_bundle(folder))
    return _made[0]


def _make_bundle(folder: Path) -> Path:
    collect_episodes(CollectConfig(episodes=2, image_size=SIZE_PX, workers=1), folder / "episodes")
    settings = TrainPolicyConfig(
        demos=str(folder / "episodes"),
        demonstrations=2,
        cache=str(folder / "cache"),
        encoder=EncoderConfig(name="toto", path=str(save_toto(folder / "toto"))),
        bc=BCConfig(steps=2, batch_size=8, validate_every=2, log_every=2, checkpoint_every=2),
        evaluation=EvaluationConfig(episodes=1, workers=1),
    )
    bundle = train_bundle(settings, folder / "run")
    description = read_json(bundle / "policy.json")
    statistics = description["normalizers"]["action"]
    statistics["offset"], statistics["scale"] = list(UP), [1e-6] * len(UP)
    write_json(bundle / "policy.json", description)
    hashes = read_json(bundle / "hashes.json")
    hashes["policy.json"] = sha256_file(bundle / "policy.json")
    write_json(bundle / "hashes.json", hashes)
    return bundle


def run_alternating(config: InferenceConfig, folder: Path, parent: int) -> None:
    """Be the inference process, with a policy that opens and closes the hand in turn."""
    from policies import bundle

    load = bundle.load_policy

    def load_alternating(path: Path, device: str) -> Any:
        policy, steps = load(path, device), itertools.count()
        act = policy.act

        def alternate(observation: Any) -> np.ndarray:
            action = act(observation)
            action[-1] = 1.0 if next(steps) // HAND_STEPS % 2 else -1.0
            return action

        policy.act = alternate
        return policy

    bundle.load_policy = load_alternating
    run_inference(config, folder, parent)


@dataclass
class Seen:
    """What a fault's check is told."""

    cell: Cell
    steps: int  # policy steps since the fault
    fault_s: float  # when it was switched on
    since: int  # number of the emulator's last event before it

    @property
    def machine(self) -> Machine:
        return self.cell.session.machine

    def events(self, name: str) -> list[dict[str, Any]]:
        return self.cell.emulator.events(since=self.since, event=name)


class Cell:
    """Emulator and session; `strike` runs an episode, switches a fault on in mid-motion, and waits for what follows."""

    def __init__(self, bundle: Path, log: Path, robot: str = "fr3", connect: bool = True) -> None:
        self.log, self.number = log, 0
        log.mkdir(parents=True, exist_ok=True)
        self.emulator = Emulator(robot=robot, cameras=("front", "wrist"), image_size=SIZE_PX).start()
        self.folder = memory_folder()
        control = ControlConfig(
            driver="franky",
            robot="fr3",
            address=self.emulator.address,
            rate_hz=RATE_HZ,
            log_folder=log,
            machine=MachineSettings(stop_s=STOP_S, pause_s=0.1, tries=5, forget_s=0.2),
        )
        cameras = {name: (path, (SIZE_PX, SIZE_PX)) for name, path in self.emulator.cameras.items()}
        inference = InferenceConfig(bundle=bundle, cameras=cameras, log_folder=log)
        self.session = Session(self.folder, control, inference)
        self.session.inference = InferenceProcess(inference, self.folder, run_alternating)
        self.session.__enter__()
        try:
            self.session.inference.wait_ready()
            if connect:
                self.session.wait_connected()
        except BaseException:
            self.close()  # an emulator that stays would take its share of the host from all later tests
            raise

    def strike(
        self, inject: Callable[[Cell], Any], done: Callable[[Seen], bool], after_steps: int = 8
    ) -> tuple[Outcome, Seen]:
        """Return how the episode ended and what was seen; AssertionError if `done` does not come true."""
        self.number += 1
        self.emulator.fault("clear")
        self.emulator.reset(self.number)
        self.session.allow()
        self.session.confirm()
        self.wait(lambda: self.session.machine is Machine.IDLE and self._still(), "idle before the episode")
        seen = Seen(self, 0, 0.0, 0)
        began_s, struck_at = time.monotonic(), None

        def judge() -> str | None:
            nonlocal struck_at
            step = int(self.session.news["step"]) if int(self.session.news["episode"]) == self.number else 0
            if struck_at is None:
                if step < after_steps:
                    assert time.monotonic() - began_s < PATIENCE_S, f"no motion: {self.words()}"
                    return None
                seen.since = self.emulator.events()[-1]["number"]
                struck_at, seen.fault_s = step, time.monotonic()
                inject(self)
                return None
            seen.steps = step - struck_at
            if done(seen):
                return "failure"
            assert time.monotonic() - seen.fault_s < PATIENCE_S, f"the fault did not end as it should: {self.words()}"
            return None

        watch = Watch(horizon_steps=100_000, longest_s=2 * PATIENCE_S, trouble_s=2 * PATIENCE_S)
        return self.session.run_episode(self.number, self.number, watch, judge), seen

    def words(self) -> str:
        """Return where everything stands, for a failing assertion."""
        news = self.session.news
        return f"machine {self.session.machine.name}, step {news['step']}, {bytes(news['fault'])!r}"

    def speed(self) -> float:
        """Return the fastest joint's speed in the emulator, rad/s."""
        return float(np.abs(self.emulator.status()["dq_rad_s"]).max())

    def drawing_process(self) -> psutil.Process:
        """Return the process that draws the cameras' pictures."""
        return psutil.Process(self.emulator.pid).children()[0]

    def _still(self) -> bool:
        return bool(np.abs(self.session.state["q_rad"] - self.emulator.status()["q_rad"]).max() < 1e-3)

    def wait(self, true: Callable[[], bool], what: str) -> None:
        """Wait until something is true; AssertionError after a while."""
        until_s = time.monotonic() + PATIENCE_S
        while not true():
            assert time.monotonic() < until_s, f"{what}: {self.words()}"
            time.sleep(0.02)

    def close(self) -> None:
        """End everything."""
        self.session.__exit__(None, None, None)
        self.emulator.stop()

    def report(self) -> dict[str, Any]:
        """Return what the control process wrote at its end."""
        found: dict[str, Any] = json.loads((self.log / REPORT_FILE).read_text())
        return found

    def longest_stale_motion_s(self) -> float:
        """Return for how long the arm was commanded to move on one plan, over all ticks of the log.

        In the robot's time: a robot that is silent or dead takes no command, and while the host keeps the loop from
        running there is none.
        """
        ticks = read_ticks(self.log / TICK_FILE)
        start_s, robot_s = ticks["start_s"], np.maximum.accumulate(ticks["robot_time_s"])
        moving = np.isin(ticks["machine"], IN_CONTROL) & (np.abs(ticks["command_dq_rad_s"]).max(axis=1) > MOVES_RAD_S)
        age_s = robot_s - np.interp(ticks["chunk_made_s"], start_s, robot_s)
        return float(age_s[moving].max(initial=0.0))
