"""What learns in PPO: the policy's head, its spread, a critic on the same features, and running statistics?"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from policies.heads.base import InputSizes
from policies.heads.build import build_head
from policies.heads.config import HeadConfig
from policies.heads.mlp import MLPHead
from policies.normalize import Normalizer
from policies.observation import Inputs
from policies.ppo_config import PPOConfig

_HALF_LOG_2_PI = 0.5 * math.log(2 * math.pi)


class ActorCritic(nn.Module):
    """A Gaussian policy around an `MLPHead`, and a critic.

    The head is what a bundle keeps. Both share the features of the cameras, whose pooling is the costly part, and have
    everything else to themselves: under one clipped gradient norm the critic's errors would otherwise push the layer
    that the policy reads its proprioception from (PixMC shares it). The log of the spread is a parameter that no
    observation changes.
    """

    def __init__(self, config: PPOConfig, sizes: InputSizes, action_dim: int, seed: int) -> None:
        super().__init__()
        head = build_head(HeadConfig(name="mlp", chunk_steps=1, trunk=config.trunk), sizes, action_dim, seed)
        assert isinstance(head, MLPHead)
        self.head = head
        self.critic_proprio = copy.deepcopy(head.trunk.proprio)
        self.critic = nn.Sequential(copy.deepcopy(head.trunk.mlp), nn.Linear(head.trunk.width, 1))
        self.log_std = nn.Parameter(torch.full((action_dim,), math.log(config.init_std)))
        generator = torch.Generator().manual_seed(seed)
        for module in (head.trunk.projections, head.trunk.proprio, head.trunk.mlp, self.critic_proprio, self.critic):
            _orthogonal(module, math.sqrt(2), generator)
        _orthogonal(head.out, 0.01, generator)
        _orthogonal(self.critic[-1], 1.0, generator)

    def forward(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Return the mean action (B, A) and the value (B,)."""
        trunk = self.head.trunk
        seen = trunk.camera_features(inputs)
        policy = torch.cat([*seen, trunk.proprio(inputs.proprio)], dim=-1)
        value = torch.cat([*seen, self.critic_proprio(inputs.proprio)], dim=-1)
        return self.head.out(trunk.mlp(policy)), self.critic(value).squeeze(-1)

    def log_probability(self, mean: Tensor, actions: Tensor) -> Tensor:
        """Return the log density (B,) of actions (B, A)."""
        scaled = (actions - mean) * torch.exp(-self.log_std)
        return -0.5 * scaled.square().sum(-1) - (self.log_std + _HALF_LOG_2_PI).sum()

    def entropy(self) -> Tensor:
        """Return the entropy of the action distribution, nats; the same for every observation."""
        return (self.log_std + 0.5 + _HALF_LOG_2_PI).sum()


class RunningNormalizer(nn.Module):
    """Mean and variance of all that was told so far (Chan et al. 1979); part of a checkpoint through its buffers."""

    count: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, names: Sequence[str], kind: str) -> None:
        super().__init__()
        self._names, self._kind = tuple(names), kind
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(len(names), dtype=torch.float64))
        self.register_buffer("variance", torch.ones(len(names), dtype=torch.float64))

    def update(self, values: np.ndarray) -> None:
        """Take further values (N, D) into account."""
        new = torch.from_numpy(values.astype(np.float64))
        count, mean, variance = len(new), new.mean(0), new.var(0, unbiased=False)
        total = self.count + count
        gap = mean - self.mean
        squares = self.variance * self.count + variance * count + gap.square() * self.count * count / total
        self.mean += gap * count / total
        self.variance.copy_(squares / total)
        self.count.copy_(total)

    def normalizer(self, floor: float = 1e-2) -> Normalizer:
        """Return the statistics so far as what a bundle stores; of kind `none` it is the identity."""
        identity = self._kind == "none" or self.count == 0
        offset, scale = np.zeros(len(self._names)), np.ones(len(self._names))
        if not identity:
            offset, scale = self.mean.numpy(), np.maximum(self.variance.sqrt().numpy(), floor)
        kind = "none" if identity else self._kind
        return Normalizer(
            kind=kind, names=self._names, offset=offset.astype(np.float32), scale=scale.astype(np.float32)
        )


class ReturnScale(nn.Module):
    """Running deviation of the discounted return, by which rewards are divided; part of a checkpoint."""

    def __init__(self, discount: float) -> None:
        super().__init__()
        self._discount = discount
        self._statistics = RunningNormalizer(("return",), "mean_std")
        self._sums = np.zeros(0, np.float32)

    def update(self, rewards: np.ndarray, ended: np.ndarray, counts: np.ndarray) -> None:
        """Take the rewards (T, B) of a rollout into account; an episode that ends begins a new sum.

        Where `counts` is false an environment was only reset, and there is no return to learn from.
        """
        if len(self._sums) != rewards.shape[1]:
            self._sums = np.zeros(rewards.shape[1], np.float32)
        sums = np.empty_like(rewards)
        for step in range(len(rewards)):
            self._sums = self._sums * self._discount + rewards[step]
            sums[step] = self._sums
            self._sums = np.where(ended[step], 0.0, self._sums).astype(np.float32)
        self._statistics.update(sums[counts][:, None])

    @property
    def deviation(self) -> float:
        """What to divide rewards by."""
        return float(self._statistics.variance.sqrt().clamp_min(1e-4))


def _orthogonal(module: nn.Module, gain: float, generator: torch.Generator) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.orthogonal_(layer.weight, gain, generator=generator)
            nn.init.zeros_(layer.bias)
