"""What is FrankaPick: where things start, what earns reward, what counts as success and as failure?

After PixMC's FrankaPick (MVP, `pixmc/tasks/franka_pick.py`), the task of the Toto paper's figure 6. What differs:

| | PixMC | here |
|---|---|---|
| simulator | Isaac Gym, 60 Hz, one substep | MuJoCo; `pixmc` 60 Hz, 4 substeps; `real` 20 Hz, 10 substeps |
| robot | URDF masses; fingers of stiffness 1e6, 200 N, separate | robosuite's masses; 20 N a finger, one motor |
| action | 9 joint target steps | `joint_delta`: 7 joints and one finger; or `ee_delta`: hand and opening |
| action penalty | over 9 entries | over the mode's 7 or 8 entries |
| finger start | 0.035 m + U(-0.125, 0.125), clipped, each | one draw for both |
| arm collision | net force on a link > 1 N after the step's one substep | the same at the step's last substep |
| pixels | wrist, 298x224 supersampled, cropped | wrist: the crop's 104.9 degrees, no supersampling; `front` |
| time-out | terminal, no bootstrap | `truncated` |
| robot proprioception | 18 entries | the same 18, then the hand's position and two axes (9) |
"""

from __future__ import annotations

from typing import Any

import numpy as np

from envs import experts, specs
from envs.meshes import Floats
from envs.scene import CUBE_SIDE_M, TABLE_POSITION_M, TABLE_SIZE_M, Scene
from envs.task import RobotEnv

START_RAD = np.array([1.157, -1.066, -0.155, -2.239, -1.841, 1.003, 0.469])
START_FINGER_M = 0.035
START_NOISE = 0.125  # rad for joints, m for the fingers (then clipped to their 0..0.04 m, as PixMC does)
CUBE_SPREAD_M = (0.1, 0.2)
CUBE_START_Z_M = TABLE_SIZE_M[2] + CUBE_SIDE_M / 2
GOAL_Z_M = 0.8
SUCCESS_RADIUS_M = 0.10
FINGER_GRASP_M = 0.045  # along a finger's z axis


class PickTask:
    """Lift the cube to 0.8 m (PixMC FrankaPick)."""

    env_id = "toto_robot/FrankaPick-v0"
    state_entries = 16

    def place(self, scene: Scene, data: Any, random: np.random.Generator) -> None:
        """Draw the arm's and the cube's start."""
        arm = START_RAD + random.uniform(-START_NOISE, START_NOISE, specs.ARM_JOINTS)
        data.qpos[: specs.ARM_JOINTS] = np.clip(arm, specs.JOINT_LOW_RAD, specs.JOINT_HIGH_RAD)
        finger = np.clip(START_FINGER_M + random.uniform(-START_NOISE, START_NOISE), 0.0, specs.FINGER_OPEN_M)
        data.qpos[specs.ARM_JOINTS : specs.ARM_JOINTS + 2] = finger
        x, y = np.array(TABLE_POSITION_M[:2]) + random.uniform(-1, 1, 2) * CUBE_SPREAD_M
        data.qpos[scene.cube_qpos : scene.cube_qpos + 7] = (x, y, CUBE_START_Z_M, 1.0, 0.0, 0.0, 0.0)

    def state(self, scene: Scene, data: Any) -> Floats:
        """Return both grasp points, the cube, the cube minus each, goal minus cube height: world frame, m. (16,)"""
        left, right = _finger_points(scene, data)
        cube = data.xpos[scene.cube_body]
        return np.concatenate([left, right, cube, cube - left, cube - right, [GOAL_Z_M - cube[2]]])

    def reward_terms(self, scene: Scene, data: Any, action: Floats) -> dict[str, float]:
        """Return PixMC's six terms."""
        left, right = _finger_points(scene, data)
        cube = data.xpos[scene.cube_body]
        to_goal = abs(GOAL_Z_M - cube[2])
        lifted = cube[2] - CUBE_START_Z_M > 0.015
        return {
            "left_finger": 0.08 / (0.04 + max(_length(cube - left), 0.02)),
            "right_finger": 0.08 / (0.04 + max(_length(cube - right), 0.02)),
            "lifted": 4.0 * 0.5 * lifted,
            "goal_distance": 1.28 * lifted / (0.04 + to_goal),
            "goal_reached": 4.0 * 0.5 * (to_goal <= 0.04),
            "action": -0.01 * float(action @ action),
        }

    def at_goal(self, scene: Scene, data: Any) -> bool:
        """Say whether the cube is within 10 cm of the goal height."""
        return bool(abs(GOAL_Z_M - data.xpos[scene.cube_body][2]) <= SUCCESS_RADIUS_M)

    def failed(self, scene: Scene, data: Any) -> bool:
        """Say whether the cube fell 4 cm below its start."""
        return bool(CUBE_START_Z_M - data.xpos[scene.cube_body][2] > 0.04)

    def expert(self, env: RobotEnv, seed: int, noise: float) -> experts.PickExpert:
        """Return the scripted picker."""
        return experts.PickExpert(env, seed=seed, noise=noise)


def _finger_points(scene: Scene, data: Any) -> tuple[Floats, Floats]:
    left, right = (data.xpos[body] + FINGER_GRASP_M * data.xmat[body][2::3] for body in scene.finger_bodies)
    return left, right


def _length(vector: Floats) -> float:
    return float(np.sqrt(vector @ vector))


def make_franka_pick(**options: Any) -> RobotEnv:
    """Make `toto_robot/FrankaPick-v0`; the options are RobotEnv's."""
    return RobotEnv(PickTask(), **options)
