"""How long does a robot wait for the features of a new frame, tokenizer included?

Rows, one JSON object a line for each preset named on the command line:
- `reencode`: a step of the stream (ring of keys and values, exit at the middle layer) against running the last
  `context_frames` frames through the backbone again, to the same layer and with their tokens remembered, so that the
  tokenizer costs both the same. `ratio_full_depth` is against re-encoding through all layers.
- `vit_b16`: the same step against ViT-B/16 (transformers' ViTMAE) on one 224 px frame, the usual MAE robot encoder.

Weights are random: they do not change the time. Rounds are paired in one process; ratios are medians of paired ratios,
and above 1 ours is faster. `limit` is the ratio of the backbones' multiply-adds, without the tokenizer.

    python benchmarks/stream_latency.py [nano tiny base ...] [--rounds 7] [--threads 2] [--precision auto]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from toto_robot.encoders.mae import MAEEncoder
from toto_robot.encoders.toto import TotoEncoder
from toto_robot.models.mae import build_mae
from toto_robot.models.presets import mae_preset, preset
from toto_robot.models.toto import Toto, TotoConfig
from toto_robot.run_folder import git_commit, machine
from toto_robot.tokenizers.dvae import DVAE, PRESETS

DEVICE = torch.device("cpu")


def make_encoder(config: TotoConfig, precision: str, layer: int) -> TotoEncoder:
    """Return an encoder of random weights, with the tokenizer of its frame and vocabulary."""
    fitting = [t for t in PRESETS.values() if t.vocab == config.visual_vocab]
    if not fitting:
        raise ValueError(f"no tokenizer with {config.visual_vocab} codes for preset {config.name}")
    seed = torch.Generator().manual_seed(0)
    return TotoEncoder(
        Toto(config, generator=seed), DVAE(fitting[0], generator=seed), name="toto", layer=layer,
        context_frames=config.context_frames, device=DEVICE, precision=precision,
    )  # fmt: skip


def reencoder(encoder: TotoEncoder, frame: Tensor) -> Callable[[], object]:
    """Return a call that tokenises one frame and runs the whole window through the backbone to the encoder's layer."""
    past = torch.zeros(1, encoder.context_frames - 1, encoder.tokens_per_frame, dtype=torch.long)
    model = encoder._fast_model

    def call() -> object:
        codes = torch.cat([past, encoder.codes(frame)[:, None]], dim=1)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=encoder.precision == "bf16"):
            return model(model.pack(codes)[0], layers=(encoder.layer,), logits=False)

    return call


def paired_times(calls: dict[str, Callable[[], object]], rounds: int, title: str) -> dict[str, list[float]]:
    """Time every call once a round, in turn, after one round that does not count; return milliseconds."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for i in tqdm(range(rounds + 1), desc=title, leave=False):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if i > 0:
                times[name].append(1e3 * (time.perf_counter() - started))
    return times


def multiply_adds(config: TotoConfig, layers: int, queries: int, keys: int) -> float:
    """Return the multiply-adds of `layers` blocks for `queries` new tokens that see `keys` tokens on average."""
    D = config.width
    return layers * queries * (4 * D * D + 3 * D * config.ffn_width + 2 * keys * D)


def ratios(times: dict[str, list[float]], peer: str) -> list[float]:
    return sorted(theirs / ours for ours, theirs in zip(times["ours"], times[peer], strict=True))


def row(name: str, times: dict[str, list[float]], peer: str, peer_name: str, **extra: Any) -> dict[str, Any]:
    paired = ratios(times, peer)
    return {
        "name": name,
        "ours": round(statistics.median(times["ours"]), 2),
        "peer": round(statistics.median(times[peer]), 2),
        "peer_name": peer_name,
        "unit": "ms per frame, batch 1",
        "ratio": round(statistics.median(paired), 2),
        "ratio_range": [round(paired[0], 2), round(paired[-1], 2)],
        **extra,
    }


def measure(name: str, rounds: int, precision: str) -> list[dict[str, Any]]:
    """Return the two rows of a preset."""
    config = preset(name)
    middle = config.layers // 2
    encoder = make_encoder(config, precision, middle)
    deep = make_encoder(config, precision, config.layers)
    vit = MAEEncoder(build_mae(mae_preset("base")), name="vit_b16", layer=12, device=DEVICE, precision=precision)
    frame, large = (torch.zeros(1, px, px, 3, dtype=torch.uint8) for px in (config.image_px, vit.image_px))
    stream = encoder.stream(1)
    for _ in range(config.context_frames):
        stream.step(frame)  # a full ring: the first frames are cheaper
    calls = {
        "ours": lambda: stream.step(frame),
        "reencode": reencoder(encoder, frame),
        "reencode_deep": reencoder(deep, frame),
        "vit_b16": lambda: vit.encode(large),
    }
    times = paired_times(calls, rounds, name)
    P, W = config.tokens_per_frame, config.context_frames
    limit = multiply_adds(config, middle, P * W, P * W // 2) / multiply_adds(config, middle, P, P * W)
    setting = {
        "preset": name, "layer": f"{middle} of {config.layers}", "context_frames": W, "precision": encoder.precision,
        "threads": torch.get_num_threads(), "rounds": rounds,
    }  # fmt: skip
    deeper = round(statistics.median(ratios(times, "reencode_deep")), 2)
    again = f"re-encode {W} frames to the same layer"
    return [
        row("reencode", times, "reencode", again, limit=round(limit, 2), ratio_full_depth=deeper, **setting),
        row("vit_b16", times, "vit_b16", "ViT-B/16 at 224 px (transformers ViTMAE)", limit=None, **setting),
    ]


def main() -> None:
    """Print one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", default=["nano", "tiny"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=None, help="default: torch's own choice")
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    stamp = {"commit": git_commit(), "machine": machine(), "date": time.strftime("%Y-%m-%d")}
    for name in arguments.presets:
        for line in measure(name, arguments.rounds, arguments.precision):
            print(json.dumps({**line, **stamp}), flush=True)


if __name__ == "__main__":
    main()
