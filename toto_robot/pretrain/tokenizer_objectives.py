"""Which frames does a tokenizer learn from, and on which is it measured while it learns?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from toto_robot.data.frames import FrameStore
from toto_robot.data.mixture import MixtureSampler
from toto_robot.pretrain.loop import step_seed
from toto_robot.pretrain.objectives import name_windows, read_frames
from toto_robot.pretrain.tokenizer_methods import Method
from toto_robot.tokenizers.load import save_tokenizer


class TokenizerObjective:
    """Single frames, drawn at random, for the method that is given (an `Objective` of the loop)."""

    name = "tokenizer"
    unit = "images"

    def __init__(
        self,
        method: Method,
        frames: FrameStore,
        *,
        training: MixtureSampler,
        held_out: MixtureSampler | None,
        batch_size: int,
        seed: int,
        validation_batches: int = 4,
    ) -> None:
        self.units_per_step = batch_size
        self._method, self._frames, self._training, self._held_out = method, frames, training, held_out
        self._seed, self._validation_batches = seed, validation_batches

    @property
    def model(self) -> nn.Module:
        """Return what is trained, with all that a step changes."""
        return self._method.model

    def batch(self, step: int) -> Tensor:
        """Return frames (B, h, w, 3) uint8 of step `step`."""
        return read_frames(self._frames, self._training, step, self.units_per_step)

    def name_batch(self, step: int) -> str:
        """Name the frames of a training batch."""
        return name_windows(self._frames, self._training, step, self.units_per_step)

    def loss(self, batch: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the method's loss and what it logs."""
        generator = torch.Generator().manual_seed(step_seed(self._seed, step, "codebook"))
        report = self._method.loss(batch, step, generator)
        return report.pop("loss"), report

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return the method's measures, averaged over batches of held-out frames that are always the same."""
        if self._held_out is None:
            return {}
        device = next(self.model.parameters()).device
        sums: dict[str, float] = {}
        for index in range(self._validation_batches):
            frames = read_frames(self._frames, self._held_out, index, self.units_per_step).to(device)
            for name, value in self._method.measure(frames).items():
                sums[name] = sums.get(name, 0.0) + float(value)
        return {name: value / self._validation_batches for name, value in sums.items()}

    def utilisation(self, units_per_s: float, peak_flops_per_s: float) -> dict[str, float]:
        """Return nothing: what a tokenizer's training computes is not counted."""
        return {}

    def describe(self) -> dict[str, Any]:
        """Return the configuration of the network in training."""
        return self._method.describe()

    def publish(self, directory: Path, state: Mapping[str, Tensor]) -> None:
        """Write the tokenizer; `state` is what the network holds, for it is never divided."""
        save_tokenizer(self._method.tokenizer(), directory)
