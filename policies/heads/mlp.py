"""How does one best guess of the next K actions follow from the trunk? One linear layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from policies.heads.base import Head, InputSizes, elementwise, mean_inside
from policies.heads.config import HeadConfig
from policies.heads.trunk import Trunk
from policies.observation import Inputs


class MLPHead(Head):
    """The trunk and a linear layer, trained by regression: the mean, or with l1 the median, of what was shown."""

    def __init__(self, config: HeadConfig, sizes: InputSizes, action_dim: int) -> None:
        super().__init__(config, sizes, action_dim)
        self.trunk = Trunk(config.trunk, sizes)
        self.out = nn.Linear(self.trunk.width, self.chunk_steps * action_dim)

    def act(self, inputs: Inputs, noise: Tensor) -> Tensor:
        """Return normalised actions (B, K, A); nothing is random."""
        return self._chunk(self.trunk(inputs))

    def loss(self, inputs: Inputs, target: Tensor, inside: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the mean of `config.loss` over the actions that count."""
        predicted = self._chunk(self.trunk(inputs, self.dropout, generator))
        return mean_inside(elementwise(self.config.loss, predicted, target), inside)

    def _chunk(self, features: Tensor) -> Tensor:
        return self.out(features).view(-1, self.chunk_steps, self.action_dim)
