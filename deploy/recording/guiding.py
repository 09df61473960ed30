"""Which actions would have moved the arm as a person's hand has moved it?

Between two measurements: the command that takes the simulated servo (servo_model.py) from the first to the second is
unique, because the servo is linear. The action is what moves the command there from where it was a step before. What
one step could not do goes to the next. How the elbow moved meanwhile is no action of ee_delta, and is left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deploy.drivers.base import ARM_JOINTS, Floats
from deploy.kinematics import jacobian
from deploy.servo_model import servo_path
from deploy.task_interface import DAMPING, POSTURE_RATE_S, TRAINED, Measured, TaskInterface

MOVING_M = 0.001  # change of the opening in a step; a hand reports to a tenth of a millimetre


def recover_actions(task: Mapping[str, Any], path: Sequence[Measured]) -> np.ndarray:
    """Return actions (T, A) float32 in [-1, 1] for T + 1 measurements, one control period apart.

    An ee_delta motion that was too fast keeps its direction. The gripper entry says which way the opening went last;
    fingers that stand still on a thing go on closing.
    """
    interface, scale = TaskInterface(task), np.asarray(task["action_scale"], np.float64)
    robot, servo = TRAINED[task["robot"]], _Servo(interface.period_s)
    interface.reset(path[0])
    closed = 1.0 if path[0].width_m < robot.finger_open_m else -1.0
    actions = []
    for now, then in itertools.pairwise(path):
        command_rad = servo.command(now, then)
        step = command_rad - interface.q_rad
        if task["action_mode"] == "ee_delta":
            drift = POSTURE_RATE_S * interface.period_s * (robot.posture_rad - interface.q_rad)
            hand = _hand_motion(step, drift, now.q_rad) / scale[:6]
            opened_m = then.width_m - now.width_m
            closed = closed if abs(opened_m) < MOVING_M else -float(np.sign(opened_m))
            action = np.concatenate([_slower(hand[:3]), _slower(hand[3:]), [closed]])
        else:
            finger = (0.5 * then.width_m - interface.finger_m) / scale[ARM_JOINTS]
            action = np.clip([*step / scale[:ARM_JOINTS], finger], -1.0, 1.0)
        interface.apply(action, now)
        if task["action_mode"] == "ee_delta":  # the elbow went where the person's hand took it
            moves = jacobian(now.q_rad)
            interface.q_rad = command_rad + np.linalg.pinv(moves) @ moves @ (interface.q_rad - command_rad)
        actions.append(action)
    return np.array(actions, np.float32)


class _Servo:
    """The simulated servo over one period: q' = q + approach * (command - q) + coast * dq."""

    def __init__(self, period_s: float) -> None:
        zero, one = np.zeros(1), np.ones(1)
        times_s, approached, _ = servo_path(zero, zero, one)
        self._approach = float(np.interp(period_s, times_s, approached[:, 0]))
        self._coast_s = float(np.interp(period_s, times_s, servo_path(zero, one, zero)[1][:, 0]))

    def command(self, now: Measured, then: Measured) -> Floats:
        """Return the command (7,) that leads from one measurement to the next."""
        moved = then.q_rad - now.q_rad - self._coast_s * now.dq_rad_s
        return np.asarray(now.q_rad + moved / self._approach, np.float64)


def _hand_motion(step_rad: Floats, drift_rad: Floats, q_rad: Floats) -> Floats:
    """Return the hand motion (6,) that the task's damped step, with its drift to the posture, makes `step_rad` (7,)."""
    moves = jacobian(q_rad)
    motion, damping = moves @ step_rad, DAMPING**2
    gram = moves @ moves.T + damping * np.eye(6)
    # The inverse of the damping to first order: it stays bounded where the arm is stretched out.
    return np.asarray(motion + damping * np.linalg.solve(gram, motion - moves @ drift_rad))


def _slower(part: Floats) -> Floats:
    return part / max(1.0, float(np.abs(part).max()))
