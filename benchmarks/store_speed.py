"""How many random 16-frame clips a second come out of a store, against zarr's own reader on the same files?

    python benchmarks/store_speed.py [--frames 4096] [--rounds 5] [--seconds 20] [--rows clips clips_compressed ...]

The frames are 128 px of the front camera while the scripted expert picks with noise, rendered here. `clips` is the
store as it grows, uncompressed; `clips_compressed` is its copy by `compress_store` with lz4, `clips_zstd` with zstd.
Ours and zarr read random clips from the same folder, taking turns, one thread, files in the page cache; before that,
what they return is compared. `limit` copies the clips out of a `.npy` memmap. `factor` is how much smaller the files
are. `*_per_cpu_s` are clips per second of processor time: on a busy machine they say what a free core would do.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

import numpy as np
from paired import result
from tqdm import tqdm

from toto_robot.data.compress import compress_store
from toto_robot.data.episodes import EpisodeStore, FeatureSpec

KEY = "observation.images.front"
IMAGE_PX = 128
CLIP_FRAMES = 16
ROWS = {"clips": "none", "clips_compressed": "blosc-lz4", "clips_zstd": "zstd"}
ENV_ID = "toto_robot/FrankaPick-v0"

Reader = Callable[[int, int], np.ndarray]


def render(path: Path, frames: int) -> None:
    """Write `frames` or a few more frames of the expert's episodes to a store at `path`."""
    import gymnasium

    env = gymnasium.make(ENV_ID, obs_mode="pixels", image_size=IMAGE_PX, cameras=("front",))
    features = {KEY: FeatureSpec("uint8", (IMAGE_PX, IMAGE_PX, 3))}
    store = EpisodeStore.create(path, features=features, fps=20.0, env={"env_id": ENV_ID})
    with tqdm(total=frames, desc="render", unit="frame") as bar:
        while store.steps < frames:
            images = _episode(env, seed=len(store))
            store.append({KEY: images}, {"seed": len(store)})
            bar.update(len(images))
    store.close()
    env.close()


def _episode(env: Any, seed: int) -> np.ndarray:
    observation, _ = env.reset(seed=seed)
    expert = env.unwrapped.expert(seed=seed, noise=0.1 * (seed % 4))
    images, over = [], False
    while not over:
        images.append(observation["pixels"]["front"])
        observation, _, terminated, truncated, info = env.step(expert.act().executed)
        over = terminated or truncated or bool(info["success"])
    return np.stack(images)


def readers(path: Path, raw: Path) -> dict[str, Reader]:
    """Return how ours, the peer and the limit read frames [start, stop)."""
    import zarr

    store = EpisodeStore.open(path)
    array = zarr.open_array(path / "data" / KEY, mode="r")
    memmap = np.load(raw, mmap_mode="r")
    return {
        "ours": lambda start, stop: store.read(KEY, start, stop),
        "peer": lambda start, stop: np.asarray(array[start:stop]),
        "limit": lambda start, stop: np.array(memmap[start:stop]),
    }


def clips_per_s(read: Reader, starts: np.ndarray) -> tuple[float, float]:
    """Return clips per second of wall time and of processor time, all threads together."""
    started, used = time.perf_counter(), time.process_time()
    for start in starts.tolist():
        read(start, start + CLIP_FRAMES)
    return len(starts) / (time.perf_counter() - started), len(starts) / (time.process_time() - used)


def measure(name: str, path: Path, raw: Path, *, rounds: int, seconds: float) -> dict[str, Any]:
    """Return one result row; `seconds` is about how long the rounds take."""
    reads = readers(path, raw)
    frames = len(np.load(raw, mmap_mode="r"))
    random = np.random.default_rng(0)
    draw = lambda count: random.integers(0, frames - CLIP_FRAMES + 1, count)  # noqa: E731
    for start in draw(50).tolist():
        results = [read(start, start + CLIP_FRAMES) for read in reads.values()]
        assert all(np.array_equal(result, results[0]) for result in results), f"{name} differs at frame {start}"
    counts = {kind: max(20, int(clips_per_s(read, draw(50))[0] * seconds / rounds / 3)) for kind, read in reads.items()}
    rates: dict[str, list[float]] = {kind: [] for kind in reads}
    per_cpu_s: dict[str, list[float]] = {kind: [] for kind in reads}
    for _ in range(rounds):
        for kind, read in reads.items():
            rate, per_cpu = clips_per_s(read, draw(counts[kind]))
            rates[kind].append(rate)
            per_cpu_s[kind].append(per_cpu)
    files = sum(file.stat().st_blocks * 512 for file in (path / "data" / KEY).rglob("*") if file.is_file())
    return result(
        name,
        rates,
        peer_name="zarr 3.1 on the same files",
        unit=f"clips/s of {CLIP_FRAMES}x{IMAGE_PX}x{IMAGE_PX}x3",
        limit_name="copy out of a .npy memmap",
        ours_range=[round(min(rates["ours"]), 1), round(max(rates["ours"]), 1)],
        **{f"{kind}_per_cpu_s": round(float(np.median(values)), 1) for kind, values in per_cpu_s.items()},
        codec=ROWS[name],
        factor=round(raw.stat().st_size / files, 2),
        frames=frames,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0, help="of measuring, all rows together")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        grown, raw = Path(folder) / "clips", Path(folder) / "frames.npy"
        render(grown, options.frames)
        store = EpisodeStore.open(grown)
        np.save(raw, store.read(KEY, 0, store.steps))
        for name in options.rows:
            path = Path(folder) / name
            if path != grown:
                compress_store(grown, path, codec=ROWS[name])
            seconds = options.seconds / len(options.rows)
            print(json.dumps(measure(name, path, raw, rounds=options.rounds, seconds=seconds)), flush=True)


if __name__ == "__main__":
    main()
