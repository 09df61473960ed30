"""How does franky (MIT; libfranka in a C++ thread at 1 kHz) move the arm? By impedance, the default for the FR3.

Joint impedance follows every joint. Cartesian impedance follows the hand's pose that the same joint targets mean (so
the safety filter's limits and the workspace box hold as before), stiff in space instead of in the joints; the elbow is
held, softly, where the motion began.

franky's calls release the GIL. Its trackers have no watchdog: a silent caller leaves the arm holding the last target
(the control loop has one). A motion leaves the tracker through `TorqueStopMotion`, which ends without an error.
Outside a motion its `state` waits for the next millisecond's datagram.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from deploy.drivers.base import Floats
from deploy.drivers.client import ClientDriver
from deploy.drivers.impedance import CONTROLS
from deploy.kinematics import tool_motion

TRANSLATION_N_M, ROTATION_NM_RAD = 1000.0, 100.0  # of Cartesian impedance; damping is franky's critical one
_POSTURE_NM_RAD = 10.0  # of the elbow


class FrankyDriver(ClientDriver):
    """An arm behind one of franky's impedance trackers.

    Settings, besides those of every client: collision, the contact threshold of all joints and axes, N m and N; None
    leaves what the arm is set to (tasks with contact commonly need 40 to 100). control, joint_impedance or
    cartesian_impedance; stiffness and damping are the first one's, translation N/m and rotation N m/rad the second's.
    """

    name = "franky"
    module = "franky"

    def __init__(
        self,
        *,
        collision: float | None = None,
        control: str = CONTROLS[0],
        translation: float = TRANSLATION_N_M,
        rotation: float = ROTATION_NM_RAD,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        if control not in CONTROLS:
            raise ValueError(f"control must be one of {', '.join(CONTROLS)}, got {control!r}")
        if not 0.0 < translation <= 4000.0 or not 0.0 < rotation <= 300.0:
            raise ValueError(
                f"expected translation above 0 to 4000 N/m and rotation above 0 to 300 N m/rad, got {translation} and "
                f"{rotation}"
            )
        self._cartesian = control == "cartesian_impedance"
        self._translation, self._rotation = translation, rotation
        if collision is not None and not 0.0 < collision <= 100.0:
            raise ValueError(f"collision is a threshold above 0 to 100 N and N m, got {collision}")
        self._collision = collision

    def _open(self) -> Any:
        config = self._library.RealtimeConfig.Enforce if self._enforce else self._library.RealtimeConfig.Ignore
        robot = self._library.Robot(self.address, realtime_config=config)
        if self._collision is not None:
            robot.set_collision_behavior(self._collision, self._collision)
        return robot

    def _read(self) -> Any:
        return self._arm.state

    def _begin(self, q_rad: Floats) -> None:
        if not self._cartesian:
            self._motion = self._library.JointImpedanceTracker(
                self._arm, stiffness=self._stiffness, damping=self._damping
            )
            return
        self._hand_on_flange = np.array(self._arm.state.F_T_EE.matrix)  # may have been set since the last motion
        self._motion = self._library.CartesianImpedanceTracker(
            self._arm,
            translational_stiffness=self._translation,
            rotational_stiffness=self._rotation,
            posture_task=self._library.PostureTask(q_rad, _POSTURE_NM_RAD),
        )

    def _send(self, q_rad: Floats, dq_rad_s: Floats) -> None:
        if not self._cartesian:
            self._motion.set_target(q_rad, dq_rad_s)
            return
        pose, velocity, turning = tool_motion(q_rad, dq_rad_s, self._hand_on_flange)
        self._motion.set_target(self._library.Affine(pose), self._library.Twist(velocity, turning))

    def _ended(self) -> bool:
        return not self._arm.is_in_control

    def _end(self) -> None:
        self._motion.stop()

    def _let_go(self) -> None:
        self._arm.join_motion()

    def _clear_errors(self) -> None:
        self._arm.recover_from_errors()

    def _open_hand(self) -> _Hand:
        return _Hand(self._library.Gripper(self.address))


class _Hand:
    """franky's gripper; its blocking calls let other threads run."""

    def __init__(self, gripper: Any) -> None:
        self._gripper = gripper

    def read(self) -> tuple[float, float, bool]:
        state = self._gripper.state
        return state.width, state.max_width, state.is_grasped

    def move(self, width_m: float, speed_m_s: float) -> bool:
        return bool(self._gripper.move(width_m, speed_m_s))

    def grasp(self, width_m: float, speed_m_s: float, force_n: float, inner_m: float, outer_m: float) -> bool:
        return bool(self._gripper.grasp(width_m, speed_m_s, force_n, inner_m, outer_m))

    def stop(self) -> bool:
        return bool(self._gripper.stop())

    def close(self) -> None:
        self._gripper = None
