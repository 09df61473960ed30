"""What belongs to one emulated robot: scene, arm, hand, faults, events, cameras, figures of its clock?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from deploy.emulator import faults, protocol, robot_model
from deploy.emulator.arm import Arm
from deploy.emulator.cameras import Cameras
from deploy.emulator.events import EventLog
from deploy.emulator.faults import Fault
from deploy.emulator.hand import Hand
from deploy.emulator.plant import Plant
from deploy.emulator.protocol import Command, RobotMode
from deploy.emulator.state import StateWriter
from deploy.emulator.timing import Timing
from deploy.realtime.limits import limits_of

VERSIONS = {"fr3": protocol.V10, "fer": protocol.V5}
_SETTERS = (Command.SET_EE_TO_K, Command.SET_NE_TO_EE, Command.SET_LOAD)


class EmulatedRobot:
    """All that the server asks once a tick."""

    def __init__(self, env_id: str, options: dict[str, Any], robot: str, seed: int, event_file: Path | None) -> None:
        if robot not in VERSIONS:
            raise ValueError(f"robot must be one of {', '.join(VERSIONS)}, got {robot!r}")
        limits = limits_of(robot)
        self.plant = Plant(env_id, options, limits)
        model = robot_model.urdf(self.plant, limits) if robot == "fr3" else robot_model.model_library(self.plant)
        self.events = EventLog(event_file, lambda: self.arm.time_ms if hasattr(self, "arm") else 0)
        self.robot, self.seed = robot, seed
        self.faults: list[Fault] = []
        self.stall_s, self.spoken_version = 0.0, None
        self.drop_clients = False
        self.timing = Timing()
        self.plant.reset(seed)
        self.arm = Arm(VERSIONS[robot], self.plant, limits, self.events, model)
        self.hand = Hand(self.plant, self.events)
        self.cameras: Cameras | None = None
        self._writer = StateWriter(self.arm)

    def reset(self, seed: int) -> None:
        """Put the scene where `env.reset(seed=seed)` puts it, the arm at rest in it. ValueError during a motion."""
        if self.arm.motion is not None:
            raise ValueError("the robot is moving: end the client's motion before a reset")
        self.seed = seed
        self.plant.reset(seed)
        self.arm.rest()
        self.hand.rest()
        self.events.add("reset", seed=seed)

    def request(self, number: int, command_id: int, payload: bytes) -> bytes | None:
        """Answer a request to the arm; None if the answer comes later."""
        answer = self.arm.request(number, command_id, payload)
        if self.arm.version.named(number) in _SETTERS:
            self._writer.refresh()
        return answer

    def state(self) -> bytes:
        """Return the arm's packed state."""
        return self._writer.write()

    def advance(self, command: Any) -> None:
        """Live one millisecond."""
        self._apply_faults()
        self.arm.advance(command)
        self.hand.advance()

    def fault(self, name: str, parameters: dict[str, Any]) -> None:
        """Switch a fault on. ValueError for an unknown one."""
        faults.check(name, parameters)
        self.events.add("fault", fault=name, **parameters)
        if name == "clear":
            self._clear()
        elif name == "stall":
            self.stall_s = float(parameters["duration_ms"]) / 1000.0
        elif name == "tcp_close":
            self.drop_clients = True
        elif name == "version":
            self.spoken_version = parameters.get("number")
        elif name == "reflex":
            self.arm.reflex(parameters["error"])
        elif name == "user_stop" and not parameters.get("pressed", True):
            self._release()
        else:
            left = float(parameters.get("count", float("inf")))
            self.faults.append(Fault(name, parameters, self.arm.time_ms, left))
            if name == "user_stop":
                self.arm.user_stop(True)

    def status(self) -> dict[str, Any]:
        """Return what tests and people want to know, ready for JSON."""
        arm, plant = self.arm, self.plant
        return {
            "robot": self.robot,
            "protocol": arm.version.number,
            "env": plant.env.task_spec.env_id,
            "seed": self.seed,
            "robot_ms": arm.time_ms,
            "mode": RobotMode(arm.mode).name.lower(),
            "moving": arm.motion is not None,
            "errors": sorted(arm.errors),
            "cycles": arm.cycles,
            "lost": arm.lost,
            "longest_lost": arm.longest_lost,
            "success_rate": arm.success_rate,
            "q_rad": plant.q_rad.tolist(),
            "dq_rad_s": plant.dq_rad_s.tolist(),
            "gripper_width_m": plant.finger_width_m(),
            "grasped": self.hand.grasped,
            "goal": plant.goal,
            "success": plant.success_s is not None,
            "success_s": plant.success_s,
            "failed": plant.failed,
            "since_reset_s": plant.ticks / 1000.0,
            "faults": [fault.name for fault in self.faults],
            "camera_frames": {} if self.cameras is None else self.cameras.counts(),
            "timing": self.timing.report(),
        }

    # --- parts --------------------------------------------------------------------------------------------------------

    def _apply_faults(self) -> None:
        now_ms = self.arm.time_ms
        for fault in [fault for fault in self.faults if fault.over(now_ms)]:
            self.faults.remove(fault)
            self.events.add("fault_over", fault=fault.name)
            if fault.name == "user_stop":
                self.arm.user_stop(False)
        on = {fault.name: fault.parameters for fault in self.faults if fault.on(now_ms)}
        self.hand.stuck = "gripper_stuck" in on
        if self.cameras is not None:
            self.cameras.show(self.seed, "camera_freeze" in on, "camera_black" in on)
        self.hand.slow = float(on["gripper_slow"].get("factor", 0.1)) if "gripper_slow" in on else 1.0
        self.plant.push_n_nm = np.array(on["push"]["wrench"], float) if "push" in on else np.zeros(6)

    def _release(self) -> None:
        self.faults = [fault for fault in self.faults if fault.name != "user_stop"]
        self.arm.user_stop(False)

    def _clear(self) -> None:
        self._release()
        self.faults, self.spoken_version = [], None
