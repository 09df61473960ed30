"""How do episodes get from one format to another whole: our store, a LeRobot folder, a robomimic file?"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from toto_robot.data.episodes import AUTOMATIC, EpisodeStore
from toto_robot.data.recording import FORMATS, Recording, needs_extra, tasks_of
from toto_robot.data.shards import Array


class Writer(Protocol):
    """Writes the episodes of one recording, in order."""

    def add(self, arrays: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
        """Add the next episode."""

    def finish(self) -> None:
        """Complete what was written."""

    def abandon(self) -> None:
        """Let go of files that will be thrown away."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to write; each format takes those that concern it."""

    lossless: bool = False  # LeRobot: images as PNG instead of video
    crf: int = 18  # LeRobot: x264's quality of video, 0 (best) to 51
    next_obs: bool = True  # robomimic: also write next_obs
    compression: str = "none"  # ours: one of codecs.CODECS


class StoreWriter:
    """Writes an episode store of ours."""

    def __init__(self, path: Path, recording: Recording, compression: str) -> None:
        env = dict(recording.env)
        if tasks_of(env) != recording.tasks:
            env["tasks"] = list(recording.tasks)
        features = {key: spec for key, spec in recording.features.items() if key not in AUTOMATIC}
        self._store = EpisodeStore.create(
            path,
            features=features,
            fps=recording.fps,
            env=env,
            provenance=recording.provenance,
            compression=None if compression == "none" else compression,
        )

    def add(self, arrays: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
        """Append the next episode; what the store counts itself it counts."""
        self._store.append({key: arrays[key] for key in arrays if key != "episode_index"}, meta)

    def finish(self) -> None:
        """Compress the store where that was asked for, and let go of it: every episode is on disk."""
        if self._store.compression is not None:
            self._store.finish()
        self._store.close()

    def abandon(self) -> None:
        """Let go of the store."""
        self._store.close()


def convert(recording: Recording, target: Path, format: str, options: Options, *, progress: bool = True) -> None:
    """Write `recording` to `target` in one of FORMATS; `target` appears when it is whole, or not at all.

    ValueError where `target` exists, or an episode does not fit the format (named with its key and step).
    """
    if format not in FORMATS:
        raise ValueError(f"expected format as one of {', '.join(FORMATS)}, got {format!r}")
    if target.exists():
        raise ValueError(f"{target} exists already; delete it or choose another place")
    if not len(recording):
        raise ValueError(f"{recording.path} holds no episodes yet")
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(target)
    building = target.with_name(f".{target.name}.{os.getpid()}.converting")
    try:
        _write(recording, building, format, options, progress)
        building.rename(target)
    finally:
        _remove(building)


def _write(recording: Recording, path: Path, format: str, options: Options, progress: bool) -> None:
    writer = _writer(recording, path, format, options)
    try:
        meta = recording.meta
        for index in tqdm(range(len(recording)), desc=f"to {format}", unit="episode", disable=not progress):
            writer.add(recording.episode(index), {key: values[index].item() for key, values in meta.items()})
        writer.finish()
    except BaseException:
        writer.abandon()
        raise


def _writer(recording: Recording, path: Path, format: str, options: Options) -> Writer:
    if format == "toto":
        return StoreWriter(path, recording, options.compression)
    if format == "robomimic":
        with needs_extra():
            from toto_robot.data.robomimic import RobomimicWriter
        return RobomimicWriter(path, recording, next_obs=options.next_obs)
    with needs_extra():
        from toto_robot.data.lerobot_writer import LeRobotWriter
    path.mkdir()
    return LeRobotWriter(path, recording, lossless=options.lossless, crf=options.crf)


def _remove_leftovers(target: Path) -> None:
    """Remove what conversions to the same target left that were killed; one that still runs keeps its own."""
    for leftover in target.parent.glob(f".{target.name}.*.converting"):
        process = leftover.name.split(".")[-2]
        if process.isdigit() and not Path(f"/proc/{process}").exists():
            _remove(leftover)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
