"""What do the parts of a training step cost on a CPU: loss in chunks, autocast, activation checkpointing?

    python benchmarks/pretrain_parts.py            # tiny, two minutes on one free core

CPU seconds on one thread, so that other work on the machine disturbs little; variants take turns, medians. Memory is
the peak of the resident set above what there was before the step.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toto_robot.models import loss as chunked
from toto_robot.models.presets import preset
from toto_robot.models.toto import Toto, TotoConfig
from toto_robot.run_folder import git_commit

LIBC = ctypes.CDLL("libc.so.6")


def in_turns(variants: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the CPU seconds of every variant in every round, after one that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(1 + rounds):
        for name, work in variants.items():
            began = time.process_time()
            work()
            seconds[name].append(time.process_time() - began)
    return {name: values[1:] for name, values in seconds.items()}


def loss_chunks(config: TotoConfig, rounds: int) -> dict[str, float]:
    """Return seconds of head and loss, forward and backward, for one sample, by chunk."""
    positions = 1 + config.frames * config.tokens_per_frame
    x, weight = (torch.randn(rows, config.width, requires_grad=True) for rows in (positions, config.vocab_size))
    targets = torch.randint(config.vocab_size, (positions,))

    def run(loss: Callable[[], Tensor]) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = loss()
        torch.autograd.grad(value, (x, weight))

    variants: dict[str, Callable[[], object]] = {
        "all": lambda: run(lambda: F.cross_entropy(F.linear(x, weight).float(), targets))
    }
    for chunk in (512, 1024, 2048, positions):
        variants[str(chunk)] = lambda chunk=chunk: run(  # type: ignore[misc]
            lambda: chunked.mean_cross_entropy(x, weight, targets, chunk)
        )
    return {name: round(statistics.median(values), 3) for name, values in in_turns(variants, rounds).items()}


def casts(config: TotoConfig, rounds: int) -> dict[str, float]:
    """Return seconds of a step whose casts autocast does, and of one that casts weights and inputs by hand."""
    model = Toto(replace(config, frames=2, context_frames=2)).train()
    ids, targets = model.pack(torch.randint(config.visual_vocab, (1, 2, config.tokens_per_frame)))

    def step(by_hand: bool) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not by_hand):
            loss = model(ids, targets=targets).loss
        loss.backward()
        model.zero_grad(set_to_none=True)

    def cast(layer: nn.Linear, x: Tensor) -> Tensor:
        return F.linear(x.bfloat16(), layer.weight.bfloat16())

    def hand() -> None:
        with (
            mock.patch.object(nn.Linear, "forward", cast),
            mock.patch.object(chunked, "product_dtype", lambda _: torch.bfloat16),
        ):
            step(True)

    seconds = in_turns({"autocast": lambda: step(False), "by hand": hand}, rounds)
    ratios = [a / b for a, b in zip(seconds["autocast"], seconds["by hand"], strict=True)]
    return {"autocast over by hand": round(statistics.median(ratios), 3)}


def memory_mb(config: TotoConfig) -> dict[str, int]:
    """Return the peak of forward and backward over 4 samples of 4 frames, by what is kept."""
    model = Toto(replace(config, frames=4, context_frames=4)).train()
    ids, targets = model.pack(torch.randint(config.visual_vocab, (4, 4, config.tokens_per_frame)))

    def step(mode: str, all_logits: bool) -> None:
        model.activation_checkpointing = mode
        with torch.autocast("cpu", dtype=torch.bfloat16):
            if all_logits:
                loss = F.cross_entropy(model(ids).logits.flatten(0, 1).float(), targets.flatten())
            else:
                loss = model(ids, targets=targets).loss
        loss.backward()

    step("none", False)  # gradients are there from now on
    found = {}
    for name in ("all logits", "none", "selective", "full"):
        model.zero_grad(set_to_none=False)
        gc.collect()
        LIBC.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = _status_mb("VmRSS")
        step("none" if name == "all logits" else name, name == "all logits")
        found[name] = round(_status_mb("VmHWM") - before)
    return found


def _status_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="Toto preset")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = preset(arguments.model)
    about = {"model": arguments.model, "commit": git_commit(), "date": time.strftime("%Y-%m-%d")}
    print(json.dumps({"name": "memory_kept", "unit": "MB", **memory_mb(config), **about}), flush=True)
    print(
        json.dumps({"name": "loss_chunks", "unit": "s", **loss_chunks(config, arguments.rounds), **about}), flush=True
    )
    print(json.dumps({"name": "casts", **casts(config, arguments.rounds), **about}), flush=True)


if __name__ == "__main__":
    main()
