"""What does PPO keep of a rollout, and how is it filled so that each frame is encoded once?

The buffer keeps what the encoder made of every frame (float16, as the feature cache of cloning does), so the update's
epochs touch no encoder. Attention pooling is trained, hence pooled features would go stale: all tokens are kept, two
bytes a number, `steps * environments * cameras * P * D * 2` in all.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from policies.normalize import Normalizer
from policies.observation import Inputs, Observer, proprio_input, sees_state, told
from policies.ppo_actor import ActorCritic
from policies.ppo_envs import EnvironmentPool, Episode, Turn
from toto_robot.encoders.base import Encoder


@dataclass
class Rollout:
    """T steps of B environments."""

    proprio: Tensor  # (T, B, Dp) float32, normalised
    tokens: dict[str, Tensor]  # camera -> (T, B, P, D) float16
    actions: Tensor  # (T, B, A) as drawn; what the environment was given is clipped to its box
    log_probability: Tensor  # (T, B)
    told: np.ndarray  # (T, B, Dp) float32, not normalised
    values: np.ndarray  # (T + 1, B) float32
    rewards: np.ndarray  # (T, B) float32
    terminated: np.ndarray  # (T, B) bool
    truncated: np.ndarray  # (T, B) bool
    counts: np.ndarray  # (T, B) bool: false where the observation was an episode's last and the action went nowhere
    episodes: list[Episode] = field(default_factory=list)
    reward_terms: dict[str, float] = field(default_factory=dict)  # sums
    encode_s: float = 0.0  # this and the next two: of all processes that acted
    policy_s: float = 0.0  # encoder included
    wait_s: float = 0.0  # for environments

    @classmethod
    def empty(cls, steps: int, inputs: Inputs, batch: int, action_dim: int, device: torch.device) -> Rollout:
        """Reserve the memory of a rollout; `inputs` are an example of any number of rows."""
        shape, width = (steps, batch), inputs.proprio.shape[1]
        return cls(
            proprio=torch.zeros(*shape, width, device=device),
            tokens={
                camera: torch.zeros(*shape, *tokens.shape[1:], dtype=torch.float16, device=device)
                for camera, tokens in inputs.tokens.items()
            },
            actions=torch.zeros(*shape, action_dim, device=device),
            log_probability=torch.zeros(shape, device=device),
            told=np.zeros((*shape, width), np.float32),
            values=np.zeros((steps + 1, batch), np.float32),
            rewards=np.zeros(shape, np.float32),
            terminated=np.zeros(shape, bool),
            truncated=np.zeros(shape, bool),
            counts=np.zeros(shape, bool),
        )

    @property
    def token_bytes(self) -> int:
        """Memory that the encoder's tokens take."""
        return sum(tokens.numel() * tokens.element_size() for tokens in self.tokens.values())


@dataclass(frozen=True)
class _Seen:
    """The present observation of a group, encoded."""

    inputs: Inputs
    told: np.ndarray
    over: np.ndarray  # (n,) bool: it is the last one of its episode


class Collector:
    """Runs the policy in the environments of a pool, rollout after rollout; each begins where the last one stopped."""

    def __init__(
        self,
        pool: EnvironmentPool,
        encoder: Encoder,
        *,
        cameras: tuple[str, ...],
        image_size: int,
        normalizer: Normalizer,
        action_low: np.ndarray,
        action_high: np.ndarray,
        device: torch.device,
    ) -> None:
        self._pool, self._oracle, self._device = pool, sees_state(encoder), device
        self._low, self._high = action_low, action_high
        self._observers = [Observer(encoder, cameras, image_size, normalizer, pool.rows) for _ in range(pool.groups)]
        self._present: list[_Seen | None] = [None] * pool.groups
        self._rollout: Rollout | None = None

    def set_normalizer(self, normalizer: Normalizer) -> None:
        """Use these statistics from now on."""
        for observer in self._observers:
            observer.normalizer = normalizer
        for group, seen in enumerate(self._present):  # what the next rollout begins with has been seen already
            if seen is not None:
                proprio = proprio_input(seen.told, normalizer)
                self._present[group] = replace(seen, inputs=Inputs(proprio, seen.inputs.tokens))

    @torch.no_grad()
    def collect(self, model: ActorCritic, steps: int, generator: torch.Generator) -> Rollout:
        """Return the next `steps` steps of every environment; its arrays are overwritten by the next call."""
        pool = self._pool
        for group in range(pool.groups):
            if self._present[group] is None:
                self._present[group], _ = self._look(group)
        rollout = self._buffer(steps, len(self._low))
        spread = torch.exp(model.log_std)
        for step in range(steps):
            for group in range(pool.groups):
                self._decide(rollout, model, spread, step, group, generator)
        for group in range(pool.groups):
            seen = self._outcome(rollout, steps - 1, group)
            began = time.perf_counter()
            _, value = model(_to(seen.inputs, self._device))
            rollout.values[steps, self._rows(group)] = value.cpu().numpy()
            rollout.policy_s += time.perf_counter() - began
        return rollout

    def _decide(
        self, rollout: Rollout, model: ActorCritic, spread: Tensor, step: int, group: int, generator: torch.Generator
    ) -> None:
        """Write one step of a group up to its action, and let the environments go on."""
        seen = self._outcome(rollout, step - 1, group) if step else self._present[group]
        assert seen is not None
        began, rows = time.perf_counter(), self._rows(group)
        inputs = _to(seen.inputs, self._device)
        mean, value = model(inputs)
        noise = torch.randn(mean.shape, generator=generator).to(mean)
        actions = mean + spread * noise
        drawn = actions.cpu().numpy()
        self._pool.send(group, np.clip(drawn, self._low, self._high))  # the environments move from here on
        rollout.proprio[step, rows] = inputs.proprio
        for camera, tokens in inputs.tokens.items():
            rollout.tokens[camera][step, rows] = tokens.half()
        rollout.actions[step, rows] = actions
        rollout.log_probability[step, rows] = model.log_probability(mean, actions)
        rollout.values[step, rows] = value.cpu().numpy()
        rollout.told[step, rows] = seen.told
        rollout.counts[step, rows] = ~seen.over
        rollout.policy_s += time.perf_counter() - began

    def _outcome(self, rollout: Rollout, step: int, group: int) -> _Seen:
        """Wait for what came of a step, write it down, and look at the observation that it led to."""
        began, rows = time.perf_counter(), self._rows(group)
        seen, turn = self._look(group)
        self._present[group] = seen
        rollout.rewards[step, rows] = turn.rewards
        rollout.terminated[step, rows], rollout.truncated[step, rows] = turn.terminated, turn.truncated
        rollout.episodes.extend(turn.episodes)
        for name, value in turn.reward_terms.items():
            rollout.reward_terms[name] = rollout.reward_terms.get(name, 0.0) + value
        encode_s = self._observers[group].encode_s
        rollout.encode_s += encode_s
        rollout.policy_s += encode_s
        rollout.wait_s += time.perf_counter() - began - encode_s
        return seen

    def _look(self, group: int) -> tuple[_Seen, Turn]:
        turn = self._pool.receive(group)
        inputs = self._observers[group].step(turn.observation, turn.fresh)
        over = turn.terminated | turn.truncated
        return _Seen(inputs, told(turn.observation, self._oracle), over), turn

    def _rows(self, group: int) -> slice:
        return slice(group * self._pool.rows, (group + 1) * self._pool.rows)

    def _buffer(self, steps: int, action_dim: int) -> Rollout:
        if self._rollout is None:
            first: Any = self._present[0]
            batch = self._pool.rows * self._pool.groups
            self._rollout = Rollout.empty(steps, first.inputs, batch, action_dim, self._device)
        rollout = self._rollout
        rollout.episodes, rollout.reward_terms = [], {}
        rollout.encode_s = rollout.policy_s = rollout.wait_s = 0.0
        return rollout


def _to(inputs: Inputs, device: torch.device) -> Inputs:
    if device.type == "cpu":
        return inputs
    tokens: Mapping[str, Tensor] = {camera: each.to(device) for camera, each in inputs.tokens.items()}
    return Inputs(inputs.proprio.to(device), dict(tokens))
