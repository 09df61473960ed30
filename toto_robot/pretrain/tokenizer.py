"""How does `toto_robot train-tokenizer` turn videos into a tokenizer, and how good is it?"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toto_robot.data.frames import FrameStore, prepare_frames
from toto_robot.data.sources import find_sources
from toto_robot.encoders.base import autocast, resolve_precision
from toto_robot.pretrain.clips import Division, divide
from toto_robot.pretrain.loop import LoopConfig, Trained, train
from toto_robot.pretrain.optim import choose_device, choose_precision
from toto_robot.pretrain.pictures import draw_loss, draw_rows
from toto_robot.pretrain.stages import Stages
from toto_robot.pretrain.tokenizer_objectives import TokenizerObjective
from toto_robot.run_folder import provenance, write_json
from toto_robot.tokenizers.dvae import DVAE, dvae_preset, load_dvae
from toto_robot.tokenizers.vq import VQAutoencoder

_MEASURED_FRAMES = 512  # held-out frames in runs of neighbours, for the summary
_RUN_FRAMES = 16
# Nano: 500 steps on held-out robot video gave 21.3 dB at 1e-3, 22.3 at 3e-3, 22.6 at 6e-3. dvae: the DALL-E paper's.
_LR = {"dvae_nano": 6e-3, "dvae_local": 6e-3, "dvae": 1e-4}


@dataclass(frozen=True, kw_only=True)
class TrainTokenizerConfig:
    """Settings of `toto_robot train-tokenizer`."""

    MAY_CHANGE = ("device", "checkpoint_every", "eval_every", "wandb")  # these do not change the result

    data: str | None = None  # folder of videos, a video, or an episode store
    frames: str | None = None  # frames prepared before, by this command, tokenize or pretrain (instead of data)
    model: str = "dvae_nano"  # sizes: dvae_nano, dvae_local (codes that keep still) or dvae (OpenAI's)
    vocab: int | None = None  # number of codes; null is that of the preset
    image_px: int = 64  # side of the square frames, pixels
    limit_frames: int | None = None  # use only that many frames
    steps: int = 1100  # training steps
    batch_size: int = 32  # frames a step
    lr: float | None = None  # peak learning rate; null is that of the preset
    warmup_steps: int = 50  # linear warm-up
    final_lr_ratio: float = 0.1  # last learning rate over the peak
    weight_decay: float = 0.0  # on conv weights
    clip: float = 1.0  # largest gradient norm
    plain_fraction: float = 0.2  # share of the steps that train a plain autoencoder, before the codebook starts
    val_fraction: float = 0.05  # share of the videos or episodes held out
    seed: int = 0  # of weights, batches and codebook
    device: str = "auto"  # auto, cpu, cuda or cuda:<n>
    precision: str = "auto"  # auto, bf16 or fp32
    checkpoint_every: int = 200  # steps
    eval_every: int = 200  # steps
    wandb: str | None = None  # Weights & Biases project that is logged to as well; null: none

    def __post_init__(self) -> None:
        if self.data and self.frames:
            raise ValueError("give data or frames, not both")
        if not 0 < self.plain_fraction < 1:
            raise ValueError(f"plain_fraction must lie between 0 and 1, got {self.plain_fraction}")
        if self.image_px < 8 or self.image_px % 8:
            raise ValueError(f"image_px must be a multiple of 8 (the tokenizer's stride), got {self.image_px}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        dvae_preset(self.model)
        self.loop()

    def loop(self) -> LoopConfig:
        """Return the settings of the loop."""
        names = ("steps", "warmup_steps", "final_lr_ratio", "weight_decay", "clip", "seed")
        return LoopConfig(
            **{name: getattr(self, name) for name in names},
            lr=_LR[self.model] if self.lr is None else self.lr,
            checkpoint_every=self.checkpoint_every,
            eval_every=self.eval_every,
            wandb=self.wandb,
        )

    def deciding(self) -> dict[str, Any]:
        """Return the settings that decide the result."""
        return {key: value for key, value in asdict(self).items() if key not in self.MAY_CHANGE}


def train_tokenizer(config: TrainTokenizerConfig, run_dir: Path) -> int:
    """Train a dVAE (VQ-EMA) on the frames of videos or episodes; the same command continues after a kill.

    Leaves `pretrained_model/` (what tokenize and pretrain take), `summary.json`, `reconstructions.png` and `loss.png`.
    """
    if not (config.data or config.frames):
        raise ValueError("nothing to train on: give data=<folder of videos or episode store>, or frames=<frame store>")
    stages = Stages(run_dir, config.deciding(), title="tokenizer ")
    frames_dir = Path(config.frames) if config.frames else run_dir / "frames"
    if data := config.data:
        stages.run("frames", lambda: prepare(data, frames_dir, config.image_px, config.limit_frames, 1))
    frames = open_frames(frames_dir, config.image_px)
    division = divide(frames.clip_ends, frames.records, config.val_fraction, config.seed)
    trained = stages.run("train", lambda: _train(config, frames, division, run_dir))
    measured = stages.run("validate", lambda: _validate(config, frames, division, run_dir))
    stages.run("pictures", lambda: _draw(config, frames, division, run_dir))
    summary = {**measured, **trained, "minutes": stages.minutes, "settings": config.deciding()}
    write_json(run_dir / "summary.json", {key: value for key, value in summary.items() if key != "summary"})
    print(f"tokenizer in {run_dir / 'pretrained_model'}")
    return 0


def prepare(data: str, out_dir: Path, image_px: int, limit_frames: int | None, min_frames: int) -> dict[str, Any]:
    """Do the stage that decodes videos into a frame store; return its summary."""
    frames = prepare_frames(
        find_sources(data),
        out_dir,
        image_px,
        limit_frames=limit_frames,
        min_frames=min_frames,
        provenance=provenance(data=data),
    )
    return {
        "summary": f"{len(frames)} clips, {len(frames.frames)} frames of {image_px} px",
        "clips": len(frames),
        "frames": len(frames.frames),
    }


def open_frames(path: Path, image_px: int) -> FrameStore:
    """Open a frame store; ValueError where it is none, or its frames are of another size."""
    frames = FrameStore.open(path)
    if frames.image_px != image_px:
        raise ValueError(f"{path} holds frames of {frames.image_px} px, {image_px} px are needed; make them from data")
    return frames


def _train(config: TrainTokenizerConfig, frames: FrameStore, division: Division, run_dir: Path) -> dict[str, Any]:
    device = choose_device(config.device)
    sizes = dvae_preset(config.model)
    if config.vocab is not None:
        sizes = replace(sizes, vocab=config.vocab)
    model = VQAutoencoder(sizes, generator=torch.Generator().manual_seed(config.seed)).to(device)
    training, held_out = division.samplers(1, (1,), config.seed)
    objective = TokenizerObjective(
        model,
        frames,
        training=training,
        held_out=held_out,
        batch_size=config.batch_size,
        seed=config.seed,
        plain_steps=max(1, round(config.plain_fraction * config.steps)),
    )
    dtype = choose_precision(config.precision, device)
    trained: Trained = train(objective, config.loop(), run_dir, device=device, dtype=dtype)
    return {
        "summary": f"{trained.steps} steps, {trained.units} images at {trained.units_per_second:.0f}/s",
        "steps": trained.steps,
        "images": trained.units,
        "images_per_s": round(trained.units_per_second, 1),
        "train_seconds": round(trained.seconds, 1),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def _validate(config: TrainTokenizerConfig, frames: FrameStore, division: Division, run_dir: Path) -> dict[str, Any]:
    clips = division.held_out if len(division.held_out) else division.training
    device = choose_device(config.device)
    tokenizer = load_dvae(run_dir / "pretrained_model", device)
    measured = measure(tokenizer, frames, _runs(division, clips), resolve_precision(config.precision, device))
    measured["held_out"] = bool(len(division.held_out))
    stability = measured["stability"]
    return {
        "summary": f"PSNR {measured['psnr_db']:.1f} dB, {measured['codes_used']} of {tokenizer.vocab} codes, "
        f"perplexity {measured['perplexity']:.0f}, stability {'-' if stability is None else f'{stability:.2f}'}",
        **measured,
    }


def measure(
    tokenizer: DVAE, frames: FrameStore, runs: list[tuple[int, int]], precision: str = "fp32"
) -> dict[str, Any]:
    """Measure a tokenizer on runs (first row, frames) of neighbouring frames.

    `psnr_db` of the decoded pictures; `codes_used` and `perplexity` over all of them; `stability`, the share of patches
    without any changed pixel that keep their code in the next frame (None where all patches change).
    """
    device = next(tokenizer.parameters()).device
    squared, pixels, kept, unchanged = 0.0, 0, 0, 0
    counts = torch.zeros(tokenizer.vocab, dtype=torch.long)
    for start, length in runs:
        images = torch.from_numpy(frames.clip(start, length)).to(device)
        with torch.inference_mode(), autocast(precision, device):
            codes = tokenizer.encode(images)
            error = tokenizer.decode(codes).double() - images.double()
        squared, pixels = squared + float(error.square().sum()), pixels + error.numel()
        counts += torch.bincount(codes.flatten().cpu(), minlength=tokenizer.vocab)
        still = _still_patches(images, tokenizer.stride)
        unchanged += int(still.sum())
        kept += int((still & (codes[1:] == codes[:-1])).sum())
    share = counts[counts > 0].double() / counts.sum()
    return {
        "psnr_db": round(10 * float(np.log10(255**2 / max(squared / pixels, 1e-12))), 2),
        "codes_used": int((counts > 0).sum()),
        "vocab": tokenizer.vocab,
        "perplexity": round(float((-(share * share.log()).sum()).exp()), 1),
        "stability": round(kept / unchanged, 4) if unchanged else None,
        "measured_frames": sum(length for _, length in runs),
    }


def _still_patches(images: Tensor, stride: int) -> Tensor:
    """Return which patches (T - 1, h / stride, w / stride) equal those of the frame before, to the pixel."""
    same = (images[1:] == images[:-1]).all(-1)  # (T - 1, h, w)
    T, h, w = same.shape
    return same.view(T, h // stride, stride, w // stride, stride).all(4).all(2)


def _runs(division: Division, clips: np.ndarray) -> list[tuple[int, int]]:
    """Return (first row, frames) of runs of neighbouring frames, one a clip from its middle, spread over `clips`."""
    wanted = max(1, _MEASURED_FRAMES // _RUN_FRAMES)
    chosen = clips[np.unique(np.linspace(0, len(clips) - 1, wanted).round().astype(int))]
    starts = np.concatenate([[0], division.ends[:-1]])
    runs = []
    for clip in chosen:
        length = int(division.ends[clip] - starts[clip])
        frames = min(_RUN_FRAMES, length)
        runs.append((int(starts[clip]) + (length - frames) // 2, frames))
    return runs


def _draw(config: TrainTokenizerConfig, frames: FrameStore, division: Division, run_dir: Path) -> dict[str, Any]:
    tokenizer = load_dvae(run_dir / "pretrained_model")
    clips = division.held_out if len(division.held_out) else division.training
    rows = [start for start, _ in _runs(division, clips)][:12]
    truth = frames.read(rows)
    decoded = tokenizer.decode(tokenizer.encode(torch.from_numpy(truth))).numpy()
    title = f"{config.model}: {'held-out' if len(division.held_out) else 'training'} frames"
    draw_rows(run_dir / "reconstructions.png", [("frame", truth), ("decoded", decoded)], title=title)
    draw_loss(run_dir, unit="squared error")
    return {"summary": "reconstructions.png, loss.png"}
