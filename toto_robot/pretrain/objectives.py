"""What is learned from which batch: Toto's next token, MAE's hidden patches?

Each class is an `Objective` of the loop. Batches are functions of (seed, step) through `MixtureSampler`. Those of the
tokenizers are in `tokenizer_objectives.py`.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from toto_robot.data.frames import FrameStore
from toto_robot.data.mixture import MixtureSampler, Window
from toto_robot.data.tokens import TokenStore
from toto_robot.models.compute import mae_training_flops, mfu
from toto_robot.models.hub import describe
from toto_robot.models.loss import LOSS_CHUNK_TOKENS
from toto_robot.models.mae import IMAGENET_MEAN, IMAGENET_STD, MAEConfig, mae_config, normalise_pixels
from toto_robot.models.toto import Toto
from toto_robot.pretrain.distributed import ALONE, Processes
from toto_robot.pretrain.loop import step_seed
from toto_robot.weights import write_model


class TotoObjective:
    """Next-token cross-entropy over windows of tokens, in nats per token; the end token counts in training."""

    name = "toto"
    unit = "tokens"

    def __init__(
        self,
        model: Toto,
        tokens: TokenStore,
        *,
        training: MixtureSampler,
        held_out: MixtureSampler | None,
        batch_size: int,
        tokenizer_dir: Path,
        forward: nn.Module | None = None,
        validation_batches: int = 8,
        loss_chunk_tokens: int = LOSS_CHUNK_TOKENS,
        processes: Processes = ALONE,
    ) -> None:
        """`batch_size` is that of all processes together; `forward` computes, where `model` does not (compiled)."""
        self.model = model
        self.units_per_step = batch_size * model.config.frames * model.config.tokens_per_frame
        self._tokens, self._training, self._held_out = tokens, training, held_out
        self._batch_size, self._validation_batches = batch_size, validation_batches
        self._tokenizer_dir = tokenizer_dir
        self._forward = model if forward is None else forward
        self._loss_chunk_tokens = loss_chunk_tokens
        self._processes = processes

    @property
    def has_held_out(self) -> bool:
        """Say whether there is something to validate on."""
        return self._held_out is not None

    def validation_batches_of(self, samples: int) -> int:
        """Return how many batches hold `samples` held-out windows, or all of them where there are fewer."""
        return batches_of(samples, self._held_out, self._batch_size)

    def batch(self, step: int) -> Tensor:
        """Return this process's ids (B, 1 + T * P) int64 of `step`: the start id of its kind, then the visual ids."""
        return self._ids(self._training, step)

    def name_batch(self, step: int) -> str:
        """Name the windows of a training batch."""
        return name_windows(self._tokens, self._training, step, self._batch_size)

    def loss(self, batch: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean cross-entropy of what follows ids (B, 1 + T * P)."""
        targets = self.model.config.targets(batch)
        return self._forward(batch, targets=targets, loss_chunk_tokens=self._loss_chunk_tokens).loss, {}

    def validate(self) -> dict[str, float]:
        """Return nats per token and accuracy on held-out windows, always the same ones; nats by source, if several."""
        if self._held_out is None:
            return {}
        measured = self.measure(self._validation_batches)
        by_source = {f"loss/{name}": one.loss for name, one in measured.sources.items()}
        return {"loss": measured.loss, "accuracy": measured.accuracy, **(by_source if len(by_source) > 1 else {})}

    def measure(self, batches: int) -> TokenMeasures:
        """Measure the model on about `batches` batches of held-out windows, as many of each source."""
        assert self._held_out is not None, "there are no held-out clips"
        names = list(self._held_out.parts)
        each = max(1, round(batches / len(names)))
        return mixed({name: self._measure(self._held_out.alone(name), each) for name in names}, self._held_out.weights)

    @torch.no_grad()
    def _measure(self, sampler: MixtureSampler, batches: int) -> TokenMeasures:
        T, P = self.model.config.frames, self.model.config.tokens_per_frame
        device = self.model.embed.weight.device
        losses = torch.zeros(T * P, dtype=torch.float64)
        counts = torch.zeros(2, dtype=torch.float64)  # guessed by the model, equal to the frame before
        for index in range(batches):
            inputs = self._ids(sampler, index).to(device)
            codes = inputs[:, 1:].unflatten(1, (T, P))
            targets = self.model.config.targets(inputs)
            found = self._forward(
                inputs, targets=targets, loss_chunk_tokens=self._loss_chunk_tokens, per_token=True
            ).per_token
            losses += found.nats[:, :-1].sum(0).double().cpu()  # without the end token
            right = (found.likeliest[:, :-1].unflatten(1, (T, P)) == codes)[:, 1:]
            counts += torch.stack([right.sum(), (codes[:, 1:] == codes[:, :-1]).sum()]).double().cpu()
        losses, counts = self._processes.total(losses), self._processes.total(counts)
        windows = batches * self._batch_size
        accuracy, copied = (counts / max(1, windows * (T - 1) * P)).tolist()
        return TokenMeasures(losses.div(windows).tolist(), accuracy, copied, windows)

    def windows(self, batches: int, *, held_out: bool) -> np.ndarray:
        """Return the codes (B, T, P) of the first batches that train, or that are held out, mixed by weight."""
        sampler = self._held_out if held_out else self._training
        assert sampler is not None, "there are no held-out clips"
        return np.concatenate([self._codes(sampler, index).numpy() for index in range(batches)])

    def utilisation(self, units_per_s: float, peak_flops_per_s: float) -> dict[str, float]:
        """Return MFU with attention counted in full, and with the half that the mask leaves."""
        share = mfu(self.model.config, units_per_s, peak_flops_per_s)
        return {"mfu": share.full, "mfu_causal": share.causal}

    def describe(self) -> dict[str, Any]:
        """Return the model's configuration."""
        return describe(self.model)

    def publish(self, directory: Path, state: Mapping[str, Tensor]) -> None:
        """Write config, weights and a copy of the tokenizer: all that a stream of pixels needs."""
        shutil.copytree(self._tokenizer_dir, directory / "tokenizer")
        write_model(directory, self.describe(), state)

    def _ids(self, sampler: MixtureSampler, step: int) -> Tensor:
        return self._read(sampler.windows(step, self._batch_size)[self._processes.share(self._batch_size)])

    def _read(self, drawn: list[Window]) -> Tensor:
        codes = torch.from_numpy(self._tokens.windows([window.rows for window in drawn]))
        return self.model.pack(codes, ["image" if window.kind == "images" else "video" for window in drawn])[0]

    def _codes(self, sampler: MixtureSampler, step: int) -> Tensor:
        sizes = self.model.config
        ids = self._read(sampler.windows(step, self._batch_size))
        return (ids[:, 1:] - sizes.first_visual_id).unflatten(1, (-1, sizes.tokens_per_frame))


@dataclass(frozen=True)
class TokenMeasures:
    """How well a model predicts held-out tokens."""

    per_position: list[float]  # nats at each of the T * P positions
    accuracy: float  # share of tokens guessed, from the second frame on
    copy_accuracy: float  # share of tokens that equal the same place one frame earlier
    windows: int
    sources: Mapping[str, TokenMeasures] = field(default_factory=dict)  # the same by source

    @property
    def loss(self) -> float:
        """Nats per token."""
        return sum(self.per_position) / len(self.per_position)


def mixed(sources: Mapping[str, TokenMeasures], weights: Mapping[str, float]) -> TokenMeasures:
    """Return what the sources' measures are together, each with its weight."""
    shares = np.array([weights[name] for name in sources])
    shares /= shares.sum()
    means = [(*one.per_position, one.accuracy, one.copy_accuracy) for one in sources.values()]
    *per_position, accuracy, copied = (shares @ np.array(means)).tolist()
    return TokenMeasures(per_position, accuracy, copied, sum(one.windows for one in sources.values()), dict(sources))


class MAEObjective:
    """Masked autoencoding of single frames (arXiv 2111.06377), by the transformers model's own loss.

    No augmentation: the paper's random resized crop and flip teach that place and handedness do not matter, and for an
    arm over a table they are the task. The frames move by themselves.
    """

    name = "mae"
    unit = "images"

    def __init__(
        self,
        model: nn.Module,
        frames: FrameStore,
        *,
        training: MixtureSampler,
        held_out: MixtureSampler | None,
        batch_size: int,
        seed: int,
        forward: Callable[..., Any] | None = None,
        validation_batches: int = 4,
        processes: Processes = ALONE,
    ) -> None:
        """`batch_size` is that of all processes together."""
        self.model = model
        self.config: MAEConfig = mae_config(model)  # type: ignore[arg-type]
        self.units_per_step = batch_size
        self._frames, self._training, self._held_out = frames, training, held_out
        self._seed, self._validation_batches = seed, validation_batches
        self._forward: Callable[..., Any] = model if forward is None else forward
        self._processes = processes

    @property
    def has_held_out(self) -> bool:
        """Say whether there is something to validate on."""
        return self._held_out is not None

    def validation_batches_of(self, samples: int) -> int:
        """Return how many batches hold `samples` held-out frames, or all of them where there are fewer."""
        return batches_of(samples, self._held_out, self.units_per_step)

    def batch(self, step: int) -> Tensor:
        """Return this process's frames (B, h, w, 3) uint8 of step `step`."""
        return read_frames(self._frames, self._training, step, self.units_per_step, self._processes)

    def name_batch(self, step: int) -> str:
        """Name the frames of a training batch."""
        return name_windows(self._frames, self._training, step, self.units_per_step)

    def loss(self, batch: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean squared error on hidden patches; which are hidden is a function of (seed, step)."""
        return self._forward(normalise_pixels(batch), noise=self._noise_of_share(batch, step, "mask")).loss, {}

    def noise(self, images: int, step: int, purpose: str = "mask") -> Tensor:
        """Return the noise (B, P) whose smallest entries stay visible; drawn on the CPU, so equal on every device."""
        generator = torch.Generator().manual_seed(step_seed(self._seed, step, purpose))
        return torch.rand(images, self.config.tokens_per_frame, generator=generator)

    def _noise_of_share(self, batch: Tensor, step: int, purpose: str) -> Tensor:
        everyones = self.noise(self.units_per_step, step, purpose)
        return everyones[self._processes.share(self.units_per_step)].to(batch.device)

    def validate(self) -> dict[str, float]:
        """Return the loss on held-out frames, always the same ones under the same masks."""
        if self._held_out is None:
            return {}
        return {"loss": self.measure(self._validation_batches)}

    @torch.no_grad()
    def measure(self, batches: int) -> float:
        """Return the mean loss over `batches` batches of held-out frames."""
        assert self._held_out is not None, "there are no held-out clips"
        device = next(self.model.parameters()).device
        losses = []
        for index in range(batches):
            frames = read_frames(self._frames, self._held_out, index, self.units_per_step, self._processes).to(device)
            noise = self._noise_of_share(frames, index, "held out")
            losses.append(float(self._forward(normalise_pixels(frames), noise=noise).loss))
        mine = torch.tensor(math.fsum(losses), dtype=torch.float64)
        return float(self._processes.total(mine)) / (batches * self._processes.size)

    @torch.no_grad()
    def inpaint(self, frames: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Return frames (B, h, w, 3) uint8 with hidden patches grey, and with them painted in by the model."""
        output = self._forward(normalise_pixels(frames), noise=self.noise(len(frames), 0, "picture").to(frames.device))
        patch = self.config.patch_px
        pixels = _patches(frames.float() / 255, patch)  # (B, P, patch * patch * 3)
        painted = output.logits.float()
        if self.config.norm_pix_loss:  # targets were normalised by patch; undo it with the truth's mean and deviation
            std = normalise_pixels(frames).permute(0, 2, 3, 1)
            target = _patches(std, patch)
            painted = painted * (target.var(-1, keepdim=True) + 1e-6).sqrt() + target.mean(-1, keepdim=True)
        painted = _denormalise(painted)
        hidden = output.mask.bool().unsqueeze(-1)
        grey = torch.where(hidden, torch.full_like(pixels, 0.5), pixels)
        return _to_images(grey, patch), _to_images(torch.where(hidden, painted, pixels), patch)

    def utilisation(self, units_per_s: float, peak_flops_per_s: float) -> dict[str, float]:
        """Return MFU; nothing is masked in MAE's attention."""
        return {"mfu": mae_training_flops(self.config, 1) * units_per_s / peak_flops_per_s}

    def describe(self) -> dict[str, Any]:
        """Return the model's configuration."""
        return describe(self.model)

    def publish(self, directory: Path, state: Mapping[str, Tensor]) -> None:
        """Write config and weights, the decoder's included."""
        write_model(directory, self.describe(), state)


def name_windows(store: TokenStore | FrameStore, sampler: MixtureSampler, step: int, batch_size: int) -> str:
    """Name what a batch was made of: "door.mp4 from frame 12 (stride 2), ..."; of pictures, each one."""
    ends, records = np.asarray(store.clip_ends), store.records
    named = []
    for rows, _, kind in sampler.windows(step, batch_size):
        clips = np.searchsorted(ends, rows, side="right").tolist()
        if kind == "images":
            named.append("pictures " + " + ".join(records[clip]["name"] for clip in clips))
        else:
            inside = rows[0] - (int(ends[clips[0] - 1]) if clips[0] else 0)
            stride = rows.step if isinstance(rows, range) else 1
            named.append(f"{records[clips[0]]['name']} from frame {inside} (stride {stride})")
    return ", ".join(named)


def batches_of(samples: int, sampler: MixtureSampler | None, batch_size: int) -> int:
    """Return how many batches hold `samples` samples, or all that the sampler has."""
    there = samples if sampler is None else min(samples, sampler.samples)
    return max(1, there // batch_size)


def read_frames(
    frames: FrameStore, sampler: MixtureSampler, step: int, batch_size: int, processes: Processes = ALONE
) -> Tensor:
    """Return this process's share (B, h, w, 3) uint8 of the frames that a sampler of single frames draws for a step."""
    drawn = sampler.windows(step, batch_size)[processes.share(batch_size)]
    indices = np.array([window.rows[0] for window in drawn])
    return torch.from_numpy(frames.read(indices))


def _patches(images: Tensor, patch: int) -> Tensor:
    """Cut (B, h, w, 3) into (B, P, patch * patch * 3) as ViTMAE's patchify does."""
    B, h, w, C = images.shape
    cut = images.reshape(B, h // patch, patch, w // patch, patch, C)
    return cut.permute(0, 1, 3, 2, 4, 5).reshape(B, -1, patch * patch * C)


def _denormalise(patches: Tensor) -> Tensor:
    """Undo `normalise_pixels` on (B, P, patch * patch * 3)."""
    repeats = patches.shape[-1] // 3
    mean = torch.tensor(IMAGENET_MEAN, device=patches.device).repeat(repeats)
    return patches * torch.tensor(IMAGENET_STD, device=patches.device).repeat(repeats) + mean


def _to_images(patches: Tensor, patch: int) -> np.ndarray:
    """Join (B, P, patch * patch * 3) in [0, 1] to uint8 (B, h, w, 3)."""
    B, P, _ = patches.shape
    side = math.isqrt(P)
    joined = patches.reshape(B, side, side, patch, patch, 3).permute(0, 1, 3, 2, 4, 5)
    return joined.reshape(B, side * patch, side * patch, 3).clamp(0, 1).mul(255).round().byte().cpu().numpy()
