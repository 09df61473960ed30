"""A small Toto, MAE and tokenizer, with tokens and frames to train on in seconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.pretrain.toy_videos import write_plain
from toto_robot.data.frames import FrameStore, prepare_frames
from toto_robot.data.sources import find_sources
from toto_robot.data.token_shards import write_store
from toto_robot.data.tokens import TokenSpec, TokenStore
from toto_robot.models.mae import MAEConfig, build_mae
from toto_robot.models.mup import learning_rate_scales, with_mup
from toto_robot.models.toto import Toto, TotoConfig
from toto_robot.pretrain.clips import divide
from toto_robot.pretrain.distributed import ALONE, Processes, started
from toto_robot.pretrain.loop import LoopConfig, Objective, Trained, train
from toto_robot.pretrain.objectives import MAEObjective, TotoObjective
from toto_robot.pretrain.tokenizer_methods import VQ
from toto_robot.pretrain.tokenizer_objectives import TokenizerObjective
from toto_robot.tokenizers.codebook import VQConfig
from toto_robot.tokenizers.dvae import DVAE, DVAEConfig, save_dvae
from toto_robot.tokenizers.vq import VQAutoencoder

CPU = torch.device("cpu")
Fault = tuple[int, int] | None  # rank and number of a batch
SIZES = TotoConfig(
    name="toy", visual_vocab=16, width=32, layers=2, heads=2, ffn_width=64, tokens_per_frame=4, frames=4,
    context_frames=4, image_px=16,
)  # fmt: skip
NARROW = replace(SIZES, width=16, ffn_width=32)
DVAE_SIZES = DVAEConfig(name="toy", hidden=8, blocks_per_group=1, vocab=16, decoder_init=8)


def token_store(path: Path, clips: int = 8, frames: int = 30) -> TokenStore:
    """Make (or open) a store in which every clip counts upwards: the next token can be learned."""
    if path.exists():
        return TokenStore.open(path)
    spec = TokenSpec(grid=(2, 2), vocab=16, image_px=16, tokenizer="toy", precision="fp32")
    codes = [(np.arange(frames)[:, None] + 3 * np.arange(4) + clip) % 16 for clip in range(clips)]
    return write_store(
        path, [(one, {"name": f"clip_{clip}", "group": f"clip_{clip}"}) for clip, one in enumerate(codes)], spec
    )


def frame_store(path: Path, clips: int = 4, frames: int = 24, size_px: int = 16) -> FrameStore:
    """Make (or open) a store of moving squares."""
    if not path.exists():
        folder = write_plain(path.with_name(f"{path.name}_videos"), clips, frames)
        prepare_frames(find_sources(folder), path, size_px, progress=False)
    return FrameStore.open(path)


def toto_objective(
    folder: Path, model: Toto | None = None, batch_size: int = 8, processes: Processes = ALONE
) -> TotoObjective:
    """Return the small Toto on the counting tokens, its tokenizer folder filled."""
    tokens = token_store(folder / "tokens")
    if not (folder / "tokenizer").exists():
        save_dvae(DVAE(DVAE_SIZES, generator=torch.Generator().manual_seed(0)), folder / "tokenizer")
    division = divide(tokens.clip_ends, tokens.records, 0.25, 0, SIZES.frames)
    training, held_out = division.samplers(SIZES.frames, (1, 2), 0)
    model = model or Toto(SIZES, generator=torch.Generator().manual_seed(0))
    return TotoObjective(
        model, tokens, training=training, held_out=held_out, batch_size=batch_size, tokenizer_dir=folder / "tokenizer",
        validation_batches=2, processes=processes,
    )  # fmt: skip


def tokenizer_objective(folder: Path, plain_steps: int = 10) -> TokenizerObjective:
    """Return a small tokenizer on the moving squares."""
    frames = frame_store(folder / "frames")
    division = divide(frames.clip_ends, frames.records, 0.25, 0)
    training, held_out = division.samplers(1, (1,), 0)
    vq = VQConfig(code_width=4, reservoir=64, kmeans_rounds=3)
    model = VQAutoencoder(DVAE_SIZES, vq, generator=torch.Generator().manual_seed(0))
    return TokenizerObjective(
        VQ(model, plain_steps), frames, training=training, held_out=held_out, batch_size=4, seed=0,
        validation_batches=2,
    )  # fmt: skip


def loop_settings(steps: int = 40, **changes: object) -> LoopConfig:
    """Return settings for a short training."""
    values: dict[str, object] = {
        "steps": steps, "lr": 3e-3, "warmup_steps": 4, "final_lr_ratio": 0.1, "weight_decay": 0.1, "clip": 1.0,
        "seed": 0, "checkpoint_every": 9, "eval_every": 15, "log_every": 1,
    }  # fmt: skip
    return LoopConfig(**{**values, **changes})  # type: ignore[arg-type]


def train_toy(
    kind: str,
    folder: Path,
    run_dir: Path,
    *,
    dtype: str = "bfloat16",
    replicas: int = 1,
    poisoned: Fault = None,
    unreadable: Fault = None,
    **changes: object,
) -> Trained:
    """Train the small Toto ("toto options": in muP, with every option of the loop), MAE or tokenizer.

    With torchrun's environment all its processes train one model. The batch (rank, number) `poisoned` has a loss that
    is not a number, the one `unreadable` cannot be read. `changes` are those of the loop's settings.
    """
    options = kind == "toto options"
    if options:
        changes = {"wsd_decay": 0.5, "ema_decay": 0.9, "accumulate": 2, **changes}
    with started("cpu", replicas) as processes:
        torch.set_num_threads(1)
        scales = None
        objective: Objective
        if kind == "tokenizer":
            objective = tokenizer_objective(folder)
        elif kind == "mae":
            objective = mae_objective(folder, processes)
        else:
            sizes = with_mup(SIZES, NARROW) if options else SIZES
            model = Toto(sizes, generator=torch.Generator().manual_seed(0))
            processes.shard(model)
            scales = learning_rate_scales(model.named_parameters(), sizes)
            objective = toto_objective(folder, model, batch_size=4 if options else 8, processes=processes)
        if poisoned or unreadable:
            objective = _Faulty(objective, processes.rank, poisoned, unreadable)
        return train(
            objective, loop_settings(**changes), run_dir, device=CPU, dtype=getattr(torch, dtype), lr_scales=scales,
            processes=processes,
        )  # fmt: skip


class _Faulty:
    """An objective with a fault in one batch of one process."""

    def __init__(self, whole: Objective, rank: int, poisoned: Fault, unreadable: Fault) -> None:
        self._whole, self._rank, self._poisoned, self._unreadable = whole, rank, poisoned, unreadable

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)

    def batch(self, step: int) -> torch.Tensor:
        if (self._rank, step) == self._unreadable:
            raise OSError(f"shard {step} is gone")
        return self._whole.batch(step)

    def loss(self, batch: torch.Tensor, step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss, extra = self._whole.loss(batch, step)
        return loss * (float("nan") if (self._rank, step) == self._poisoned else 1.0), extra


def mae_objective(folder: Path, processes: Processes) -> MAEObjective:
    """Return a small MAE on the moving squares, divided over the processes."""
    frames = frame_store(folder / "frames")
    division = divide(frames.clip_ends, frames.records, 0.25, 0)
    training, held_out = division.samplers(1, (1,), 0)
    sizes = MAEConfig(
        name="toy", image_px=16, patch_px=4, width=32, layers=2, heads=2, ffn_width=64, decoder_width=16,
        decoder_layers=1, decoder_heads=2, decoder_ffn_width=32,
    )  # fmt: skip
    model = build_mae(sizes)
    processes.shard(model)
    return MAEObjective(
        model, frames, training=training, held_out=held_out, batch_size=8, seed=0, validation_batches=2,
        processes=processes,
    )  # fmt: skip
