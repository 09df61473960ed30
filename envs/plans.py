"""What does the expert want next: the cube picked up, or the drawer pulled open?

A plan looks at the environment's present state and names a goal for the hand and the phase it is in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from envs.drawer import drawer_opening_m, handle_point
from envs.experts import Goal, pointing, turn_left
from envs.hand import length, opening_m
from envs.meshes import Floats

if TYPE_CHECKING:
    from envs.task import RobotEnv


@dataclass(frozen=True, kw_only=True)
class PickPlan:
    """Reach above the cube, descend, close, lift."""

    cube_side_m: float
    close_within_m: float
    lift_m: tuple[float, float]  # x and z of the grasp point, base frame
    lift_pitch_rad: float = 0.0  # the hand turns up by this on the way: an arm that is too short to hold it hand down
    hover_m: float = 0.10  # grasp point above the cube's centre while the hand is not over it
    funnel_slope: float = 2.0  # height (m) above the cube a metre of misplacement

    def __call__(self, env: RobotEnv) -> Goal:
        """Return where the hand should go from here."""
        data, scene = env.data, env.scene
        cube_body = scene.bodies["cube"]
        cube = (data.xpos[cube_body] - scene.base_position_m) @ scene.base_rotation
        yaw = cube_yaw(scene.base_rotation.T @ data.xmat[cube_body].reshape(3, 3))
        hand, rotation = env.hand_pose()
        half, gap = self.cube_side_m / 2, opening_m(scene, data) / 2
        offset = hand - cube
        aside = length(offset[:2])
        # Half-closed fingers are on their way: be more patient then, so that noise does not make the gripper chatter.
        tolerance = self.close_within_m * (2.0 if gap < half + 0.8 * (_open_gap(env) - half) else 1.0)
        angle = turn_left(rotation, pointing(yaw, 0.0))
        near = aside < tolerance and abs(offset[2]) < tolerance and (angle < 0.3 or cube[2] > 0.46)
        if near and abs(gap - half) < 0.0035:
            return self._lift(cube, yaw)
        if near and gap > half:
            return Goal(cube, pointing(yaw, 0.0), 1.0, "close")
        # A funnel above the cube: as low as the hand is well placed, turned and open.
        misplaced = aside + 0.1 * angle + 2.0 * max(0.0, half + 0.008 - gap)
        height = float(np.clip(self.funnel_slope * (misplaced - 0.015), 0.0, self.hover_m))
        above = cube + np.array([0.0, 0.0, height])
        return Goal(above, pointing(yaw, 0.0), -1.0, "reach" if height > 0.02 else "descend")

    def _lift(self, cube: Floats, yaw: float) -> Goal:
        x, z = self.lift_m
        raised = float(np.clip((cube[2] - 0.45) / 0.25, 0.0, 1.0))
        return Goal(np.array([x, cube[1], z]), pointing(yaw * (1 - raised), raised * self.lift_pitch_rad), 1.0, "lift")


@dataclass(frozen=True, kw_only=True)
class DrawerPlan:
    """Reach before the handle, go around it, close, pull."""

    pitch_rad: tuple[float, float]  # of the hand, pi/2 is forward: at the closed drawer, at the open one
    yaw_rad: float  # which finger is above
    bar_m: tuple[float, float]  # gap between the pads that holds the bar: more than, less than
    close_within_m: float = 0.012
    standoff_m: float = 0.10
    lead_m: float = 0.08  # how far before the hand the pull aims
    open_m: float = 0.37

    def __call__(self, env: RobotEnv) -> Goal:
        """Return where the hand should go from here."""
        data, scene = env.data, env.scene
        handle = (handle_point(scene, data) - scene.base_position_m) @ scene.base_rotation
        opening, gap = drawer_opening_m(scene, data), opening_m(scene, data)
        start, end = self.pitch_rad
        wanted = pointing(self.yaw_rad, start + (end - start) * min(1.0, opening / self.open_m))
        hand, rotation = env.hand_pose()
        offset = wanted.T @ (hand - handle)  # in the wanted hand's frame: x along the bar, y across, z forward
        angle = turn_left(rotation, wanted)
        # Fingers that have begun to close keep at it: noise must not make the gripper chatter, nor let go of the bar.
        patience = 1.0 if gap > 0.9 * 2 * _open_gap(env) else 2.8
        across, forward, along = self.close_within_m * patience, self.close_within_m * patience, 0.03 * patience
        near = abs(offset[1]) < across and abs(offset[2]) < forward and abs(offset[0]) < along
        near = near and angle < 0.3 * patience
        if near and self.bar_m[0] < gap < self.bar_m[1]:
            ahead = min(self.lead_m, self.open_m + 0.01 - opening)
            return Goal(handle - np.array([ahead, 0.0, 0.0]), wanted, 1.0, "pull")
        if near and gap >= self.bar_m[1]:
            return Goal(handle, wanted, 1.0, "close")
        misplaced = abs(offset[0]) * 0.5 + abs(offset[1]) + 0.1 * angle + max(0.0, 0.05 - gap)
        back = float(np.clip(2.0 * (misplaced - 0.015), 0.0, self.standoff_m))
        return Goal(handle - back * wanted[:, 2], wanted, -1.0, "reach" if back > 0.02 else "approach")


def cube_yaw(rotation: Floats) -> float:
    """Return the cube's yaw modulo 90 degrees, rad in [-pi/4, pi/4)."""
    yaw = float(np.arctan2(rotation[1, 0], rotation[0, 0]))
    return (yaw + np.pi / 4) % (np.pi / 2) - np.pi / 4


def _open_gap(env: RobotEnv) -> float:
    """Return half the widest gap between the pads, m."""
    return env.scene.robot.gripper.stroke_m / 2
