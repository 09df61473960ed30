"""How many tokens a second come out of a token store in random windows, beside numpy's memmap and zarr itself?

    python benchmarks/loader_speed.py [--tokens 64] [--rounds 5] [--seconds 1]

A window is 16 frames of 256 tokens; `stride_1` are frames one after the other, `stride_4` every fourth, as the paper
trains. The store has 64 M tokens in shards as `tokenize` writes them. Ours is `TokenStore.windows` for batches of 64
windows, as training calls it; the peer is zarr's own path on the same shards, one window a call; `limit` is the same
loop over a flat `.npy` memmap, which knows neither shards nor checks. One thread, taking turns, files in the page
cache; before that, what the three return is compared. `per_cpu_s` counts processor time: what a free core would do.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

import numpy as np
from paired import result

from toto_robot.data.token_shards import create_store, seal_store, write_shard
from toto_robot.data.tokenize import TokenizeConfig
from toto_robot.data.tokens import TOKENS, UNITS, TokenSpec, TokenStore

WINDOW_FRAMES, TOKENS_PER_FRAME, BATCH = 16, 256, 64
CLIP_FRAMES = 512
SPEC = TokenSpec(grid=(16, 16), vocab=8192, image_px=128, tokenizer="random", precision="fp32")

Reader = Callable[[Sequence[range]], Any]


def write(path: Path, frames: int) -> TokenStore:
    """Write a store of random tokens in clips of 512 frames."""
    random = np.random.default_rng(0)
    unit_frames = TokenizeConfig.unit_frames
    units = -(-frames // unit_frames)
    create_store(path, SPEC, json.dumps({"settings": SPEC.attributes(), "units": [[]] * units}), {})
    for unit in range(units):
        count = min(unit_frames, frames - unit * unit_frames) // CLIP_FRAMES
        clips = [random.integers(0, SPEC.vocab, (CLIP_FRAMES, TOKENS_PER_FRAME), np.uint16) for _ in range(count)]
        records = [{"name": f"{unit}/{clip}", "group": f"{unit}/{clip}"} for clip in range(count)]
        write_shard(path, unit, SPEC, list(zip(clips, records, strict=True)), [], {})
    return seal_store(path, SPEC, units)


def readers(store: TokenStore, flat: Path) -> dict[str, Reader]:
    """Return how ours, zarr and the memmap read a batch of windows."""
    import zarr

    memmap = np.load(flat, mmap_mode="r")
    shards = [zarr.open_array(store.path / UNITS / shard["name"] / TOKENS, mode="r") for shard in store.shards]
    unit_frames = shards[0].shape[0]

    def through_zarr(windows: Sequence[range]) -> np.ndarray:
        batch = np.empty((len(windows), WINDOW_FRAMES, TOKENS_PER_FRAME), np.uint16)
        for out, rows in zip(batch, windows, strict=True):
            shard, first = divmod(rows.start, unit_frames)
            out[:] = shards[shard][first : first + len(rows) * rows.step : rows.step][:WINDOW_FRAMES]
        return batch

    def through_memmap(windows: Sequence[range]) -> np.ndarray:
        batch = np.empty((len(windows), WINDOW_FRAMES, TOKENS_PER_FRAME), np.uint16)
        for out, rows in zip(batch, windows, strict=True):
            out[:] = memmap[rows.start : rows.stop : rows.step]
        return batch

    return {"ours": store.windows, "peer": through_zarr, "limit": through_memmap}


def draw(random: np.random.Generator, store: TokenStore, stride: int, batches: int) -> list[list[range]]:
    """Return batches of windows that lie inside clips."""
    span = (WINDOW_FRAMES - 1) * stride + 1
    clips = random.integers(0, len(store), (batches, BATCH))
    starts = clips * CLIP_FRAMES + random.integers(0, CLIP_FRAMES - span + 1, (batches, BATCH))
    return [[range(start, start + span, stride) for start in batch] for batch in starts.tolist()]


def rate(read: Reader, batches: list[list[range]]) -> tuple[float, float]:
    """Return millions of tokens per second of wall time and of processor time."""
    started, used = time.perf_counter(), time.process_time()
    for windows in batches:
        read(windows)
    tokens = len(batches) * BATCH * WINDOW_FRAMES * TOKENS_PER_FRAME / 1e6
    return tokens / (time.perf_counter() - started), tokens / (time.process_time() - used)


def measure(stride: int, store: TokenStore, flat: Path, *, rounds: int, seconds: float) -> dict[str, Any]:
    """Return one result row; a round of ours, and of each other, takes about `seconds`."""
    random, reads = np.random.default_rng(stride), readers(store, flat)
    for windows in draw(random, store, stride, 4):
        results = [read(windows) for read in reads.values()]
        assert all(np.array_equal(one, results[0]) for one in results), "the three readers differ"
    for read in (reads["ours"], reads["limit"]):  # every page is mapped once before it counts
        read([range(start, start + WINDOW_FRAMES) for start in range(0, len(store.tokens), WINDOW_FRAMES)])
    counts = {
        kind: max(2, int(seconds * rate(read, draw(random, store, stride, 4))[0] * 1e6 / (BATCH * 4096)))
        for kind, read in reads.items()
    }
    rates: dict[str, list[float]] = {kind: [] for kind in reads}
    per_cpu_s: dict[str, list[float]] = {kind: [] for kind in reads}
    for _ in range(rounds):
        for kind, read in reads.items():
            wall, cpu = rate(read, draw(random, store, stride, counts[kind]))
            rates[kind].append(wall)
            per_cpu_s[kind].append(cpu)
    return result(
        f"stride_{stride}",
        rates,
        peer_name="zarr 3.1 on the same shards",
        unit="M tokens/s a process",
        limit_name="loop over a flat .npy memmap",
        ours_range=[round(min(rates["ours"]), 1), round(max(rates["ours"]), 1)],
        **{f"{kind}_per_cpu_s": round(float(np.median(values)), 1) for kind, values in per_cpu_s.items()},
        of_limit=round(float(np.median(np.array(rates["ours"]) / np.array(rates["limit"]))), 2),
        shards=len(store.shards),
        tokens=len(store.tokens) * TOKENS_PER_FRAME,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=64, help="in the store, millions (of 2**20)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each reader in each round")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = write(Path(folder) / "tokens", options.tokens * 2**20 // TOKENS_PER_FRAME)
        np.save(Path(folder) / "flat.npy", store.tokens[:])
        for stride in (1, 4):
            row = measure(stride, store, Path(folder) / "flat.npy", rounds=options.rounds, seconds=options.seconds)
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
