"""How fast is a training step of Toto, beside transformers' LlamaForCausalLM of the same shapes?

    python benchmarks/pretrain_speed.py                      # nano, about two minutes on two cores
    python benchmarks/pretrain_speed.py --model tiny --rounds 5

One JSON object a line: `hf_eager` (both eager, as `toto_robot pretrain` runs by default) and `hf_compiled` (both
compiled). A step is forward, cross-entropy, backward, clip and fused AdamW, in the autocast precision of `pretrain`.
Peer weights are ours, exported; the losses are compared before anything is timed. Rounds are paired: each times every
variant once, and the ratio is the median over rounds. `limit` is the tokens per second at which the model's FLOPs would
take all of the speed of a matrix product, measured between the rounds. FLOPs per token: 6 (N - embedding) + 6 L T D,
L layers, T positions, width D: the causal half of the attention is counted.
"""

from __future__ import annotations

import argparse
import functools
import json
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

from toto_robot.models.compute import product_flops_per_s
from toto_robot.models.hub import export_llama
from toto_robot.models.presets import preset
from toto_robot.models.toto import Toto, TotoConfig
from toto_robot.pretrain.loop import compiled
from toto_robot.pretrain.optim import adamw, choose_device, choose_precision
from toto_robot.run_folder import git_commit, machine


class Variant:
    """A model with its optimizer, stepped on given batches."""

    def __init__(self, model: nn.Module, forward: Callable[[Tensor], Any], dtype: torch.dtype) -> None:
        self.model, self.forward, self.dtype = model, forward, dtype
        self.optimizer = adamw(model.named_parameters(), lr=1e-4, weight_decay=0.1)

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(inputs.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            logits = self.forward(inputs).logits
            return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    def step(self, inputs: Tensor, targets: Tensor) -> float:
        """Return the seconds of one training step."""
        _synchronise(inputs.device)
        began = time.perf_counter()
        self.loss(inputs, targets).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        _synchronise(inputs.device)
        return time.perf_counter() - began


def build(config: TotoConfig, device: torch.device, dtype: torch.dtype, cache: Path) -> dict[str, Variant]:
    """Return ours and the peer, eager and compiled, all with the same weights."""
    ours = Toto(config, generator=torch.Generator().manual_seed(0))

    def peer() -> nn.Module:
        return export_llama(ours).train().to(device)

    def own() -> Toto:
        copy = Toto(config)
        copy.load_state_dict(ours.state_dict())
        return copy.to(device)

    variants = {}
    for name, make, options in (("ours", own, {}), ("peer", peer, {"use_cache": False})):
        for how in ("eager", "compiled"):
            model = make()
            call = model if how == "eager" else compiled(model, cache)
            variants[f"{name}_{how}"] = Variant(model, functools.partial(call, **options), dtype)
    return variants


def flops_per_token(config: TotoConfig) -> int:
    """Return training FLOPs per token: 6 per weight in a matrix product, and causal attention over a full sample."""
    model = Toto(config, device="meta")
    weights = sum(parameter.numel() for parameter in model.parameters()) - model.embed.weight.numel()
    return 6 * weights + 6 * config.layers * config.frames * config.tokens_per_frame * config.width


def measure(
    config: TotoConfig, batch: int, rounds: int, device: torch.device, dtype: torch.dtype, cache: Path
) -> tuple[dict[str, list[float]], float]:
    """Return the seconds of every variant in every round, and the best FLOPs per second of a matrix product.

    Leaves the process when the variants do not compute the same loss.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (batch, config.frames, config.tokens_per_frame)
    inputs, targets = config.pack(torch.randint(config.visual_vocab, shape, generator=generator).to(device))
    variants = build(config, device, dtype, cache)
    with torch.no_grad():
        losses = {name: float(variant.loss(inputs, targets)) for name, variant in variants.items()}
    if max(losses.values()) - min(losses.values()) > 0.02:
        sys.exit(f"the variants do not compute the same loss, so their speeds cannot be compared: {losses}")
    for variant in variants.values():  # compilation and warm-up
        variant.step(inputs, targets)
        variant.step(inputs, targets)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    peak = 0.0
    for index in range(rounds):
        peak = max(peak, product_flops_per_s(device, dtype))
        names = list(variants) if index % 2 == 0 else list(reversed(variants))  # no one always comes first
        for name in names:
            seconds[name].append(variants[name].step(inputs, targets))
    return seconds, peak


def report(name: str, how: str, seconds: dict[str, list[float]], tokens: int, common: dict[str, Any]) -> None:
    """Print one line."""
    ours, peer = seconds[f"ours_{how}"], seconds[f"peer_{how}"]
    ratios = sorted(p / o for o, p in zip(ours, peer, strict=True))
    speed = tokens / statistics.median(ours)
    line = {
        "name": name,
        "ours": round(speed, 1),
        "peer": round(tokens / statistics.median(peer), 1),
        "peer_name": f"transformers LlamaForCausalLM, sdpa, {how}",
        "unit": "tokens/s",
        "ratio": round(statistics.median(ratios), 3),
        "ratio_range": [round(ratios[0], 3), round(ratios[-1], 3)],
        "rounds": len(ratios),
        "gflop_per_s": round(speed * common["flops_per_token"] / 1e9, 1),
        **common,
    }
    print(json.dumps(line), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano", help="Toto preset")
    parser.add_argument("--batch", type=int, default=4, help="samples a step")
    parser.add_argument("--frames", type=int, help="frames a sample (default: the preset's)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", help="auto, bf16 or fp32")
    arguments = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    device = choose_device(arguments.device)
    dtype = choose_precision(arguments.precision, device)
    config = preset(arguments.model)
    if arguments.frames:
        config = replace(config, frames=arguments.frames, context_frames=arguments.frames)
    tokens = arguments.batch * (1 + config.frames * config.tokens_per_frame)
    flops = flops_per_token(config)
    with tempfile.TemporaryDirectory() as cache:
        seconds, peak = measure(config, arguments.batch, arguments.rounds, device, dtype, Path(cache))
    common = {
        "limit": round(peak / flops, 1),
        "gflop_per_s_limit": round(peak / 1e9, 1),
        "flops_per_token": flops,
        "model": arguments.model,
        "tokens_per_step": tokens,
        "precision": str(dtype).removeprefix("torch."),
        "commit": git_commit(),
        "machine": {**machine(), "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"},
        "date": time.strftime("%Y-%m-%d"),
    }
    report("hf_eager", "eager", seconds, tokens, common)
    report("hf_compiled", "compiled", seconds, tokens, common)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
