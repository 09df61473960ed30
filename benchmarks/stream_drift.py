"""How far do the features of a stream drift from those of the causal model on the last W frames?

One JSON object a line for each window and streaming policy: `relative_l2` by layer (0 = embedding) against `recompute`,
over all frames after the first W of the first episodes of a demonstration store, float32. Two rows say what is much:
`alone`, every frame as the first of a video, and `previous`, the features of `recompute` one frame earlier.

    python benchmarks/stream_drift.py <store> [--encoder toto-small-sim] [--windows 4 8 16] [--episodes 8] [--frames 40]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from toto_robot.data.episodes import IMAGE_PREFIX, EpisodeStore
from toto_robot.encoders.load import load_encoder
from toto_robot.encoders.toto import TotoEncoder
from toto_robot.models.streaming import POLICIES, open_stream
from toto_robot.run_folder import git_commit, machine


def read_codes(encoder: TotoEncoder, store: EpisodeStore, camera: str, episodes: int, frames: int) -> Tensor:
    """Return the tokens (episodes, frames, P) of the first frames of the first episodes that are long enough."""
    bounds = [store.bounds(episode) for episode in range(len(store))]
    long_enough = [start for start, stop in bounds if stop - start >= frames][:episodes]
    if not long_enough:
        raise ValueError(f"no episode of {store.path} has {frames} frames; ask for fewer")
    clips = [store.read(IMAGE_PREFIX + camera, start, start + frames) for start in long_enough]
    return torch.stack([encoder.codes(clip) for clip in clips])


@torch.no_grad()
def features(encoder: TotoEncoder, codes: Tensor, policy: str, window: int) -> Tensor:
    """Return the features of all layers (layers + 1, B, T, P, D) of codes (B, T, P)."""
    model, layers = encoder.model, range(encoder.model.config.layers + 1)
    stream = open_stream(policy, model, len(codes), layers=layers, context_frames=window)
    steps = [
        stream.step(now + model.config.first_visual_id)
        for now in tqdm(codes.unbind(1), desc=f"{policy} {window}", leave=False)
    ]
    return torch.stack([torch.stack([step[layer] for step in steps], dim=1) for layer in layers])


def relative_l2(found: Tensor, expected: Tensor) -> list[float]:
    """Return ||found - expected|| / ||expected|| of each layer."""
    distance = (found - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
    return [float(f"{value:.4g}") for value in distance]


def measure(encoder: TotoEncoder, codes: Tensor, window: int) -> dict[str, list[float]]:
    """Return the relative L2 by layer of each policy and control."""
    expected = features(encoder, codes, "recompute", window)
    late = expected[:, :, window:]
    others = {policy: features(encoder, codes, policy, window) for policy in POLICIES if policy != "recompute"}
    others["alone"] = features(encoder, codes, "reset", 1)
    others = {name: found[:, :, window:] for name, found in others.items()}
    others["previous"] = expected[:, :, window - 1 : -1]
    return {name: relative_l2(found, late) for name, found in others.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument(
        "--encoder", default="toto-small-sim", help="a folder of `toto_robot pretrain` or packaged name"
    )
    parser.add_argument("--camera", default="front")
    parser.add_argument("--windows", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--episodes", type=int, default=8)
    parser.add_argument("--frames", type=int, default=40)
    options = parser.parse_args(arguments)
    encoder = load_encoder(options.encoder, precision="fp32")
    if not isinstance(encoder, TotoEncoder):
        raise SystemExit(f"expected a Toto, {options.encoder} holds a {encoder.name}")
    if options.frames <= max(options.windows):
        raise SystemExit(f"--frames must be above the widest window, {max(options.windows)}, got {options.frames}")
    codes = read_codes(encoder, EpisodeStore.open(options.store), options.camera, options.episodes, options.frames)
    stamp = {"commit": git_commit(), "machine": machine(), "date": time.strftime("%Y-%m-%d")}
    for window in options.windows:
        for policy, distance in measure(encoder, codes, window).items():
            row = {"name": "stream_drift", "encoder": options.encoder, "context_frames": window, "policy": policy}
            frames = codes.shape[0] * (codes.shape[1] - window)
            print(json.dumps({**row, "frames": frames, "relative_l2": distance, **stamp}), flush=True)


if __name__ == "__main__":
    main()
