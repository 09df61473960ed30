"""How does `toto_robot train-tokenizer` turn videos into a tokenizer, and say how good it is?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from toto_robot.data.frames import FrameStore, prepare_frames
from toto_robot.data.sources import find_sources
from toto_robot.encoders.base import resolve_precision
from toto_robot.pretrain.card import write_tokenizer_card
from toto_robot.pretrain.clips import Division, divide, weights_of
from toto_robot.pretrain.loop import Trained, train
from toto_robot.pretrain.optim import choose_device, choose_precision
from toto_robot.pretrain.pictures import draw_loss, draw_rows
from toto_robot.pretrain.stages import Stages
from toto_robot.pretrain.tokenizer_config import TrainTokenizerConfig
from toto_robot.pretrain.tokenizer_measures import (
    agreement,
    cost,
    load_toto_of,
    measure,
    measured_runs,
    next_token_nats,
)
from toto_robot.pretrain.tokenizer_methods import VQ, Gumbel, Method, Student, VQGANMethod
from toto_robot.pretrain.tokenizer_objectives import TokenizerObjective
from toto_robot.run_folder import provenance, write_json
from toto_robot.tokenizers.discriminator import Discriminator, layers_for
from toto_robot.tokenizers.dvae import DVAE
from toto_robot.tokenizers.gumbel import GumbelAutoencoder, GumbelSchedule
from toto_robot.tokenizers.load import AnyTokenizer, load_tokenizer
from toto_robot.tokenizers.perceptual import load_perceptual
from toto_robot.tokenizers.student import make_student, student_config
from toto_robot.tokenizers.vq import VQAutoencoder
from toto_robot.tokenizers.vqgan import VQGANConfig
from toto_robot.tokenizers.vqgan_training import VQGANAutoencoder, VQGANLoss

_SHOWN_FRAMES = 12
_DISCRIMINATOR_WIDTH = 64  # as published; less for a VQGAN that is narrower itself
_LOSSES = {"vq_ema": "squared error", "gumbel": "nats a value", "vqgan": "loss", "student": "nats a patch"}


def train_tokenizer(config: TrainTokenizerConfig, run_dir: Path) -> int:
    """Train a tokenizer on the frames of videos or episodes; the same command continues after a kill.

    Leaves `pretrained_model/` (what tokenize and pretrain take), `summary.json`, `reconstructions.png` and `loss.png`.
    """
    if not (config.data or config.frames):
        raise ValueError("nothing to train on: give data=<folder of videos or episode store>, or frames=<frame store>")
    stages = Stages(run_dir, config.deciding(), title="tokenizer ")
    frames_dir = Path(config.frames) if config.frames else run_dir / "frames"
    if data := config.data:
        stages.run(
            "frames", lambda: prepare(data, frames_dir, config.image_px, config.limit_frames, 1, config.limit_files)
        )
    frames = open_frames(frames_dir, config.image_px)
    division = divide(frames.clip_ends, frames.records, config.val_fraction, config.seed)
    trained = stages.run("train", lambda: _train(config, frames, division, run_dir))
    measured = stages.run("validate", lambda: _validate(config, frames, division, run_dir))
    stages.run("pictures", lambda: _draw_all(config, frames, division, run_dir))
    summary = {**measured, **trained, "minutes": stages.minutes, "settings": config.deciding()}
    write_json(run_dir / "summary.json", {key: value for key, value in summary.items() if key != "summary"})
    write_tokenizer_card(run_dir, summary, frames)
    print(f"tokenizer in {run_dir / 'pretrained_model'}")
    return 0


def prepare(
    data: Sequence[str],
    out_dir: Path,
    image_px: int,
    limit_frames: int | None,
    min_frames: int,
    limit_files: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Do the stage that decodes videos into a frame store; return its summary."""
    frames = prepare_frames(
        find_sources(*data, limits=limit_files or ()),
        out_dir,
        image_px,
        limit_frames=limit_frames,
        min_frames=min_frames,
        provenance=provenance(data=list(data)),
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
    method = build_method(config, device)
    weights = weights_of(division, config.data, config.weights)
    training, held_out = division.samplers(1, (1,), config.seed, weights)
    objective = TokenizerObjective(
        method, frames, training=training, held_out=held_out, batch_size=config.batch_size, seed=config.seed
    )
    dtype = choose_precision(config.precision, device)
    shown = _shown(frames, division)

    def draw(done: int) -> None:
        if config.kind in ("gumbel", "student") or done > config.plain_steps:  # before, there are no codes
            _draw(method.tokenizer(), shown, run_dir / "pictures" / f"reconstructions_{done:06d}.png")

    trained: Trained = train(objective, config.loop(), run_dir, device=device, dtype=dtype, draw=draw)
    return {
        "summary": f"{trained.steps} steps, {trained.units} images at {trained.units_per_second:.0f}/s",
        "steps": trained.steps,
        "images": trained.units,
        "images_per_s": round(trained.units_per_second, 1),
        "train_seconds": round(trained.seconds, 1),
        "parameters": sum(parameter.numel() for parameter in method.model.parameters()),
    }


def build_method(config: TrainTokenizerConfig, device: torch.device) -> Method:
    """Return the method that the settings name, with fresh weights on `device`."""
    generator = torch.Generator().manual_seed(config.seed)
    if config.student_of:
        teacher = _teacher(config.student_of, device)
        student = make_student(teacher, student_config(teacher.config, config.width), generator=generator)
        return Student(student.to(device), teacher, config.soft)
    sizes = config.sizes()
    if isinstance(sizes, VQGANConfig):
        judge = None
        if config.adversarial:
            width = min(_DISCRIMINATOR_WIDTH, sizes.width)
            judge = Discriminator(width, layers_for(config.image_px), generator=generator)
        perceptual = load_perceptual(config.perceptual, device) if config.perceptual else None
        weights = VQGANLoss(adversarial_from=max(config.plain_steps, round(config.adversarial_from * config.steps)))
        model = VQGANAutoencoder(sizes, discriminator=judge, generator=generator).to(device)
        return VQGANMethod(model, config.plain_steps, weights, perceptual)
    if config.method == "gumbel":
        return Gumbel(GumbelAutoencoder(sizes, generator=generator).to(device), GumbelSchedule(steps=config.steps))
    return VQ(VQAutoencoder(sizes, generator=generator).to(device), config.plain_steps)


def _teacher(folder: str, device: torch.device) -> DVAE:
    teacher = load_tokenizer(folder, device)
    if not isinstance(teacher, DVAE):
        raise ValueError(f"{folder} holds a {teacher.config.name}; only a dVAE can have a student, of its own layout")
    return teacher


def _validate(config: TrainTokenizerConfig, frames: FrameStore, division: Division, run_dir: Path) -> dict[str, Any]:
    clips = _measured_clips(division)
    device = choose_device(config.device)
    precision = resolve_precision(config.precision, device)
    tokenizer = load_tokenizer(run_dir / "pretrained_model", device)
    measured = measure(tokenizer, frames, measured_runs(division, clips), precision)
    measured |= {"held_out": bool(len(division.held_out)), **cost(tokenizer, config.image_px, precision)}
    stability = measured["stability"]
    line = (
        f"PSNR {measured['psnr_db']:.1f} dB, {measured['codes_used']} of {tokenizer.vocab} codes, "
        f"perplexity {measured['perplexity']:.0f}, stability {'-' if stability is None else f'{stability:.2f}'}"
    )
    if config.student_of:
        measured |= _beside_teacher(config, tokenizer, frames, division, clips)
        line = f"agreement {measured['agreement']:.3f}, {line}"
    return {"summary": line, **measured}


def _beside_teacher(
    config: TrainTokenizerConfig, student: AnyTokenizer, frames: FrameStore, division: Division, clips: np.ndarray
) -> dict[str, Any]:
    """Return agreement with the teacher, what the teacher costs, and Toto's loss on the tokens of both."""
    device = choose_device(config.device)
    precision = resolve_precision(config.precision, device)
    teacher = _teacher(config.student_of or "", device)
    runs = measured_runs(division, clips)
    found: dict[str, Any] = {"agreement": agreement(teacher, student, frames, runs, precision)}
    found["teacher"] = {**measure(teacher, frames, runs, precision), **cost(teacher, config.image_px, precision)}
    if config.toto:
        toto = load_toto_of(config.toto, teacher, device)
        runs = measured_runs(division, clips, toto.config.frames)
        pair = [next_token_nats(toto, tokenizer, frames, runs, precision) for tokenizer in (teacher, student)]
        found |= {"toto_nats_teacher": round(pair[0], 4), "toto_nats_student": round(pair[1], 4)}
        found["toto_nats_change"] = round(pair[1] - pair[0], 4)
    return found


def _shown(frames: FrameStore, division: Division) -> np.ndarray:
    """Return frames (n, h, w, 3) of as many clips, held-out ones where there are any."""
    rows = [start for start, _ in measured_runs(division, _measured_clips(division))]
    return frames.read(rows[:_SHOWN_FRAMES])


@torch.no_grad()
def _draw(tokenizer: AnyTokenizer, truth: np.ndarray, path: Path) -> None:
    """Draw frames and what is left of them after their codes."""
    images = torch.from_numpy(truth).to(next(tokenizer.parameters()).device)
    decoded = tokenizer.decode(tokenizer.encode(images)).cpu().numpy()
    draw_rows(path, [("frame", truth), ("decoded", decoded)], title=f"{tokenizer.config.name}: frames and their codes")


def _draw_all(config: TrainTokenizerConfig, frames: FrameStore, division: Division, run_dir: Path) -> dict[str, Any]:
    tokenizer = load_tokenizer(run_dir / "pretrained_model")
    _draw(tokenizer, _shown(frames, division), run_dir / "reconstructions.png")
    draw_loss(run_dir, unit=_LOSSES[config.kind])
    return {"summary": "reconstructions.png, loss.png"}


def _measured_clips(division: Division) -> np.ndarray:
    return division.held_out if len(division.held_out) else division.training
