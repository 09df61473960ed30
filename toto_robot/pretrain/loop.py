"""How is a model trained? The only loop: Toto, MAE and the tokenizer differ in their objective, not in their loop.

The state of a training is (parameters, buffers, optimizer moments and averages, step). The batch of a step is a
function of (seed, step) and the random generators are set anew from (seed, step), so nothing else has to be
remembered: a run killed at any moment and started again ends with the bits of a run that was never killed (on the same
number of threads and processes). With `accumulate` = A a step takes the batches A * step to A * step + A - 1, which
hold the samples of one batch of A times the size. Of each batch every process computes its share.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from toto_robot.pretrain import checkpoint
from toto_robot.pretrain.batches import batches
from toto_robot.pretrain.checkpoint import Saver
from toto_robot.pretrain.distributed import ALONE, Processes, clip_gradients, full_state
from toto_robot.pretrain.interrupt import finish_step_on_interrupt
from toto_robot.pretrain.optim import ADAM_BETAS, adamw, averaged, learning_rate, set_learning_rate, update_average
from toto_robot.pretrain.reporting import Report
from toto_robot.pretrain.wandb_log import check_installed

_OPTIONS = ("wsd_decay", "ema_decay", "accumulate", "cosine_share", "beta1", "beta2")


class Objective(Protocol):
    """What is trained on what: a model, the batch of a step, and a loss."""

    name: str  # "toto", "mae" or "tokenizer"
    unit: str  # what throughput counts: "tokens" or "images"
    units_per_step: int  # in one batch, of all processes together

    @property
    def model(self) -> nn.Module:
        """Return the model; its state_dict is everything the training changes, buffers included."""

    def batch(self, step: int) -> Tensor:
        """Return this process's share of batch number `step`, on the CPU; a step of the loop may accumulate several."""

    def name_batch(self, step: int) -> str:
        """Say what batch number `step` was made of, for whoever looks for a fault in it."""

    def loss(self, batch: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the scalar loss and further scalars to log, for a batch on the model's device."""

    def validate(self) -> dict[str, float]:
        """Return held-out measurements of all processes by name, `loss` among them; empty where nothing is held out."""

    def utilisation(self, units_per_s: float, peak_flops_per_s: float) -> dict[str, float]:
        """Return the model's share of the peak, MFU, by convention; empty where its FLOPs are not counted."""

    def describe(self) -> dict[str, Any]:
        """Return the `config.json` of the model."""

    def publish(self, directory: Path, state: Mapping[str, Tensor]) -> None:
        """Write what a user loads; `state` is the whole state_dict, on the CPU."""


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """The settings of one training, whatever it trains."""

    steps: int  # optimizer steps
    lr: float  # peak learning rate
    warmup_steps: int  # linear warm-up
    final_lr_ratio: float  # last learning rate over the peak
    weight_decay: float  # on matrices and tables only
    clip: float  # largest gradient norm
    seed: int  # of batches, masks and noise
    checkpoint_every: int = 200  # steps
    keep_checkpoints: int = 2  # newest ones kept
    eval_every: int = 200  # steps
    log_every: int = 10  # steps
    wsd_decay: float | None = None  # WSD schedule: share of the steps, the last, in which the rate falls; null: cosine
    ema_decay: float | None = None  # of the moving average of the weights, which is then measured and published
    accumulate: int = 1  # batches whose gradients make one step
    loader_workers: int = 0  # threads that read the coming batches; 0: each is read when it is due
    pictures_every: int | None = None  # steps between pictures on the way; 0: none; null: a fifth, but at least 50
    wandb: str | None = None  # Weights & Biases project that is logged to as well
    cosine_share: float = 1.0  # share of the steps after which the cosine has ended and the rate stays
    beta1: float = ADAM_BETAS[0]  # of AdamW
    beta2: float = ADAM_BETAS[1]

    def __post_init__(self) -> None:
        for name in ("steps", "checkpoint_every", "keep_checkpoints", "eval_every", "log_every", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} of at least 1, got {getattr(self, name)}")
        if self.loader_workers < 0:
            raise ValueError(f"expected loader_workers of at least 0, got {self.loader_workers}")
        if not (self.lr > 0 and self.clip > 0 and 0 <= self.final_lr_ratio <= 1 and self.weight_decay >= 0):
            got = {name: getattr(self, name) for name in ("lr", "clip", "final_lr_ratio", "weight_decay")}
            raise ValueError(f"expected lr > 0, clip > 0, 0 <= final_lr_ratio <= 1 and weight_decay >= 0, got {got}")
        if not 0 <= self.warmup_steps < self.steps:
            raise ValueError(f"expected warmup_steps from 0 to steps - 1 = {self.steps - 1}, got {self.warmup_steps}")
        if self.wsd_decay is not None and not 0 < self.wsd_decay <= 1 - self.warmup_steps / self.steps:
            most = 1 - self.warmup_steps / self.steps
            raise ValueError(f"expected wsd_decay above 0 and at most {most:g} (after warm-up), got {self.wsd_decay}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"expected ema_decay between 0 and 1, such as 0.999, got {self.ema_decay}")
        if self.pictures_every is not None and self.pictures_every < 0:
            raise ValueError(f"expected pictures_every of at least 0 (0: none), got {self.pictures_every}")
        if self.wandb:
            check_installed()
        if not 0 < self.cosine_share <= 1:
            raise ValueError(f"expected cosine_share above 0 and at most 1, got {self.cosine_share}")

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        return learning_rate(
            step, peak=self.lr, warmup_steps=self.warmup_steps, steps=self.steps, final_ratio=self.final_lr_ratio,
            wsd_decay=self.wsd_decay, cosine_share=self.cosine_share,
        )  # fmt: skip

    def draws_after(self, done: int) -> bool:
        """Say whether pictures are due after `done` steps; those after the last are the caller's."""
        every = max(50, -(-self.steps // 5)) if self.pictures_every is None else self.pictures_every
        return every > 0 and done % every == 0 and done < self.steps

    def same_run(self) -> dict[str, Any]:
        """Return the settings that decide the resulting bits; a continued run must have the same."""
        names = ("steps", "lr", "warmup_steps", "final_lr_ratio", "weight_decay", "clip", "seed")
        return {name: getattr(self, name) for name in (*names, *_OPTIONS)}

    def changed(self, before: Mapping[str, Any]) -> list[str]:
        """Return the names of deciding settings that differ from a checkpoint's; what it lacks is at its default."""
        defaults = {field.name: field.default for field in fields(self)}
        return [name for name, now in self.same_run().items() if before.get(name, defaults[name]) != now]


@dataclass(frozen=True)
class Trained:
    """What a finished training reports."""

    steps: int
    seconds: float  # in the loop, over all its interruptions, validation and checkpoints included
    units: int  # tokens or images seen
    units_per_second: float  # median over this process's log intervals; over all the time where none was left to train
    validation: dict[str, float]  # after the last step


def step_seed(seed: int, step: int, purpose: str = "step") -> int:
    """Return 63 well-mixed bits of (seed, step, purpose): neighbouring steps and seeds share nothing."""
    digest = hashlib.blake2b(f"{seed}/{step}/{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def train(
    objective: Objective,
    config: LoopConfig,
    run_dir: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    lr_scales: Mapping[str, float] | None = None,
    draw: Callable[[int], None] | None = None,
    processes: Processes = ALONE,
) -> Trained:
    """Train until `config.steps`, continuing from the last checkpoint in `run_dir`; leave `run_dir/pretrained_model`.

    The objective's model is on `device`, and divided if there are several `processes`, which all call this; `dtype` is
    that of autocast; `lr_scales` are factors of the learning rate by parameter name (muP); `draw(steps done)` shows on
    the way what the model makes. Ctrl-C ends the step, checkpoints and raises KeyboardInterrupt. ValueError on a loss
    or gradient that is not finite, in every process and before the weights are touched; it names the batch, and the
    last checkpoint stays.
    """
    model = objective.model
    optimizer = adamw(
        model.named_parameters(), lr=config.lr, weight_decay=config.weight_decay, scales=lr_scales,
        betas=(config.beta1, config.beta2),
    )  # fmt: skip
    units_per_step = objective.units_per_step * config.accumulate
    start, notes = _resume(run_dir, model, optimizer, objective, config, processes)
    began = time.monotonic() - float(notes.get("seconds", 0.0))
    validation: dict[str, float] = notes.get("validation", {})
    stop = False
    model.train()
    with (
        Report(run_dir, objective, config, device=device, dtype=dtype, start=start, processes=processes) as report,
        Saver(run_dir, config.keep_checkpoints, processes) as saver,
        batches(
            objective.batch, range(start * config.accumulate, config.steps * config.accumulate), config.loader_workers
        ) as coming,
        finish_step_on_interrupt() as interrupted,
    ):
        for step in range(start, config.steps):
            torch.manual_seed(step_seed(config.seed, step, f"step {processes.rank}" if processes.rank else "step"))
            lr = config.learning_rate(step)
            set_learning_rate(optimizer, lr)
            losses: list[Tensor] = []
            for index in range(step * config.accumulate, (step + 1) * config.accumulate):
                batch = next(coming).to(device)
                with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
                    loss, extra = objective.loss(batch, index)
                (loss / config.accumulate).backward()
                losses.append(loss.detach())
                report.add({"train/loss": loss} | {f"train/{key}": extra[key] for key in extra})
            grad_norm = clip_gradients(model, config.clip)
            stop = _check_step(objective, step, losses, grad_norm, interrupted(), processes)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if config.ema_decay is not None:
                update_average(optimizer, config.ema_decay)
            report.end_step({"grad_norm": grad_norm})

            done = step + 1
            saver.check()
            save_due = stop or done == config.steps or done % config.checkpoint_every == 0
            if save_due or done % config.log_every == 0:
                report.write(done, {"lr": lr})
            with report.paused():
                if done == config.steps or done % config.eval_every == 0:
                    with averaged(optimizer, config.ema_decay is not None), _aside(model, device, dtype, processes):
                        validation = objective.validate()
                    report.write_values(done, {f"val/{name}": value for name, value in validation.items()})
                if draw is not None and config.draws_after(done):
                    with averaged(optimizer, config.ema_decay is not None), _aside(model, device, dtype, processes):
                        draw(done)
                if save_due:
                    notes = {
                        "objective": objective.name,
                        "settings": config.same_run(),
                        "seconds": time.monotonic() - began,
                        "validation": validation,
                    }
                    saver.save(
                        checkpoint.snapshot(
                            done, model, optimizer, config=objective.describe(), notes=notes, processes=processes
                        )
                    )
            if stop:
                break
        if stop or interrupted():
            saver.wait()
            raise KeyboardInterrupt
    with averaged(optimizer, config.ema_decay is not None):
        state = full_state(model, keep=processes.is_first)
        processes.first(
            lambda: checkpoint.publish(run_dir / "pretrained_model", lambda folder: objective.publish(folder, state))
        )
    seconds, units = time.monotonic() - began, config.steps * units_per_step
    speeds = sorted(report.units_per_second)
    speed = speeds[len(speeds) // 2] if speeds else units / seconds
    return Trained(steps=config.steps, seconds=seconds, units=units, units_per_second=speed, validation=validation)


def compiled(module: nn.Module, run_dir: Path) -> nn.Module:
    """Return `torch.compile(module)` with a cache of this process's own in the run folder, empty at the start.

    A killed compilation leaves truncated libraries in its cache, which would break the same run when it continues, and
    in a shared cache every other one.
    """
    cache = run_dir.resolve() / "inductor_cache" / os.environ.get("RANK", "0")
    shutil.rmtree(cache, ignore_errors=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
    return torch.compile(module)  # type: ignore[return-value]


def _resume(
    run_dir: Path, model: nn.Module, optimizer: torch.optim.Optimizer, objective: Objective, config: LoopConfig,
    processes: Processes,
) -> tuple[int, dict[str, Any]]:  # fmt: skip
    """Load the last checkpoint, if there is one; return the steps done and what the loop noted then."""
    newest = processes.first(lambda: checkpoint.last(run_dir))
    if newest is None:
        return 0, {}
    restored = checkpoint.restore(newest, model, optimizer)
    before, now = restored.notes["settings"], config.same_run()
    if restored.notes["objective"] != objective.name or config.changed(before):
        changed = ", ".join(f"{key}: {before.get(key)} -> {now[key]}" for key in config.changed(before))
        raise ValueError(
            f"{newest} belongs to a training of {restored.notes['objective']} with other settings ({changed}); "
            "continue it with its own settings, or start a new run with run=<another folder>"
        )
    print(f"continuing from {newest} ({restored.step} of {config.steps} steps done)")
    return restored.step, restored.notes


def _check_step(
    objective: Objective, step: int, losses: list[Tensor], grad_norm: Tensor, interrupted: bool, processes: Processes
) -> bool:
    """Return whether any process was interrupted; on a GPU this waits for the device once a step.

    ValueError in every process where a loss of any, or the gradient, is not finite.
    """
    mine = torch.stack(
        [*(loss.float() for loss in losses), grad_norm.float(), grad_norm.new_tensor(interrupted).float()]
    )
    *values, norm, stop = (processes.total(mine) / processes.size).tolist()
    if math.isfinite(norm) and all(map(math.isfinite, values)):
        return stop > 0
    first = step * len(losses)
    bad = [first + index for index, value in enumerate(values) if not math.isfinite(value)]
    what, value = ("train/loss", values[bad[0] - first]) if bad else ("grad_norm", norm)
    batches = "; ".join(
        f"batch {number}: {objective.name_batch(number)}" for number in bad or range(first, first + len(losses))
    )
    raise ValueError(
        f"{what} became {value} in step {step + 1}, and nothing was updated; the last checkpoint is from before. Train "
        f"with a lower lr, a longer warmup_steps or precision=fp32 in a new run folder. It was computed from {batches}"
    )


@contextlib.contextmanager
def _aside(model: nn.Module, device: torch.device, dtype: torch.dtype, processes: Processes) -> Iterator[None]:
    """Use the model for something else than training, which does not notice."""
    devices = [device] if device.type == "cuda" else []
    model.eval()
    # no_grad and not inference_mode: tables cached here (RoPE) are used by the next training step
    with (
        torch.no_grad(),
        torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32),
        torch.random.fork_rng(devices=devices),
    ):
        yield
    processes.reshard(model)
    model.train()
