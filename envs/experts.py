"""How does a scripted expert do a task, in a way that a policy can learn from what it sees?

The action is a function of the present state only: hand pose, object pose and finger opening decide the phase, no timer
does. The label is the clean action for the state that noise has led to (DART, Laskey 2017), so demonstrations show how
to come back; DAgger asks for the same label in the states that a policy has led to.

White noise on a position command averages out within a few steps: it never takes the hand where a cloned policy's
errors, which persist, take it, and a policy that has only seen such demonstrations hovers beside the cube for ever. So
the noise also shoves: for SHOVE_S a constant push in a random direction, then time to come back, as the label says.
Fifty demonstrations with white noise alone gave 39 of 100 successes, with shoves 88 (FrankaPick, Toto, same head).
How often it shoves decides what few demonstrations teach: 20 of them gave 24 of 60 at 0.6 shoves a second and noise of
0 to 0.3, 60 of 60 at 1.5 a second and noise of 0.1 to 0.25 (FrankaPick, Toto, same head, same starts).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mujoco
import numpy as np
import numpy.typing as npt

from envs.hand import length
from envs.meshes import Floats

if TYPE_CHECKING:
    from envs.task import RobotEnv

LAG_GAIN = 0.5  # share of the remaining error commanded in one servo lag: fast without overshoot
SHOVE_S = 0.4
SHOVES_PER_S = 1.5
SHOVE_GAIN = 3.0  # deviation of a shove over that of the white noise


@dataclass(frozen=True)
class ExpertAction:
    """One decision: the label, what to execute, and the phase's name."""

    clean: npt.NDArray[np.float32]  # (7,)
    executed: npt.NDArray[np.float32]  # (7,) clean + noise on the six arm entries, clipped
    phase: str


@dataclass(frozen=True)
class Goal:
    """Where the hand should go now, base frame."""

    position_m: Floats  # (3,) of the grasp point
    rotation: Floats  # (3, 3) of the hand
    gripper: float  # -1 open .. +1 closed
    phase: str


class Disturbance:
    """What is added to the six arm entries of an executed action: white noise, and a shove now and then."""

    def __init__(self, *, seed: int, noise: float, rate_hz: float) -> None:
        if not 0.0 <= noise <= 1.0:
            raise ValueError(f"noise is a standard deviation on actions in [-1, 1]: 0..1, got {noise}")
        self._noise, self._rate_hz = noise, rate_hz
        self._random = np.random.default_rng(seed)
        self._shove = np.zeros(6)
        self._shove_steps = 0  # that are left of the present shove

    def apply(self, clean: Floats) -> Floats:
        """Return a clean action (7,) with this step's noise, clipped to [-1, 1]; the gripper entry stays."""
        random = self._random
        white, start, direction = random.standard_normal(6), random.random(), random.standard_normal(6)
        if self._shove_steps > 0:
            self._shove_steps -= 1
        elif start < SHOVES_PER_S / self._rate_hz:
            self._shove, self._shove_steps = SHOVE_GAIN * self._noise * direction, round(SHOVE_S * self._rate_hz)
        executed = clean.copy()
        executed[:6] += self._noise * white + (self._shove if self._shove_steps else 0.0)
        executed[:6] = np.clip(executed[:6], -1.0, 1.0)
        return executed


class Expert:
    """Follows a plan, a function from the environment's present state to a goal; in `ee_delta`.

    Success with and without noise: benchmarks/RESULTS.md.
    """

    def __init__(self, env: RobotEnv, plan: Callable[[RobotEnv], Goal], *, seed: int, noise: float) -> None:
        if env.task_spec.action_mode != "ee_delta":
            raise ValueError("the expert acts in action_mode 'ee_delta'; make the environment with it")
        self._env, self._plan = env, plan
        self._disturbance = Disturbance(seed=seed, noise=noise, rate_hz=env.preset.control_rate_hz)
        preset = env.preset
        self._gain = LAG_GAIN * preset.servo_kp_nm_rad / (preset.servo_kd_nms_rad * preset.control_rate_hz)

    def act(self) -> ExpertAction:
        """Return the action for the environment's present state, and the same with this expert's noise."""
        clean, phase = self._clean()
        executed = self._disturbance.apply(clean)
        return ExpertAction(clean.astype(np.float32), executed.astype(np.float32), phase)

    def label(self) -> tuple[npt.NDArray[np.float32], str]:
        """Return the clean action for the environment's present state, whoever led there, and the phase; no noise."""
        clean, phase = self._clean()
        return clean.astype(np.float32), phase

    def _clean(self) -> tuple[Floats, str]:
        goal = self._plan(self._env)
        hand, rotation = self._env.hand_pose()
        scale = self._env.controller.scale
        move = self._gain * (goal.position_m - hand) / scale[:3]
        turn = self._gain * rotation_vector(goal.rotation @ rotation.T) / scale[3:6]
        move /= max(1.0, float(np.abs(move).max()))  # slower, not bent
        turn /= max(1.0, float(np.abs(turn).max()))
        return np.concatenate([move, turn, [goal.gripper]]), goal.phase


def pointing(yaw_rad: float, pitch_rad: float) -> Floats:
    """Return the rotation of a hand that points down, turned by `yaw`, then raised by `pitch` towards the front.

    Base frame; at pitch pi/2 the hand points forward (+x), with yaw pi/2 its left finger is then above.
    """
    c, s = np.cos(yaw_rad), np.sin(yaw_rad)
    down = np.array([[c, s, 0.0], [s, -c, 0.0], [0.0, 0.0, -1.0]])
    c, s = np.cos(pitch_rad), np.sin(pitch_rad)
    rotation: Floats = np.array([[c, 0.0, -s], [0.0, 1.0, 0.0], [s, 0.0, c]]) @ down
    return rotation


def rotation_vector(rotation: Floats) -> Floats:
    """Return axis times angle of a rotation matrix (3, 3), rad."""
    quaternion, vector = np.zeros(4), np.zeros(3)
    mujoco.mju_mat2Quat(quaternion, rotation.reshape(9))
    mujoco.mju_quat2Vel(vector, quaternion, 1.0)
    return vector


def turn_left(rotation: Floats, wanted: Floats) -> float:
    """Return the angle between two rotations, rad."""
    return length(rotation_vector(wanted @ rotation.T))
