"""How close does the whole tokenizing job come to its tokenizer alone, decoding of 360p H.264 included?

    python benchmarks/tokenize_speed.py [--frames 192] [--rounds 3] [--rows paper nano] [--device cpu]

The videos are 640x360 H.264 at 30 frames a second with a key frame every 250, made here. Ours is the job as the command
runs it: decode, resize, tokenizer, shards with checksums, root. `limit` is the tokenizer alone on frames that are
decoded already; `share` is ours over limit, the figure that should be above 0.9 where the tokenizer is what costs. The
peer does the same work without threads: decode a batch, then encode it. `decode_alone` is what one thread decodes and
resizes. `*_per_cpu_s` are frames a second of processor time, all threads together, which other work on the machine
changes least; `cpu_share` is ours over limit in those.

`paper` is OpenAI's dVAE in size (weights random: they do not change the arithmetic) at 128 px, `nano` the one of the
demo at 64 px, where decoding weighs as much: there the processor is full, not the tokenizer, and `share_of_both` says
how close the job is to decoding and encoding spread over all cores without any loss.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from paired import result

from toto_robot.data.sources import find_sources
from toto_robot.data.tokenize import tokenize_sources
from toto_robot.data.video import decode
from toto_robot.tokenizers.dvae import DVAE, dvae_preset

ROWS = {"paper": ("dvae", 128), "nano": ("dvae_nano", 64)}
WIDTH, HEIGHT, FPS, GOP = 640, 360, 30, 250


def make_videos(folder: Path, frames: int, count: int) -> None:
    """Write `count` videos of moving noise and edges with `frames` frames together."""
    folder.mkdir(parents=True)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    for number in range(count):
        random = np.random.default_rng(number)
        with av.open(str(folder / f"{number}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=FPS, options={"g": str(GOP), "preset": "veryfast"})
            stream.width, stream.height, stream.pix_fmt, stream.gop_size = WIDTH, HEIGHT, "yuv420p", GOP
            for index in range(frames // count):
                waves = np.sin((x + 3 * index) / 23 + number) + np.cos((y - 2 * index) / 17)
                picture = np.stack([waves * 50 + 120, np.roll(waves, 40, 1) * 50 + 120, (x + index) % 256], axis=-1)
                picture += random.normal(0, 6, (HEIGHT, WIDTH, 1))
                frame = av.VideoFrame.from_ndarray(np.clip(picture, 0, 255).astype(np.uint8), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))


def timed(work: Callable[[], int]) -> tuple[float, float]:
    """Return frames per second of wall time and of processor time of `work`, which returns how many frames it did."""
    started, used = time.perf_counter(), time.process_time()
    frames = work()
    return frames / (time.perf_counter() - started), frames / (time.process_time() - used)


def measure(name: str, folder: Path, *, rounds: int, batch_size: int, device: str) -> dict[str, Any]:
    """Return one result row."""
    preset, size_px = ROWS[name]
    tokenizer = DVAE(dvae_preset(preset), generator=torch.Generator().manual_seed(0)).eval().to(device)
    videos = sorted((folder / "videos").iterdir())
    frames = np.stack([frame for video in videos for frame in decode(video, size_px)])
    decoders, stores = max(1, len(os.sched_getaffinity(0)) // 2), itertools.count()

    @torch.inference_mode()
    def encode(images: np.ndarray) -> np.ndarray:
        return tokenizer.encode(torch.from_numpy(images).to(device)).cpu().numpy()

    def alone() -> int:
        return sum(len(encode(frames[first : first + batch_size])) for first in range(0, len(frames), batch_size))

    def in_turns() -> int:
        count = 0
        for video in videos:
            decoded = decode(video, size_px)
            while batch := list(itertools.islice(decoded, batch_size)):
                count += len(encode(np.stack(batch)))
        return count

    def job() -> int:
        store = tokenize_sources(
            find_sources(folder / "videos"), tokenizer, folder / f"tokens_{name}_{next(stores)}",
            image_px=size_px, batch_size=batch_size, device=device, decoders=decoders, progress=False,
        )  # fmt: skip
        return len(store.tokens)

    encode(frames[:batch_size])
    decode_alone, decode_per_cpu_s = timed(lambda: sum(1 for video in videos for _ in decode(video, size_px)))
    rates: dict[str, list[float]] = {"ours": [], "peer": [], "limit": []}
    per_cpu_s: dict[str, list[float]] = {kind: [] for kind in rates}
    for _ in range(rounds):
        for kind, work in (("ours", job), ("peer", in_turns), ("limit", alone)):
            wall, cpu = timed(work)
            rates[kind].append(wall)
            per_cpu_s[kind].append(cpu)
    shares = np.array(rates["ours"]) / np.array(rates["limit"])
    cores = len(os.sched_getaffinity(0))
    both = 1 / (1 / np.array(rates["limit"]) + 1 / (cores * decode_alone))  # the same work spread over all cores
    return result(
        name,
        rates,
        peer_name="decode and encode in turns, without threads",
        unit=f"frames/s of 640x360 H.264 to {size_px} px tokens",
        limit_name="the tokenizer alone on decoded frames",
        share=round(float(np.median(shares)), 3),
        share_range=[round(float(shares.min()), 3), round(float(shares.max()), 3)],
        share_of_both=round(float(np.median(np.array(rates["ours"]) / both)), 3),
        **{f"{kind}_per_cpu_s": round(float(np.median(values)), 2) for kind, values in per_cpu_s.items()},
        cpu_share=round(float(np.median(np.array(per_cpu_s["ours"]) / np.array(per_cpu_s["limit"]))), 3),
        decode_alone=round(decode_alone, 1),
        decode_per_cpu_s=round(decode_per_cpu_s, 1),
        decoders=decoders,
        frames=len(frames),
        parameters=sum(parameter.numel() for parameter in tokenizer.parameters()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=192, help="of all videos together, for the row `paper`")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    for name in options.rows:
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            make_videos(Path(folder) / "videos", options.frames * (1 if name == "paper" else 4), 2)
            row = measure(
                name, Path(folder), rounds=options.rounds, batch_size=options.batch_size, device=options.device
            )
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
