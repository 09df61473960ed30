"""How does a scripted expert solve robosuite's Lift with a Panda?

As in envs/experts.py the action is a function of the present state only, and the label is the clean action for the
state that noise has led to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from envs.experts import Disturbance, ExpertAction, pointing, rotation_vector
from envs.meshes import Floats
from envs.plans import cube_yaw

if TYPE_CHECKING:
    from envs.robosuite_env import RobosuiteEnv

HOVER_M = 0.08  # above the cube's centre while the hand is not over it
LIFT_M = 0.15  # goal above the hand while it lifts
FUNNEL_SLOPE = 2.0  # height (m) above the cube a metre of misplacement
CLOSE_WITHIN_M = 0.012
OPEN_M = 0.06  # finger to finger: wide enough for the cube, whose side is at most 4.4 cm
GAIN = 1.5  # of the error that one step asks for; the controller covers about a quarter of it


class LiftExpert:
    """Reach above the cube, descend, close, lift; in `ee_delta`."""

    def __init__(self, env: RobosuiteEnv, *, seed: int, noise: float) -> None:
        spec = env.task_spec
        if (spec.env_id, spec.robot, spec.action_mode) != ("robosuite/Lift", "Panda", "ee_delta"):
            made = f"{spec.env_id} with {spec.robot} in {spec.action_mode}"
            raise ValueError(f"a scripted expert exists for robosuite/Lift with Panda in ee_delta only, not for {made}")
        self._env = env
        self._disturbance = Disturbance(seed=seed, noise=noise, rate_hz=spec.control_rate_hz)
        self._scale = np.array(spec.action_scale[:6])

    def act(self) -> ExpertAction:
        """Return the action for the environment's present state."""
        goal, turn, gripper, phase = self._decide()
        hand, _ = self._hand()
        delta = GAIN * np.concatenate([goal - hand, turn]) / self._scale
        for part in (delta[:3], delta[3:]):
            part /= max(1.0, float(np.abs(part).max()))  # slower, not bent
        clean = np.append(delta, gripper)
        executed = self._disturbance.apply(clean)
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
        turn = rotation_vector(pointing(cube_yaw(data.xmat[env.cube_body_id].reshape(3, 3)), 0.0) @ rotation.T)
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
