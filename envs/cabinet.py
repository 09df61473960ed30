"""What are FrankaCabinet and KukaCabinet: where the cabinet stands, what earns reward, what counts as success?

After PixMC's tasks of the same names (MVP, `pixmc/tasks/franka_cabinet.py`, `kuka_cabinet.py`). What differs is one
table for all tasks: docs/tasks.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from envs import robots, worlds
from envs.drawer import drawer_opening_m, handle_point
from envs.experts import Expert
from envs.hand import finger_points, length, place_robot
from envs.meshes import Floats
from envs.plans import DrawerPlan
from envs.robots import Robot
from envs.scene import Scene
from envs.specs import state_layout
from envs.task import RobotEnv
from envs.worlds import (
    CABINET_POSITION_M,
    DRAWER_POSITION_M,
    DRAWER_TRAVEL_M,
    PROP_SPACING_M,
    PROPS,
    World,
)

CABINET_SPREAD_M = (0.075, 0.075, 0.05)
HOLD_RADIUS_M = 0.04
SUCCESS_OPENING_M = 0.8 * DRAWER_TRAVEL_M


@dataclass(frozen=True, kw_only=True)
class CabinetTask:
    """Pull the top drawer open."""

    env_id: str
    robot: Robot
    world: World
    finger_scales: tuple[float, float]  # reward for the left and the right finger near the handle
    around_scale: float  # reward for one finger above the handle and one below
    hold_scale: float  # reward for that while both hold it and it opens
    must_hold: bool  # success needs both fingers at the handle
    plan: DrawerPlan
    state_names: tuple[str, ...] = state_layout("handle", "drawer_to_open")

    def place(self, scene: Scene, data: Any, random: np.random.Generator) -> None:
        """Draw the arm's start and the cabinet's place; the drawer is closed, four boxes lie in it."""
        place_robot(scene, data, random)
        position = np.array(CABINET_POSITION_M) + random.uniform(-1, 1, 3) * CABINET_SPREAD_M
        data.mocap_pos[scene.model.body_mocapid[scene.bodies["cabinet"]]] = position
        drawer = position + DRAWER_POSITION_M
        for index in range(PROPS):
            row, column = divmod(index, 2)
            offset = PROP_SPACING_M * np.array([column - 0.5, row - 0.5, 0.0])
            address = scene.joints[f"prop{index}"]
            data.qpos[address : address + 7] = (*(drawer + offset), 1.0, 0.0, 0.0, 0.0)

    def state(self, scene: Scene, data: Any) -> Floats:
        """Return both grasp points, the handle, the handle minus each, how far it is to open: world frame, m. (16,)"""
        left, right = finger_points(scene, data)
        handle = handle_point(scene, data)
        to_open = DRAWER_TRAVEL_M - drawer_opening_m(scene, data)
        return np.concatenate([left, right, handle, handle - left, handle - right, [to_open]])

    def reward_terms(self, scene: Scene, data: Any, action: Floats) -> dict[str, float]:
        """Return PixMC's eight terms."""
        left, right = finger_points(scene, data)
        handle, opening = handle_point(scene, data), drawer_opening_m(scene, data)
        around = 0.5 * ((left[2] - handle[2]) * (handle[2] - right[2]) > 0)
        return {
            "left_finger": self.finger_scales[0] / (0.016 + max(length(handle - left), 0.008)),
            "right_finger": self.finger_scales[1] / (0.016 + max(length(handle - right), 0.008)),
            "around_handle": self.around_scale * around,
            "opened": 2.0 * 0.5 * (opening > 0.01),
            "opening": 6.0 * opening,
            "held_opening": self.hold_scale * 2.0 * around * _holds(left, right, handle) * opening,
            "open": 2.0 * 0.5 * (DRAWER_TRAVEL_M - opening <= 0.1),
            "action": -0.01 * float(action @ action),
        }

    def at_goal(self, scene: Scene, data: Any) -> bool:
        """Say whether the drawer is open by 0.32 m, and held where the task asks for it."""
        if drawer_opening_m(scene, data) < SUCCESS_OPENING_M:
            return False
        return not self.must_hold or _holds(*finger_points(scene, data), handle_point(scene, data))

    def failed(self, scene: Scene, data: Any) -> bool:
        """Return False: PixMC ends a cabinet episode for an arm collision only."""
        return False

    def expert(self, env: RobotEnv, seed: int, noise: float) -> Expert:
        """Return the scripted opener."""
        return Expert(env, self.plan, seed=seed, noise=noise)


def _holds(left: Floats, right: Floats, handle: Floats) -> bool:
    return length(handle - left) < HOLD_RADIUS_M and length(handle - right) < HOLD_RADIUS_M


FRANKA_CABINET = CabinetTask(
    env_id="toto_robot/FrankaCabinet-v0",
    robot=robots.PANDA,
    world=worlds.CABINET,
    finger_scales=(0.06, 0.06),
    around_scale=1.0,
    hold_scale=3.0,
    must_hold=True,
    plan=DrawerPlan(pitch_rad=(1.2, 0.7), yaw_rad=np.pi / 2, bar_m=(0.010, 0.040)),
)

# Three fingers earn 0.04 each and the thumb 0.08, as in KukaPick; PixMC scales "around" and "held" by zero here, and
# its code asks for no hand at the handle.
KUKA_CABINET = CabinetTask(
    env_id="toto_robot/KukaCabinet-v0",
    robot=robots.IIWA,
    world=worlds.CABINET,
    finger_scales=(0.12, 0.08),
    around_scale=0.0,
    hold_scale=0.0,
    must_hold=False,
    plan=DrawerPlan(pitch_rad=(1.4, 0.9), yaw_rad=np.pi / 2, bar_m=(0.010, 0.040)),
)


def make_franka_cabinet(**options: Any) -> RobotEnv:
    """Make `toto_robot/FrankaCabinet-v0`; the options are RobotEnv's."""
    return RobotEnv(FRANKA_CABINET, **options)


def make_kuka_cabinet(**options: Any) -> RobotEnv:
    """Make `toto_robot/KukaCabinet-v0`; the options are RobotEnv's."""
    return RobotEnv(KUKA_CABINET, **options)
