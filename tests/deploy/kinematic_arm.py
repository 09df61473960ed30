"""What does the control process tell an arm, and what does it do when the arm fails in a chosen way?

An arm without dynamics that is exactly where it was told to be, writes down every call, and fails on request: what no
real client does on a chosen tick. What real clients and physics do is tested with the emulator and the twin.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from deploy.drivers.base import (
    CommandRefused,
    ConnectionLost,
    DriverError,
    GripperState,
    Mode,
    ReflexError,
    RobotState,
    UserStopped,
)

START_RAD = np.array([0.0, -0.7, 0.0, -2.0, 0.0, 1.5, 0.7])
FAULTS: dict[str, tuple[type[DriverError], Mode]] = {
    "reflex": (ReflexError, Mode.REFLEX),
    "user_stop": (UserStopped, Mode.USER_STOPPED),
    "lost": (ConnectionLost, Mode.OTHER),
}


class KinematicArm:
    """A RobotDriver. The file `faults/<name>` says how often a call still fails, or that a state is a fault."""

    name, robot = "kinematic", "fr3"

    def __init__(self, folder: Path, *, with_gripper: bool = False, slowness: float = 1.0, version: int = 10) -> None:
        self.folder, self.q, self.dq, self._slowness = folder, START_RAD.copy(), np.zeros(7), slowness
        self._version = version
        self.mode, self.moving, self.dead = Mode.IDLE, False, True
        self._hand = KinematicHand(self) if with_gripper else None
        (folder / "faults").mkdir(exist_ok=True)
        self._events = open(folder / "events", "ab", buffering=0)  # noqa: SIM115

    def note(self, event: str, **values: Any) -> None:
        self._events.write((json.dumps({"event": event, "time_s": time.monotonic(), **values}) + "\n").encode())

    def take_fault(self, name: str) -> bool:
        path = self.folder / "faults" / name
        if not path.exists():
            return False
        left = int(path.read_text() or 1) - 1
        path.write_text(str(left)) if left > 0 else path.unlink(missing_ok=True)
        self.note("fault", name=name)
        return True

    def connect(self) -> None:
        self.note("connect")
        if self.take_fault("connect"):
            raise ConnectionLost("nobody answers")
        self.dead, self.moving = False, False

    def state(self) -> RobotState:
        if self.dead:
            raise ConnectionLost("dead")
        for name, (error, mode) in FAULTS.items():
            if self.take_fault(name):
                self.mode, self.moving, self.dead = mode, False, name == "lost"
                self.dq = np.zeros(7)
                raise error(name)
        if self.take_fault("crash"):
            raise RuntimeError("a bug")
        now_s = time.monotonic()
        return RobotState(
            time_s=now_s,
            robot_time_s=now_s / self._slowness,
            q_rad=self.q.copy(),
            dq_rad_s=self.dq.copy(),
            q_desired_rad=self.q.copy(),
            tau_nm=np.zeros(7),
            tau_external_nm=np.zeros(7),
            wrench_n_nm=np.zeros(6),
            mode=Mode.MOVE if self.moving else self.mode,
            errors=(),
            command_success_rate=1.0 if self.moving else 0.0,
        )

    def start(self) -> None:
        self.note("start")
        if self.take_fault("start"):
            raise CommandRefused("not in this mode")
        self.moving = True

    def set_target(self, q_rad: np.ndarray, dq_rad_s: np.ndarray) -> None:
        assert self.moving, "a target outside a motion"
        self.q, self.dq = q_rad.copy(), dq_rad_s.copy()
        self.note("target", q=q_rad.tolist(), dq=dq_rad_s.tolist())

    def stop(self) -> None:
        self.note("stop", speed=float(np.abs(self.dq).max()), moving=self.moving)
        self.moving, self.dq = False, np.zeros(7)

    def recover(self) -> None:
        self.note("recover")
        if self.take_fault("recover"):
            raise ReflexError("still in reflex")
        self.mode = Mode.IDLE

    def gripper(self) -> KinematicHand | None:
        return self._hand

    def server_version(self) -> int:
        return self._version

    def close(self) -> None:
        if self.moving:
            self.stop()
        self.note("close")

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class KinematicHand:
    """A GripperDriver whose fingers need 0.2 s."""

    def __init__(self, arm: KinematicArm) -> None:
        self._arm, self._until_s, self.width_m = arm, 0.0, 0.08

    def state(self) -> GripperState:
        return GripperState(time_s=time.monotonic(), width_m=self.width_m, max_width_m=0.08, grasped=False)

    def move(self, width_m: float, speed_m_s: float) -> None:
        self._arm.note("gripper_move", width=width_m)
        self._until_s, self.width_m = time.monotonic() + 0.2, width_m

    def grasp(self, width_m: float, speed_m_s: float, force_n: float) -> None:
        self._arm.note("gripper_grasp", force=force_n)
        self._until_s, self.width_m = time.monotonic() + 0.2, width_m

    def stop(self) -> None:
        self._arm.note("gripper_stop")

    def busy(self) -> bool:
        return time.monotonic() < self._until_s

    def failure(self) -> str | None:
        return "nothing held" if self.width_m == 0.0 else None


def events(folder: Path) -> list[dict[str, Any]]:
    """Return what an arm wrote down so far."""
    lines = (folder / "events").read_bytes().split(b"\n")
    return [json.loads(line) for line in lines[:-1]]
