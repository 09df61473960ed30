"""How did OpenAI train the dVAE: Gumbel-softmax relaxation, logit-Laplace likelihood, annealed on three schedules?

Source: "Zero-Shot Text-to-Image Generation" (arXiv 2102.12092), section 2.1, appendices A.2 and A.3. Its budget is
three million steps of 512 images; with the few thousand of a small machine `vq.py` is the method.
The paper's random crops are left out: place is what a policy reads off a frame, and frames of a moving robot differ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toto_robot.tokenizers.codebook import usage
from toto_robot.tokenizers.dvae import DVAE, DVAEConfig, map_pixels, unmap_pixels
from toto_robot.tokenizers.vq import open_residual_paths

PUBLISHED_STEPS = 3_000_000


@dataclass(frozen=True, kw_only=True)
class GumbelSchedule:
    """Temperature and KL weight by step; their lengths shrink in proportion where `steps` is below the published."""

    steps: int  # of the whole training
    first_temperature: float = 1.0
    last_temperature: float = 1 / 16
    temperature_steps: int = 150_000  # of 3,000,000, in which the temperature falls along a cosine
    kl_weight: float = 6.6
    kl_steps: int = 5_000  # of 3,000,000, in which the weight of the KL divergence rises from 0, linearly here

    def temperature_at(self, step: int) -> float:
        """Return the temperature of step `step` (0-based)."""
        falling = 0.5 * (1 + math.cos(math.pi * self._progress(step, self.temperature_steps)))
        return self.last_temperature + (self.first_temperature - self.last_temperature) * falling

    def kl_weight_at(self, step: int) -> float:
        """Return the weight of the KL divergence of step `step` (0-based)."""
        return self.kl_weight * self._progress(step, self.kl_steps)

    def _progress(self, step: int, published: int) -> float:
        return min(1.0, step / (published * min(1.0, self.steps / PUBLISHED_STEPS)))


class GumbelAutoencoder(nn.Module):
    """A dVAE whose decoder sees, in training, relaxed samples of the codes in the place of the codes."""

    def __init__(self, config: DVAEConfig, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.dvae = DVAE(config, generator=generator)
        open_residual_paths(self)

    def forward(self, images: Tensor, *, temperature: float | None, kl_weight: float) -> dict[str, Tensor]:
        """Reconstruct float images (B, 3, h, w) in [0, 1]; return scalars: `loss` and, detached, what it is made of.

        The noise comes from torch's own generator. With `temperature` None the decoder sees the codes themselves, as
        after training. The loss is the negative evidence lower bound over the number of values of an image, so the KL
        divergence, in nats a code, is divided by the 192 values that a code stands for (A.2).
        """
        mapped = map_pixels(images)
        logits = self.dvae.encoder(mapped)  # (B, V, h / 8, w / 8) float32
        codes = logits.detach().argmax(dim=1)
        if temperature is None:
            output = self.dvae.decoder.from_codes(codes).float()
        else:
            output = self.dvae.decoder(F.gumbel_softmax(logits, tau=temperature, dim=1)).float()
        mean, log_scale = output.chunk(2, dim=1)
        nll = logit_laplace_nll(mapped, mean, log_scale).mean()
        kl = divergence_from_uniform(logits).mean()
        mse = F.mse_loss(unmap_pixels(mean.detach().sigmoid()), images)
        values = 3 * self.dvae.stride**2
        return {
            "loss": nll + kl_weight / values * kl,
            "nll": nll.detach(),
            "kl": kl.detach(),
            "psnr_db": -10 * torch.log10(mse),
            **usage(codes, self.config.vocab),
        }


def logit_laplace_nll(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Return -ln f(x) of the logit-Laplace density, elementwise; `x` lies strictly between 0 and 1 (`map_pixels`).

    f(x) = exp(-|logit(x) - mean| / b) / (2 b x (1 - x)) with b = exp(log_scale): the Laplace density of logit(x).
    """
    return math.log(2) + log_scale + torch.log(x * (1 - x)) + (torch.logit(x) - mean).abs() * torch.exp(-log_scale)


def divergence_from_uniform(logits: Tensor) -> Tensor:
    """Return KL(softmax(logits) || uniform) in nats, over dimension 1 of (B, V, ...)."""
    log_q = F.log_softmax(logits, dim=1)
    return (log_q.exp() * log_q).sum(dim=1) + math.log(logits.shape[1])
