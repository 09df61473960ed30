"""How does a head learn to do what the demonstrations did, from cached features, resumably to the bit?"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from policies.heads.base import Head, InputSizes, elementwise, mean_inside
from policies.heads.build import build_head
from policies.heads.config import HeadConfig
from policies.normalize import KINDS, Normalizer, check_finite
from policies.observation import Inputs, proprio_input
from toto_robot.data.episodes import ORACLE_KEY, EpisodeStore
from toto_robot.pretrain import checkpoint
from toto_robot.pretrain.optim import adamw, learning_rate, set_learning_rate
from toto_robot.run_folder import MetricLog


@dataclass(frozen=True, kw_only=True)
class BCConfig:
    """Settings of behaviour cloning. Device is the CPU: the heads are small and the features are read, not computed."""

    steps: int = 1000  # optimizer steps
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
    validation_fraction: float = 0.1  # part of the demonstrations that is only measured on, never trained on
    log_every: int = 50  # steps between lines of metrics.jsonl
    validate_every: int = 250  # steps between validations
    checkpoint_every: int = 500  # steps between checkpoints
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
            if getattr(self, name) < 1:
                raise ValueError(f"expected bc.{name} of at least 1, got {getattr(self, name)}")
        for name in ("ema", "proprio_dropout", "token_dropout", "validation_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"expected bc.{name} in [0, 1), got {getattr(self, name)}")

    @property
    def action_kind(self) -> str:
        """The normaliser of actions."""
        return self.action_normalizer or ("min_max" if self.head.name == "diffusion" else "mean_std")


@dataclass(frozen=True)
class Demonstrations:
    """The first n episodes of a store, as cloning reads them: everything in memory, features as float16."""

    proprio: np.ndarray  # (N, Dp) float32
    actions: np.ndarray  # (N, A) float32, clean labels
    tokens: dict[str, Tensor]  # camera -> (N, P, D) float16
    ends: np.ndarray  # (E,) first frame after each episode
    proprio_names: tuple[str, ...]
    action_names: tuple[str, ...]

    def frames_of(self, episodes: range) -> np.ndarray:
        """Return the frame indices of some episodes."""
        starts = np.concatenate([[0], self.ends[:-1]])
        return np.concatenate([np.arange(starts[e], self.ends[e]) for e in episodes])


def load_demonstrations(
    store: EpisodeStore, features: Mapping[str, np.ndarray], episodes: int, oracle: bool = False
) -> Demonstrations:
    """Read the first `episodes` episodes and their cached features; ValueError for NaN in the data.

    For the oracle the simulator's state follows the proprioception.
    """
    end = int(store.ends[episodes - 1])
    names = list(store.env["proprio_names"])
    numbers = [store.read("observation.state", 0, end).astype(np.float32)]
    if oracle:
        numbers.append(_oracle(store, end))
        names += [f"state_{index}" for index in range(numbers[-1].shape[1])]
    data = Demonstrations(
        proprio=np.concatenate(numbers, axis=1),
        actions=store.read("action", 0, end).astype(np.float32),
        tokens={camera: torch.from_numpy(np.array(array)) for camera, array in features.items()},
        ends=np.asarray(store.ends[:episodes]),
        proprio_names=tuple(names),
        action_names=tuple(store.env["action_names"]),
    )
    check_finite(data.proprio, data.proprio_names, "observation.state of the demonstrations")
    check_finite(data.actions, data.action_names, "action of the demonstrations")
    return data


def _oracle(store: EpisodeStore, end: int) -> np.ndarray:
    if ORACLE_KEY not in store.features:
        raise ValueError(f"encoder=state needs {ORACLE_KEY} in {store.path}; collect the demonstrations again")
    return store.read(ORACLE_KEY, 0, end).astype(np.float32)


def split_episodes(episodes: int, validation_fraction: float) -> tuple[range, range]:
    """Return (training, validation) episodes: the last ones are held out, at least one for a fraction above 0."""
    held_out = max(1, round(episodes * validation_fraction)) if validation_fraction > 0 else 0
    held_out = min(held_out, episodes - 1)
    return range(episodes - held_out), range(episodes - held_out, episodes)


@dataclass(frozen=True)
class Trained:
    """What behaviour cloning gives: the head whose weights are used, and the statistics it needs."""

    head: Head
    proprio: Normalizer
    actions: Normalizer


class _Learner(nn.Module):
    """The trained head and its running average, saved as one."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head
        self.average = copy.deepcopy(head).requires_grad_(False)

    @torch.no_grad()
    def follow(self, decay: float, step: int) -> None:
        """Move the average towards the head; early on it forgets its random start sooner."""
        decay = min(decay, (1 + step) / (10 + step))
        for slow, fast in zip(self.average.parameters(), self.head.parameters(), strict=True):
            slow.lerp_(fast, 1 - decay)


def train_head(config: BCConfig, data: Demonstrations, seed: int, run_dir: Path) -> Trained:
    """Train a head on cached features; continue from `run_dir/checkpoints/last` when there is one.

    Step s draws its batch, noise and masks from a generator seeded by (seed, s), so that a killed and continued run
    ends with the bits of one that was not. Writes metrics.jsonl and checkpoints.
    """
    training, validation = split_episodes(len(data.ends), config.validation_fraction)
    frames = data.frames_of(training)
    proprio = Normalizer.fit(data.proprio[frames], data.proprio_names, kind=config.proprio_normalizer)
    actions = Normalizer.fit(
        data.actions[frames], data.action_names, kind=config.action_kind, floor=config.action_floor
    )
    table = _Table(config, data, proprio, actions)
    sizes = input_sizes(data, config.head.frames)
    learner = _Learner(build_head(config.head, sizes, data.actions.shape[1], seed))
    optimizer = adamw(learner.head.named_parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    last = checkpoint.last(run_dir)
    start = checkpoint.restore(last, learner, optimizer).step if last else 0
    with (
        MetricLog(run_dir, resume_step=start) as log,
        tqdm(total=config.steps, initial=start, desc="clone", unit="step", smoothing=0.05) as bar,
    ):
        for step in range(start, config.steps):
            values = _step(config, learner, optimizer, table, frames, seed, step)
            done = step + 1
            if validation and (done % config.validate_every == 0 or done == config.steps):
                values |= _validate(learner.average, table, data.frames_of(validation))
            if done % config.log_every == 0 or "val/loss" in values:
                log.write(done, values)
                bar.set_postfix({key: f"{value:.3f}" for key, value in values.items() if key.endswith("loss")})
            if done % config.checkpoint_every == 0 or done == config.steps:
                state = checkpoint.snapshot(done, learner, optimizer, config=_describe(learner), notes={})
                checkpoint.save(run_dir, state, keep=1)
            bar.update()
    return Trained(learner.average.eval(), proprio, actions)


def input_sizes(data: Demonstrations, history: int) -> InputSizes:
    """Return what a head is given when it learns from this data."""
    shapes = {tuple(array.shape[1:]) for array in data.tokens.values()}
    assert len(shapes) <= 1, shapes
    tokens_per_frame, width = shapes.pop() if shapes else (0, 0)
    return InputSizes(
        cameras=tuple(data.tokens),
        tokens_per_frame=tokens_per_frame,
        token_width=width,
        proprio_dim=data.proprio.shape[1],
        history=history,
    )


class _Table:
    """The demonstrations as tensors: what a frame shows, and the chunk of actions that follows it."""

    def __init__(self, config: BCConfig, data: Demonstrations, proprio: Normalizer, actions: Normalizer) -> None:
        self._proprio = proprio_input(data.proprio, proprio)
        self._actions = torch.from_numpy(actions.normalize(data.actions))
        self._tokens = data.tokens
        steps, history = config.head.steps, config.head.frames
        lengths = np.diff(data.ends, prepend=0)
        ends = np.repeat(data.ends, lengths)[:, None]  # (N, 1): the end of each frame's episode
        starts = ends - np.repeat(lengths, lengths)[:, None]
        ahead = np.arange(len(ends))[:, None] + np.arange(steps)  # (N, K)
        self._ahead = torch.from_numpy(np.minimum(ahead, ends - 1))
        self._inside = torch.from_numpy(ahead < ends)  # actions after an episode's end are not asked for
        behind = np.arange(len(ends))[:, None] + np.arange(1 - history, 1)  # (N, Ho), oldest first
        seen = torch.from_numpy(np.maximum(behind, starts))  # before an episode's first frame stands the first frame
        self._seen = seen if history > 1 else seen[:, 0]

    def rows(self, frames: Tensor) -> tuple[Inputs, Tensor, Tensor]:
        """Return inputs, target chunks (B, K, A) and which of them count (B, K)."""
        seen = self._seen[frames]
        tokens = {camera: array[seen].float() for camera, array in self._tokens.items()}
        return Inputs(self._proprio[seen], tokens), self._actions[self._ahead[frames]], self._inside[frames]


def _step(
    config: BCConfig,
    learner: _Learner,
    optimizer: torch.optim.Optimizer,
    table: _Table,
    frames: np.ndarray,
    seed: int,
    step: int,
) -> dict[str, float]:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    drawn = torch.randint(len(frames), (config.batch_size,), generator=generator)
    inputs, target, inside = table.rows(torch.from_numpy(frames)[drawn])
    lr = learning_rate(
        step, peak=config.learning_rate, warmup_steps=config.warmup_steps, steps=config.steps, final_ratio=0.0
    )
    set_learning_rate(optimizer, lr)
    learner.head.train()
    loss = learner.head.loss(_disturb(inputs, config, generator), target, inside, generator)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(learner.head.parameters(), config.clip_norm)
    optimizer.step()
    learner.follow(config.ema, step)
    value = float(loss.detach())
    if not math.isfinite(value):
        raise ValueError(
            f"the cloning loss is {value} at step {step + 1}; lower bc.learning_rate ({config.learning_rate})"
        )
    return {"train/loss": value, "train/gradient_norm": float(norm), "train/learning_rate": lr}


def _disturb(inputs: Inputs, config: BCConfig, generator: torch.Generator) -> Inputs:
    """Make the proprioception a little wrong or absent, and drop tokens: the head must look, not remember."""
    proprio, tokens = inputs.proprio, inputs.tokens
    if config.proprio_noise > 0:
        proprio = proprio + config.proprio_noise * torch.randn(proprio.shape, generator=generator)
    if config.proprio_dropout > 0:
        kept = torch.rand(len(proprio), 1, generator=generator) >= config.proprio_dropout
        proprio = proprio * kept.view(-1, *[1] * (proprio.ndim - 1))  # of a sample, its whole history
    if config.token_dropout > 0:
        tokens = {
            camera: array * (torch.rand(*array.shape[:-1], 1, generator=generator) >= config.token_dropout)
            for camera, array in tokens.items()
        }
    return Inputs(proprio, tokens)


@torch.no_grad()
def _validate(head: Head, table: _Table, frames: np.ndarray) -> dict[str, float]:
    """Return the loss and the MSE of normalised actions over whole episodes; the MSE does not rank encoders."""
    head.eval()
    generator = torch.Generator().manual_seed(0)  # the same noise every time: the curve shows the head alone
    totals = {"val/loss": 0.0, "val/mse": 0.0}
    count = 0.0
    for part in torch.from_numpy(frames).split(256):
        inputs, target, inside = table.rows(part)
        weight = float(inside.sum())
        totals["val/loss"] += float(head.loss(inputs, target, inside, generator)) * weight
        error = elementwise("mse", head(inputs, generator), target)
        totals["val/mse"] += float(mean_inside(error, inside)) * weight
        count += weight
    return {key: total / count for key, total in totals.items()}


def _describe(learner: _Learner) -> dict[str, Any]:
    return {"model_type": "cloned_head", **asdict(learner.head.config)}
