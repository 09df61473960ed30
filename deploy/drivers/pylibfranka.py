"""How does pylibfranka (Franka Robotics, Apache-2.0) move an FR3? Positions that the robot itself interpolates.

pylibfranka never releases the GIL, so a loop of 1 ms in Python would starve. Its asynchronous handler needs none: the
robot (system 5.9 and later) moves between targets with velocity limits of ours. `state` holds the GIL for up to the
millisecond until the next datagram. Stiffness is the robot's own joint impedance, set before the motion; its gripper's
calls would freeze every thread of this process for seconds, so they happen in two others (`remote_hand.py`).
"""

from __future__ import annotations

from typing import Any

from deploy.drivers.base import Floats
from deploy.drivers.client import ClientDriver
from deploy.drivers.remote_hand import RemoteHand

_GOAL_TOLERANCE_RAD = 0.001
_SPEED_SHARE = 0.8  # of the limits, for the robot's interpolation
# What the robot has unless told otherwise (FCI documentation, setJointImpedance); softer follows less exactly.
ROBOT_STIFFNESS = (3000.0, 3000.0, 3000.0, 2500.0, 2500.0, 2000.0, 2000.0)


class PylibfrankaDriver(ClientDriver):
    """An FR3 behind its asynchronous joint position interface. `stiffness` is the robot's; damping is its own."""

    name = "pylibfranka"
    module = "pylibfranka"

    def __init__(self, *, stiffness: Any = ROBOT_STIFFNESS, **settings: Any) -> None:
        super().__init__(stiffness=stiffness, **settings)

    def _open(self) -> Any:
        config = self._library.RealtimeConfig.kEnforce if self._enforce else self._library.RealtimeConfig.kIgnore
        arm = self._library.Robot(self.address, config)
        arm.set_joint_impedance(self._stiffness.tolist())
        return arm

    def _read(self) -> Any:
        self._last = self._arm.read_once()
        return self._last

    def _begin(self, q_rad: Floats) -> None:
        handler = self._library.AsyncPositionControlHandler
        speeds = (_SPEED_SHARE * self._limits.velocity_rad_s).tolist()
        result = handler.configure(self._arm, handler.Configuration(speeds, _GOAL_TOLERANCE_RAD))
        if result.error_message is not None:
            raise RuntimeError(result.error_message)
        self._motion, self._aborted = result.handler, False
        self._send(q_rad, q_rad)

    def _send(self, q_rad: Floats, dq_rad_s: Floats) -> None:
        target = self._library.AsyncPositionControlHandler.JointPositionTarget(q_rad.tolist())
        if not self._motion.set_joint_position_target(target).was_successful:
            self._aborted = True

    def _ended(self) -> bool:
        # With a state given the handler only looks at its mode, without waiting for another datagram.
        feedback = self._motion.get_target_feedback(self._last)
        return self._aborted or feedback.error_message is not None

    def _end(self) -> None:
        self._motion.stop_control()
        self._motion = None

    def _let_go(self) -> None:
        self._motion = None  # its destructor ends what is left of the motion

    def _clear_errors(self) -> None:
        self._arm.automatic_error_recovery()

    def _open_hand(self) -> RemoteHand:
        return RemoteHand(self.module, self.address)
