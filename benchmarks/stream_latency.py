"""How long does a robot wait for the features of a new frame, tokenizer included?

Ours is one step of the stream: the new frame through the tokenizer and to the middle layer, past frames in the ring.
Rows, one JSON object a line for every preset, tokenizer and window asked for:
- `reencode`: against running the last `context_frames` frames through tokenizer and all layers again, as one does who
  has a model of clips and no cache. `ratio_strict` is against what the cache alone saves: tokens remembered, the same
  layer. Both re-encode what ours sees, so a window of 1 compares depth only.
- `vit_b16`: against ViT-B/16 (transformers' ViTMAE) on one 224 px frame, the usual MAE robot
  encoder.

`tokenizer`: `dvae` is OpenAI's size, `student` its narrower encoder (`train-tokenizer student_of=`), `local` a code a
patch (`dvae_local`); the nano preset has `dvae_nano` and `local`. Weights are random: they do not change the time.
Rounds are paired in one process; ratios are medians of paired ratios, and above 1 ours is faster. `limit` is the ratio
of the backbones' multiply-adds at full depth, without the tokenizer. On a busy machine `--clock cpu --threads 1`
counts CPU time, which other work disturbs less.

    python benchmarks/stream_latency.py [nano small base ...] [--tokenizers dvae local] [--windows 16 4 1] [--rounds 7]
        [--threads 2] [--clock wall] [--precision auto] [--device cpu] [--batch 1] [--cuda-graph]
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from toto_robot.encoders.base import autocast
from toto_robot.encoders.mae import MAEEncoder
from toto_robot.encoders.toto import TotoEncoder
from toto_robot.models.mae import build_mae
from toto_robot.models.presets import mae_preset, preset
from toto_robot.models.toto import Toto, TotoConfig
from toto_robot.run_folder import git_commit, machine
from toto_robot.tokenizers.dvae import DVAE, DVAEConfig, dvae_preset
from toto_robot.tokenizers.student import student_config

Call = Callable[[], object]


def tokenizer_config(name: str, vocab: int) -> DVAEConfig:
    """Return the tokenizer of that name with `vocab` codes; only its encoder is timed."""
    full = dvae_preset("dvae" if vocab == 8192 else "dvae_nano")
    configs = {"dvae": full, "student": student_config(full), "local": dvae_preset("dvae_local")}
    return replace(configs[name], vocab=vocab)


def make_encoder(
    config: TotoConfig, tokenizer: str, layer: int, window: int, options: argparse.Namespace
) -> TotoEncoder:
    """Return an encoder of random weights."""
    seed = torch.Generator().manual_seed(0)
    return TotoEncoder(
        Toto(config, generator=seed), DVAE(tokenizer_config(tokenizer, config.visual_vocab), generator=seed),
        name="toto", layers=[layer], context_frames=window, device=torch.device(options.device),
        precision=options.precision,
    )  # fmt: skip


def reencode(encoder: TotoEncoder, clips: Tensor) -> Call:
    """Return a call that encodes clips (B, W, h, w, 3) from pixels."""

    @torch.no_grad()
    def call() -> object:
        codes = encoder.codes(clips.flatten(0, 1)).unflatten(0, clips.shape[:2])
        with autocast(encoder.precision, encoder.device):
            return encoder._fast_model(encoder.model.pack(codes)[0], layers=encoder.layers, logits=False)

    return call


def reencode_remembered(encoder: TotoEncoder, frames: Tensor) -> Call:
    """Return a call that tokenises the new frames (B, h, w, 3) and runs them behind W - 1 frames of known tokens."""
    shape = (len(frames), encoder.context_frames - 1, encoder.tokens_per_frame)
    past = torch.zeros(shape, dtype=torch.long, device=encoder.device)

    @torch.no_grad()
    def call() -> object:
        codes = torch.cat([past, encoder.codes(frames)[:, None]], dim=1)
        with autocast(encoder.precision, encoder.device):
            return encoder._fast_model(encoder.model.pack(codes)[0], layers=encoder.layers, logits=False)

    return call


def paired_times(calls: dict[str, Call], options: argparse.Namespace, title: str) -> dict[str, list[float]]:
    """Time every call once a round, in turn, after one round that does not count; return milliseconds."""
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    wait: Callable[[], None] = torch.cuda.synchronize if torch.cuda.is_initialized() else lambda: None
    times: dict[str, list[float]] = {name: [] for name in calls}
    for i in tqdm(range(options.rounds + 1), desc=title, leave=False):
        for name, call in calls.items():
            wait()
            started = clock()
            call()
            wait()
            if i > 0:
                times[name].append(1e3 * (clock() - started))
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
        "unit": "ms a step",
        "ratio": round(statistics.median(paired), 2),
        "ratio_range": [round(paired[0], 2), round(paired[-1], 2)],
        **extra,
    }


def measure(name: str, tokenizer: str, window: int, vit: MAEEncoder, options: argparse.Namespace) -> Iterator[Any]:
    """Yield the two rows of a preset with a tokenizer and a window."""
    config = preset(name)
    middle = config.layers // 2
    encoder = make_encoder(config, tokenizer, middle, window, options)
    deep = make_encoder(config, tokenizer, config.layers, window, options)
    frames, large = (
        torch.zeros(options.batch, px, px, 3, dtype=torch.uint8, device=options.device)
        for px in (config.image_px, vit.image_px)
    )
    stream = encoder.stream(options.batch, cuda_graph=options.cuda_graph)
    for _ in range(window):
        stream.step(frames)  # a full ring: the first frames are cheaper
    calls: dict[str, Call] = {
        "ours": functools.partial(stream.step, frames),
        "tokenizer": functools.partial(encoder.codes, frames),
        "reencode": reencode(deep, frames[:, None].repeat(1, window, 1, 1, 1)),
        "strict": reencode_remembered(encoder, frames),
        "vit_b16": functools.partial(vit.encode, large),
    }
    times = paired_times(calls, options, f"{name} {tokenizer} {window}")
    P = config.tokens_per_frame
    limit = multiply_adds(config, config.layers, P * window, P * window // 2) / multiply_adds(
        config, middle, P, P * window - P // 2
    )
    setting = {
        "preset": name, "tokenizer": tokenizer, "context_frames": window, "layer": f"{middle} of {config.layers}",
        "tokenizer_ms": round(statistics.median(times["tokenizer"]), 2), "batch": options.batch,
        "device": options.device, "cuda_graph": options.cuda_graph, "precision": encoder.precision,
        "threads": torch.get_num_threads(), "clock": options.clock, "rounds": options.rounds,
    }  # fmt: skip
    strict = round(statistics.median(ratios(times, "strict")), 2)
    again = f"re-encode {window} frames from pixels through all layers"
    yield row("reencode", times, "reencode", again, limit=round(limit, 2), ratio_strict=strict, **setting)
    yield row("vit_b16", times, "vit_b16", "ViT-B/16 at 224 px (transformers ViTMAE)", limit=None, **setting)


def main() -> None:
    """Print one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", default=["small", "base"])
    parser.add_argument("--tokenizers", nargs="+", choices=("dvae", "student", "local"), default=["dvae", "local"])
    parser.add_argument("--windows", nargs="+", type=int, default=[16, 4, 1], help="context_frames")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=None, help="default: torch's own choice")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: seconds of the process")
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--cuda-graph", action="store_true", help="record our step, on a GPU")
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    vit = MAEEncoder(
        build_mae(mae_preset("vit_b16")), name="vit_b16", layers=[12], device=device, precision=options.precision
    )
    stamp = {"commit": git_commit(), "machine": machine(), "date": time.strftime("%Y-%m-%d")}
    for name in options.presets:
        for tokenizer in options.tokenizers:
            for window in options.windows:
                for line in measure(name, tokenizer, window, vit, options):
                    print(json.dumps({**line, **stamp}), flush=True)


if __name__ == "__main__":
    main()
