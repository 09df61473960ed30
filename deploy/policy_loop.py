"""How do pictures and joint positions become plans, at the policy's rate, in a process that never touches the robot?

Each step: newest frames, newest state, `Policy.act`, one plan. A plan is what the simulated servo, with which the
policy was trained, would make of the command: it approaches it over the next third of a second, which also bridges an
inference that comes late. Its stamps count from the observation, so the control loop makes up for the latency of camera
and inference by itself.

The period runs on the robot's clock: an emulator in lockstep on a busy machine is slower than the host, an arm is not.
Without a fresh frame or state no plan is made; the control process then holds, and stops after half a second.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

from deploy.cameras.reader import CameraFault, CameraReader, CameraSettings, Frame
from deploy.drivers.base import ARM_JOINTS, Floats
from deploy.policy_latency import PolicyRate, check_rate
from deploy.policy_log import Rows
from deploy.realtime.clock import die_with_parent
from deploy.realtime.machine import IN_CONTROL
from deploy.realtime.mailbox import Mailbox
from deploy.realtime.records import (
    CHUNK,
    CHUNK_FILE,
    EPISODE,
    EPISODE_FILE,
    INFERENCE,
    INFERENCE_FILE,
    READY_FILE,
    STATE,
    STATE_FILE,
    Machine,
)
from deploy.robot_clock import RobotClock
from deploy.servo_model import servo_path
from deploy.task_interface import Command, Measured, TaskInterface
from toto_robot.one_thread import ONE_THREAD, environment_variables
from toto_robot.run_folder import write_json

__all__ = [
    "InferenceConfig",
    "InferenceProcess",
    "PolicyLoop",
    "PolicyRate",
    "Waiting",
    "check_rate",
    "measure",
    "run_inference",
]

_STATE_STALE_S = 0.3
_HAND_STALE_S = 2.0  # a hand reports ten times a second, some not while their fingers move
_POLL_S = 0.002
_REST_S = 5.0  # for the ramp at the end of an episode
_QUIT_S = 3.0
_MEASURED_STEPS = 30
_FOLLOWING = (Machine.IDLE, Machine.RUNNING, Machine.HOLDING)


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """Everything the inference process needs to know."""

    bundle: Path
    # Camera name -> mailbox and the (height, width) that stand in it.
    cameras: Mapping[str, tuple[Path, tuple[int, int]]]
    log_folder: Path
    camera: CameraSettings = field(default_factory=CameraSettings)
    speed: float = 1.0  # of the arm, a share of what the policy asks for
    device: str = "cpu"
    threads: int = 1
    surprise: str = "off"  # or log, or hold: make no plan while the pictures are a surprise (deploy/surprise.py)


class InferenceProcess:
    """The inference process; use as a context manager. `wait_ready` returns what a step costs."""

    def __init__(
        self, config: InferenceConfig, folder: Path, main: Callable[[InferenceConfig, Path, int], None] | None = None
    ) -> None:
        """`main` is what the process runs, `run_inference` if None."""
        self._config, self._folder, self._main = config, folder, main or run_inference
        self.process: BaseProcess | None = None

    def __enter__(self) -> InferenceProcess:
        Mailbox(self._folder / EPISODE_FILE, EPISODE, create=True).close()
        Mailbox(self._folder / INFERENCE_FILE, INFERENCE, create=True).close()
        context = multiprocessing.get_context("spawn")
        self.process = context.Process(
            target=self._main, args=(self._config, self._folder, os.getpid()), name="inference"
        )
        with environment_variables(ONE_THREAD):  # torch is told its threads by name
            self.process.start()
        return self

    def alive(self) -> bool:
        """Say whether the process runs."""
        return self.process is not None and self.process.is_alive()

    def why_dead(self) -> str:
        """Say what has happened where it is not alive."""
        return "the inference process has died"

    def wait_ready(self, timeout_s: float = 300.0) -> dict[str, float]:
        """Wait until the policy is loaded and has been timed; RuntimeError if it fails to."""
        from toto_robot.run_folder import read_json

        deadline_s = time.monotonic() + timeout_s
        while not (self._folder / READY_FILE).exists():
            if not self.alive() or time.monotonic() > deadline_s:
                raise RuntimeError(f"the inference process did not get ready (its bundle: {self._config.bundle})")
            time.sleep(0.02)
        found: dict[str, float] = read_json(self._folder / READY_FILE)
        return found

    def __exit__(self, *error: Any) -> None:
        assert self.process is not None
        if (self._folder / READY_FILE).exists():  # before that nobody listens, and nothing is to be written
            self._ask_to_quit()
            self.process.join(_QUIT_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()

    def _ask_to_quit(self) -> None:
        with Mailbox(self._folder / EPISODE_FILE, EPISODE) as episodes:
            _, episode = episodes.newest()
            episode["running"], episode["quit"] = False, True
            episodes.put(episode)


def run_inference(config: InferenceConfig, folder: Path, parent: int) -> None:
    """Load the bundle, time it, then follow the EPISODE mailbox until it says quit, or its parent is dead."""

    def leave_it_to_the_parent(*_: Any) -> None:
        if os.getppid() != parent:
            raise SystemExit(1)

    # A terminal's Ctrl-C and hang-up, or a kill of the whole group, reach every process of a run. The one with the
    # terminal stops the arm and then ends this one: a policy that died first would leave the arm without a plan.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT):
        signal.signal(number, leave_it_to_the_parent)
    signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    die_with_parent(parent)
    import torch

    from policies.bundle import load_policy

    torch.set_num_threads(config.threads)
    policy = load_policy(config.bundle, config.device)
    monitor = None
    if config.surprise != "off":
        from deploy.surprise import open_monitor

        monitor = open_monitor(config.bundle, policy.encoder)
    write_json(folder / READY_FILE, measure(policy, monitor))
    PolicyLoop(config, folder, policy, monitor).run()


def measure(policy: Any, monitor: Any = None) -> dict[str, float]:
    """Return what one step of a policy costs here, ms, with that of a surprise monitor where there is one."""
    task = policy.task
    random = np.random.default_rng(0)
    size = int(task["image_size"])
    took_ms = []
    policy.reset()
    for _ in range(_MEASURED_STEPS):
        pixels = {name: random.integers(0, 255, (size, size, 3), np.uint8) for name in policy.cameras}
        began_s = time.monotonic()
        policy.act({"proprio": np.zeros(len(task["proprio_names"]), np.float32), "pixels": pixels})
        if monitor is not None:
            monitor.feed_codes(policy.codes, began_s)
        took_ms.append(1e3 * (time.monotonic() - began_s))
    kept = took_ms[5:]  # the first steps fill caches
    return {f"p{percent}_ms": float(np.percentile(kept, percent)) for percent in (10, 50, 99)}


class Waiting(Exception):
    """No plan can be made now; the message says why."""


class PolicyLoop:
    """Steps of a policy on mailboxes."""

    def __init__(self, config: InferenceConfig, folder: Path, policy: Any, monitor: Any = None) -> None:
        self._policy, self._config = policy, config
        self._interface = TaskInterface(policy.task, config.speed)
        size = int(policy.task["image_size"])
        self._readers = {
            name: CameraReader(name, path, size, config.camera, shape)
            for name, (path, shape) in config.cameras.items()
            if name in policy.cameras
        }
        self._states = Mailbox(folder / STATE_FILE, STATE)
        self._chunks = Mailbox(folder / CHUNK_FILE, CHUNK)
        self._episodes = Mailbox(folder / EPISODE_FILE, EPISODE)
        self._told = Mailbox(folder / INFERENCE_FILE, INFERENCE)
        self._news = np.zeros((), INFERENCE)
        self._clock = RobotClock()
        self._hand = HandSpeed()
        self._following, self._began_s, self._seed = False, 0.0, 0
        self._monitor = monitor

    def run(self) -> None:
        """Follow the EPISODE mailbox."""
        while True:
            _, episode = self._episodes.newest()
            if episode["quit"]:
                return
            self._observe_clock()
            if episode["running"] and episode["number"] > self._news["written"]:
                self._run_episode(episode)
            time.sleep(_POLL_S)

    def _run_episode(self, episode: np.ndarray) -> None:
        rows = Rows()
        self._seed = max(0, int(episode["seed"]))
        self._news["episode"], self._news["step"], self._news["waits"] = episode["number"], 0, 0
        self._following = False
        if self._monitor is not None:
            self._monitor.reset()
        due_robot_s = self._observe_clock()
        try:
            while self._goes_on(int(episode["number"])):
                now_robot_s = self._observe_clock()
                if now_robot_s < due_robot_s:
                    time.sleep(_POLL_S)
                    continue
                due_robot_s = max(due_robot_s + self._interface.period_s, now_robot_s)  # no burst after a late step
                self._try_step(int(episode["number"]), rows)
        finally:  # what led to an output that is refused is what one wants to see
            self._send_stop(int(episode["number"]))
            rows.write(self._config.log_folder / f"policy_{int(episode['number']):05d}.npz")
        self._wait_for_rest()
        self._chunks.put(np.zeros((), CHUNK))  # takes the stop back: it would also keep the arm from recovering
        self._news["written"] = episode["number"]
        self._told.put(self._news)

    def _wait_for_rest(self) -> None:
        deadline_s = time.monotonic() + _REST_S
        while Machine(int(self._states.newest()[1]["machine"])) in IN_CONTROL and time.monotonic() < deadline_s:
            time.sleep(_POLL_S)

    def _goes_on(self, number: int) -> bool:
        _, episode = self._episodes.newest()
        return bool(episode["running"]) and int(episode["number"]) == number and not episode["quit"]

    def _observe_clock(self) -> float:
        _, state = self._states.newest()
        return self._clock.observe(float(state["time_s"]), float(state["robot_time_s"]))

    def _try_step(self, number: int, rows: Rows) -> None:
        try:
            state, measured = self._measured()
            frames = {name: reader.newest(measured.q_rad) for name, reader in self._readers.items()}
            self._news["fault"] = b""
            self._step(number, state, measured, frames, rows)
        except (CameraFault, Waiting) as error:
            self._following = False
            self._news["fault"] = str(error).encode()[: self._news.dtype["fault"].itemsize]
            self._news["waits"] = int(self._news["waits"]) + 1
            self._told.put(self._news)

    def _measured(self) -> tuple[np.ndarray, Measured]:
        _, state = self._states.newest()
        if time.monotonic() - float(state["time_s"]) > _STATE_STALE_S:
            raise Waiting("the control process gives no state")
        if Machine(int(state["machine"])) not in _FOLLOWING:
            raise Waiting(f"the arm is {Machine(int(state['machine'])).name.lower()}")
        if Machine(int(state["machine"])) is Machine.IDLE and self._following and self._idle_again():
            self._following = False
        hand_s = float(state["gripper_time_s"])
        if hand_s > 0.0 and time.monotonic() - hand_s > _HAND_STALE_S:
            raise Waiting("the hand gives no state")
        width_m, speed_m_s = self._hand.observe(state)
        return state, Measured(state["q_rad"].copy(), state["dq_rad_s"].copy(), width_m, speed_m_s)

    def _idle_again(self) -> bool:
        """Say whether the arm has stopped following: the first plan needs a tick or two to start the motion."""
        return time.monotonic() - self._began_s > 0.2

    def _step(
        self, number: int, state: np.ndarray, measured: Measured, frames: Mapping[str, Frame], rows: Rows
    ) -> None:
        start = (state["command_q_rad"], state["command_dq_rad_s"])
        if not self._following:  # the arm did what it wanted: plan from where it is, with an empty memory
            self._interface.reset(measured)
            self._policy.reset(seeds=[self._seed])
            self._following, self._began_s = True, time.monotonic()
            start = (measured.q_rad, np.zeros(ARM_JOINTS))
        begin_s = time.monotonic()
        proprio = self._interface.proprio(measured)
        action = self._policy.act({"proprio": proprio, "pixels": {name: f.image for name, f in frames.items()}})
        self._news["surprise"] = self._surprise(frames, rows)
        command = self._interface.apply(action, measured)
        end_s = time.monotonic()
        captures = [frame.capture_s for frame in frames.values()] or [float(state["time_s"])]
        chunk = self._chunk(state, command, start)
        chunk["made_s"], chunk["capture_s"], chunk["episode"] = end_s, max(captures), number
        chunk["step"] = self._news["step"]
        self._chunks.put(chunk)
        rows.add(
            state, proprio, action, command, frames, (min(captures), begin_s, end_s), float(self._news["surprise"])
        )
        self._news["step"] = int(self._news["step"]) + 1
        self._news["capture_s"], self._news["begin_s"], self._news["end_s"] = min(captures), begin_s, end_s
        self._told.put(self._news)

    def _surprise(self, frames: Mapping[str, Frame], rows: Rows) -> float:
        """Return the score of the frames that the policy has just seen; Waiting if the arm is to hold."""
        if self._monitor is None:
            return float("nan")
        captured_s = max(frame.capture_s for frame in frames.values())
        reading = self._monitor.feed_codes(self._policy.codes, captured_s)
        rows.add_surprise(captured_s, reading.score, self._monitor.threshold)
        if reading.alarm and self._config.surprise == "hold":
            self._news["surprise"] = reading.score
            raise Waiting(f"surprise {reading.score:.1f}, successful episodes stay below {self._monitor.threshold:.1f}")
        return reading.score

    def _chunk(self, state: np.ndarray, command: Command, start: tuple[Floats, Floats]) -> np.ndarray:
        """Return the plan: what the simulated servo would do with this command, from the observation on."""
        chunk, rate = np.zeros((), CHUNK), self._clock.rate
        times_s, q_rad, dq_rad_s = servo_path(start[0], start[1] / rate, command.q_rad)
        count = len(times_s)
        chunk["count"], chunk["state_s"] = count, float(state["time_s"])
        chunk["time_s"][:count] = float(state["time_s"]) + times_s / rate  # in this host's seconds
        chunk["q_rad"][:count], chunk["dq_rad_s"][:count] = q_rad, dq_rad_s * rate
        chunk["gripper"][:count] = command.gripper
        return chunk

    def _send_stop(self, number: int) -> None:
        chunk = np.zeros((), CHUNK)
        chunk["made_s"], chunk["episode"], chunk["stop"] = time.monotonic(), number, True
        self._chunks.put(chunk)


class HandSpeed:
    """Width of the fingers, and its speed from reports that come ten times a second."""

    def __init__(self) -> None:
        self._time_s = self._width_m = self._speed_m_s = 0.0

    def observe(self, state: np.ndarray) -> tuple[float, float]:
        """Return width m and speed m/s; an arm without a hand reads as open and still."""
        time_s, width_m = float(state["gripper_time_s"]), float(state["gripper_width_m"])
        if time_s == 0.0:
            return 0.08, 0.0
        if time_s > self._time_s:
            span_s = time_s - self._time_s
            self._speed_m_s = (width_m - self._width_m) / span_s if span_s < 1.0 else 0.0
            self._time_s, self._width_m = time_s, width_m
        return width_m, self._speed_m_s
