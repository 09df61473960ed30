"""How does an action become servo targets?

Both action modes move the *commanded* joint position, as the real arm's position interface does: a zero action holds
the hand, and equal actions give equal motion. In the `real` preset a step is no faster than the joints' speed limits,
and the command leads the arm only by what makes the servo run at that speed: no winding up against an obstacle.

* `ee_delta`: hand translation and rotation vector in the robot's base frame, whose axes never turn, through one damped
  least-squares step at the measured joint position; the gripper entry is an absolute opening, -1 open .. +1 closed.
* `joint_delta`: seven joint deltas and a finger delta (PixMC's law: target <- clip(target + scale * action)).
"""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np

from envs import specs
from envs.meshes import Floats
from envs.robots import ARM_JOINTS
from envs.scene import Scene

DAMPING = 0.02  # of the least-squares step; 10 cm of hand motion is within 1 cm (0.05: 2.5 cm)
# The hand's pose leaves one of seven joints free: it drifts to the robot's posture.
POSTURE_RATE_S = 2.0
_DIAGONAL = np.diag_indices(6)


class ArmController:
    """Integrates one robot's commanded joint position and finger opening."""

    def __init__(self, scene: Scene, preset: specs.Preset, mode: str) -> None:
        self._scene, self._mode = scene, mode
        self._robot, self._hand = scene.robot, scene.robot.gripper
        self.scale = np.array(specs.action_layout(mode, preset, scene.robot)[2])
        period_s = 1.0 / preset.control_rate_hz
        # Torque kp * lead - kd * speed balances at speed = lead * kp / kd: a bounded lead bounds the speed.
        lag_s = preset.servo_kd_nms_rad / preset.servo_kp_nm_rad
        unlimited = np.full(ARM_JOINTS, np.inf)
        self._lead_rad = self._robot.speed_rad_s * lag_s if preset.speed_limits else unlimited
        self._step_rad = self._robot.speed_rad_s * period_s if preset.speed_limits else unlimited
        self._finger_step = self._hand.speed * period_s if preset.speed_limits else np.inf
        self._finger_low, self._finger_high = sorted((self._hand.open, self._hand.closed))
        self._posture_gain = POSTURE_RATE_S * period_s
        self._jacobian = np.zeros((6, scene.model.nv))
        self._solution = np.zeros(6)
        self.q_rad = np.zeros(ARM_JOINTS)
        self.finger = 0.0  # commanded position of the left driven finger joint, in the gripper's unit

    def reset(self, data: Any) -> None:
        """Command what is measured."""
        self.q_rad = data.qpos[:ARM_JOINTS].copy()
        self.finger = float(data.qpos[ARM_JOINTS])
        self._write(data)

    def neutral_action(self) -> Floats:
        """Return the action that holds arm and fingers where they are commanded. (A,)"""
        action = np.zeros(len(self.scale))
        if self._mode == "ee_delta":
            travel = self._hand.open - self._hand.closed
            action[6] = 1.0 - 2.0 * (self.finger - self._hand.closed) / travel
        return action

    def apply(self, data: Any, action: Floats) -> None:
        """Move the command by `action` (A,) in [-1, 1] and write it to `data.ctrl`; needs current kinematics."""
        scaled = action * self.scale
        measured = data.qpos[:ARM_JOINTS]
        if self._mode == "ee_delta":
            step = self._inverse_kinematics(data, scaled[:6])
            finger = self._hand.opening(action[6])
        else:
            step, finger = scaled[:ARM_JOINTS], self.finger + scaled[ARM_JOINTS]
        # Slow the whole step, not single joints: the hand keeps its direction.
        step = step / max(1.0, float(np.max(np.abs(step) / self._step_rad)))
        target = np.minimum(np.maximum(self.q_rad + step, measured - self._lead_rad), measured + self._lead_rad)
        self.q_rad = np.minimum(np.maximum(target, self._robot.low_rad), self._robot.high_rad)
        change = min(max(finger - self.finger, -self._finger_step), self._finger_step)
        self.finger = min(max(self.finger + change, self._finger_low), self._finger_high)
        self._write(data)

    def _write(self, data: Any) -> None:
        data.ctrl[:ARM_JOINTS] = self.q_rad
        data.ctrl[ARM_JOINTS] = self.finger
        data.ctrl[ARM_JOINTS + 1] = self._hand.right_sign * self.finger

    def _inverse_kinematics(self, data: Any, delta: Floats) -> Floats:
        """Return the joint step (7,) for a hand motion (6,) in the base frame."""
        scene = self._scene
        mujoco.mj_jacSite(scene.model, data, self._jacobian[:3], self._jacobian[3:], scene.hand_site)
        jacobian = self._jacobian[:, :ARM_JOINTS]
        world = (delta.reshape(2, 3) @ scene.base_rotation.T).reshape(6)
        posture = self._posture_gain * (self._robot.posture_rad - self.q_rad)
        gram = jacobian @ jacobian.T
        gram[_DIAGONAL] += DAMPING**2
        mujoco.mju_cholFactor(gram, 0.0)  # a third of numpy's solve, and no BLAS threads
        mujoco.mju_cholSolve(self._solution, gram, world - jacobian @ posture)
        return posture + jacobian.T @ self._solution
