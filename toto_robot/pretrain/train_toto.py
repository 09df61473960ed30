"""How is Toto trained on tokens, measured on held-out ones, and shown?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from toto_robot import packaged
from toto_robot.data.frames import FrameStore
from toto_robot.data.mixture import Window, read_rows
from toto_robot.data.tokens import TokenStore
from toto_robot.encoders.base import autocast, resolve_precision
from toto_robot.models.compute import peak_flops_per_s
from toto_robot.models.generate import generate
from toto_robot.models.hub import from_pretrained
from toto_robot.models.mup import learning_rate_scales
from toto_robot.models.toto import Toto, TotoConfig
from toto_robot.pretrain.baselines import copy_previous_nats, unigram_nats
from toto_robot.pretrain.clips import Division, divide
from toto_robot.pretrain.config import PretrainConfig
from toto_robot.pretrain.loop import Objective, compiled, train
from toto_robot.pretrain.objectives import TokenMeasures, TotoObjective
from toto_robot.pretrain.optim import choose_device, choose_precision
from toto_robot.pretrain.pictures import draw_loss, draw_rows
from toto_robot.pretrain.reporting import peak_memory_gib
from toto_robot.pretrain.resolution import start_from
from toto_robot.pretrain.stages import Stages
from toto_robot.run_folder import write_json
from toto_robot.tokenizers.load import AnyTokenizer, load_tokenizer

_CLIPS_DRAWN = 3
_TEMPERATURE = 0.8


def train_toto(
    config: PretrainConfig,
    run_dir: Path,
    stages: Stages,
    tokens: TokenStore,
    tokenizer_dir: Path,
    frames: FrameStore | None,
) -> dict[str, Any]:
    """Do the stages train, validate and pictures; return what the summary says. `frames` are only drawn."""
    sizes = config.sizes()
    assert isinstance(sizes, TotoConfig)
    division = divide(tokens.clip_ends, tokens.records, config.val_fraction, config.seed, sizes.frames)

    def objective(model: Toto, forward: torch.nn.Module | None = None) -> TotoObjective:
        training, held_out = division.samplers(sizes.frames, config.strides, config.seed)
        return TotoObjective(
            model,
            tokens,
            training=training,
            held_out=held_out,
            batch_size=config.computed_at_once(),
            tokenizer_dir=tokenizer_dir,
            forward=forward,
            loss_chunk_tokens=config.loss_chunk_tokens,
        )

    def work() -> dict[str, Any]:
        device = choose_device(config.device)
        model = Toto(sizes, generator=torch.Generator().manual_seed(config.seed))
        if config.start:
            start_from(model, packaged.model_folder(config.start), tokenizer_dir)
        model.to(device)
        forward = compiled(model, run_dir) if config.compile else None
        lr_scales = learning_rate_scales(model.named_parameters(), sizes)
        return run_loop(config, run_dir, objective(model, forward), device, lr_scales)

    trained = stages.run("train", work)
    validated = stages.run(
        "validate", lambda: _validate(config, run_dir, objective(_trained(config, run_dir)), tokens, division)
    )
    stages.run("pictures", lambda: _draw(config, run_dir, tokens, division, frames, validated))
    return {**trained, **validated}


def run_loop(
    config: PretrainConfig,
    run_dir: Path,
    objective: Objective,
    device: torch.device,
    lr_scales: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Do the stage that trains; return its summary."""
    dtype = choose_precision(config.precision, device)
    trained = train(objective, config.loop(), run_dir, device=device, dtype=dtype, lr_scales=lr_scales)
    unit, seen = objective.unit, trained.units
    parameters = sum(p.numel() for p in objective.model.parameters() if p.requires_grad)
    peak = peak_flops_per_s(device, dtype)
    shares = objective.utilisation(trained.units_per_second, peak) if peak else {}
    return {
        "summary": f"{trained.steps} steps, {seen:,} {unit} at {trained.units_per_second:,.0f}/s, "
        f"{parameters / 1e6:.2f} M weights",
        "parameters": parameters,
        "steps": trained.steps,
        f"{unit}_seen": seen,
        f"{unit}_per_s": round(trained.units_per_second, 1),
        **{name: round(share, 4) for name, share in shares.items()},
        "peak_memory_gib": round(peak_memory_gib(device), 2),
        "train_seconds": round(trained.seconds, 1),
    }


def _trained(config: PretrainConfig, run_dir: Path) -> Toto:
    model = from_pretrained(run_dir / "pretrained_model", choose_device(config.device))
    assert isinstance(model, Toto)
    return model


def _validate(
    config: PretrainConfig, run_dir: Path, objective: TotoObjective, tokens: TokenStore, division: Division
) -> dict[str, Any]:
    """Measure the trained model on held-out windows, beside what needs no model; write `per_position.json`."""
    if not objective.has_held_out:
        return {"summary": "nothing is held out", "val_loss": None}
    device = choose_device(config.device)
    with autocast(resolve_precision(config.precision, device), device):
        batches = objective.validation_batches_of(config.recipe().val_samples)
        measured = objective.measure(batches)
    starts = np.concatenate([[0], division.ends[:-1]])
    codes = np.concatenate([tokens.tokens.read(starts[clip], division.ends[clip]) for clip in division.held_out])
    unigram = unigram_nats(codes, tokens.vocab)
    copied = None
    if objective.model.config.frames > 1:
        trained_on, held_out = (objective.windows(batches, held_out=flag) for flag in (False, True))
        copied = round(copy_previous_nats(trained_on, held_out, tokens.vocab), 4)
    by_frame = np.array(measured.per_position).reshape(-1, tokens.tokens_per_frame).mean(1)
    write_json(
        run_dir / "per_position.json",
        {
            "unit": "nats per token",
            **_by_position(measured, tokens.tokens_per_frame),
            "sources": {name: _by_position(one, tokens.tokens_per_frame) for name, one in measured.sources.items()},
        },
    )
    return {
        "summary": f"{measured.loss:.3f} nats a token (unigram {unigram:.3f}, copying the frame before {copied}), "
        f"{measured.accuracy:.3f} right (copying {measured.copy_accuracy:.3f})",
        "val_loss": round(measured.loss, 4),
        "val_unigram": round(unigram, 4),
        "val_copy_previous": copied,
        "val_accuracy": round(measured.accuracy, 4),
        "val_copy_accuracy": round(measured.copy_accuracy, 4),
        "val_first_frame": round(float(by_frame[0]), 4),
        "val_last_frame": round(float(by_frame[-1]), 4),
        "val_windows": measured.windows,
        "val_loss_by_source": {name: round(one.loss, 4) for name, one in measured.sources.items()},
    }


def _by_position(measured: TokenMeasures, tokens_per_frame: int) -> dict[str, Any]:
    by_frame = np.array(measured.per_position).reshape(-1, tokens_per_frame).mean(1)
    return {
        "windows": measured.windows,
        "per_position": [round(value, 4) for value in measured.per_position],
        "per_frame": by_frame.round(4).tolist(),
    }


def _draw(
    config: PretrainConfig,
    run_dir: Path,
    tokens: TokenStore,
    division: Division,
    frames: FrameStore | None,
    validated: dict[str, Any],
) -> dict[str, Any]:
    """Draw the loss curve, and what the model makes of the first quarter of a window beside what really came."""
    references = {"unigram": validated["val_unigram"]} if "val_unigram" in validated else {}
    draw_loss(run_dir, unit="nats per token", references=references)
    model = _trained(config, run_dir)
    device = model.embed.weight.device
    tokenizer = load_tokenizer(run_dir / "pretrained_model" / "tokenizer", device)
    T, given = model.config.frames, max(1, model.config.frames // 4)
    training, held_out = division.samplers(T, config.strides, config.seed)
    drawn = (held_out or training).windows(0, 100 * _CLIPS_DRAWN)
    windows = _of_different_clips([one for one in drawn if one.kind == "video"] or drawn, division)
    kind = "video" if windows[0].kind == "video" else "image"
    truth = tokens.windows([window.rows for window in windows]).astype(np.int64)  # (B, T, P)
    generator = torch.Generator(device).manual_seed(config.seed)
    with autocast(resolve_precision(config.precision, device), device):
        prompt = torch.from_numpy(truth[:, :given])
        continued = generate(model, prompt, T - given, temperature=_TEMPERATURE, generator=generator, kind=kind)
    made = continued.cpu().numpy()
    rows = []
    for index, window in enumerate(windows):
        if frames is not None:
            rows.append((kind, read_rows(frames.frames, window.rows)))
        rows.append(("its tokens", _pictures(tokenizer, truth[index], tokens.grid)))
        rows.append(("continued", _pictures(tokenizer, made[index], tokens.grid)))
    title = (
        f"{config.model}, {'training' if held_out is None else 'held-out'} video; right of the line the model draws "
        f"every token (temperature {_TEMPERATURE})"
    )
    draw_rows(run_dir / "continuation.png", rows, title=title, mark=given)
    return {"summary": "loss.png, continuation.png"}


def _of_different_clips(windows: list[Window], division: Division) -> list[Window]:
    """Return the first few windows of which no two begin in the same clip."""
    by_clip: dict[int, Window] = {}
    for window in windows:
        by_clip.setdefault(int(np.searchsorted(division.ends, window.rows[0], side="right")), window)
    return list(by_clip.values())[:_CLIPS_DRAWN]


def _pictures(tokenizer: AnyTokenizer, codes: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Decode codes (T, P) to uint8 (T, h, w, 3)."""
    device = next(tokenizer.parameters()).device
    return tokenizer.decode(torch.from_numpy(codes).view(-1, *grid).to(device)).cpu().numpy()
