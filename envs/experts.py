"""How does a scripted expert pick the cube, in a way that a policy can learn from what it sees?

The action is a function of the present state only: hand pose, cube pose and finger opening decide the phase, no timer
does. The label is the clean action for the state that noise has led to (DART, Laskey 2017), so demonstrations show how
to come back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import mujoco
import numpy as np
import numpy.typing as npt

from envs import specs
from envs.meshes import Floats
from envs.scene import CUBE_SIDE_M

if TYPE_CHECKING:
    from envs.task import RobotEnv

HOVER_M = 0.10  # grasp point above the cube's centre while the hand is not over it
FUNNEL_SLOPE = 2.0  # height (m) above the cube a metre of misplacement
CLOSE_WITHIN_M = 0.013
LAG_GAIN = 0.5  # share of the remaining error commanded in one servo lag: fast without overshoot
LIFT_X_M, LIFT_Z_M = 0.40, 0.80  # base frame; further out the arm cannot hold the cube up there, hand down


# White noise on a position command averages out within a few steps: it never takes the hand where a cloned policy's
# errors, which persist, take it, and a policy that has only seen such demonstrations hovers beside the cube for ever.
# So the noise also shoves: for SHOVE_S a constant push in a random direction, then time to come back, as the label
# says. Fifty demonstrations with white noise alone gave 39 of 100 successes, with shoves 88 (Toto, same head).
SHOVE_S = 0.4
SHOVES_PER_S = 0.6
SHOVE_GAIN = 3.0  # deviation of a shove over that of the white noise


@dataclass(frozen=True)
class ExpertAction:
    """One decision: the label, what to execute, and the phase's name."""

    clean: npt.NDArray[np.float32]  # (7,)
    executed: npt.NDArray[np.float32]  # (7,) clean + noise on the six arm entries, clipped
    phase: str


class PickExpert:
    """Reach above the cube, descend, close, lift; in `ee_delta`.

    Success with and without noise: benchmarks/RESULTS.md.
    """

    def __init__(self, env: RobotEnv, *, seed: int, noise: float) -> None:
        if env.task_spec.action_mode != "ee_delta":
            raise ValueError("the expert acts in action_mode 'ee_delta'; make the environment with it")
        if not 0.0 <= noise <= 1.0:
            raise ValueError(f"noise is a standard deviation on actions in [-1, 1]: 0..1, got {noise}")
        self._env, self._noise = env, noise
        self._random = np.random.default_rng(seed)
        self._shove = np.zeros(6)
        self._shove_steps = 0  # that are left of the present shove
        preset = env.preset
        self._gain = LAG_GAIN * preset.servo_kp_nm_rad / (preset.servo_kd_nms_rad * preset.control_rate_hz)

    def act(self) -> ExpertAction:
        """Return the action for the environment's present state."""
        clean, phase = self._clean()
        executed = clean.copy()
        executed[:6] = np.clip(clean[:6] + self._disturbance(), -1.0, 1.0)
        return ExpertAction(clean.astype(np.float32), executed.astype(np.float32), phase)

    def _disturbance(self) -> Floats:
        """Draw white noise, and begin, hold or end a shove."""
        rate_hz = self._env.preset.control_rate_hz
        random = self._random
        white, start, direction = random.standard_normal(6), random.random(), random.standard_normal(6)
        if self._shove_steps > 0:
            self._shove_steps -= 1
        elif start < SHOVES_PER_S / rate_hz:
            self._shove, self._shove_steps = SHOVE_GAIN * self._noise * direction, round(SHOVE_S * rate_hz)
        return self._noise * white + (self._shove if self._shove_steps else 0.0)

    def _clean(self) -> tuple[Floats, str]:
        env = self._env
        data, scene = env.data, env.scene
        cube = (data.xpos[scene.cube_body] - scene.base_position_m) @ scene.base_rotation
        cube_rotation = scene.base_rotation.T @ data.xmat[scene.cube_body].reshape(3, 3)
        hand, rotation = env.hand_pose()
        turn = _rotation_vector(_down(cube_rotation) @ rotation.T)
        goal, gripper, phase = _decide(cube, hand, _length(turn), float(data.qpos[specs.ARM_JOINTS]))
        scale = env.controller.scale
        move, turn = self._gain * (goal - hand) / scale[:3], self._gain * turn / scale[3:6]
        move /= max(1.0, float(np.abs(move).max()))  # slower, not bent
        turn /= max(1.0, float(np.abs(turn).max()))
        return np.concatenate([move, turn, [gripper]]), phase


def _decide(cube: Floats, hand: Floats, angle_rad: float, finger_m: float) -> tuple[Floats, float, str]:
    """Return where the grasp point should go (base frame, m), the gripper entry, and the phase's name."""
    offset = hand - cube
    aside, half = _length(offset[:2]), CUBE_SIDE_M / 2
    # Half-closed fingers are on their way: be more patient then, so that noise does not make the gripper chatter.
    tolerance = CLOSE_WITHIN_M * (2.0 if finger_m < 0.9 * specs.FINGER_OPEN_M else 1.0)
    near = aside < tolerance and abs(offset[2]) < tolerance and angle_rad < 0.3
    if near and abs(finger_m - half) < 0.0035:
        return np.array([LIFT_X_M, cube[1], LIFT_Z_M]), 1.0, "lift"
    if near and finger_m > half:
        return cube, 1.0, "close"
    # A funnel above the cube: as low as the hand is well placed, turned and open.
    misplaced = aside + 0.1 * angle_rad + 2.0 * max(0.0, half + 0.008 - finger_m)
    height = float(np.clip(FUNNEL_SLOPE * (misplaced - 0.015), 0.0, HOVER_M))
    return cube + np.array([0.0, 0.0, height]), -1.0, "reach" if height > 0.02 else "descend"


def _down(cube_rotation: Floats) -> Floats:
    """Return the hand's rotation pointing down, turned with the cube's yaw modulo 90 degrees."""
    yaw = np.arctan2(cube_rotation[1, 0], cube_rotation[0, 0])
    yaw = (yaw + np.pi / 4) % (np.pi / 2) - np.pi / 4
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, s, 0.0], [s, -c, 0.0], [0.0, 0.0, -1.0]])


def _rotation_vector(rotation: Floats) -> Floats:
    quaternion, vector = np.zeros(4), np.zeros(3)
    mujoco.mju_mat2Quat(quaternion, rotation.reshape(9))
    mujoco.mju_quat2Vel(vector, quaternion, 1.0)
    return vector


def _length(vector: Floats) -> float:
    return float(np.sqrt(vector @ vector))
