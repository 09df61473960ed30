"""How do K learned queries, one for each action to come, read what the cameras' tokens say? Action chunks as in ACT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policies.heads.base import Head, InputSizes, elementwise, mean_inside
from policies.heads.trunk import flatten_history
from policies.observation import Inputs

if TYPE_CHECKING:
    from policies.heads.config import HeadConfig


@dataclass(frozen=True, kw_only=True)
class ACTConfig:
    """Sizes of the action-chunking transformer."""

    width: int = 128  # of the transformer; ACT has 512
    heads: int = 4  # attention heads; ACT has 8
    layers: int = 1  # decoder layers; ACT as published runs 1 of its 7, LeRobot has 1
    encoder_layers: int = 0  # self-attention over tokens first; ACT has 4, but its tokens come from a ResNet
    ffn_width: int = 512  # hidden width of the feed-forward layers; ACT has 3200
    position_init: float = 0.5  # standard deviation of the first positions; tokens are normed to 1

    def __post_init__(self) -> None:
        for name in ("width", "heads", "layers", "ffn_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected act.{name} of at least 1, got {getattr(self, name)}")
        if self.encoder_layers < 0:
            raise ValueError(f"expected act.encoder_layers of 0 or more, got {self.encoder_layers}")
        if self.width % self.heads:
            raise ValueError(f"expected act.width to be a multiple of act.heads, got {self.width} and {self.heads}")


class ACTHead(Head):
    """A transformer decoder over action queries, cross-attending to every token and the proprioception.

    Zhao et al. (2023), "Learning fine-grained bimanual manipulation with low-cost hardware", without the latent of its
    CVAE (their table 2: it matters for human demonstrations; scripted ones have one style). `feature_dropout` zeroes
    numbers of the memory; the layers have no dropout of their own, which would draw from the global generator.
    """

    def __init__(self, config: HeadConfig, sizes: InputSizes, action_dim: int) -> None:
        super().__init__(config, sizes, action_dim)
        act = config.act
        self.proprio = nn.Sequential(nn.Linear(sizes.proprio_dim, act.width), nn.LayerNorm(act.width))
        self.tokens = nn.ModuleDict({name: nn.Linear(sizes.token_width, act.width) for name in sizes.cameras})
        self.norm = nn.LayerNorm(act.width)
        seen = sizes.history * (1 + len(sizes.cameras) * sizes.tokens_per_frame)
        self.position = nn.Parameter(act.position_init * torch.randn(seen, act.width))
        self.query = nn.Parameter(torch.randn(self.chunk_steps, act.width))
        layer: dict[str, Any] = {
            "d_model": act.width,
            "nhead": act.heads,
            "dim_feedforward": act.ffn_width,
            "dropout": 0.0,
        }
        self.encoder = nn.ModuleList(
            nn.TransformerEncoderLayer(**layer, batch_first=True, norm_first=True, activation="gelu")
            for _ in range(act.encoder_layers)
        )
        self.decoder = nn.ModuleList(
            nn.TransformerDecoderLayer(**layer, batch_first=True, norm_first=True, activation="gelu")
            for _ in range(act.layers)
        )
        self.out = nn.Sequential(nn.LayerNorm(act.width), nn.Linear(act.width, action_dim))

    def act(self, inputs: Inputs, noise: Tensor) -> Tensor:
        """Return normalised actions (B, K, A); nothing is random."""
        return self._decode(self.memory(inputs))

    def loss(self, inputs: Inputs, target: Tensor, inside: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the mean of `config.loss` over the actions that count."""
        memory = self.memory(inputs)
        if self.dropout > 0:
            kept = torch.rand(memory.shape, generator=generator) >= self.dropout
            memory = memory * kept.to(memory) / (1 - self.dropout)
        return mean_inside(elementwise(self.config.loss, self._decode(memory), target), inside)

    def memory(self, inputs: Inputs) -> Tensor:
        """Return what the queries attend to: proprioception and tokens of every frame seen, (B, S, width)."""
        frames = flatten_history(inputs, self.sizes.history)
        parts = [self.proprio(frames.proprio)[:, None]]
        for name, project in self.tokens.items():
            tokens = frames.tokens[name]
            parts.append(self.norm(project(F.rms_norm(tokens, tokens.shape[-1:]))))
        memory = torch.cat(parts, dim=1)
        memory = memory.reshape(-1, *self.position.shape) + self.position
        for layer in self.encoder:
            memory = layer(memory)
        return memory

    def _decode(self, memory: Tensor) -> Tensor:
        chunk = self.query.expand(len(memory), -1, -1)
        for layer in self.decoder:
            chunk = layer(chunk, memory)
        return self.out(chunk)
