"""How does a scripted expert solve robosuite's Lift with a Panda?

As in envs/experts.py the action is a function of the present state only, and the label is the clean action for the
state that noise has led to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mujoco
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from envs.robosuite_env import RobosuiteEnv

Floats = npt.NDArray[np.float64]

HOVER_M = 0.08  # above the cube's centre while the hand is not over it
LIFT_M = 0.15  # goal above the hand while it lifts
FUNNEL_SLOPE = 2.0  # height (m) above the cube a metre of misplacement
CLOSE_WITHIN_M = 0.012
OPEN_M = 0.06  # finger to finger: wide enough for the cube, whose side is at most 4.4 cm
GAIN = 1.5  # of the error that one step asks for; the controller covers about a quarter of it


@dataclass(frozen=True)
class ExpertAction:
    """One decision: the label, what to execute, and the phase's name."""

    clean: npt.NDArray[np.float32]  # (7,)
    executed: npt.NDArray[np.float32]  # (7,) clean + noise on the six arm entries, clipped
    phase: str


class LiftExpert:
    """Reach above the cube, descend, close, lift; in `ee_delta`."""

    def __init__(self, env: RobosuiteEnv, *, seed: int, noise: float) -> None:
        spec = env.task_spec
        if (spec.env_id, spec.robot, spec.action_mode) != ("robosuite/Lift", "Panda", "ee_delta"):
            made = f"{spec.env_id} with {spec.robot} in {spec.action_mode}"
            raise ValueError(f"a scripted expert exists for robosuite/Lift with Panda in ee_delta only, not for {made}")
        if not 0.0 <= noise <= 1.0:
            raise ValueError(f"noise is a standard deviation on actions in [-1, 1]: 0..1, got {noise}")
        self._env, self._noise = env, noise
        self._random = np.random.default_rng(seed)
        self._scale = np.array(spec.action_scale[:6])

    def act(self) -> ExpertAction:
        """Return the action for the environment's present state."""
        goal, turn, gripper, phase = self._decide()
        hand, _ = self._hand()
        delta = GAIN * np.concatenate([goal - hand, turn]) / self._scale
        for part in (delta[:3], delta[3:]):
            part /= max(1.0, float(np.abs(part).max()))  # slower, not bent
        clean = np.append(delta, gripper)
        executed = clean.copy()
        executed[:6] = np.clip(clean[:6] + self._noise * self._random.standard_normal(6), -1.0, 1.0)
        return ExpertAction(clean.astype(np.float32), executed.astype(np.float32), phase)

    def _hand(self) -> tuple[Floats, Floats]:
        env = self._env.robosuite
        site, data = env.robots[0].eef_site_id["right"], env.sim.data._data
        return data.site_xpos[site].copy(), data.site_xmat[site].reshape(3, 3)

    def _decide(self) -> tuple[Floats, Floats, float, str]:
        """Return the hand's goal (world frame, m), the turn it needs (rad), the gripper entry, and the phase."""
        env = self._env.robosuite
        data = env.sim.data._data
        hand, rotation = self._hand()
        cube = data.xpos[env.cube_body_id]
        turn = _rotation_vector(_down(data.xmat[env.cube_body_id].reshape(3, 3)) @ rotation.T)
        offset, angle_rad = hand - cube, float(np.linalg.norm(turn))
        aside, opening_m = float(np.linalg.norm(offset[:2])), self._opening_m()
        near = aside < CLOSE_WITHIN_M and abs(offset[2]) < CLOSE_WITHIN_M and angle_rad < 0.3
        if near and env._check_grasp(gripper=env.robots[0].gripper, object_geoms=env.cube):
            return hand + np.array([0.0, 0.0, LIFT_M]), turn, 1.0, "lift"
        if near:
            return cube, turn, 1.0, "close"
        misplaced = aside + 0.1 * angle_rad + 2.0 * max(0.0, OPEN_M - opening_m)
        height = float(np.clip(FUNNEL_SLOPE * (misplaced - 0.01), 0.0, HOVER_M))
        return cube + np.array([0.0, 0.0, height]), turn, -1.0, "reach" if height > 0.02 else "descend"

    def _opening_m(self) -> float:
        env = self._env.robosuite
        left, right = env.robots[0]._ref_gripper_joint_pos_indexes["right"]
        return abs(float(env.sim.data.qpos[left] - env.sim.data.qpos[right]))


def _down(cube: Floats) -> Floats:
    """Return a rotation pointing down whose fingers, which open along y, meet two faces of the cube."""
    yaw = np.arctan2(cube[1, 0], cube[0, 0])
    yaw = (yaw + np.pi / 4) % (np.pi / 2) - np.pi / 4
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, s, 0.0], [s, -c, 0.0], [0.0, 0.0, -1.0]])


def _rotation_vector(rotation: Any) -> Floats:
    quaternion, vector = np.zeros(4), np.zeros(3)
    mujoco.mju_mat2Quat(quaternion, np.ascontiguousarray(rotation).reshape(9))
    mujoco.mju_quat2Vel(vector, quaternion, 1.0)
    return vector
