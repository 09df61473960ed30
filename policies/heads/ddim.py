"""By how much is a sample noised at each step of a diffusion, and how does DDIM come back in a few steps?"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

_MAX_BETA = 0.999


class DDIM(nn.Module):
    """Squared-cosine schedule (Nichol and Dhariwal 2021), epsilon prediction, DDIM with eta 0 (Song et al. 2021).

    The numbers are those of diffusers' DDIMScheduler with the settings of Diffusion Policy (squaredcos_cap_v2,
    clip_sample, set_alpha_to_one, leading spacing).
    """

    kept: Tensor

    def __init__(self, train_steps: int, sample_steps: int, clip: float = 1.0) -> None:
        super().__init__()
        self.train_steps, self.clip = train_steps, clip
        stride = train_steps // sample_steps
        self._steps = [(step, step - stride) for step in reversed(range(0, stride * sample_steps, stride))]
        self.register_buffer("kept", squared_cosine(train_steps), persistent=False)  # alpha bar: the signal's variance

    def add_noise(self, clean: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        """Noise samples (B, ...) to steps (B,) in 0..train_steps - 1."""
        kept = self.kept[step].view(-1, *[1] * (clean.ndim - 1))
        return kept.sqrt() * clean + (1 - kept).sqrt() * noise

    def sample(self, noise: Tensor, predict: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Turn noise (B, ...) into samples; `predict(noisy, steps (B,))` says what noise is in them."""
        sample = noise
        for step, following in self._steps:
            epsilon = predict(sample, torch.full((len(sample),), step, device=sample.device))
            kept = self.kept[step]
            after = self.kept[following] if following >= 0 else torch.ones(())
            clean = ((sample - (1 - kept).sqrt() * epsilon) / kept.sqrt()).clamp(-self.clip, self.clip)
            sample = after.sqrt() * clean + (1 - after).sqrt() * epsilon
        return sample


def squared_cosine(steps: int) -> Tensor:
    """Return the part of the signal's variance that is left after each step, (steps,) float32, falling."""

    def level(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - level((i + 1) / steps) / level(i / steps), _MAX_BETA) for i in range(steps)]
    return (1 - torch.tensor(betas, dtype=torch.float32)).cumprod(dim=0)
