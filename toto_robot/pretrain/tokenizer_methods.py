"""By which method is a tokenizer trained: VQ-EMA, Gumbel-softmax, VQGAN with its judges, or as another's student?

A method holds a network with all that a step changes and says what its loss is; data and loop are not its business.
Frames are uint8 (B, h, w, 3); generators are of the CPU and set by the step.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from toto_robot.tokenizers.dvae import DVAE
from toto_robot.tokenizers.gumbel import GumbelAutoencoder, GumbelSchedule
from toto_robot.tokenizers.load import AnyTokenizer
from toto_robot.tokenizers.perceptual import Perceptual
from toto_robot.tokenizers.student import student_loss
from toto_robot.tokenizers.vq import VQAutoencoder
from toto_robot.tokenizers.vqgan import VQGAN, frames_to_input
from toto_robot.tokenizers.vqgan_training import VQGANAutoencoder, VQGANLoss

Scalars = dict[str, Tensor]


class Method(Protocol):
    """A network and its loss."""

    @property
    def model(self) -> nn.Module:
        """Return what is trained."""

    def loss(self, frames: Tensor, step: int, generator: torch.Generator) -> Scalars:
        """Return `loss`, to be minimised, and detached scalars to log, of a training batch."""

    def measure(self, frames: Tensor) -> Scalars:
        """Return scalars of a held-out batch, `loss` among them, as good as the training is so far."""

    def describe(self) -> dict[str, Any]:
        """Return the configuration of the network in training."""

    def tokenizer(self) -> AnyTokenizer:
        """Return the tokenizer that has been learned so far; ValueError where there are no codes yet."""


class VQ:
    """The dVAE by VQ-EMA: a plain autoencoder for `plain_steps`, then quantised."""

    def __init__(self, model: VQAutoencoder, plain_steps: int) -> None:
        self.model, self._plain_steps = model, plain_steps

    def loss(self, frames: Tensor, step: int, generator: torch.Generator) -> Scalars:
        """Return the squared error and the commitment; the first quantised step starts the codebook."""
        quantise = step >= self._plain_steps
        return _with_zeros(self.model(unit_images(frames), quantise=quantise, generator=generator))

    def measure(self, frames: Tensor) -> Scalars:
        """Return loss, PSNR and, once quantised, the use of the codebook."""
        return self.model(unit_images(frames), quantise=bool(self.model.codebook.started))

    def describe(self) -> dict[str, Any]:
        """Return sizes and settings of the codebook."""
        return {"model_type": "vq_autoencoder", "dvae": asdict(self.model.config), "vq": asdict(self.model.vq)}

    def tokenizer(self) -> DVAE:
        """Return it in the dVAE layout."""
        return self.model.fold()


class Gumbel:
    """The dVAE by Gumbel-softmax, on the published schedules."""

    def __init__(self, model: GumbelAutoencoder, schedule: GumbelSchedule) -> None:
        self.model, self._schedule = model, schedule

    def loss(self, frames: Tensor, step: int, generator: torch.Generator) -> Scalars:
        """Return the negative evidence lower bound of relaxed codes; its noise is torch's own, seeded by the loop."""
        temperature = self._schedule.temperature_at(step)
        report: Scalars = self.model(
            unit_images(frames), temperature=temperature, kl_weight=self._schedule.kl_weight_at(step)
        )
        return {**report, "temperature": torch.tensor(temperature)}

    def measure(self, frames: Tensor) -> Scalars:
        """Return the bound of the codes themselves, PSNR and their use."""
        return self.model(unit_images(frames), temperature=None, kl_weight=self._schedule.kl_weight)

    def describe(self) -> dict[str, Any]:
        """Return the sizes."""
        return {"model_type": "gumbel_autoencoder", "dvae": asdict(self.model.config)}

    def tokenizer(self) -> DVAE:
        """Return the dVAE."""
        return self.model.dvae


class VQGANMethod:
    """The VQGAN: as `VQ`, judged in L1, and by a perceptual distance and a discriminator where given."""

    def __init__(
        self, model: VQGANAutoencoder, plain_steps: int, weights: VQGANLoss, perceptual: Perceptual | None = None
    ) -> None:
        self.model, self._plain_steps = model, plain_steps
        self._weights, self._perceptual = weights, perceptual  # the perceptual network is frozen: not part of `model`

    def loss(self, frames: Tensor, step: int, generator: torch.Generator) -> Scalars:
        """Return the sum of all terms; the discriminator's comes in at its start step."""
        adversarial = self.model.discriminator is not None and step >= self._weights.adversarial_from
        return _with_zeros(self._report(frames, step >= self._plain_steps, adversarial, generator))

    def measure(self, frames: Tensor) -> Scalars:
        """Return the loss without the discriminator's part, PSNR and, once quantised, the use of the codebook."""
        return self._report(frames, bool(self.model.codebook.started), adversarial=False, generator=None)

    def describe(self) -> dict[str, Any]:
        """Return sizes and settings of the codebook."""
        return {"model_type": "vqgan_autoencoder", "vqgan": asdict(self.model.config), "vq": asdict(self.model.vq)}

    def tokenizer(self) -> VQGAN:
        """Return the VQGAN with the codebook as its table."""
        return self.model.fold()

    def _report(self, frames: Tensor, quantise: bool, adversarial: bool, generator: torch.Generator | None) -> Scalars:
        pixels = frames_to_input(frames, self.model.vqgan.stride)
        pictures, commitment, report = self.model(pixels, quantise=quantise, generator=generator)
        terms = self.model.judge(
            pixels, pictures, commitment,
            weights=self._weights, perceptual=self._perceptual, adversarial=adversarial,
        )  # fmt: skip
        return {**report, **terms}


class Student:
    """A narrow dVAE encoder by a teacher's codes; the decoder is the teacher's, frozen."""

    def __init__(self, model: DVAE, teacher: DVAE, soft: float) -> None:
        self.model, self._teacher, self._soft = model, teacher, soft

    def loss(self, frames: Tensor, step: int, generator: torch.Generator) -> Scalars:
        """Return the cross-entropy on the teacher's codes, and the agreement."""
        return student_loss(self.model, self._teacher, frames, self._soft)

    def measure(self, frames: Tensor) -> Scalars:
        """Return the same."""
        return student_loss(self.model, self._teacher, frames, self._soft)

    def describe(self) -> dict[str, Any]:
        """Return the sizes."""
        return {"model_type": "student", "dvae": asdict(self.model.config)}

    def tokenizer(self) -> DVAE:
        """Return the student."""
        return self.model


def unit_images(frames: Tensor) -> Tensor:
    """Map uint8 frames (B, h, w, 3) to float32 (B, 3, h, w) in [0, 1], channels_last in memory."""
    return frames.permute(0, 3, 1, 2).float() / 255


def _with_zeros(report: Scalars) -> Scalars:
    """Fill in what a plain autoencoder has no value of, so that the log has the same columns from the first line on."""
    zero = torch.zeros((), device=report["loss"].device)
    return {"commitment": zero, "perplexity": zero, "codes_used": zero} | report
