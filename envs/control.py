"""How does an action become servo targets?

Both action modes move the *commanded* joint position, as the real arm's position interface does: a zero action holds
the hand, and equal actions give equal motion. In the `real` preset a step is no faster than the joints' speed limits,
and the command leads the arm only by what makes the servo run at that speed: no winding up against an obstacle.

* `ee_delta`: hand translation and rotation vector in the robot's base frame (axes never turn), through one damped
  least-squares step at the measured joint position; the gripper entry is an absolute opening, -1 open .. +1 closed.
* `joint_delta`: seven joint deltas and a finger delta (PixMC's law: target <- clip(target + scale * action)).
"""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np

from envs import specs
from envs.meshes import Floats
from envs.scene import Scene

DAMPING = 0.02  # of the least-squares step; 10 cm of hand motion is within 1 cm (0.05: 2.5 cm)
# The hand's pose leaves one of seven joints free. It drifts to this posture, else the elbow of PixMC's sideways start
# sinks onto the table (14 of 200 expert episodes).
POSTURE_RAD = np.array([0.0, 0.0, 0.0, -2.0, 0.0, 2.0, 0.785])
POSTURE_RATE_S = 2.0
_DIAGONAL = np.diag_indices(6)


class ArmController:
    """Integrates one robot's commanded joint position and finger opening."""

    def __init__(self, scene: Scene, preset: specs.Preset, mode: str) -> None:
        self._scene, self._mode, self._preset = scene, mode, preset
        self.scale = np.array(specs.action_layout(mode, preset)[2])
        period_s = 1.0 / preset.control_rate_hz
        # Torque kp * lead - kd * speed balances at speed = lead * kp / kd: a bounded lead bounds the speed.
        lag_s = preset.servo_kd_nms_rad / preset.servo_kp_nm_rad
        unlimited = np.full(specs.ARM_JOINTS, np.inf)
        self._lead_rad = specs.JOINT_SPEED_RAD_S * lag_s if preset.speed_limits else unlimited
        self._step_rad = specs.JOINT_SPEED_RAD_S * period_s if preset.speed_limits else unlimited
        self._finger_step_m = specs.FINGER_SPEED_M_S * period_s if preset.speed_limits else np.inf
        self._posture_gain = POSTURE_RATE_S * period_s
        self._jacobian = np.zeros((6, scene.model.nv))
        self._solution = np.zeros(6)
        self.q_rad = np.zeros(specs.ARM_JOINTS)
        self.finger_m = 0.0

    def reset(self, data: Any) -> None:
        """Command what is measured."""
        self.q_rad = data.qpos[: specs.ARM_JOINTS].copy()
        self.finger_m = float(data.qpos[specs.ARM_JOINTS])
        self._write(data)

    def apply(self, data: Any, action: Floats) -> None:
        """Move the command by `action` (A,) in [-1, 1] and write it to `data.ctrl`; needs current kinematics."""
        scaled = action * self.scale
        measured = data.qpos[: specs.ARM_JOINTS]
        if self._mode == "ee_delta":
            step = self._inverse_kinematics(data, scaled[:6])
            finger = 0.5 * (1.0 - action[6]) * specs.FINGER_OPEN_M
        else:
            step, finger = scaled[: specs.ARM_JOINTS], self.finger_m + scaled[specs.ARM_JOINTS]
        # Slow the whole step, not single joints: the hand keeps its direction.
        step = step / max(1.0, float(np.max(np.abs(step) / self._step_rad)))
        target = np.minimum(np.maximum(self.q_rad + step, measured - self._lead_rad), measured + self._lead_rad)
        self.q_rad = np.minimum(np.maximum(target, specs.JOINT_LOW_RAD), specs.JOINT_HIGH_RAD)
        change = min(max(finger - self.finger_m, -self._finger_step_m), self._finger_step_m)
        self.finger_m = min(max(self.finger_m + change, 0.0), specs.FINGER_OPEN_M)
        self._write(data)

    def _write(self, data: Any) -> None:
        data.ctrl[: specs.ARM_JOINTS] = self.q_rad
        data.ctrl[specs.ARM_JOINTS :] = self.finger_m

    def _inverse_kinematics(self, data: Any, delta: Floats) -> Floats:
        """Return the joint step (7,) for a hand motion (6,) in the base frame."""
        scene = self._scene
        mujoco.mj_jacSite(scene.model, data, self._jacobian[:3], self._jacobian[3:], scene.hand_site)
        jacobian = self._jacobian[:, : specs.ARM_JOINTS]
        world = (delta.reshape(2, 3) @ scene.base_rotation.T).reshape(6)
        posture = self._posture_gain * (POSTURE_RAD - self.q_rad)
        gram = jacobian @ jacobian.T
        gram[_DIAGONAL] += DAMPING**2
        mujoco.mju_cholFactor(gram, 0.0)  # a third of numpy's solve, and no BLAS threads
        mujoco.mju_cholSolve(self._solution, gram, world - jacobian @ posture)
        return posture + jacobian.T @ self._solution
