"""How does a head learn to do what was demonstrated, from cached features or with its encoder, resumably to the bit?"""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from policies.demonstrations import Demonstrations, split_episodes
from policies.failure import TrainingFailed
from policies.finetune import MODES, Eyes
from policies.heads.base import Head, InputSizes, elementwise, mean_inside
from policies.heads.build import build_head
from policies.heads.config import HeadConfig
from policies.normalize import KINDS, Normalizer
from policies.observation import Inputs
from policies.samples import Samples, disturb
from toto_robot.encoders.base import Encoder
from toto_robot.pretrain import checkpoint
from toto_robot.pretrain.optim import adamw, learning_rate, set_learning_rate
from toto_robot.run_folder import MetricLog


@dataclass(frozen=True, kw_only=True)
class BCConfig:
    """Settings of behaviour cloning. Device is the CPU: the heads are small and the features are read, not computed."""

    steps: int | None = None  # optimizer steps; null is 15 a demonstration, at least 1000 and at most 3000
    batch_size: int = 128  # frames a step
    learning_rate: float = 1e-3  # peak, AdamW
    warmup_steps: int = 50  # linear warm-up; a cosine to zero follows
    weight_decay: float = 1e-2  # on matrices
    clip_norm: float = 1.0  # largest gradient norm
    ema: float = 0.998  # decay of the averaged weights that become the policy; 0 takes the last weights
    proprio_noise: float = 0.05  # standard deviation added to normalised proprioception
    proprio_dropout: float = 0.0  # part of the samples whose proprioception is zeroed
    token_dropout: float = 0.0  # part of the tokens that are zeroed
    proprio_normalizer: str = "mean_std"  # mean_std, min_max or none
    action_normalizer: str | None = None  # mean_std, min_max or none; null is min_max for diffusion, else mean_std
    action_floor: float = 0.1  # smallest action scale, in action units: axes that hardly move stay small
    image_augmentations: int = 0  # changed variants of every episode's pictures to train on, beside the plain ones
    shift_px: int = 4  # of a variant: largest shift, in pixels of the stored pictures
    brightness: float = 0.2  # of a variant: largest relative change
    contrast: float = 0.2  # of a variant: largest relative change
    finetune: str = "none"  # weights of the encoder that learn too: none, full, last_k (blocks) or lora
    finetune_layers: int = 2  # of last_k: blocks
    lora_rank: int = 8  # of lora: rank of what is added to every matrix
    encoder_lr: float = 1e-4  # peak learning rate of the encoder's weights
    validation_fraction: float = 0.1  # part of the demonstrations that is only measured on, never trained on
    log_every: int = 50  # steps between lines of metrics.jsonl
    validate_every: int = 250  # steps between validations
    checkpoint_every: int = 500  # steps between checkpoints
    select: str = "last"  # weights that become the policy: last, or best (lowest validation loss)
    head: HeadConfig = field(default_factory=HeadConfig)

    def __post_init__(self) -> None:
        for name, value in (("proprio_normalizer", self.proprio_normalizer), ("action_normalizer", self.action_kind)):
            if value not in KINDS:
                raise ValueError(f"expected bc.{name} {', '.join(KINDS)}, got {value!r}")
        if self.head.name == "diffusion" and self.action_kind != "min_max":
            raise ValueError(
                f"the diffusion head draws actions in [-1, 1], which is bc.action_normalizer=min_max; got "
                f"{self.action_kind!r}"
            )
        for name in ("steps", "batch_size", "log_every", "validate_every", "checkpoint_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"expected bc.{name} of at least 1, got {value}")
        if self.select not in ("last", "best"):
            raise ValueError(f"expected bc.select last or best, got {self.select!r}")
        if self.finetune not in MODES:
            raise ValueError(f"expected bc.finetune {', '.join(MODES)}, got {self.finetune!r}")
        if self.lora_rank < 1 or self.encoder_lr <= 0:
            raise ValueError(
                f"expected bc.lora_rank of at least 1 and bc.encoder_lr above 0, got {self.lora_rank} and "
                f"{self.encoder_lr}"
            )
        for name in ("image_augmentations", "shift_px"):
            if getattr(self, name) < 0:
                raise ValueError(f"expected bc.{name} of 0 or more, got {getattr(self, name)}")
        for name in ("brightness", "contrast", "ema", "proprio_dropout", "token_dropout", "validation_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"expected bc.{name} in [0, 1), got {getattr(self, name)}")

    @property
    def action_kind(self) -> str:
        """The normaliser of actions."""
        return self.action_normalizer or ("min_max" if self.head.name == "diffusion" else "mean_std")

    def steps_for(self, demonstrations: int) -> int:
        """Return how long to train: what overfits 20 demonstrations is too short for 200 (benchmarks/RESULTS.md)."""
        fewest, most = _STEPS_RANGE
        return self.steps or min(max(_STEPS_A_DEMONSTRATION * demonstrations, fewest), most)


_STEPS_A_DEMONSTRATION, _STEPS_RANGE = 15, (1000, 3000)
Normalizers = tuple[Normalizer, Normalizer]  # of proprioception and of actions


@dataclass(frozen=True)
class Trained:
    """What a learner gives: the head whose weights are used, and the statistics it needs."""

    head: Head
    proprio: Normalizer
    actions: Normalizer
    encoder: Encoder | None = None  # where it has learned too; it then replaces the one that training began with
    other: Trained | None = None  # the weights that were not chosen: of the best validation loss, or the last


class _Model(nn.Module):
    """The head, and the encoder when it learns too."""

    def __init__(self, head: Head, eyes: Eyes | None) -> None:
        super().__init__()
        self.head, self.eyes = head, eyes

    def see(self, inputs: Inputs) -> Inputs:
        """Return what the head is given: tokens (..., P, D) float32."""
        if self.eyes is None:
            return Inputs(inputs.proprio, {camera: shown.float() for camera, shown in inputs.tokens.items()})
        frames = inputs.proprio.shape[:-1]  # (B) or (B, Ho)
        seen = {
            camera: self.eyes(shown.flatten(0, len(frames) - 1)).unflatten(0, frames)
            for camera, shown in inputs.tokens.items()
        }
        return Inputs(inputs.proprio, seen)


class _Learner(nn.Module):
    """What is trained, its running average, and the average of the lowest validation loss, saved as one."""

    def __init__(self, model: _Model) -> None:
        super().__init__()
        self.model = model
        self.average = copy.deepcopy(model).requires_grad_(False)
        self.best = copy.deepcopy(self.average)
        self.best_loss, self.best_step = math.inf, 0

    @torch.no_grad()
    def follow(self, decay: float, step: int) -> None:
        """Move the average towards the model; early on it forgets its random start sooner."""
        decay = min(decay, (1 + step) / (10 + step))
        for slow, fast in zip(self.average.parameters(), self.model.parameters(), strict=True):
            slow.lerp_(fast, 1 - decay)

    def judge(self, loss: float, step: int) -> None:
        """Keep the average if its validation loss is the lowest so far."""
        if loss < self.best_loss:
            self.best_loss, self.best_step = loss, step
            self.best.load_state_dict(self.average.state_dict())


def fit_normalizers(config: BCConfig, data: Demonstrations, frames: np.ndarray) -> Normalizers:
    """Fit the normalisers of proprioception and of actions on some frames of the data."""
    proprio = Normalizer.fit(data.proprio[frames], data.proprio_names, kind=config.proprio_normalizer)
    actions = Normalizer.fit(
        data.actions[frames], data.action_names, kind=config.action_kind, floor=config.action_floor
    )
    return proprio, actions


def train_head(
    config: BCConfig,
    data: Demonstrations,
    seed: int,
    run_dir: Path,
    encoder: Encoder | None = None,
    *,
    until: int | None = None,
    normalizers: Normalizers | None = None,
) -> Trained:
    """Train a head on cached features; continue from `run_dir/checkpoints/last` when there is one.

    Step s draws its batch, noise and masks from a generator seeded by (seed, s), so that a killed and continued run
    ends with the bits of one that was not. Writes metrics.jsonl and checkpoints. `encoder` is the one that learns too,
    where `config.finetune` says so; `data` then holds what its `prepare` makes of pictures. `until` ends the training
    at that step of `config.steps`, to go on with more data; `normalizers` stay what they were before.
    """
    config = replace(config, steps=config.steps_for(len(data.ends)))
    assert config.steps is not None
    training, validation = split_episodes(len(data.ends), config.validation_fraction)
    frames = data.frames_of(training)
    proprio, actions = normalizers or fit_normalizers(config, data, frames)
    end = config.steps if until is None else until
    samples = Samples(config.head, data, proprio, actions)
    learner = _Learner(_build(config, data, seed, encoder))
    optimizer = _optimizer(config, learner.model)
    last = checkpoint.last(run_dir)
    start = _restore(last, learner, optimizer) if last else 0
    with (
        MetricLog(run_dir, resume_step=start) as log,
        tqdm(total=end, initial=start, desc="clone", unit="step", smoothing=0.05) as bar,
    ):
        for step in range(start, end):
            values = _step(config, learner, optimizer, samples, torch.from_numpy(frames), seed, step)
            done = step + 1
            if validation and (done % config.validate_every == 0 or done == end):
                values |= _validate(learner.average, samples, data.frames_of(validation))
                learner.judge(values["val/loss"], done)
            if done % config.log_every == 0 or "val/loss" in values:
                log.write(done, values)
                bar.set_postfix({key: f"{value:.3f}" for key, value in values.items() if key.endswith("loss")})
            if done % config.checkpoint_every == 0 or done == end:
                notes = {"best_loss": learner.best_loss, "best_step": learner.best_step}
                state = checkpoint.snapshot(done, learner, optimizer, config=_describe(learner), notes=notes)
                checkpoint.save(run_dir, state, keep=1)
            bar.update()
    final = _finish(learner.average, proprio, actions)
    if learner.best_step in (0, config.steps):  # no validation, or the last was the best
        return final
    best = _finish(learner.best, proprio, actions)
    chosen, other = (best, final) if config.select == "best" else (final, best)
    return replace(chosen, other=other)


def _build(config: BCConfig, data: Demonstrations, seed: int, encoder: Encoder | None) -> _Model:
    """Build what is trained, with first weights of `seed`."""
    eyes = None
    if config.finetune != "none":
        if encoder is None:
            raise ValueError(f"bc.finetune={config.finetune} needs the encoder")
        eyes = Eyes(encoder, config.finetune, blocks=config.finetune_layers, rank=config.lora_rank, seed=seed)
    sizes = input_sizes(data, config.head.frames, encoder if eyes is not None else None)
    return _Model(build_head(config.head, sizes, data.actions.shape[1], seed), eyes)


def _optimizer(config: BCConfig, model: _Model) -> torch.optim.Optimizer:
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    slower = config.encoder_lr / config.learning_rate
    scales = {name: slower if name.startswith("eyes.") else 1.0 for name, _ in named}
    return adamw(named, lr=config.learning_rate, weight_decay=config.weight_decay, scales=scales)


def _restore(folder: Path, learner: _Learner, optimizer: torch.optim.Optimizer) -> int:
    restored = checkpoint.restore(folder, learner, optimizer)
    learner.best_loss, learner.best_step = restored.notes["best_loss"], restored.notes["best_step"]
    return restored.step


def _finish(model: _Model, proprio: Normalizer, actions: Normalizer) -> Trained:
    encoder = None if model.eyes is None else model.eyes.finished()
    return Trained(model.head.eval(), proprio, actions, encoder)


def input_sizes(data: Demonstrations, history: int, encoder: Encoder | None = None) -> InputSizes:
    """Return what a head is given when it learns from this data, or from what an encoder in training makes of it."""
    shapes = {tuple(array.shape[1:]) for array in data.tokens.values()}
    assert len(shapes) <= 1, shapes
    tokens_per_frame, width = shapes.pop() if shapes and encoder is None else (0, 0)
    if encoder is not None:
        tokens_per_frame, width = encoder.tokens_per_frame, encoder.width
    return InputSizes(
        cameras=tuple(data.tokens),
        tokens_per_frame=tokens_per_frame,
        token_width=width,
        proprio_dim=data.proprio.shape[1],
        history=history,
    )


def _step(
    config: BCConfig,
    learner: _Learner,
    optimizer: torch.optim.Optimizer,
    samples: Samples,
    frames: Tensor,
    seed: int,
    step: int,
) -> dict[str, float]:
    assert config.steps is not None
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    shown, target, inside = samples.draw(frames, config.batch_size, generator)
    lr = learning_rate(
        step, peak=config.learning_rate, warmup_steps=config.warmup_steps, steps=config.steps, final_ratio=0.0
    )
    set_learning_rate(optimizer, lr)
    learner.model.head.train()
    inputs = disturb(
        learner.model.see(shown),
        generator,
        proprio_noise=config.proprio_noise,
        proprio_dropout=config.proprio_dropout,
        token_dropout=config.token_dropout,
    )
    loss = learner.model.head.loss(inputs, target, inside, generator)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(learner.model.parameters(), config.clip_norm)
    optimizer.step()
    learner.follow(config.ema, step)
    value = float(loss.detach())
    if not math.isfinite(value):
        raise TrainingFailed(
            f"the cloning loss is {value} at step {step + 1}; lower bc.learning_rate ({config.learning_rate})"
        )
    return {"train/loss": value, "train/gradient_norm": float(norm), "train/learning_rate": lr}


@torch.no_grad()
def _validate(model: _Model, samples: Samples, frames: np.ndarray) -> dict[str, float]:
    """Return the loss and the MSE of normalised actions over whole episodes; the MSE does not rank encoders."""
    head = model.head.eval()
    generator = torch.Generator().manual_seed(0)  # the same noise every time: the curve shows the head alone
    totals = {"val/loss": 0.0, "val/mse": 0.0}
    count = 0.0
    for part in torch.from_numpy(frames).split(256):
        shown, target, inside = samples.rows(part)
        inputs, weight = model.see(shown), float(inside.sum())
        totals["val/loss"] += float(head.loss(inputs, target, inside, generator)) * weight
        error = elementwise("mse", head(inputs, generator), target)
        totals["val/mse"] += float(mean_inside(error, inside)) * weight
        count += weight
    return {key: total / count for key, total in totals.items()}


def _describe(learner: _Learner) -> dict[str, Any]:
    return {"model_type": "cloned_head", **asdict(learner.model.head.config)}
