"""How are the features of a store's frames computed once, as the closed loop would, and read by every training after?

One float16 file a camera, `(frames of the store, P, D)`, in a folder named after the encoder's fingerprint and the
store's content hash. Each episode runs through the encoder's stream frame by frame from a reset, so that what a head
is trained on is what it will be given. Episodes are rows of one stream, and a row takes the next episode when its own
ends. The first n episodes are filled on demand; a kill loses one group of episodes at most.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from policies.augment import ImageChange
from policies.observation import check_images
from toto_robot.data.episodes import IMAGE_PREFIX, EpisodeStore
from toto_robot.encoders.base import Encoder
from toto_robot.run_folder import read_json, wait_for_folder, write_json

ROWS = 16  # episodes in one stream: most of the speed of larger batches, little idle time at the end of a group
_GROUP = 64  # episodes between two commits
SCHEMA = 1


@dataclass(frozen=True)
class CameraFeatures:
    """The cached features of one camera: a file on disk and how many episodes of it are done."""

    path: Path
    shape: tuple[int, int, int]  # (frames of the store, P, D)

    @property
    def episodes_done(self) -> int:
        """Episodes whose features are on disk, from the first on."""
        return int(read_json(self._progress)["episodes"]) if self._progress.exists() else 0

    @property
    def _progress(self) -> Path:
        return self.path.with_suffix(".json")

    def open(self, writable: bool = False) -> np.ndarray:
        """Map the file, making it when nothing is done yet (the zeros take no disk)."""
        if self.episodes_done == 0 and writable:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return np.lib.format.open_memmap(self.path, mode="w+", dtype=np.float16, shape=self.shape)
        mapped = np.lib.format.open_memmap(self.path, mode="r+" if writable else "r")
        if mapped.shape != self.shape or mapped.dtype != np.float16:
            raise ValueError(
                f"{self.path} holds {mapped.dtype} {mapped.shape}, expected float16 {self.shape}; delete it"
            )
        return mapped

    def commit(self, features: np.ndarray, episodes: int) -> None:
        """Bring the features to the disk, then say how many episodes are done."""
        features.flush()  # type: ignore[attr-defined]  # numpy.memmap
        write_json(self._progress, {"schema": SCHEMA, "episodes": episodes, "shape": list(self.shape)})


def cache_folder(cache_dir: Path, encoder: Encoder, store: EpisodeStore, change: ImageChange | None = None) -> Path:
    """Return the folder that holds the features of a store's frames under an encoder, plain or changed."""
    name = f"{encoder.name}-{encoder.fingerprint[:20]}-{store.content_hash()[:20]}"
    return cache_dir / (name if change is None else f"{name}-{change.key}")


def cached_features(
    cache_dir: Path,
    encoder: Encoder,
    store: EpisodeStore,
    cameras: tuple[str, ...],
    episodes: int,
    change: ImageChange | None = None,
) -> dict[str, np.ndarray]:
    """Return float16 features (frames, P, D) of the first `episodes` episodes by camera, computing what is missing.

    With `change` they are those of the changed pictures, which have a folder of their own. A set that is cached is read
    and the encoder is not run. ValueError for a camera or episodes that the store lacks, and for features that float16
    cannot hold.
    """
    _check_store(store, cameras, episodes)
    frames = int(store.ends[episodes - 1])
    folder = cache_folder(cache_dir, encoder, store, change)
    shape = (store.steps, encoder.tokens_per_frame, encoder.width)
    features = {}
    for camera in cameras:
        cache = CameraFeatures(folder / f"{camera}.npy", shape)
        if cache.episodes_done < episodes:
            with wait_for_folder(folder):  # of processes that share a cache one computes, the others find it done
                if cache.episodes_done < episodes:
                    _fill(cache, encoder, store, camera, episodes, change)
        features[camera] = cache.open()[:frames]
    return features


def _fill(
    cache: CameraFeatures,
    encoder: Encoder,
    store: EpisodeStore,
    camera: str,
    episodes: int,
    change: ImageChange | None,
) -> None:
    done = cache.episodes_done
    out = cache.open(writable=True)
    starts = np.concatenate([[0], store.ends])
    total = int(starts[episodes] - starts[done])
    with tqdm(total=total, desc=f"features {camera}{_about(change)}", unit="frame", smoothing=0.05) as bar:
        for first in range(done, episodes, _GROUP):
            last = min(first + _GROUP, episodes)
            for row in stream_episodes(encoder, store, camera, range(first, last), change):
                out[row.frame] = row.features
                bar.update()
            _check_half(out[starts[first] : starts[last]], encoder.name)
            cache.commit(out, last)


@dataclass(frozen=True)
class FrameFeatures:
    """The features of one frame of the store."""

    frame: int  # index in the store
    features: np.ndarray  # (P, D) float16


@dataclass
class _Row:
    """One row of the stream: the episode it is in, and where."""

    images: np.ndarray  # (T, h, w, 3) uint8
    first_frame: int
    position: int = 0


def stream_episodes(
    encoder: Encoder, store: EpisodeStore, camera: str, episodes: range, change: ImageChange | None = None
) -> Iterator[FrameFeatures]:
    """Run episodes through one stream of ROWS rows; a row begins each episode with a reset.

    The batch stays at ROWS to the end (finished rows see their last picture again), so the numbers of a frame depend
    neither on how many episodes are asked for nor on where a killed run stopped.
    """
    stream: Any = encoder.stream(ROWS)
    waiting = iter(episodes)
    rows: list[_Row | None] = [None] * ROWS
    size = int(store.env["image_size"])
    frames = np.zeros((ROWS, size, size, 3), dtype=np.uint8)
    while True:
        for index, row in enumerate(rows):
            if row is None or row.position == len(row.images):
                rows[index] = _load_row(store, camera, next(waiting, None), size, change)
        running = [(index, row) for index, row in enumerate(rows) if row is not None]
        if not running:
            return
        for index, row in running:
            frames[index] = row.images[row.position]
        reset = np.array([row is not None and row.position == 0 for row in rows])
        features = stream.step(frames, reset).to(torch.float16).cpu().numpy()  # (ROWS, P, D)
        for index, row in running:
            yield FrameFeatures(row.first_frame + row.position, features[index])
            row.position += 1


def _load_row(
    store: EpisodeStore, camera: str, episode: int | None, image_size: int, change: ImageChange | None
) -> _Row | None:
    if episode is None:
        return None
    start, stop = store.bounds(episode)
    images = store.read(IMAGE_PREFIX + camera, start, stop)
    check_images(images, camera, image_size)
    return _Row(images if change is None else change(images, camera, episode), start)


def _about(change: ImageChange | None) -> str:
    return "" if change is None else f", variant {change.variant}"


def _check_store(store: EpisodeStore, cameras: tuple[str, ...], episodes: int) -> None:
    if not 1 <= episodes <= len(store):
        raise ValueError(
            f"asked for {episodes} demonstrations, {store.path} holds {len(store)}; collect more, or ask for fewer"
        )
    missing = [camera for camera in cameras if camera not in store.cameras]
    if missing:
        raise ValueError(
            f"{store.path} has no camera {', '.join(missing)}; it has {', '.join(store.cameras) or 'none'}"
        )


def _check_half(features: np.ndarray, name: str) -> None:
    if not np.isfinite(features).all():
        raise ValueError(
            f"the features of encoder {name} hold NaN or exceed float16 (65504); choose an earlier encoder.layer"
        )
