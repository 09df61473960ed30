"""How is Toto trained on tokens, measured on held-out ones, and shown?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from toto_robot import packaged
from toto_robot.data.frames import FrameStore
from toto_robot.data.tokens import TokenStore
from toto_robot.encoders.base import autocast, resolve_precision
from toto_robot.models.compute import peak_flops_per_s, toto_training_flops
from toto_robot.models.hub import from_pretrained
from toto_robot.models.mup import learning_rate_scales
from toto_robot.models.toto import Toto, TotoConfig
from toto_robot.pretrain.baselines import copy_previous_nats, unigram_nats
from toto_robot.pretrain.clips import Division, divide, weights_of
from toto_robot.pretrain.config import PretrainConfig
from toto_robot.pretrain.distributed import ALONE, Processes
from toto_robot.pretrain.equal import fingerprint
from toto_robot.pretrain.loop import Objective, compiled, train
from toto_robot.pretrain.objectives import TokenMeasures, TotoObjective
from toto_robot.pretrain.optim import choose_device, choose_precision
from toto_robot.pretrain.pictures import draw_loss, draw_per_position
from toto_robot.pretrain.reporting import peak_memory_gib
from toto_robot.pretrain.resolution import start_from
from toto_robot.pretrain.stages import Stages
from toto_robot.pretrain.toto_pictures import Continuations
from toto_robot.run_folder import read_json, write_json


def train_toto(
    config: PretrainConfig,
    run_dir: Path,
    stages: Stages,
    tokens: TokenStore,
    tokenizer_dir: Path,
    frames: FrameStore | None,
    processes: Processes = ALONE,
) -> dict[str, Any]:
    """Do the stages train, validate and pictures; return what the summary says. `frames` are only drawn."""
    sizes = config.sizes()
    assert isinstance(sizes, TotoConfig)
    division = divide(tokens.clip_ends, tokens.records, config.val_fraction, config.seed, sizes.frames)
    weights = weights_of(division, config.data, config.weights)
    training, held_out = division.samplers(sizes.frames, config.strides, config.seed, weights)
    shown = Continuations(
        held_out or training, tokens, frames, tokenizer_dir, kind="held-out" if held_out else "training",
        seed=config.seed,
    )  # fmt: skip

    def objective(model: Toto, forward: torch.nn.Module | None = None) -> TotoObjective:
        return TotoObjective(
            model,
            tokens,
            training=training,
            held_out=held_out,
            batch_size=config.computed_at_once(),
            tokenizer_dir=tokenizer_dir,
            forward=forward,
            loss_chunk_tokens=config.loss_chunk_tokens,
            processes=processes,
        )

    def work() -> dict[str, Any]:
        device = choose_device(config.device)
        model = Toto(sizes, generator=torch.Generator().manual_seed(config.seed))
        if config.start:
            start_from(model, packaged.model_folder(config.start), tokenizer_dir)
        model.to(device)
        model.activation_checkpointing = config.activation_checkpointing
        processes.shard(model)
        forward = compiled(model, run_dir) if config.compile else None
        lr_scales = learning_rate_scales(model.named_parameters(), sizes)

        def draw_whole(whole: Toto, done: int) -> None:
            draw_loss(run_dir, unit="nats per token")
            shown.draw(whole, run_dir / "pictures" / f"continuation_{done:06d}.png")

        def draw(done: int) -> None:
            whole = processes.undivided(model, lambda: Toto(sizes, device=device))
            processes.first(lambda: draw_whole(whole, done))

        return run_loop(config, run_dir, objective(model, forward), device, processes, lr_scales, draw)

    def pictures() -> dict[str, Any]:
        model, device = _trained(config, run_dir), choose_device(config.device)
        with autocast(resolve_precision(config.precision, device), device):
            shown.draw(model, run_dir / "continuation.png")
        return _draw_curves(run_dir, validated)

    trained = stages.run("train", work, together=True)
    validated = stages.run(
        "validate",
        lambda: _validate(config, run_dir, objective(_trained(config, run_dir)), tokens, division, processes),
        together=True,
    )
    stages.run("pictures", pictures)
    flops = toto_training_flops(sizes, trained["tokens_seen"])
    return {
        **trained,
        **validated,
        "training_flops": flops,
        "division": fingerprint(division, tokens.clip_ends, tokens.records),
    }


def run_loop(
    config: PretrainConfig,
    run_dir: Path,
    objective: Objective,
    device: torch.device,
    processes: Processes,
    lr_scales: Mapping[str, float] | None = None,
    draw: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Do the stage that trains; return its summary. `draw(steps done)` shows what the model makes, now and then."""
    dtype = choose_precision(config.precision, device)
    trained = train(
        objective, config.loop(), run_dir, device=device, dtype=dtype, lr_scales=lr_scales, draw=draw,
        processes=processes,
    )  # fmt: skip
    unit, seen = objective.unit, trained.units
    parameters = sum(p.numel() for p in objective.model.parameters() if p.requires_grad)
    peak = peak_flops_per_s(device, dtype)
    shares = objective.utilisation(trained.units_per_second, peak * processes.size) if peak else {}
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
    config: PretrainConfig,
    run_dir: Path,
    objective: TotoObjective,
    tokens: TokenStore,
    division: Division,
    processes: Processes,
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
    if processes.is_first:
        write_json(
            run_dir / "per_position.json",
            {
                "unit": "nats per token",
                "references": {"single tokens": round(unigram, 4), "copying the frame before": copied},
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


def _draw_curves(run_dir: Path, validated: Mapping[str, Any]) -> dict[str, Any]:
    """Draw the loss over the steps, and over the positions of a sample where it was measured."""
    unit = "nats per token"
    if validated["val_loss"] is None:
        draw_loss(run_dir, unit=unit)
        return {"summary": "loss.png, continuation.png"}
    draw_loss(run_dir, unit=unit, references={"unigram": validated["val_unigram"]})
    measured = read_json(run_dir / "per_position.json")
    draw_per_position(run_dir / "per_position.png", measured)
    return {"summary": "loss.png, per_position.png, continuation.png"}
