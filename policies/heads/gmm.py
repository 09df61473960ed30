"""How does a head keep apart the several things that people do in one place? A mixture of Gaussians over chunks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policies.heads.base import Head, InputSizes
from policies.heads.trunk import Trunk
from policies.observation import Inputs

if TYPE_CHECKING:
    from policies.heads.config import HeadConfig


@dataclass(frozen=True, kw_only=True)
class GMMConfig:
    """Settings of the Gaussian mixture; names and values are robomimic's."""

    modes: int = 5  # Gaussians, each over the whole chunk
    min_std: float = 1e-4  # smallest standard deviation, normalised units
    low_noise_eval: bool = True  # act by the mean of a drawn mode; false also draws inside the mode

    def __post_init__(self) -> None:
        if self.modes < 1:
            raise ValueError(f"expected gmm.modes of at least 1, got {self.modes}")
        if self.min_std <= 0:
            raise ValueError(f"expected gmm.min_std above 0, got {self.min_std}")


class GMMHead(Head):
    """Trunk, then a mixture with diagonal Gaussians, trained by likelihood (Mandlekar et al. 2021, robomimic).

    One mode speaks for all K actions of a chunk, so a chunk does not hop between two ways around an obstacle.
    robomimic draws from N(mean, 1e-4) in evaluation, which is the mean for every purpose; so here it is the mean.
    """

    multimodal = True

    def __init__(self, config: HeadConfig, sizes: InputSizes, action_dim: int) -> None:
        super().__init__(config, sizes, action_dim)
        self.trunk = Trunk(config.trunk, sizes)
        self._numbers = self.chunk_steps * action_dim
        self.out = nn.Linear(self.trunk.width, config.gmm.modes * (2 * self._numbers + 1))

    @property
    def loss_unit(self) -> str:
        """What the numbers of `loss` are."""
        return "negative log-likelihood of an action, nats"

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """One number chooses the mode, the others are noise inside it."""
        return (1 + (0 if self.config.gmm.low_noise_eval else self._numbers),)

    def act(self, inputs: Inputs, noise: Tensor) -> Tensor:
        """Return a mode's mean (B, K, A), the mode drawn by its weight; with noise unless `low_noise_eval`."""
        logits, means, stds = self.mixture(self.trunk(inputs))
        passed = logits.softmax(dim=1).cumsum(dim=1)[:, :-1]  # (B, M - 1)
        mode = (torch.special.ndtr(noise[:, :1]) >= passed).sum(dim=1)
        chosen = mode.view(-1, 1, 1, 1).expand(-1, 1, *means.shape[2:])
        chunk = means.gather(1, chosen)[:, 0]
        if not self.config.gmm.low_noise_eval:
            chunk = chunk + stds.gather(1, chosen)[:, 0] * noise[:, 1:].view_as(chunk)
        return chunk

    def loss(self, inputs: Inputs, target: Tensor, inside: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the negative log-likelihood for one action, in nats."""
        logits, means, stds = self.mixture(self.trunk(inputs, self.dropout, generator))
        error = (target[:, None] - means) / stds
        density = -0.5 * error.square() - stds.log() - 0.5 * math.log(2 * math.pi)  # (B, M, K, A)
        counted = (density * inside[:, None, :, None]).sum(dim=(2, 3))
        return -torch.logsumexp(logits.log_softmax(dim=1) + counted, dim=1).sum() / inside.sum()

    def mixture(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the modes' logits (B, M), means and standard deviations (B, M, K, A)."""
        modes = self.config.gmm.modes
        logits, means, stds = self.out(features).split([modes, *[modes * self._numbers] * 2], dim=1)
        shape = (-1, modes, self.chunk_steps, self.action_dim)
        return logits, means.view(shape), F.softplus(stds.view(shape)) + self.config.gmm.min_std
