"""Where do the decoded frames of all clips lie, and how do they get there once and for all?

A frame store is a zarr v3 store (flat_store.py) of square uint8 RGB frames `data/frames` (N, h, w, 3) with
`meta/clip_ends`; its records name every clip, its group and its content. Training of tokenizers and MAE reads random
frames from it by memmap, `tokenize` reads it clip by clip.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from toto_robot.data.flat_store import FlatStore, store_kind
from toto_robot.data.sampling import Integers, Kind, split_by_group
from toto_robot.data.sharded_array import ShardedArray
from toto_robot.data.sources import Source
from toto_robot.data.video import BadVideo, Frame
from toto_robot.run_folder import read_json, write_json

KIND = "frames"
_MADE_BY = "`toto_robot tokenize` or `train-tokenizer`"
_REJECTED = "rejected.json"
_BLOCK_FRAMES = 64  # written at once

Frames = npt.NDArray[np.uint8]  # (n, h, w, 3) RGB


class FrameStore:
    """Decoded frames on disk, read at random."""

    def __init__(self, flat: FlatStore) -> None:
        self._flat = flat
        self.path = flat.path
        self.records = flat.records

    @classmethod
    def open(cls, path: Path) -> FrameStore:
        """Open a finished frame store; ValueError where there is none, or `prepare_frames` was interrupted."""
        flat = FlatStore.open(Path(path), kind=KIND, made_by=_MADE_BY)
        if not flat.complete:
            raise ValueError(f"{path} is unfinished ({flat.items} clips so far); run the command that makes it again")
        return cls(flat)

    @property
    def frames(self) -> ShardedArray:
        """Return all frames (N, h, w, 3); index it like an array."""
        return self._flat.data["frames"]

    @property
    def clip_ends(self) -> npt.NDArray[np.int64]:
        """Return the cumulative ends of the clips (E,)."""
        return self._flat.ends

    @property
    def clip_names(self) -> list[str]:
        """Return the names of the clips: the ids of their sources."""
        return [record["name"] for record in self.records]

    @property
    def image_px(self) -> int:
        """Return the side of the frames in pixels."""
        return int(self.frames.row_shape[0])

    @property
    def provenance(self) -> dict[str, Any]:
        """Return what made the store."""
        return dict(self._flat.attributes["provenance"])

    def __len__(self) -> int:
        return self._flat.items

    def read(self, indices: Integers | Sequence[int]) -> Frames:
        """Return the frames at `indices` (n,) as (n, h, w, 3)."""
        return self.frames.take(indices)

    def clip(self, start: int, frames: int, stride: int = 1) -> Frames:
        """Return `frames` frames from row `start` on, every `stride`-th, as (frames, h, w, 3)."""
        return self.frames.read(start, start + (frames - 1) * stride + 1, stride)

    def bounds(self, clip: int) -> tuple[int, int]:
        """Return the rows (start, stop) of a clip."""
        return self._flat.bounds(clip)

    def split(self, val_fraction: float, seed: int) -> tuple[Integers, Integers]:
        """Return the ids of (training, validation) clips; the cameras of one episode stay together."""
        return split_by_group([record["group"] for record in self.records], val_fraction, seed)

    def fingerprint(self) -> str:
        """Return the SHA-256 over the pixels and names of all clips, from the hashes taken when they were written."""
        return hashlib.sha256(repr([(r["name"], r["pixels_sha256"]) for r in self.records]).encode()).hexdigest()


@dataclass(frozen=True)
class FrameSource:
    """A clip of a frame store, as something to be tokenized."""

    store: FrameStore
    clip: int

    @property
    def record(self) -> dict[str, Any]:
        """Return what the store says about the clip."""
        return self.store.records[self.clip]

    @property
    def id(self) -> str:
        """Return the name of the clip."""
        return str(self.record["name"])

    @property
    def group(self) -> str:
        """Return the group of the clip."""
        return str(self.record["group"])

    @property
    def source(self) -> str:
        """Return the part of the mixture that the clip came from."""
        return str(self.record.get("source", self.store.path.name))

    @property
    def kind(self) -> Kind:
        """Return whether the frames follow each other."""
        kind: Kind = self.record.get("kind", "video")
        return kind

    def fingerprint(self) -> str:
        """Return the hash of the pixels that was taken when they were written."""
        return str(self.record["pixels_sha256"])

    def header(self) -> tuple[int, float]:
        """Return the length of the clip and its rate."""
        return int(self.record["frames"]), float(self.record["fps"])

    def frames(self, size_px: int) -> Iterator[Frame]:
        """Read the frames; ValueError where another size than the stored one is wanted."""
        if size_px != self.store.image_px:
            raise ValueError(f"expected frames of {size_px} px, got {self.store.image_px} px")
        start, stop = self.store.bounds(self.clip)
        for first in range(start, stop, _BLOCK_FRAMES):
            yield from self.store.frames.read(first, min(first + _BLOCK_FRAMES, stop))


def frame_sources(store: FrameStore) -> list[Source]:
    """Return the clips of a frame store as sources, in their order."""
    return [FrameSource(store, clip) for clip in range(len(store))]


def is_frame_store(path: Path) -> bool:
    """Tell whether `path` is a frame store, finished or not."""
    return store_kind(path) == KIND


def prepare_frames(
    sources: Sequence[Source],
    out_dir: Path,
    size_px: int,
    *,
    limit_frames: int | None = None,
    min_frames: int = 1,
    provenance: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> FrameStore:
    """Decode and resize every source once into the frame store `out_dir`, in the order of `sources`.

    Called again after a kill it goes on with the source that was interrupted, and the files end in the same bytes;
    called again with more sources it adds them. Sources that fail or have fewer than `min_frames` frames are left out,
    printed and listed with their reason in `rejected.json`. `limit_frames` ends the store after that many frames; the
    last clip is cut there. ValueError where no source is good, a source has changed since, or the store has other
    settings.
    """
    if min_frames < 1 or (limit_frames is not None and limit_frames < min_frames):
        raise ValueError(f"need 1 <= min_frames <= limit_frames; got {min_frames} and {limit_frames}")
    settings = {"size_px": size_px, "limit_frames": limit_frames, "min_frames": min_frames}
    with _open_or_create(Path(out_dir), settings, provenance or {}) as store:
        rejected = _Rejected(store.path / _REJECTED)
        pending = _pending(sources, store, rejected)
        with tqdm(
            total=_expected(pending, store.rows, limit_frames) if progress else None,
            initial=store.rows,
            desc="frames",
            unit="frame",
            disable=not progress or not pending,
        ) as bar:
            for source in pending:
                budget = None if limit_frames is None else limit_frames - store.rows
                if budget is not None and budget < min_frames:
                    break
                try:
                    _copy(source, store, settings, budget, bar)
                except BadVideo as error:
                    rejected.add(source, str(error))
        rejected.report(len(sources))
        if not store.items:
            raise ValueError(f"none of the {len(sources)} sources can be used: {rejected.summary()}")
        store.finish()
    return FrameStore.open(store.path)


class _Rejected:
    """The sources that were left out, kept in `rejected.json`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[dict[str, str]] = read_json(path) if path.exists() else []

    def add(self, source: Source, reason: str) -> None:
        self.entries.append({"source": source.id, "reason": reason, "fingerprint": source.fingerprint()})
        write_json(self.path, self.entries)

    def drop_changed(self, sources: Sequence[Source]) -> set[str]:
        """Return the names that are still rejected; a file that was mended gets another chance."""
        known = {source.id: source for source in sources}
        before = len(self.entries)
        self.entries = [
            entry
            for entry in self.entries
            if entry["source"] not in known or known[entry["source"]].fingerprint() == entry["fingerprint"]
        ]
        if len(self.entries) != before:
            write_json(self.path, self.entries)
        return {entry["source"] for entry in self.entries}

    def report(self, total: int) -> None:
        if self.entries:
            lines = [f"  {entry['source']}: {entry['reason']}" for entry in self.entries]
            print(f"left out {len(lines)} of {total} sources (also in {self.path}):", *lines, sep="\n")

    def summary(self) -> str:
        shown = [f"{entry['source']} {entry['reason']}" for entry in self.entries[:5]]
        return "; ".join(shown + ([f"and {len(self.entries) - 5} more"] if len(self.entries) > 5 else []))


def _open_or_create(path: Path, settings: Mapping[str, Any], provenance: Mapping[str, Any]) -> FlatStore:
    if store_kind(path) is None:
        return FlatStore.create(
            path,
            kind=KIND,
            ends="clip_ends",
            features={"frames": ("uint8", (settings["size_px"], settings["size_px"], 3))},
            attributes={"settings": dict(settings), "provenance": dict(provenance)},
        )
    store = FlatStore.open(path, kind=KIND, made_by=_MADE_BY)
    made = store.attributes["settings"]
    if made != settings:
        raise ValueError(f"{path} was made with {made}, not with {dict(settings)}; delete it or choose another folder")
    return store


def _pending(sources: Sequence[Source], store: FlatStore, rejected: _Rejected) -> list[Source]:
    """Return the sources still to be done; ValueError where one that is done has changed."""
    done = {record["name"]: record["source_fingerprint"] for record in store.records}
    still_rejected = rejected.drop_changed(sources)
    for source in sources:
        if source.id in done and source.fingerprint() != done[source.id]:
            raise ValueError(f"{source.id} has changed since {store.path} was made; delete that folder and rerun")
    return [source for source in sources if source.id not in done and source.id not in still_rejected]


def _expected(pending: Sequence[Source], done: int, limit_frames: int | None) -> int:
    """Return about how many frames the store will have, for the progress bar."""
    total = done
    for source in pending:
        try:
            total += source.header()[0]
        except BadVideo:
            continue  # told when its turn comes
    return total if limit_frames is None else min(total, limit_frames)


def _copy(source: Source, store: FlatStore, settings: Mapping[str, Any], budget: int | None, bar: Any) -> None:
    """Write one source as one clip; BadVideo leaves the store as it was."""
    fingerprint = source.fingerprint()
    _, fps = source.header()
    digest, count = hashlib.sha256(), 0
    store.begin()
    try:
        for block in _blocks(itertools.islice(source.frames(settings["size_px"]), budget)):
            store.write("frames", block)
            digest.update(block.data)
            count += len(block)
            bar.update(len(block))
        least = settings["min_frames"] if source.kind == "video" else 1  # a picture is a clip of one frame
        if count < least:
            raise BadVideo(f"has {count} frames, at least {least} are needed")
    except BadVideo:
        bar.update(-count)
        raise
    record = {"name": source.id, "group": source.group, "frames": count, "fps": round(fps, 3)}
    record |= {"source": source.source, "kind": source.kind}
    store.commit(record={**record, "source_fingerprint": fingerprint, "pixels_sha256": digest.hexdigest()})


def _blocks(frames: Iterator[Frame]) -> Iterator[Frames]:
    while block := list(itertools.islice(frames, _BLOCK_FRAMES)):
        yield np.stack(block)
