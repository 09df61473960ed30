"""How does one of gymnasium's own control problems look like a robot task? So that a learner can be tried in a minute.

`env=gymnasium/Pendulum-v1` is the problem of that id: its observation is the proprioception, and an episode succeeds
when its return reaches the threshold at which gymnasium calls the problem solved, if it has one (Pendulum has none).
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

PREFIX = "gymnasium/"


class ControlSpec:
    """The specification of a control problem, with the entries of a robot task's."""

    def __init__(self, problem: Any, name: str) -> None:
        actions, told = problem.action_space, problem.observation_space
        self._values = {
            "env_id": name,
            "preset": "gymnasium",
            "robot": "none",
            "control_rate_hz": round(1.0 / getattr(problem.unwrapped, "dt", 0.05)),
            "horizon_steps": problem.spec.max_episode_steps,
            "action_mode": "gymnasium",
            "action_names": [f"action_{index}" for index in range(actions.shape[0])],
            "action_units": ["1"] * actions.shape[0],
            "action_low": actions.low.tolist(),
            "action_high": actions.high.tolist(),
            "action_scale": [1.0] * actions.shape[0],
            "proprio_names": [f"observation_{index}" for index in range(told.shape[0])],
            "proprio_units": ["1"] * told.shape[0],
            "cameras": [],
            "image_size": 0,
            "scene_hash": problem.spec.id,
        }

    def as_dict(self) -> dict[str, Any]:
        """Return plain lists, strings and numbers."""
        return dict(self._values)


class ControlProblem(gymnasium.Env[dict[str, Any], np.ndarray]):
    """A problem with a vector of observations and a vector of actions, without cameras.

    Args:
        name: `gymnasium/<id>`.
        settings: a robot task's; it must not ask for pictures or for a simulator's state.

    ValueError for another kind of problem, or for pictures.
    """

    def __init__(self, name: str, **settings: Any) -> None:
        if settings.get("obs_mode", "proprio") != "proprio":
            raise ValueError(
                f"{name} has neither cameras nor a state apart: use encoder=none, and evaluation.videos=0 "
                "(or videos=0), since there is nothing to film"
            )
        self._problem = gymnasium.make(name.removeprefix(PREFIX))
        actions, told = self._problem.action_space, self._problem.observation_space
        if not (isinstance(actions, spaces.Box) and isinstance(told, spaces.Box) and len(told.shape) == 1):
            raise ValueError(f"{name}: expected vectors of numbers as observation and action, got {told} and {actions}")
        self.action_space = spaces.Box(actions.low, actions.high, actions.shape, np.float32)
        self.observation_space = spaces.Dict({"proprio": spaces.Box(-np.inf, np.inf, told.shape, np.float32)})
        self.task_spec = ControlSpec(self._problem, name)
        threshold = self._problem.spec.reward_threshold if self._problem.spec else None
        self._threshold = float("inf") if threshold is None else float(threshold)
        self._return = 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode."""
        told, _ = self._problem.reset(seed=seed, options=options)
        self._return = 0.0
        return {"proprio": np.asarray(told, np.float32)}, {"success": False}

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Act; `success` once the return has reached the threshold."""
        told, reward, terminated, truncated, _ = self._problem.step(action)
        self._return += float(reward)
        info = {"success": self._return >= self._threshold}
        return {"proprio": np.asarray(told, np.float32)}, float(reward), terminated, truncated, info

    def close(self) -> None:
        """Free what the problem holds."""
        self._problem.close()
