"""How is the baseline, MAE, trained on the same frames by the same loop?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from toto_robot.data.frames import FrameStore
from toto_robot.encoders.base import autocast, resolve_precision
from toto_robot.models.compute import mae_training_flops
from toto_robot.models.hub import from_pretrained
from toto_robot.models.mae import MAEConfig, build_mae
from toto_robot.pretrain.clips import Division, weights_of
from toto_robot.pretrain.config import PretrainConfig
from toto_robot.pretrain.distributed import ALONE, Processes
from toto_robot.pretrain.equal import division_of
from toto_robot.pretrain.loop import compiled
from toto_robot.pretrain.objectives import MAEObjective
from toto_robot.pretrain.optim import choose_device
from toto_robot.pretrain.pictures import draw_loss, draw_rows
from toto_robot.pretrain.stages import Stages
from toto_robot.pretrain.train_toto import run_loop

_FRAMES_DRAWN = 12


def train_mae(
    config: PretrainConfig, run_dir: Path, stages: Stages, frames: FrameStore, processes: Processes = ALONE
) -> dict[str, Any]:
    """Do the stages train, validate and pictures; return what the summary says."""
    sizes = config.sizes()
    assert isinstance(sizes, MAEConfig)
    division = division_of(config, frames.clip_ends, frames.records, min_frames=1)

    shown = _spread(frames, division)

    def objective(model: torch.nn.Module, forward: Callable[..., Any] | None = None) -> MAEObjective:
        weights = weights_of(division, config.data, config.weights)
        training, held_out = division.samplers(1, (1,), config.seed, weights)
        return MAEObjective(
            model,
            frames,
            training=training,
            held_out=held_out,
            batch_size=config.computed_at_once(),
            seed=config.seed,
            forward=forward,
            processes=processes,
        )

    def work() -> dict[str, Any]:
        device = choose_device(config.device)
        model = build_mae(sizes, seed=config.seed).to(device)
        processes.shard(model)
        learned = objective(model, compiled(model, run_dir) if config.compile else None)

        def draw(done: int) -> None:
            name = Path("pictures") / f"reconstructions_{done:06d}.png"
            whole = processes.undivided(model, lambda: build_mae(sizes).to(device))
            processes.first(
                lambda: _draw(config, run_dir, learned if whole is model else objective(whole), shown, name)
            )

        return run_loop(config, run_dir, learned, device, processes, draw=draw)

    def trained_objective() -> MAEObjective:
        return objective(from_pretrained(run_dir / "pretrained_model", choose_device(config.device)))

    def pictures() -> dict[str, Any]:
        device = choose_device(config.device)
        with autocast(resolve_precision(config.precision, device), device):
            _draw(config, run_dir, trained_objective(), shown, Path("reconstructions.png"))
        return {"summary": "loss.png, reconstructions.png"}

    trained = stages.run("train", work, together=True)
    validated = stages.run("validate", lambda: _validate(config, trained_objective()), together=True)
    stages.run("pictures", pictures)
    amounts = {
        "patches_seen": trained["images_seen"] * sizes.tokens_per_frame,
        "training_flops": mae_training_flops(sizes, trained["images_seen"]),
    }
    return {**trained, **validated, **amounts}


def _validate(config: PretrainConfig, objective: MAEObjective) -> dict[str, Any]:
    if not objective.has_held_out:
        return {"summary": "nothing is held out", "val_loss": None}
    device = choose_device(config.device)
    with autocast(resolve_precision(config.precision, device), device):
        loss = objective.measure(objective.validation_batches_of(config.recipe().val_samples))
    return {"summary": f"{loss:.4f} squared error on hidden, normalised patches", "val_loss": round(loss, 4)}


def _spread(frames: FrameStore, division: Division) -> np.ndarray:
    """Return the middle frames of a few clips, held out where some are, uint8 (n, h, w, 3)."""
    clips = division.held_out if len(division.held_out) else division.training
    chosen = clips[np.unique(np.linspace(0, len(clips) - 1, _FRAMES_DRAWN).round().astype(int))]
    starts = np.concatenate([[0], division.ends[:-1]])
    return frames.read((starts[chosen] + division.ends[chosen]) // 2)


def _draw(config: PretrainConfig, run_dir: Path, objective: MAEObjective, frames: np.ndarray, name: Path) -> None:
    """Draw the loss curve, and frames beside what the model sees of them and paints."""
    masked, painted = objective.inpaint(torch.from_numpy(frames).to(choose_device(config.device)))
    rows = [("frame", frames), ("visible", masked), ("painted", painted)]
    draw_rows(run_dir / name, rows, title=f"{config.model}: hidden patches painted by the model")
    draw_loss(run_dir, unit="squared error on hidden patches")
