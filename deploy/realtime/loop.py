"""What happens in a tick of the control process?

It reads the robot's state, the newest chunk and the operator, steps the state machine, asks the chunk follower where to
be, sends that through the safety filter to the driver, and publishes what happened. It never waits for another process
and never touches a disk.
"""

from __future__ import annotations

import gc
import time
from collections import Counter
from pathlib import Path

import numpy as np

from deploy.drivers.base import ConnectionLost, DriverError, Mode, RobotDriver, RobotState
from deploy.realtime.braking import Motion
from deploy.realtime.clock import Ticker, ordinary_scheduling, raise_priority
from deploy.realtime.config import ControlConfig
from deploy.realtime.gripper import GripperWorker
from deploy.realtime.interpolate import ChunkFollower, Wish
from deploy.realtime.machine import IN_CONTROL, Do, Seen, StateMachine
from deploy.realtime.mailbox import Mailbox
from deploy.realtime.records import (
    CHUNK,
    CHUNK_FILE,
    OPERATOR,
    OPERATOR_FILE,
    STATE,
    STATE_FILE,
    TICK_FILE,
    Machine,
    fill_state,
)
from deploy.realtime.safety import MAX_DT_S, GraspPoint, filter_target
from deploy.realtime.ticklog import TickLog

_LONGEST_RAMP_S = 2.0
_SHORTEST_S = 1e-4


class Controller:
    """The loop. `run` returns when it was asked to quit; the driver must be connected."""

    def __init__(
        self, config: ControlConfig, folder: Path, driver: RobotDriver, grasp_point: GraspPoint | None
    ) -> None:
        self.config, self.driver = config, driver
        self.limits = config.safety(grasp_point, driver.server_version())
        self.machine = StateMachine(config.machine)
        self.follower = ChunkFollower(config.blend_s)
        self.quit = False  # set by signal handlers
        self.missed = 0
        self._boxes = {
            "state": Mailbox(folder / STATE_FILE, STATE),
            "chunk": Mailbox(folder / CHUNK_FILE, CHUNK),
            "operator": Mailbox(folder / OPERATOR_FILE, OPERATOR),
        }
        self._published = np.zeros((), STATE)
        self._chunk_sequence = 0
        self._policy_stop = False
        self._asked = False  # a person, the policy or the end of the process asks for a stop or a hold
        self._starving = False  # a motion ended for want of a fresh plan
        self._active = self.limits  # widened where a motion starts outside the margins
        self._command = Motion(np.zeros(7), np.zeros(7), np.zeros(7))
        self._robot_s, self._credit_s = 0.0, 0.0  # the robot's clock, and how much of it commands have not used yet
        self._gripper: GripperWorker | None = None
        self.gripper_commands, self.gripper_failures = 0, Counter[str]()
        self.log = TickLog(config.log_folder / TICK_FILE, config.rate_hz) if config.log_folder else None

    def run(self) -> None:
        """Tick until asked to quit and at rest."""
        self._attach_gripper()
        if self.config.realtime_priority:  # after the threads of the log and the hand, which would inherit it
            try:
                raise_priority(self.config.realtime_priority)
            except PermissionError:
                self._leave()
                raise
        gc.collect()
        gc.freeze()
        gc.disable()  # a collection takes milliseconds
        ticker = Ticker(self.config.rate_hz)
        last_s, number = ticker.deadline_s, 0
        try:
            while not (self.quit and self.machine.state not in IN_CONTROL):
                now_s = ticker.wait()
                # Never more than a few periods: after a pause the arm goes on from where it was told to be.
                dt_s = min(max(now_s - last_s, 0.5 * ticker.period_s), 4 * ticker.period_s, MAX_DT_S)
                last_s, number = now_s, number + 1
                self.tick(number, ticker.deadline_s, now_s, dt_s)
        finally:
            self.missed = ticker.missed
            gc.enable()
            self._leave()

    def tick(self, number: int, deadline_s: float, now_s: float, dt_s: float) -> None:
        """Do everything once."""
        state, failure = self._robot_state()
        operator = self._boxes["operator"].newest()[1]
        self._take_chunk(now_s)
        self.quit |= bool(operator["quit"])
        self._asked = bool(operator["stop"]) or bool(operator["hold"]) or self.quit or self._policy_stop
        done = self.machine.step(
            Seen(
                now_s=now_s,
                chunk_made_s=self.follower.made_s,
                observed_s=self.follower.observed_s,
                stop=bool(operator["stop"]) or self.quit or self._policy_stop,
                hold=bool(operator["hold"]),
                confirmations=int(operator["confirm"]),
                at_rest=not (np.any(self._command.dq_rad_s) or np.any(self._command.ddq_rad_s2)),
                mode=state.mode if state else Mode.OTHER,
                failure=failure,
            )
        )
        self._act(done, state, now_s)
        guards, wish = self._command_arm(state, now_s, self._in_robot_time(dt_s, state))
        self._publish(number, state, wish)
        if self.log is not None:
            self._log(self.log, number, deadline_s, now_s, state, guards, wish)

    def _robot_state(self) -> tuple[RobotState | None, DriverError | None]:
        """Return the newest state, or what ended the motion."""
        if self.machine.state is Machine.LOST:
            return None, None
        try:
            return self.driver.state(), None
        except DriverError as error:
            return None, error

    def _take_chunk(self, now_s: float) -> None:
        sequence, chunk = self._boxes["chunk"].newest()
        if sequence == self._chunk_sequence:
            return
        self._chunk_sequence = sequence
        self._policy_stop = bool(chunk["stop"])
        if self._policy_stop:
            return
        following = self.machine.state is Machine.RUNNING and np.isfinite(self.follower.made_s)
        present = self.follower.at(now_s)[:2] if following else (self._command.q_rad, self._command.dq_rad_s)
        self.follower.accept(chunk, now_s, present)

    def _act(self, done: Do, state: RobotState | None, now_s: float) -> None:
        """Do what the machine asks for; a failure goes back to it."""
        try:
            if done is Do.START:
                assert state is not None  # IDLE needs one
                self._active = self.limits.starting_at(state.q_rad)
                if not self.config.dry_run:
                    self.driver.start()
                self._command = Motion(state.q_rad.copy(), np.zeros(7), np.zeros(7))
            elif done is Do.END and not self.config.dry_run:
                self.driver.stop()
            elif done is Do.RECOVER:
                self.driver.recover()
            elif done is Do.CONNECT:
                self._detach_gripper()
                self.driver.connect()
                with ordinary_scheduling():
                    self._attach_gripper()
        except DriverError as error:
            again = done is Do.CONNECT and not isinstance(error, ConnectionLost)
            self._fail(ConnectionLost(str(error)) if again else error, now_s)
        except ValueError as error:  # outside the joints' range
            self._fail(DriverError(str(error)), now_s)

    def _fail(self, error: DriverError, now_s: float) -> None:
        confirmations = int(self._boxes["operator"].newest()[1]["confirm"])
        self.machine.step(
            Seen(now_s=now_s, chunk_made_s=-np.inf, confirmations=confirmations, mode=Mode.OTHER, failure=error)
        )

    def _in_robot_time(self, dt_s: float, state: RobotState | None) -> float:
        """Return the time step, no longer than what passed for the robot since the last one.

        Limits hold in the robot's time. Its clock runs behind ours when states are late, or in an emulator that waits
        for its client; the slack is for states that are not read at the millisecond.
        """
        if state is None:
            return dt_s
        passed_s, self._robot_s = state.robot_time_s - self._robot_s, state.robot_time_s
        slack_s = 2.0 / self.config.rate_hz
        self._credit_s = min(self._credit_s + max(passed_s, 0.0), dt_s + slack_s)
        step_s = max(min(dt_s, self._credit_s), _SHORTEST_S)
        self._credit_s -= step_s
        return step_s

    def _command_arm(self, state: RobotState | None, now_s: float, dt_s: float) -> tuple[int, Wish | None]:
        """Send the next command; return the guards that acted and what was asked for."""
        wish = self.follower.at(now_s) if np.isfinite(self.follower.made_s) else None
        if self._gripper is not None:
            self._gripper.allowed = self.machine.state in IN_CONTROL
        if self.machine.state not in IN_CONTROL or state is None:
            if state is not None:
                self._command = Motion(state.q_rad, np.zeros(7), np.zeros(7))
            return 0, None
        running = self.machine.state is Machine.RUNNING and wish is not None
        target = (wish.q_rad, wish.dq_rad_s) if running and wish else (self._command.q_rad, np.zeros(7))
        age_s = now_s - self.follower.made_s if running else np.inf
        measured = self._command.q_rad if self.config.dry_run else state.q_rad
        self._command, guards = filter_target(self._command, target, measured, age_s, self._active, dt_s)
        if self._active is not self.limits:
            self._active = self._active.narrowed(self._command, self.limits)
        if not self.config.dry_run:
            try:
                self.driver.set_target(self._command.q_rad, self._command.dq_rad_s)
            except DriverError as error:
                self._fail(error, now_s)
            if running and wish and self._gripper is not None:
                self._gripper.want(wish.gripper)
        return int(guards), wish

    def _publish(self, number: int, state: RobotState | None, wish: Wish | None) -> None:
        record = self._published
        if state is not None:
            fill_state(record, state)
        record["tick"], record["machine"] = number, self.machine.state
        record["command_q_rad"], record["command_dq_rad_s"] = self._command.q_rad, self._command.dq_rad_s
        record["chunk_sequence"], record["recoveries"] = self._chunk_sequence, self.machine.total_tries
        record["gave_up"] = self.machine.gave_up
        errors = ",".join(state.errors) if state is not None and state.errors else self.machine.reason
        record["errors"] = errors.encode()[: record.dtype["errors"].itemsize]
        worker = self._gripper
        if worker is not None and worker.state is not None:
            hand = worker.state
            record["gripper_time_s"], record["gripper_width_m"] = hand.time_s, hand.width_m
            record["gripper_max_width_m"], record["gripper_grasped"] = hand.max_width_m, hand.grasped
            record["gripper_target"] = worker.target
        self._boxes["state"].put(record)

    def _log(
        self,
        log: TickLog,
        number: int,
        deadline_s: float,
        now_s: float,
        state: RobotState | None,
        guards: int,
        wish: Wish | None,
    ) -> None:
        record, published = log.record(), self._published
        record["tick"], record["deadline_s"], record["start_s"] = number, deadline_s, now_s
        record["end_s"] = time.monotonic()
        for name, source in (("state_s", "time_s"), ("command_q_rad", "command_q_rad"), *_SAME):
            record[name] = published[source]
        record["machine"], record["guards"] = self.machine.state, guards
        record["chunk_made_s"], record["chunk_capture_s"] = self.follower.made_s, self.follower.capture_s
        running = self.machine.state is Machine.RUNNING
        record["plan_ended"] = running and (wish is None or wish.starved)
        record["starved"] = record["plan_ended"] or self._starves()
        record["raw_q_rad"] = wish.q_rad if wish else np.nan
        record["raw_dq_rad_s"] = wish.dq_rad_s if wish else np.nan
        record["gripper_raw"] = wish.gripper if wish else np.nan
        record["command_ddq_rad_s2"] = self._command.ddq_rad_s2
        log.keep()

    def _starves(self) -> bool:
        """Say whether the arm brakes, holds or has stopped for want of a fresh plan, nobody having asked for that."""
        state = self.machine.state
        if self._asked or state is Machine.RUNNING:
            self._starving = False
        elif state is Machine.HOLDING:  # a stop that nobody asked for comes out of this one
            self._starving = True
        return self._starving and state in (*IN_CONTROL, Machine.IDLE)

    def _attach_gripper(self) -> None:
        hand = self.driver.gripper()
        if hand is not None:
            self._gripper = GripperWorker(hand, self.config.gripper)

    def _detach_gripper(self) -> None:
        if self._gripper is not None:
            self._gripper.close()
            self.gripper_commands += self._gripper.commands
            self.gripper_failures.update(self._gripper.failures)
            self._gripper = None

    def _leave(self) -> None:
        """Ramp to rest, end the motion, let go; from any state and after any exception."""
        period_s = 1.0 / self.config.rate_hz
        try:
            until_s = time.monotonic() + _LONGEST_RAMP_S
            while self.machine.state in IN_CONTROL and not self.config.dry_run and time.monotonic() < until_s:
                self._command, _ = filter_target(
                    self._command,
                    (self._command.q_rad, np.zeros(7)),
                    self._command.q_rad,
                    np.inf,
                    self._active,
                    period_s,
                )
                self.driver.set_target(self._command.q_rad, self._command.dq_rad_s)
                if not np.any(self._command.dq_rad_s):
                    break
                time.sleep(period_s)
            if not self.config.dry_run:
                self.driver.stop()
        except DriverError as error:
            self.machine.reason = str(error)
        finally:
            self._detach_gripper()
            if self.log is not None:
                self.log.close()


_SAME = tuple(
    (name, name)
    for name in (
        "robot_time_s",
        "mode",
        "chunk_sequence",
        "q_rad",
        "dq_rad_s",
        "tau_nm",
        "tau_external_nm",
        "command_dq_rad_s",
        "gripper_target",
        "gripper_width_m",
        "success_rate",
    )
)
