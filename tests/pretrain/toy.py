"""A small Toto, tokens and frames to train on in seconds; as a script, a training to be killed."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from tests.pretrain.toy_videos import write_plain
from toto_robot.data.frames import FrameStore, prepare_frames
from toto_robot.data.sources import find_sources
from toto_robot.data.token_shards import write_store
from toto_robot.data.tokens import TokenSpec, TokenStore
from toto_robot.models.mup import learning_rate_scales, with_mup
from toto_robot.models.toto import Toto, TotoConfig
from toto_robot.pretrain.clips import divide
from toto_robot.pretrain.distributed import ALONE, Processes, started
from toto_robot.pretrain.loop import LoopConfig, Trained, train
from toto_robot.pretrain.objectives import TotoObjective
from toto_robot.pretrain.tokenizer_methods import VQ
from toto_robot.pretrain.tokenizer_objectives import TokenizerObjective
from toto_robot.tokenizers.codebook import VQConfig
from toto_robot.tokenizers.dvae import DVAE, DVAEConfig, save_dvae
from toto_robot.tokenizers.vq import VQAutoencoder

CPU = torch.device("cpu")
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


def train_toy(kind: str, folder: Path, run_dir: Path, **changes: object) -> Trained:
    """Train the small Toto ("toto options": in muP, with every option of the loop) or the small tokenizer.

    With torchrun's environment all its processes train one Toto; `changes` are those of the loop's settings.
    """
    if kind == "tokenizer":
        return train(tokenizer_objective(folder), loop_settings(), run_dir, device=CPU, dtype=torch.bfloat16)
    options = kind == "toto options"
    sizes = with_mup(SIZES, NARROW) if options else SIZES
    if options:
        changes = {"wsd_decay": 0.5, "ema_decay": 0.9, "accumulate": 2, **changes}
    with started("cpu", int(os.environ.get("REPLICAS", "1"))) as processes:
        torch.set_num_threads(1)
        model = Toto(sizes, generator=torch.Generator().manual_seed(0))
        processes.shard(model)
        objective = toto_objective(folder, model, batch_size=4 if options else 8, processes=processes)
        scales = learning_rate_scales(model.named_parameters(), sizes)
        return train(
            objective, loop_settings(**changes), run_dir, device=CPU, dtype=torch.bfloat16, lr_scales=scales,
            processes=processes,
        )  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    train_toy(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), **json.loads("".join(sys.argv[4:]) or "{}"))
