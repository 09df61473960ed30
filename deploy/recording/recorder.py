"""How does one episode on the arm become the arrays of an episode store?

Every control period: newest frames, newest state, the operator's decision, one plan for the control process, as in a
deployment (policy_loop.py, whose clock and plans these are). Row t holds what was seen before step t and what was done
in it; what came of it is filled in from the next observation. An episode in which a step came too late is not kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from deploy.cameras.reader import CameraFault, Frame
from deploy.drivers.base import ARM_JOINTS
from deploy.emulator.client import Emulator
from deploy.policy_loop import InferenceConfig, InferenceProcess, PolicyLoop, Waiting
from deploy.realtime.controller import ControlConfig
from deploy.realtime.mailbox import Mailbox
from deploy.realtime.records import CHUNK, EPISODE, EPISODE_FILE, INFERENCE, INFERENCE_FILE
from deploy.recording.guiding import recover_actions
from deploy.recording.operators import Operator, Seen
from deploy.recording.twin import SceneTwin
from deploy.servo_model import LASTS_S
from deploy.session import ProcessDied, Session
from deploy.task_interface import Measured
from toto_robot.data.episodes import IMAGE_PREFIX, ORACLE_KEY

INTERVENTION_KEY = "intervention"  # bool: the operator had taken over from the policy in this step
_POLL_S = 0.002
_TROUBLE_S = 5.0


class Recorded(NamedTuple):
    """How an episode ended: success, failure, horizon, discard, operator or trouble; arrays (T, ...) by key."""

    ended: str
    arrays: dict[str, np.ndarray]
    reason: str = ""


class ArmSession(Session):
    """A session without an inference process: whoever records says where the arm goes."""

    def __init__(self, folder: Path, control: ControlConfig) -> None:
        super().__init__(folder, control, InferenceConfig(bundle=Path(), cameras={}, log_folder=folder))
        self.inference = _NoInference(folder)

    def check_alive(self) -> None:
        """Raise ProcessDied, with its reason, if the control process has ended."""
        dead = self._dead()
        if dead:
            raise ProcessDied(dead)


class _NoInference(InferenceProcess):
    def __init__(self, folder: Path) -> None:
        self._folder, self.process = folder, None

    def __enter__(self) -> _NoInference:
        Mailbox(self._folder / EPISODE_FILE, EPISODE, create=True).close()
        Mailbox(self._folder / INFERENCE_FILE, INFERENCE, create=True).close()
        return self

    def alive(self) -> bool:
        return True


class Emulated(NamedTuple):
    """The emulator and the task's environment beside it, which knows what a simulator knows."""

    emulator: Emulator
    twin: SceneTwin


class Recorder(PolicyLoop):
    """Records episodes; `operator` None is hand guiding, for which no plans are sent."""

    def __init__(
        self,
        config: InferenceConfig,
        folder: Path,
        task: Mapping[str, Any],
        operator: Operator | None,
        emulated: Emulated | None = None,
        *,
        corrects: bool = False,
        late_s: float = LASTS_S,
    ) -> None:
        """`corrects`: a policy runs, and who acted is recorded; a step later than `late_s` ends the episode."""
        self._late_s = late_s
        super().__init__(config, folder, SimpleNamespace(task=task, cameras=tuple(config.cameras)))
        self._task, self._operator, self._emulated, self._corrects = task, operator, emulated, corrects
        self._rows: list[dict[str, Any]] = []
        self._path: list[Measured] = []

    def record(self, number: int, seed: int, horizon_steps: int, verdict: Callable[[], str | None]) -> Recorded:
        """Record one episode; `verdict` is what a person says of it, None while it goes on. Ends at rest."""
        self._rows, self._path, self._following = [], [], False
        if self._emulated:
            self._emulated.twin.begin(max(0, seed))
        if self._operator:
            self._operator.begin(max(0, seed))
        try:
            ended, reason = self._follow(number, horizon_steps, verdict)
        finally:
            if self._operator:
                self._send_stop(number)
                self._wait_for_rest()
                self._chunks.put(np.zeros((), CHUNK))  # takes the stop back
        return Recorded(ended, self._arrays(), reason)

    def _follow(self, number: int, horizon_steps: int, verdict: Callable[[], str | None]) -> tuple[str, str]:
        due_robot_s, stepped_s, said = self._observe_clock(), time.monotonic(), None
        while True:
            said = said or verdict()
            if said in ("operator", "discard"):
                return said, ""
            now_robot_s = self._observe_clock()
            if now_robot_s < due_robot_s:
                time.sleep(_POLL_S)
                continue
            try:
                state, measured = self._measured()
                frames = {name: reader.newest(measured.q_rad) for name, reader in self._readers.items()}
            except (CameraFault, Waiting) as error:
                if time.monotonic() - stepped_s > _TROUBLE_S:
                    return "trouble", str(error)
                time.sleep(_POLL_S)
                continue
            late_s = now_robot_s - due_robot_s
            if self._rows and late_s > self._late_s:
                return "trouble", f"step {len(self._rows)} came {late_s:.2f} s late"
            due_robot_s, stepped_s = max(due_robot_s + self._interface.period_s, now_robot_s), time.monotonic()
            ended = self._look_back(measured, said)
            if ended or len(self._rows) >= horizon_steps:
                return ended or "horizon", ""
            self._record_step(number, state, measured, frames)

    def _look_back(self, measured: Measured, said: str | None) -> str | None:
        """Fill in what came of the step before; return how the episode ended, None while it goes on."""
        scene: Mapping[str, Any] = {}
        if self._operator is None or not self._following:
            self._interface.reset(measured)
        if self._emulated:
            scene = self._emulated.emulator.scene()
            self._emulated.twin.place(scene, measured, self._interface, len(self._rows))
        self._path.append(measured)
        success = said == "success" or bool(scene.get("success", False))
        if self._rows:
            row = self._rows[-1]
            if self._emulated:
                row["next.reward"] = self._emulated.twin.reward(row["action.executed"])
            row["next.success"] = success
        if success:
            return "success"
        return "failure" if said or scene.get("failed") else None

    def _record_step(self, number: int, state: np.ndarray, measured: Measured, frames: Mapping[str, Frame]) -> None:
        proprio = self._interface.proprio(measured)
        pixels = {name: frame.image for name, frame in frames.items()}
        row: dict[str, Any] = {"observation.state": proprio}
        if self._emulated:
            row[ORACLE_KEY], simulator_state = self._emulated.twin.observed()
        row |= {IMAGE_PREFIX + name: image for name, image in pixels.items()}
        if self._operator is None:
            row["action"] = row["action.executed"] = np.zeros(len(self._task["action_names"]), np.float32)
        else:
            decision = self._operator.decide(Seen(proprio=proprio, pixels=pixels, measured=measured), None)
            row["action"] = row["action.executed"] = decision.action
            if self._corrects:
                row[INTERVENTION_KEY] = decision.active
            self._send(number, state, measured, decision.action, frames)
        if self._emulated:
            row["simulator.state"] = simulator_state
        self._rows.append(row)

    def _send(
        self, number: int, state: np.ndarray, measured: Measured, action: np.ndarray, frames: Mapping[str, Frame]
    ) -> None:
        start = (state["command_q_rad"], state["command_dq_rad_s"])
        if not self._following:
            self._following, self._began_s = True, time.monotonic()
            start = (measured.q_rad, np.zeros(ARM_JOINTS))
        chunk = self._chunk(state, self._interface.apply(action, measured), start)
        captures = [frame.capture_s for frame in frames.values()] or [float(state["time_s"])]
        chunk["made_s"], chunk["capture_s"] = time.monotonic(), max(captures)
        chunk["episode"], chunk["step"] = number, len(self._rows)
        self._chunks.put(chunk)

    def _arrays(self) -> dict[str, np.ndarray]:
        """Return the rows whose outcome is known, as a store takes them."""
        rows = [row for row in self._rows if "next.success" in row]
        if not rows:
            return {}
        arrays = {key: np.stack([np.asarray(row[key]) for row in rows]) for key in rows[0]}
        if self._operator is None:
            arrays["action"] = recover_actions(self._task, self._path[: len(rows) + 1])
            arrays["action.executed"] = arrays["action"]
        return arrays
