"""How does a chunk of actions grow out of noise, guided by what is seen? Diffusion Policy with a small denoiser."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from policies.heads.base import Head, InputSizes, mean_inside
from policies.heads.ddim import DDIM
from policies.heads.trunk import Trunk
from policies.observation import Inputs

if TYPE_CHECKING:
    from policies.heads.config import HeadConfig


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """Settings of the diffusion; Diffusion Policy's To, Tp, Ta are head.history, head.chunk_steps, execution.steps."""

    train_steps: int = 100  # noise levels of the training
    sample_steps: int = 10  # denoising steps of an action (DDIM)
    width: int = 128  # channels of the denoiser
    blocks: int = 4  # residual blocks of the denoiser
    kernel: int = 5  # actions that a convolution spans
    step_width: int = 64  # embedding of the noise level

    def __post_init__(self) -> None:
        for name in ("train_steps", "sample_steps", "width", "blocks", "step_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected diffusion.{name} of at least 1, got {getattr(self, name)}")
        if self.sample_steps > self.train_steps:
            raise ValueError(
                f"expected diffusion.sample_steps of at most {self.train_steps} (train_steps), got {self.sample_steps}"
            )
        if self.kernel % 2 == 0 or self.kernel < 1:
            raise ValueError(f"expected an odd diffusion.kernel, got {self.kernel}")
        if self.width % _GROUPS or self.step_width % 2 or self.step_width < 4:
            raise ValueError(
                f"expected diffusion.width in multiples of {_GROUPS} and an even step_width of at least 4, got "
                f"{self.width} and {self.step_width}"
            )


_GROUPS = 8


class DiffusionHead(Head):
    """Denoise a chunk of actions, conditioned on the trunk (Chi et al. 2023, Diffusion Policy).

    The denoiser is a line of their conditional residual blocks (FiLM) at full length; their U-Net halves a chunk twice,
    which asks for lengths in multiples of four and buys nothing at 16 actions.
    """

    multimodal = True

    def __init__(self, config: HeadConfig, sizes: InputSizes, action_dim: int) -> None:
        super().__init__(config, sizes, action_dim)
        settings = config.diffusion
        self.trunk = Trunk(config.trunk, sizes)
        self.ddim = DDIM(settings.train_steps, settings.sample_steps)
        self.level = nn.Sequential(nn.Linear(settings.step_width, settings.width), nn.Mish())
        self.start = nn.Conv1d(action_dim, settings.width, 1)
        given = self.trunk.width + settings.width
        self.blocks = nn.ModuleList(_Block(settings.width, given, settings.kernel) for _ in range(settings.blocks))
        self.out = nn.Conv1d(settings.width, action_dim, 1)

    @property
    def loss_unit(self) -> str:
        """What the numbers of `loss` are."""
        return "squared error of the predicted noise"

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """What denoising begins with."""
        return (self.chunk_steps, self.action_dim)

    def act(self, inputs: Inputs, noise: Tensor) -> Tensor:
        """Return the chunk of normalised actions (B, K, A), inside [-1, 1], that the noise becomes."""
        seen = self.trunk(inputs)
        return self.ddim.sample(noise, lambda noisy, step: self.denoise(noisy, step, seen))

    def loss(self, inputs: Inputs, target: Tensor, inside: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the mean squared error of the predicted noise over the actions that count."""
        seen = self.trunk(inputs, self.dropout, generator)
        step = torch.randint(self.ddim.train_steps, (len(target),), generator=generator)
        noise = torch.randn(target.shape, generator=generator)
        error = self.denoise(self.ddim.add_noise(target, noise, step), step, seen) - noise
        return mean_inside(error.square(), inside)

    def denoise(self, noisy: Tensor, step: Tensor, seen: Tensor) -> Tensor:
        """Return the noise in `noisy` (B, K, A) at noise levels `step` (B,), given the trunk's output (B, width)."""
        given = torch.cat([self.level(_waves(step, self.config.diffusion.step_width)), seen], dim=1)
        x = self.start(noisy.transpose(1, 2))  # (B, width, K)
        for block in self.blocks:
            x = block(x, given)
        return self.out(x).transpose(1, 2)


class _Block(nn.Module):
    """Two convolutions over the actions; what is given scales and shifts the features between them."""

    def __init__(self, width: int, given: int, kernel: int) -> None:
        super().__init__()
        self.first, self.second = _convolution(width, kernel), _convolution(width, kernel)
        self.film = nn.Sequential(nn.Mish(), nn.Linear(given, 2 * width))

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        scale, shift = self.film(given)[..., None].chunk(2, dim=1)
        return x + self.second(scale * self.first(x) + shift)


def _convolution(width: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv1d(width, width, kernel, padding=kernel // 2), nn.GroupNorm(_GROUPS, width), nn.Mish())


def _waves(step: Tensor, width: int) -> Tensor:
    """Return the sinusoidal embedding (B, width) of steps (B,)."""
    rates = torch.exp(-math.log(10_000) * torch.arange(width // 2, device=step.device) / (width // 2 - 1))
    angles = step[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)
