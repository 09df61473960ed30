"""What does a tokenizer learn from a batch of frames? The objectives of `toto_robot train-tokenizer`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from toto_robot.data.frames import FrameStore
from toto_robot.data.mixture import MixtureSampler
from toto_robot.pretrain.loop import step_seed
from toto_robot.pretrain.objectives import name_windows, read_frames
from toto_robot.tokenizers.dvae import save_dvae
from toto_robot.tokenizers.vq import VQAutoencoder
from toto_robot.weights import write_model


class TokenizerObjective:
    """Reconstruction through a codebook: first a plain autoencoder, then quantised (VQ-EMA, see `tokenizers/vq.py`)."""

    name = "tokenizer"
    unit = "images"

    def __init__(
        self,
        model: VQAutoencoder,
        frames: FrameStore,
        *,
        training: MixtureSampler,
        held_out: MixtureSampler | None,
        batch_size: int,
        seed: int,
        plain_steps: int,
        validation_batches: int = 4,
    ) -> None:
        """`plain_steps` come before the codebook starts."""
        self.model = model
        self.units_per_step = batch_size
        self._frames, self._training, self._held_out = frames, training, held_out
        self._seed, self._plain_steps, self._validation_batches = seed, plain_steps, validation_batches

    def batch(self, step: int) -> Tensor:
        """Return frames (B, h, w, 3) uint8 of step `step`."""
        return read_frames(self._frames, self._training, step, self.units_per_step)

    def name_batch(self, step: int) -> str:
        """Name the frames of a training batch."""
        return name_windows(self._frames, self._training, step, self.units_per_step)

    def loss(self, batch: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the reconstruction loss; logs PSNR, and the use of the codebook by this batch.

        The first quantised step starts the codebook.
        """
        generator = torch.Generator().manual_seed(step_seed(self._seed, step, "codebook"))
        report = self.model(unit_images(batch), quantise=step >= self._plain_steps, generator=generator)
        loss = report.pop("loss")
        zero = torch.zeros((), device=loss.device)
        return loss, {"commitment": zero, "perplexity": zero, "codes_used": zero} | report

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return loss and PSNR on held-out frames, always the same ones, as good as the training is so far."""
        if self._held_out is None:
            return {}
        device = next(self.model.parameters()).device
        sums = {"loss": 0.0, "psnr_db": 0.0}
        for index in range(self._validation_batches):
            frames = read_frames(self._frames, self._held_out, index, self.units_per_step).to(device)
            report = self.model(unit_images(frames), quantise=bool(self.model.codebook.started))
            sums = {name: value + float(report[name]) for name, value in sums.items()}
        return {name: value / self._validation_batches for name, value in sums.items()}

    def utilisation(self, units_per_s: float, peak_flops_per_s: float) -> dict[str, float]:
        """Return nothing: what a tokenizer's training computes is not counted."""
        return {}

    def write_model(self, directory: Path) -> None:
        """Write the autoencoder with its codebook and moving averages."""
        config = {"model_type": "vq_autoencoder", "dvae": asdict(self.model.config), "vq": asdict(self.model.vq)}
        write_model(directory, config, self.model.state_dict())

    def publish(self, directory: Path) -> None:
        """Write the tokenizer, in the dVAE layout."""
        save_dvae(self.model.fold(), directory)


def unit_images(frames: Tensor) -> Tensor:
    """Map uint8 frames (B, h, w, 3) to float32 (B, 3, h, w) in [0, 1], channels_last in memory."""
    return frames.permute(0, 3, 1, 2).float() / 255
