"""What does a training say while it runs: losses, speed, memory, time left; and where does it say it?

To the progress bar, `metrics.jsonl` and TensorBoard always, to Weights & Biases if asked. MFU is the share of the
device's peak that the model's FLOPs took (`models/compute.py` says what is counted): `mfu` counts attention in full,
`mfu_causal` the half that a causal mask leaves. The peak of a GPU is its data sheet's, that of a CPU is the best matrix
product measured when the training begins.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

from toto_robot.models.compute import peak_flops_per_s
from toto_robot.pretrain.distributed import Processes
from toto_robot.pretrain.wandb_log import WandbLog
from toto_robot.run_folder import MetricLog

if TYPE_CHECKING:
    from toto_robot.pretrain.loop import LoopConfig, Objective


class Report:
    """The scalars of one training, summed over steps, with what the machine did meanwhile."""

    def __init__(
        self,
        run_dir: Path,
        objective: Objective,
        config: LoopConfig,
        *,
        device: torch.device,
        dtype: torch.dtype,
        start: int,
        processes: Processes,
    ) -> None:
        """`dtype` is that of the matrix products; `start` steps were done before, by an interrupted process.

        All processes add up and meet in `write`; the first one tells.
        """
        self.units_per_second: list[float] = []  # of every line written
        self._objective, self._units_per_step = objective, objective.units_per_step * config.accumulate
        self._device, self._start, self._steps = device, start, config.steps
        self._processes = processes
        self._peak = peak_flops_per_s(device, dtype)
        with contextlib.ExitStack() as stack:
            self._log = stack.enter_context(MetricLog(run_dir, start)) if processes.is_first else None
            settings = {"objective": objective.name, **config.same_run()}
            wandb = config.wandb if processes.is_first else None
            self._wandb = stack.enter_context(WandbLog(wandb, run_dir, settings)) if wandb else None
            # smoothing 0: the time left is that of the mean speed, validation and checkpoints included
            self._bar = stack.enter_context(
                tqdm(
                    total=config.steps, initial=start, desc=f"train {objective.name}", unit="step",
                    dynamic_ncols=True, smoothing=0, disable=not processes.is_first,
                )
            )  # fmt: skip
            self._closing = stack.pop_all()
        self._began = time.monotonic()
        self._meter = Meter(device)

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add the scalars of one batch."""
        self._meter.add(values)

    def end_step(self, values: Mapping[str, Tensor]) -> None:
        """Add the scalars of one step and count it."""
        self._meter.end_step(values)
        self._bar.update()

    def paused(self) -> contextlib.AbstractContextManager[None]:
        """Leave the time of the block out of the speed."""
        return self._meter.paused()

    def write(self, done: int, values: Mapping[str, float]) -> None:
        """Write `values` and the means since the last such line, after `done` steps; waits for the device."""
        means, step_s = self._meter.read(self._processes)
        self.units_per_second.append(self._units_per_step / step_s)
        machine = self._machine(self.units_per_second[-1], done)
        self.write_values(done, {**means, **values, **machine})
        unit, shares = self._objective.unit, [f"MFU {machine['mfu']:.0%}"] if "mfu" in machine else []
        speed, memory = f"{_short(machine[f'{unit}_per_s'])} {unit}/s", f"{machine['peak_memory_gib']:.1f} GiB"
        self._bar.set_postfix_str(", ".join([f"loss {means['train/loss']:.3f}", speed, *shares, memory]), refresh=False)

    def _machine(self, units_per_s: float, done: int) -> dict[str, float]:
        per_step_s = (time.monotonic() - self._began) / (done - self._start)  # the bar's, as it has no smoothing
        shares = self._objective.utilisation(units_per_s, self._peak * self._processes.size) if self._peak else {}
        return {
            f"{self._objective.unit}_per_s": units_per_s,
            **shares,
            "peak_memory_gib": peak_memory_gib(self._device),
            "eta_s": per_step_s * (self._steps - done),
        }

    def write_values(self, done: int, values: Mapping[str, float]) -> None:
        """Write `values` alone, after `done` steps."""
        if self._log is not None:
            self._log.write(done, values)
        if self._wandb is not None:
            self._wandb.write(done, values)

    def __enter__(self) -> Report:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.__exit__(kind, error, trace)


class Meter:
    """Sums scalars on their device and reads the means at once, with the seconds a step took."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.restart()

    def restart(self) -> None:
        """Forget the sums and start the clock."""
        self._sums: dict[str, tuple[Tensor, int]] = {}
        self._steps = 0
        self._began = time.monotonic()

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add the scalars of one batch."""
        for name, value in values.items():
            total, count = self._sums.get(name, (torch.zeros((), device=self._device), 0))
            self._sums[name] = (total + value.detach().float(), count + 1)

    def end_step(self, values: Mapping[str, Tensor]) -> None:
        """Add the scalars of one step and count it."""
        self.add(values)
        self._steps += 1

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock for the block."""
        paused_at = time.monotonic()
        yield
        self._began += time.monotonic() - paused_at

    def read(self, processes: Processes) -> tuple[dict[str, float], float]:
        """Return means over all processes and seconds per step since the last reading; waits for the device."""
        mine = torch.stack([total.double() / count for total, count in self._sums.values()])
        means = dict(zip(self._sums, (processes.total(mine) / processes.size).tolist(), strict=True))
        seconds = (time.monotonic() - self._began) / self._steps
        self.restart()
        return means, seconds


def peak_memory_gib(device: torch.device) -> float:
    """Return the most memory this process has held: on a GPU what torch allocated there, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    for line in Path("/proc/self/status").read_text().splitlines():  # getrusage's figure is inherited from the parent
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 2**20
    raise OSError("/proc/self/status has no VmHWM; toto_robot needs Linux")


def _short(value: float) -> str:
    return f"{value / 1000:.1f}k" if value >= 10_000 else f"{value:.0f}"
