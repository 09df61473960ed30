"""How fast is a training step of Toto, beside transformers' LlamaForCausalLM of the same shapes, and how near the peak?

    python benchmarks/pretrain_speed.py                          # tiny at context 4096, ten minutes on two free cores
    python benchmarks/pretrain_speed.py --model nano --batch 4   # context 1024, two minutes
    python benchmarks/pretrain_speed.py --rows mfu_base mfu_1b   # on a GPU

One JSON object a line. `hf_eager` and `hf_compiled`: forward, loss, backward, clip and fused AdamW, in the autocast
precision of `pretrain`; `ratio` compares like with like (both eager, both compiled), `ratio_compiled` our compiled step
with that peer. Peer weights are ours, exported; its loss is float32 cross-entropy over all its logits, ours is in
chunks, and the two are compared before anything is timed. Rounds are paired: each times every variant once, and a ratio
is the median over rounds. `clock` is wall time, or CPU time where other work shares the cores (take --threads 1 then:
threads that wait for each other burn CPU time). `limit` is the tokens per second at which the FLOPs would take all of
the speed of a matrix product, measured between the rounds. `memory_eager`, `memory_compiled`: peak of two steps, each
side in a process of its own, above what there was before the first (on a CPU: resident, the compiler's memory with it).

`mfu_base`, `mfu_1b`: ours alone, compiled, on CUDA: MFU in both conventions, and the kernels that take most of a step.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from toto_robot.models.compute import mfu, peak_flops_per_s, product_flops_per_s, toto_training_flops
from toto_robot.models.hub import export_llama
from toto_robot.models.presets import preset
from toto_robot.models.toto import Toto, TotoConfig
from toto_robot.pretrain.loop import compiled
from toto_robot.pretrain.optim import adamw, choose_device, choose_precision
from toto_robot.run_folder import git_commit, machine

SIDES = ("peer_eager", "ours_eager", "peer_compiled", "ours_compiled")
MFU_ROWS = {"mfu_base": ("base", 16), "mfu_1b": ("1b", 4)}  # preset, samples a step
ROWS = ("hf", "memory", *MFU_ROWS)
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


class Side:
    """Ours or the peer, eager or compiled, with its optimizer: one training step after the other."""

    def __init__(self, name: str, config: TotoConfig, device: torch.device, dtype: torch.dtype, cache: Path) -> None:
        ours = Toto(config, generator=torch.Generator().manual_seed(0))
        self.model: nn.Module = (ours if name.startswith("ours") else export_llama(ours)).train().to(device)
        self.is_ours = name.startswith("ours")
        self.forward = compiled(self.model, cache / name) if name.endswith("compiled") else self.model
        self.device, self.dtype = device, dtype
        self.optimizer = adamw(self.model.named_parameters(), lr=1e-4, weight_decay=0.1)

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            if self.is_ours:
                return self.forward(inputs, targets=targets).loss
            logits = self.forward(inputs, use_cache=False).logits
            return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    def step(self, inputs: Tensor, targets: Tensor) -> Tensor:
        loss = self.loss(inputs, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def seconds(self, inputs: Tensor, targets: Tensor, clock: str) -> float:
        synchronise(self.device)
        began = CLOCKS[clock]()
        self.step(inputs, targets)
        synchronise(self.device)
        return CLOCKS[clock]() - began


def batch_of(config: TotoConfig, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    shape = (batch, config.frames, config.tokens_per_frame)
    return config.pack(torch.randint(config.visual_vocab, shape, generator=torch.Generator().manual_seed(0)).to(device))


def measure(config: TotoConfig, setting: argparse.Namespace, cache: Path) -> tuple[dict[str, list[float]], float]:
    """Return the seconds of every side in every round, and the best FLOPs per second of a matrix product.

    Leaves the process when the sides do not compute the same loss.
    """
    device, dtype = setting.device, setting.dtype
    inputs, targets = batch_of(config, setting.batch, device)
    sides = {name: Side(name, config, device, dtype, cache) for name in SIDES}
    losses = {name: float(side.step(inputs, targets)) for name, side in sides.items()}  # compiles, too
    if max(losses.values()) - min(losses.values()) > 0.02:
        sys.exit(f"the sides do not compute the same loss, so their speeds cannot be compared: {losses}")
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    peak = 0.0
    for index in range(setting.rounds):
        peak = max(peak, product_flops_per_s(device, dtype))
        for name in SIDES if index % 2 == 0 else reversed(SIDES):  # no one always comes first
            seconds[name].append(sides[name].seconds(inputs, targets, setting.clock))
    return seconds, peak


def peak_memory_mb(name: str, config: TotoConfig, setting: argparse.Namespace, cache: Path) -> float:
    """Return the peak memory of two steps of a side in a fresh process."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    worker = context.Process(target=_serve_memory, args=(name, config, setting, cache, there))
    worker.start()
    there.close()
    found: float = here.recv()
    worker.join()
    return found


def _serve_memory(name: str, config: TotoConfig, setting: argparse.Namespace, cache: Path, line: Any) -> None:
    torch.set_num_threads(setting.threads)
    side = Side(name, config, setting.device, setting.dtype, cache)
    inputs, targets = batch_of(config, setting.batch, setting.device)
    if setting.device.type == "cpu":
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _peak_mb(setting.device)
    for _ in range(2):
        side.step(inputs, targets)
    line.send(_peak_mb(setting.device) - before)


def _peak_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    lines = Path("/proc/self/status").read_text().splitlines()  # getrusage would begin with the parent's peak
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM"))


def report_speed(config: TotoConfig, setting: argparse.Namespace, cache: Path) -> None:
    """Print the lines of both peers' speed."""
    seconds, peak = measure(config, setting, cache)
    tokens = setting.batch * config.frames * config.tokens_per_frame
    limit = {"limit": round(peak / toto_training_flops(config, 1, causal=True), 1), "gflop_per_s_limit": peak / 1e9}
    for how in ("eager", "compiled"):
        peer, alike, best = seconds[f"peer_{how}"], seconds[f"ours_{how}"], seconds["ours_compiled"]
        ratios, best_ratios = ([p / o for o, p in zip(ours, peer, strict=True)] for ours in (alike, best))
        line = {
            "name": f"hf_{how}",
            "ours": round(tokens / statistics.median(alike), 1),
            "peer": round(tokens / statistics.median(peer), 1),
            "unit": "tokens/s",
            "ratio": round(statistics.median(ratios), 3),
            "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
            "ratio_compiled": round(statistics.median(best_ratios), 3),
            "ratio_compiled_range": [round(min(best_ratios), 3), round(max(best_ratios), 3)],
            "rounds": len(ratios),
            "clock": setting.clock,
            **(limit if setting.clock == "wall" else {}),  # the product is timed by the wall clock
        }
        print(json.dumps(line | about_step(how, config, setting)), flush=True)


def about_step(how: str, config: TotoConfig, setting: argparse.Namespace) -> dict[str, Any]:
    """Return what a line says of the step that was measured."""
    return {
        "peer_name": f"transformers LlamaForCausalLM, sdpa, {how}",
        "model": setting.model,
        "context": 1 + config.frames * config.tokens_per_frame,
        "batch": setting.batch,
        "precision": str(setting.dtype).removeprefix("torch."),
        "threads": setting.threads,
        **setting.about,
    }


def report_memory(how: str, config: TotoConfig, setting: argparse.Namespace, cache: Path) -> None:
    """Print the line of a peer's memory."""
    ours, peer = (peak_memory_mb(f"{name}_{how}", config, setting, cache) for name in ("ours", "peer"))
    line = {
        "name": f"memory_{how}",
        "ours": round(ours),
        "peer": round(peer),
        "unit": "MB",
        "ratio": round(peer / ours, 3),
    }
    print(json.dumps(line | about_step(how, config, setting)), flush=True)


def report_mfu(name: str, setting: argparse.Namespace, cache: Path) -> None:
    """Print the line of a model's MFU, or only its FLOPs where there is no CUDA device."""
    model, batch = MFU_ROWS[name]
    config = preset(model)
    full, causal = (toto_training_flops(config, 1, causal=flag) for flag in (False, True))
    line: dict[str, Any] = {
        "name": name, "model": model, "tokens_per_sample": 1 + config.frames * config.tokens_per_frame,
        "flops_per_token": round(full), "flops_per_token_causal": round(causal),
    }  # fmt: skip
    if setting.device.type != "cuda":
        print(json.dumps({**line, "skipped": "no CUDA device", "commit": git_commit(), "date": today()}), flush=True)
        return
    side = Side("ours_compiled", config, setting.device, torch.bfloat16, cache)
    inputs, targets = batch_of(config, batch, setting.device)
    for _ in range(3):
        side.step(inputs, targets)
    seconds = statistics.median(side.seconds(inputs, targets, "wall") for _ in range(max(10, setting.rounds)))
    speed = batch * config.frames * config.tokens_per_frame / seconds
    peak = peak_flops_per_s(setting.device, torch.bfloat16)
    limit = product_flops_per_s(setting.device, torch.bfloat16)
    used = mfu(config, speed, peak or math.nan)
    line |= {
        "ours": round(speed, 1), "unit": "tokens/s", "batch": batch,
        "mfu_full": round(used.full, 4), "mfu_causal": round(used.causal, 4), "peak_flops_per_s": peak,
        "limit": round(limit / full, 1), "product_flops_per_s": round(limit),
        "peak_memory_mb": round(_peak_mb(setting.device)), "longest_kernels": longest_kernels(side, inputs, targets),
    }  # fmt: skip
    print(json.dumps({**line, **setting.about}), flush=True)


def longest_kernels(side: Side, inputs: Tensor, targets: Tensor) -> dict[str, float]:
    """Return the share of the device's time of the eight kernels that take most of a step: what limits it."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        side.step(inputs, targets)
        synchronise(side.device)
    times = {event.key[:80]: event.self_device_time_total for event in profiled.key_averages()}
    longest = sorted(times, key=lambda key: -times[key])[:8]
    return {key: round(times[key] / sum(times.values()), 3) for key in longest}


def today() -> str:
    return time.strftime("%Y-%m-%d")


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def settings() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=ROWS, choices=ROWS)
    parser.add_argument("--model", default="tiny", help="Toto preset of the rows beside HF")
    parser.add_argument("--batch", type=int, default=1, help="samples a step of the rows beside HF")
    parser.add_argument("--frames", type=int, help="frames a sample (default: the preset's)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", default="wall", choices=CLOCKS)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--device", default="auto", type=choose_device)
    parser.add_argument("--precision", default="auto", help="auto, bf16 or fp32")
    found = parser.parse_args()
    torch.set_num_threads(found.threads)
    found.dtype = choose_precision(found.precision, found.device)
    name = torch.cuda.get_device_name(found.device) if found.device.type == "cuda" else "cpu"
    found.about = {"commit": git_commit(), "machine": {**machine(), "device": name}, "date": today()}
    return found


def main() -> None:
    setting = settings()
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        config = preset(setting.model)
        if setting.frames:
            config = replace(config, frames=setting.frames, context_frames=setting.frames)
        if "hf" in setting.rows:
            report_speed(config, setting, cache)
        if "memory" in setting.rows:
            report_memory("eager", config, setting, cache)
            report_memory("compiled", config, setting, cache)
        for name in MFU_ROWS:
            if name in setting.rows:
                report_mfu(name, setting, cache)


if __name__ == "__main__":
    main()
