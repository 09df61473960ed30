"""What are FrankaPick and KukaPick: where things start, what earns reward, what counts as success and as failure?

After PixMC's tasks of the same names (MVP, `pixmc/tasks/franka_pick.py`, `kuka_pick.py`), which the Toto paper's robot
simulation (figure 6) uses. What differs is one table for all tasks: docs/tasks.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from envs import robots, worlds
from envs.experts import Expert
from envs.hand import finger_points, length, place_robot
from envs.meshes import Floats
from envs.plans import PickPlan
from envs.robots import Robot
from envs.scene import Scene
from envs.specs import state_layout
from envs.task import RobotEnv
from envs.worlds import TABLE_POSITION_M, TABLE_SIZE_M, World

CUBE_SPREAD_M = (0.1, 0.2)
GOAL_Z_M = 0.8
SUCCESS_RADIUS_M = 0.10


@dataclass(frozen=True, kw_only=True)
class PickTask:
    """Lift the cube to 0.8 m."""

    env_id: str
    robot: Robot
    world: World
    finger_scales: tuple[float, float]  # reward for the left and the right finger near the cube
    near_m: float  # smaller finger distances count as this
    lifted_m: float
    goal_radius_m: float  # of the bonus; success has SUCCESS_RADIUS_M
    lost_m: float  # below the start
    plan: PickPlan
    state_names: tuple[str, ...] = state_layout("cube", "goal_z_from_cube")

    @property
    def start_z_m(self) -> float:
        """Return the height of the cube's centre on the table."""
        assert self.world.cube_side_m is not None
        return TABLE_SIZE_M[2] + self.world.cube_side_m / 2

    def place(self, scene: Scene, data: Any, random: np.random.Generator) -> None:
        """Draw the arm's and the cube's start."""
        place_robot(scene, data, random)
        x, y = np.array(TABLE_POSITION_M[:2]) + random.uniform(-1, 1, 2) * CUBE_SPREAD_M
        cube = scene.joints["cube"]
        data.qpos[cube : cube + 7] = (x, y, self.start_z_m, 1.0, 0.0, 0.0, 0.0)

    def state(self, scene: Scene, data: Any) -> Floats:
        """Return both grasp points, the cube, the cube minus each, goal minus cube height: world frame, m. (16,)"""
        left, right = finger_points(scene, data)
        cube = data.xpos[scene.bodies["cube"]]
        return np.concatenate([left, right, cube, cube - left, cube - right, [GOAL_Z_M - cube[2]]])

    def reward_terms(self, scene: Scene, data: Any, action: Floats) -> dict[str, float]:
        """Return PixMC's six terms."""
        left, right = finger_points(scene, data)
        cube = data.xpos[scene.bodies["cube"]]
        to_goal = abs(GOAL_Z_M - cube[2])
        lifted = cube[2] - self.start_z_m > self.lifted_m
        return {
            "left_finger": self.finger_scales[0] / (0.04 + max(length(cube - left), self.near_m)),
            "right_finger": self.finger_scales[1] / (0.04 + max(length(cube - right), self.near_m)),
            "lifted": 4.0 * 0.5 * lifted,
            "goal_distance": 1.28 * lifted / (0.04 + to_goal),
            "goal_reached": 4.0 * 0.5 * (to_goal <= self.goal_radius_m),
            "action": -0.01 * float(action @ action),
        }

    def at_goal(self, scene: Scene, data: Any) -> bool:
        """Say whether the cube is within 10 cm of the goal height."""
        return bool(abs(GOAL_Z_M - data.xpos[scene.bodies["cube"]][2]) <= SUCCESS_RADIUS_M)

    def failed(self, scene: Scene, data: Any) -> bool:
        """Say whether the cube fell off the table."""
        return bool(self.start_z_m - data.xpos[scene.bodies["cube"]][2] > self.lost_m)

    def expert(self, env: RobotEnv, seed: int, noise: float) -> Expert:
        """Return the scripted picker."""
        return Expert(env, self.plan, seed=seed, noise=noise)


FRANKA_PICK = PickTask(
    env_id="toto_robot/FrankaPick-v0",
    robot=robots.PANDA,
    world=worlds.PICK_SMALL,
    finger_scales=(0.08, 0.08),
    near_m=0.02,
    lifted_m=0.015,
    goal_radius_m=0.04,
    lost_m=0.04,
    # Further out the arm cannot hold the cube up there, hand down.
    plan=PickPlan(cube_side_m=0.045, close_within_m=0.013, lift_m=(0.40, 0.80)),
)

# The Allegro hand's three fingers earn 0.04 each, its thumb 0.08: here the left finger and the right one.
KUKA_PICK = PickTask(
    env_id="toto_robot/KukaPick-v0",
    robot=robots.IIWA,
    world=worlds.PICK_LARGE,
    finger_scales=(0.12, 0.08),
    near_m=0.03,
    lifted_m=0.02,
    goal_radius_m=0.06,
    lost_m=0.06,
    plan=PickPlan(cube_side_m=0.06, close_within_m=0.013, lift_m=(0.55, 0.78), lift_pitch_rad=1.1),
)


def make_franka_pick(**options: Any) -> RobotEnv:
    """Make `toto_robot/FrankaPick-v0`; the options are RobotEnv's."""
    return RobotEnv(FRANKA_PICK, **options)


def make_kuka_pick(**options: Any) -> RobotEnv:
    """Make `toto_robot/KukaPick-v0`; the options are RobotEnv's."""
    return RobotEnv(KUKA_PICK, **options)
