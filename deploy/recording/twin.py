"""What would the simulator of the task say about the emulated arm: expert, state, reward?

The task's own environment, put where the emulator has its things and where the robot's measurements have arm and hand:
what is stored as the simulator's state then agrees with what is stored as observed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

from deploy.drivers.base import ARM_JOINTS
from deploy.task_interface import Measured, TaskInterface

_COUNTERS = 4  # last entries of a simulator state: steps, steps at the goal, success, at the goal (docs/formats.md)
_LEFT, _RIGHT = ARM_JOINTS, ARM_JOINTS + 1
_HELD_STEPS = 10  # at the goal, when success is counted


class SceneTwin:
    """An environment that follows an emulator; it is never stepped."""

    def __init__(self, task: Mapping[str, Any]) -> None:
        settings: dict[str, Any] = {"preset": task["preset"], "action_mode": task["action_mode"]}
        if task.get("randomization"):
            settings["randomize"] = task["randomization"]
        made: Any = gymnasium.make(task["env_id"], obs_mode="state", **settings, **(task.get("options") or {}))
        self.env = made.unwrapped
        self._scene: Mapping[str, Any] = {}

    def begin(self, seed: int) -> None:
        """Make what an episode's seed decides besides positions."""
        self.env.reset(seed=seed)

    def place(self, scene: Mapping[str, Any], measured: Measured, interface: TaskInterface, step: int) -> None:
        """Take over the emulator's `scene`, the measurements and the command."""
        env, data, sign = self.env, self.env.data, self.env.scene.robot.gripper.right_sign
        self._scene = scene
        data.time = scene["time_s"]
        data.qpos[:], data.qvel[:] = scene["qpos"], scene["qvel"]
        data.qpos[:ARM_JOINTS], data.qvel[:ARM_JOINTS] = measured.q_rad, measured.dq_rad_s
        for values, both in ((data.qpos, measured.width_m), (data.qvel, measured.width_speed_m_s)):
            values[_LEFT], values[_RIGHT] = 0.5 * both, sign * 0.5 * both
        env.controller.q_rad, env.controller.finger = interface.q_rad.copy(), interface.finger_m
        data.ctrl[:ARM_JOINTS] = interface.q_rad
        data.ctrl[_LEFT], data.ctrl[_RIGHT] = interface.finger_m, sign * interface.finger_m
        held = _HELD_STEPS if scene["success"] else int(scene["goal"])
        vector = env.simulator_state()
        vector[-_COUNTERS:] = step, held, scene["success"], scene["goal"]
        env.set_simulator_state(vector)

    def observed(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the oracle's state and the simulator's state."""
        return self.env.observation()["state"], self.env.simulator_state()

    def reward(self, action: np.ndarray) -> np.float32:
        """Return the task's reward for having come here by an action."""
        terms = self.env.task.reward_terms(self.env.scene, self.env.data, np.asarray(action, np.float64))
        return np.float32(sum(terms.values()))
