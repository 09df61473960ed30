"""How does a scripted expert solve robosuite's Lift and Can with a Panda?

As in envs/experts.py the action is a function of the present state only, and the label is the clean action for the
state that noise, or a policy, has led to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from envs.experts import Disturbance, ExpertAction, Goal, pointing, rotation_vector, turn_left
from envs.hand import length
from envs.meshes import Floats
from envs.plans import cube_yaw

if TYPE_CHECKING:
    from envs.robosuite_env import RobosuiteEnv

HOVER_M = 0.08  # above the cube's centre while the hand is not over it
LIFT_M = 0.15  # goal above the hand while it lifts
FUNNEL_SLOPE = 2.0  # height (m) above the object a metre of misplacement
CLOSE_WITHIN_M = 0.012
OPEN_M = 0.06  # finger to finger: wide enough for the cube, whose side is at most 4.4 cm
GAIN = 1.5  # of the error that one step asks for; the controller covers about a quarter of it

CAN_HOVER_M = 0.14  # above the can's centre: clears the bins' walls, 10 cm
CAN_OPEN_M = 0.07  # the can is 5 cm thick
CLEAR_HEIGHT_M, CARRY_HEIGHT_M = 0.13, 0.18  # of the can's centre over the bins' floor, before and while it moves aside
OVER_PLACE_M = 0.06  # near enough to the middle of its place, whose half sides are 10 and 12 cm, to be let go
LATE_S = 0.6  # a disturbed hand closes up to so much later than it should
STANDING_YAW_RAD = np.pi / 2  # of the hand at the start: fingers open along x, away from the nearer walls


class RobosuiteExpert:
    """Follows a plan, a function from the environment's present state to a goal (world frame); in `ee_delta`."""

    def __init__(self, env: RobosuiteEnv, *, seed: int, noise: float) -> None:
        spec = env.task_spec
        made = (spec.robot, spec.action_mode)
        if spec.env_id not in PLANS or made != ("Panda", "ee_delta"):
            raise ValueError(
                f"scripted experts exist for {' and '.join(PLANS)} with Panda in ee_delta, not for {spec.env_id} with "
                f"{spec.robot} in {spec.action_mode}"
            )
        self._env, self._plan = env, PLANS[spec.env_id]
        self._disturbance = Disturbance(seed=seed, noise=noise, rate_hz=spec.control_rate_hz)
        self._scale = np.array(spec.action_scale[:6])
        self._late_steps = LATE_S * spec.control_rate_hz if noise > 0 else 0.0
        self._rng, self._open_steps = np.random.default_rng((seed, 1)), -1

    def act(self) -> ExpertAction:
        """Return the action for the environment's present state, and the same with this expert's noise.

        Shoves, and a hand that closes late: else no demonstration has a hand at rest, open, around the object, and
        who clones them does not know to close there.
        """
        clean, phase = self._clean()
        executed = self._disturbance.apply(clean)
        if phase != "close":
            self._open_steps = -1
        elif self._open_steps < 0:
            self._open_steps = int(self._rng.uniform(0.0, self._late_steps))
        if self._open_steps > 0:
            self._open_steps -= 1
            executed[-1] = -1.0
        return ExpertAction(clean.astype(np.float32), executed.astype(np.float32), phase)

    def label(self) -> tuple[npt.NDArray[np.float32], str]:
        """Return the clean action for the environment's present state, whoever led there, and the phase; no noise."""
        clean, phase = self._clean()
        return clean.astype(np.float32), phase

    def _clean(self) -> tuple[Floats, str]:
        hand = Hand.of(self._env.robosuite)
        goal = self._plan(self._env.robosuite, hand)
        turn = rotation_vector(goal.rotation @ hand.rotation.T)
        delta = GAIN * np.concatenate([goal.position_m - hand.position_m, turn]) / self._scale
        for part in (delta[:3], delta[3:]):
            part /= max(1.0, float(np.abs(part).max()))  # slower, not bent
        return np.append(delta, goal.gripper), goal.phase


@dataclass(frozen=True)
class Hand:
    """Where the hand is, world frame."""

    position_m: Floats  # (3,) of the grasp point
    rotation: Floats  # (3, 3)
    opening_m: float  # finger to finger

    @classmethod
    def of(cls, env: Any) -> Hand:
        """Read it from robosuite's environment."""
        data, robot = env.sim.data._data, env.robots[0]
        site = robot.eef_site_id["right"]
        left, right = robot._ref_gripper_joint_pos_indexes["right"]
        opening_m = abs(float(data.qpos[left] - data.qpos[right]))
        return cls(data.site_xpos[site].copy(), data.site_xmat[site].reshape(3, 3).copy(), opening_m)


def lift_plan(env: Any, hand: Hand) -> Goal:
    """Reach above the cube, descend, close, lift."""
    data = env.sim.data._data
    cube = data.xpos[env.cube_body_id]
    rotation = pointing(cube_yaw(data.xmat[env.cube_body_id].reshape(3, 3)), 0.0)
    if not _around(hand, cube, rotation):
        return _funnel(hand, cube, rotation, hover_m=HOVER_M, open_m=OPEN_M)
    if _grasps(env, env.cube):
        return Goal(hand.position_m + np.array([0.0, 0.0, LIFT_M]), rotation, 1.0, "lift")
    return Goal(cube, rotation, 1.0, "close")


def can_plan(env: Any, hand: Hand) -> Goal:
    """Reach above the can, descend, close, carry it over the wall, drop it in its place."""
    can_object = env.objects[env.object_id]
    body, data = env.obj_body_id[can_object.name], env.sim.data._data
    can, can_rotation = data.xpos[body], data.xmat[body].reshape(3, 3)
    rotation = pointing(_can_yaw(can_rotation), 0.0)
    to_place = env.target_bin_placements[env.object_id][:2] - can[:2]
    height_m = float(can[2] - env.bin2_pos[2])
    onwards = np.array([*to_place, CARRY_HEIGHT_M - height_m])
    if length(to_place) < OVER_PLACE_M:  # on the way, so that a hand that opens does not fall back behind the edge
        return Goal(hand.position_m + onwards, rotation, -1.0, "drop")
    if not _around(hand, can, rotation):
        return _funnel(hand, can, rotation, hover_m=CAN_HOVER_M, open_m=CAN_OPEN_M)
    if not _grasps(env, can_object):
        return Goal(can, rotation, 1.0, "close")
    # Sideways only as far as it is up: the can must clear the wall between the bins.
    risen = float(np.clip((height_m - CLEAR_HEIGHT_M) / (CARRY_HEIGHT_M - CLEAR_HEIGHT_M), 0.0, 0.5)) * 2
    return Goal(hand.position_m + np.array([risen, risen, 1.0]) * onwards, rotation, 1.0, "carry" if risen else "lift")


PLANS: dict[str, Callable[[Any, Hand], Goal]] = {"robosuite/Lift": lift_plan, "robosuite/PickPlaceCan": can_plan}


def _around(hand: Hand, thing: Floats, rotation: Floats) -> bool:
    """Say whether the thing is between the fingers."""
    offset = hand.position_m - thing
    near = length(offset[:2]) < CLOSE_WITHIN_M and abs(float(offset[2])) < CLOSE_WITHIN_M
    return near and turn_left(hand.rotation, rotation) < 0.3


def _funnel(hand: Hand, thing: Floats, rotation: Floats, *, hover_m: float, open_m: float) -> Goal:
    """Go above the thing, as low as the hand is well placed, turned and open."""
    aside = length(hand.position_m[:2] - thing[:2])
    misplaced = aside + 0.1 * turn_left(hand.rotation, rotation) + 2.0 * max(0.0, open_m - hand.opening_m)
    height = float(np.clip(FUNNEL_SLOPE * (misplaced - 0.01), 0.0, hover_m))
    return Goal(thing + np.array([0.0, 0.0, height]), rotation, -1.0, "reach" if height > 0.02 else "descend")


def _grasps(env: Any, thing: Any) -> bool:
    return bool(env._check_grasp(gripper=env.robots[0].gripper, object_geoms=thing))


def _can_yaw(can_rotation: Floats) -> float:
    """Return the hand's yaw for a can: as it stands any will do; when it lies, the fingers close across it."""
    axis = can_rotation[:, 2]
    if abs(axis[2]) > 0.7:
        return STANDING_YAW_RAD
    yaw = float(np.arctan2(axis[1], axis[0]))  # the fingers' axis (sin, -cos) is then across (cos, sin)
    return (yaw + np.pi / 2 - STANDING_YAW_RAD) % np.pi - np.pi / 2 + STANDING_YAW_RAD
