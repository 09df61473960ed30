"""What does a bundle's observation and action mean on a real arm: measured state in, joint targets out?

The law is the simulated controller's (envs/control.py), computed from measurements alone: both action modes move the
*commanded* joint position, `ee_delta` through one damped least-squares step at the measured joints. A command leads the
measured arm by a bounded angle, so it does not wind up against an obstacle. Only numpy: the robot's computer runs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from deploy.drivers.base import ARM_JOINTS, Floats
from deploy.kinematics import grasp_pose, jacobian

DAMPING = 0.02  # of the least-squares step
POSTURE_RATE_S = 2.0  # with which the free joint motion drifts to the posture
_UNITS = {
    "ee_delta": ("m",) * 3 + ("rad",) * 3 + ("open -1 .. closed +1",),
    "joint_delta": ("rad",) * ARM_JOINTS + ("m",),
}
_PROPRIO = 2 * (ARM_JOINTS + 2) + 9  # scaled positions and speeds of arm and fingers, hand position, two hand axes


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedRobot:
    """The arm that policies were trained with; its ranges scale proprioception whatever arm measures it."""

    low_rad: Floats
    high_rad: Floats
    speed_rad_s: Floats
    posture_rad: Floats
    finger_open_m: float  # position of one finger
    finger_speed_m_s: float


# Limits: Franka Emika Panda data sheet and franka_description; fingers: Franka Hand manual. As in envs/robots.py.
TRAINED = {
    "franka_panda": TrainedRobot(
        low_rad=np.array([-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973]),
        high_rad=np.array([2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973]),
        speed_rad_s=np.array([2.1750, 2.1750, 2.1750, 2.1750, 2.6100, 2.6100, 2.6100]),
        posture_rad=np.array([0.0, 0.0, 0.0, -2.0, 0.0, 2.0, 0.785]),
        finger_open_m=0.04,
        finger_speed_m_s=0.05,
    )
}
# How long a command leads the arm at full speed: kd / kp of the simulated servo. `pixmc` has no speed limits, so its
# policies ask for more than an arm can do.
LAG_S = {"real": 60.0 / 800.0}


class Measured(NamedTuple):
    """What the arm and the hand measured."""

    q_rad: Floats  # (7,)
    dq_rad_s: Floats  # (7,)
    width_m: float  # between the fingers
    width_speed_m_s: float


class Command(NamedTuple):
    """Where to be one control period from now."""

    q_rad: Floats  # (7,)
    dq_rad_s: Floats  # (7,) of the step
    gripper: float  # -1 open .. +1 closed


class TaskInterface:
    """Proprioception and actions of a bundle's `task`. ValueError for one that no Franka arm can do."""

    def __init__(self, task: Mapping[str, Any], speed: float = 1.0) -> None:
        """`speed` scales what the arm does of every action, above 0 to 1."""
        check_task(task)
        if not 0.0 < speed <= 1.0:
            raise ValueError(f"speed scales the arm's actions, above 0 to 1, got {speed}")
        self._robot = TRAINED[task["robot"]]
        self._mode = task["action_mode"]
        self._scale = np.array(task["action_scale"], np.float64)
        self._scale[:-1] *= speed  # the last entry is the gripper's
        self.period_s = 1.0 / float(task["control_rate_hz"])
        self._lead_rad = self._robot.speed_rad_s * LAG_S[task["preset"]]
        self._step_rad = self._robot.speed_rad_s * self.period_s
        self.q_rad = np.zeros(ARM_JOINTS)  # commanded
        self.finger_m = 0.0  # commanded position of one finger

    def reset(self, measured: Measured) -> None:
        """Command what is measured: at the start, and after every time in which the arm did not follow."""
        self.q_rad = np.array(measured.q_rad, np.float64)
        self.finger_m = 0.5 * measured.width_m

    def proprio(self, measured: Measured) -> np.ndarray:
        """Return the proprioception (27,) float32; the fingers are taken to stand symmetrically."""
        robot = self._robot
        finger, speed = 0.5 * measured.width_m, 0.5 * measured.width_speed_m_s
        arm = 2.0 * (measured.q_rad - robot.low_rad) / (robot.high_rad - robot.low_rad) - 1.0
        fingers = np.full(2, 2.0 * finger / robot.finger_open_m - 1.0)
        speeds = 0.1 * np.array([*measured.dq_rad_s, speed, speed])
        point_m, rotation = grasp_pose(measured.q_rad)
        parts = [arm, fingers, speeds, point_m, rotation[:, 0], rotation[:, 1]]
        return np.concatenate(parts).astype(np.float32)

    def apply(self, action: np.ndarray, measured: Measured) -> Command:
        """Move the command by an action (A,) in [-1, 1]; ValueError for another shape, range or NaN."""
        action = np.asarray(action, np.float64)
        if action.shape != self._scale.shape or not np.abs(action).max() <= 1.0:
            raise ValueError(f"expected an action ({len(self._scale)},) in [-1, 1], got {action.tolist()}")
        robot, scaled, before = self._robot, action * self._scale, self.q_rad
        if self._mode == "ee_delta":
            step = self._inverse_kinematics(measured.q_rad, scaled[:6])
            finger = 0.5 * (1.0 - action[6]) * robot.finger_open_m
        else:
            step, finger = scaled[:ARM_JOINTS], self.finger_m + scaled[ARM_JOINTS]
        step = step / max(1.0, float(np.max(np.abs(step) / self._step_rad)))
        target = np.clip(before + step, measured.q_rad - self._lead_rad, measured.q_rad + self._lead_rad)
        self.q_rad = np.clip(target, robot.low_rad, robot.high_rad)
        self._move_finger(finger)
        # The fingers' own drive limits their speed: an absolute opening goes to the hand as it is.
        closed = action[6] if self._mode == "ee_delta" else 1.0 - 2.0 * self.finger_m / robot.finger_open_m
        return Command(self.q_rad.copy(), (self.q_rad - before) / self.period_s, float(closed))

    def _move_finger(self, finger_m: float) -> None:
        limit = self._robot.finger_speed_m_s * self.period_s
        change = min(max(finger_m - self.finger_m, -limit), limit)
        self.finger_m = min(max(self.finger_m + change, 0.0), self._robot.finger_open_m)

    def _inverse_kinematics(self, q_rad: Floats, delta: Floats) -> Floats:
        """Return the joint step (7,) for a hand motion (6,) in the base frame."""
        moves = jacobian(q_rad)
        posture = POSTURE_RATE_S * self.period_s * (self._robot.posture_rad - self.q_rad)
        gram = moves @ moves.T + DAMPING**2 * np.eye(6)
        solution: Floats = posture + moves.T @ np.linalg.solve(gram, delta - moves @ posture)
        return solution


def check_task(task: Mapping[str, Any]) -> None:
    """Raise ValueError for a task of another robot, with other units, or without speed limits."""
    if task.get("robot") not in TRAINED:
        raise ValueError(
            f"the bundle is for robot {task.get('robot')!r}; a Franka arm runs bundles for {', '.join(TRAINED)}. "
            "Train one in a task of that robot, such as env=franka_pick"
        )
    mode = task.get("action_mode")
    if mode not in _UNITS:
        raise ValueError(f"the bundle's action_mode is {mode!r}; expected {' or '.join(_UNITS)}")
    for key, expected in (("action_units", _UNITS[mode]), ("action_low", (-1.0,)), ("action_high", (1.0,))):
        found = tuple(task.get(key, ()))
        wanted = expected if key == "action_units" else expected * len(_UNITS[mode])
        if found != wanted:
            raise ValueError(f"the bundle's {key} are {found}; {mode} on this arm needs {wanted}")
    if len(task["proprio_names"]) != _PROPRIO:
        raise ValueError(
            f"the bundle takes {len(task['proprio_names'])} proprioception values, this arm has {_PROPRIO}"
        )
    if task.get("preset") not in LAG_S:
        raise ValueError(
            f"the bundle's preset {task.get('preset')!r} does not keep the arm's speed limits; "
            f"train with preset={' or '.join(LAG_S)}"
        )
