"""Which units of work is a tokenizing job made of?

The manifest is planned once, from names and headers alone, and written before the first unit. A unit is a run of
sources of about `unit_frames` frames; a source is never divided. What a shard will hold is a function of its unit's
entries and nothing else, so it does not matter which process does a unit, when, or how often it was begun.

Sources that turn up later become further units behind the planned ones, and so do sources that were left out and have
changed since: a mended file gets another chance.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from toto_robot.data.sources import Source
from toto_robot.data.video import BadVideo
from toto_robot.run_folder import read_json

UNKNOWN_FRAMES = 1000  # what a source counts whose header does not say its length, for packing only
RESIZE = "shorter side by OpenCV INTER_AREA on RGB, centre square"  # video.py; another filter changes token ids
_READERS = 8  # headers read at once: small reads that mostly wait


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One source of a unit, as it was when the manifest was planned."""

    id: str
    group: str  # what is not divided between training and validation
    kind: str  # video | images
    source: str  # component of the mixture
    fingerprint: str
    frames: int  # as the header says; 0 unknown
    fps: float
    take: int | None = None  # only so many frames: the end of `limit_frames`

    @property
    def expected_frames(self) -> int:
        """Return about how many frames will come."""
        frames = self.frames or (UNKNOWN_FRAMES if self.kind == "video" else 1)
        return frames if self.take is None else min(frames, self.take)


@dataclass(frozen=True)
class Manifest:
    """The settings that decide the tokens, and the sources of each unit."""

    settings: Mapping[str, Any]
    units: tuple[tuple[Entry, ...], ...]

    def text(self) -> str:
        """Return the manifest as JSON, a unit a line: there may be millions of entries."""
        units = ",\n".join(json.dumps([_plain(entry) for entry in unit]) for unit in self.units)
        return f'{{"settings": {json.dumps(dict(self.settings), indent=2)},\n"units": [\n{units}\n]}}\n'

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read what `text` returned; ValueError names the file where it is damaged."""
        values = read_json(path)
        return cls(values["settings"], tuple(tuple(Entry(**entry) for entry in unit) for unit in values["units"]))

    def extended(self, entries: Iterable[Entry]) -> Manifest:
        """Return a manifest with further units for `entries`, up to the limit of the settings."""
        limit = self.settings["limit_frames"]
        planned = sum(entry.expected_frames for unit in self.units for entry in unit)
        chosen = list(entries) if limit is None else _up_to(entries, limit - planned, self.settings["min_frames"])
        return replace(self, units=self.units + _packed(chosen, self.settings["unit_frames"]))


def read_entries(sources: Sequence[Source], *, progress: bool = True) -> list[Entry]:
    """Read fingerprint and header of each source; one that cannot be opened is still an entry, and skipped later."""
    with ThreadPoolExecutor(_READERS) as pool:
        entries = pool.map(_entry, sources)
        return list(tqdm(entries, total=len(sources), desc="plan", unit="source", disable=not progress or not sources))


def changed_since(
    manifest: Manifest, sources: Sequence[Source], skipped: Mapping[int, Collection[str]], *, retry: bool = False
) -> list[Source]:
    """Return the sources that no unit has, and those that were left out when last tried and are others now.

    `skipped` names what each finished unit left out; with `retry` those come again even if nothing changed. ValueError
    where a source has changed whose tokens are there already.
    """
    last = {entry.id: (unit, entry) for unit, entries in enumerate(manifest.units) for entry in entries}

    def is_new(source: Source) -> bool:
        if source.id not in last:
            return True
        unit, entry = last[source.id]
        if unit not in skipped:
            return False  # its turn is still to come
        changed = source.fingerprint() != entry.fingerprint
        if source.id in skipped[unit]:
            return retry or changed
        if changed:
            raise ValueError(f"{source.id} has changed since its tokens were made; delete them, or use another folder")
        return False

    with ThreadPoolExecutor(_READERS) as pool:
        return [source for source, new in zip(sources, pool.map(is_new, sources), strict=True) if new]


def _entry(source: Source) -> Entry:
    try:
        frames, fps = source.header()
    except BadVideo:
        frames, fps = 0, 0.0  # told when its turn comes
    return Entry(
        id=source.id,
        group=source.group,
        kind=source.kind,
        source=source.source,
        fingerprint=source.fingerprint(),
        frames=frames,
        fps=round(fps, 3),
    )


def _plain(entry: Entry) -> dict[str, Any]:
    return {key: value for key, value in asdict(entry).items() if value is not None}


def _up_to(entries: Iterable[Entry], limit: int, min_frames: int) -> list[Entry]:
    """Return the first entries that have `limit` frames together, by their headers; the last one is cut there."""
    chosen = []
    for entry in entries:
        if limit < (min_frames if entry.kind == "video" else 1):
            break
        if entry.expected_frames > limit:
            entry = replace(entry, take=limit)
        chosen.append(entry)
        limit -= entry.expected_frames
    return chosen


def _packed(entries: Iterable[Entry], unit_frames: int) -> tuple[tuple[Entry, ...], ...]:
    """Cut a list of entries into units of at most `unit_frames` frames, or of a single longer source."""
    units: list[list[Entry]] = []
    free = 0
    for entry in entries:
        if entry.expected_frames > free:
            units.append([])
            free = unit_frames
        units[-1].append(entry)
        free -= entry.expected_frames
    return tuple(map(tuple, units))
