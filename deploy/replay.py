"""Where would the task's scene have put the arm, had it been told what the robot was told, at the same times?

The twin is the recorded task with its options. It starts where the robot was when the recording begins, which on a
real arm is not where the scene's seed puts it; things stand where the seed puts them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mujoco
import numpy as np

from deploy.drivers.base import ARM_JOINTS, DriverError, Floats
from deploy.drivers.twin import TwinDriver
from deploy.realtime.gripper import GripperSettings

_MOST_WIDTH_M = 0.08


class ReplayTwin(TwinDriver):
    """A twin whose time passes by hand, and whose arm and fingers can be put anywhere before a motion."""

    def place(self, q_rad: Floats, dq_rad_s: Floats, width_m: float) -> None:
        """Put the arm (7,), and the fingers unless their width is 0 (no gripper)."""
        plant, fingers = self._plant, slice(ARM_JOINTS, ARM_JOINTS + 2)
        plant.data.qpos[:ARM_JOINTS], plant.data.qvel[:ARM_JOINTS] = q_rad, dq_rad_s
        if width_m > 0.0:
            plant.data.qpos[fingers] = 0.5 * width_m * np.array([1.0, plant.scene.robot.gripper.right_sign])
            plant.finger_command_m = 0.5 * width_m
        mujoco.mj_step1(plant.model, plant.data)
        self._hand.rest()

    @property
    def task(self) -> dict[str, Any]:
        """Return the specification of its scene."""
        found: dict[str, Any] = self._plant.env.task_spec.as_dict()
        return found


def make_twin(robot: str, task: Mapping[str, Any], seed: int) -> ReplayTwin:
    """Return the twin of a recorded task: the same preset, options and randomisation."""
    options: dict[str, Any] = {"preset": task["preset"], **(task.get("options") or {})}
    if task.get("randomization"):
        options["randomize"] = task["randomization"]
    return ReplayTwin(robot=robot, env=task["env_id"], seed=seed, pace="manual", options=options)


def replay(ticks: np.ndarray, robot: str, task: Mapping[str, Any], seed: int) -> Floats:
    """Return where the twin is (T, 7), told what the robot was told at the same times; shorter if a reflex ends it."""
    with make_twin(robot, task, seed) as twin:
        first = ticks[0]
        twin.place(first["q_rad"], first["dq_rad_s"], float(first["gripper_width_m"]))
        twin.start()
        path, robot_s, hand = [], float(first["robot_time_s"]), 0.0
        for tick in ticks:
            twin.advance(max(0.0, float(tick["robot_time_s"]) - robot_s))
            robot_s = max(robot_s, float(tick["robot_time_s"]))
            try:
                path.append(twin.state().q_rad)
            except DriverError:  # a collision that the arm did not have, or the same one: the comparison ends here
                break
            twin.set_target(tick["command_q_rad"], tick["command_dq_rad_s"])
            if tick["gripper_target"] != hand:
                hand = float(tick["gripper_target"])
                _command_hand(twin, hand)
        return np.array(path).reshape(-1, ARM_JOINTS)


def _command_hand(twin: ReplayTwin, target: float) -> None:
    hand, settings = twin.gripper(), GripperSettings()
    assert hand is not None  # a twin has one
    if target > 0.0:
        hand.grasp(0.0, settings.speed_m_s, settings.force_n)
    elif target < 0.0:
        hand.move(_MOST_WIDTH_M, settings.speed_m_s)
