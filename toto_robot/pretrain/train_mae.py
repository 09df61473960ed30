"""How is the baseline, MAE, trained on the same frames by the same loop?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from toto_robot.data.frames import FrameStore
from toto_robot.encoders.base import autocast, resolve_precision
from toto_robot.models.hub import from_pretrained
from toto_robot.models.mae import MAEConfig, build_mae
from toto_robot.pretrain.clips import Division, divide
from toto_robot.pretrain.config import PretrainConfig
from toto_robot.pretrain.loop import compiled
from toto_robot.pretrain.objectives import MAEObjective
from toto_robot.pretrain.optim import choose_device
from toto_robot.pretrain.pictures import draw_loss, draw_rows
from toto_robot.pretrain.stages import Stages
from toto_robot.pretrain.train_toto import run_loop

_FRAMES_DRAWN = 12


def train_mae(config: PretrainConfig, run_dir: Path, stages: Stages, frames: FrameStore) -> dict[str, Any]:
    """Do the stages train, validate and pictures; return what the summary says."""
    sizes = config.sizes()
    assert isinstance(sizes, MAEConfig)
    division = divide(frames.clip_ends, frames.records, config.val_fraction, config.seed)

    def objective(model: torch.nn.Module, forward: Callable[..., Any] | None = None) -> MAEObjective:
        training, held_out = division.samplers(1, (1,), config.seed)
        return MAEObjective(
            model,
            frames,
            training=training,
            held_out=held_out,
            batch_size=config.computed_at_once(),
            seed=config.seed,
            forward=forward,
        )

    def work() -> dict[str, Any]:
        device = choose_device(config.device)
        model = build_mae(sizes, seed=config.seed).to(device)
        return run_loop(config, run_dir, objective(model, compiled(model, run_dir) if config.compile else None), device)

    def trained_objective() -> MAEObjective:
        return objective(from_pretrained(run_dir / "pretrained_model", choose_device(config.device)))

    trained = stages.run("train", work)
    validated = stages.run("validate", lambda: _validate(config, trained_objective()))
    stages.run("pictures", lambda: _draw(config, run_dir, trained_objective(), frames, division))
    return {**trained, **validated}


def _validate(config: PretrainConfig, objective: MAEObjective) -> dict[str, Any]:
    if not objective.has_held_out:
        return {"summary": "nothing is held out", "val_loss": None}
    device = choose_device(config.device)
    with autocast(resolve_precision(config.precision, device), device):
        loss = objective.measure(objective.validation_batches_of(config.recipe().val_samples))
    return {"summary": f"{loss:.4f} squared error on hidden, normalised patches", "val_loss": round(loss, 4)}


def _draw(
    config: PretrainConfig, run_dir: Path, objective: MAEObjective, frames: FrameStore, division: Division
) -> dict[str, Any]:
    """Draw the loss curve, and frames beside what the model sees of them and paints."""
    clips = division.held_out if len(division.held_out) else division.training
    chosen = clips[np.unique(np.linspace(0, len(clips) - 1, _FRAMES_DRAWN).round().astype(int))]
    starts = np.concatenate([[0], division.ends[:-1]])
    truth = frames.read((starts[chosen] + division.ends[chosen]) // 2)
    masked, painted = objective.inpaint(torch.from_numpy(truth).to(choose_device(config.device)))
    rows = [("frame", truth), ("visible", masked), ("painted", painted)]
    draw_rows(run_dir / "reconstructions.png", rows, title=f"{config.model}: hidden patches painted by the model")
    draw_loss(run_dir, unit="squared error on hidden patches")
    return {"summary": "loss.png, reconstructions.png"}
