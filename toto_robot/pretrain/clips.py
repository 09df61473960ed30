"""Which clips of each source train and which are held out, at which strides do windows fit, and how are they mixed?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from toto_robot.data.mixture import MixtureSampler, PictureSampler
from toto_robot.data.recipes import paper_weights
from toto_robot.data.sampling import ClipSampler, Integers, Kind, split_by_group
from toto_robot.data.sources import kind_of, source_names, source_of

Records = Sequence[Mapping[str, Any]]  # of the clips of a store


@dataclass(frozen=True)
class Part:
    """One source of a store: the ids of its clips that train and of those that are held out."""

    source: str
    kind: Kind
    training: Integers
    held_out: Integers


@dataclass(frozen=True)
class Division:
    """Clips of a store, divided: cumulative ends, and the parts of its sources."""

    ends: Integers
    parts: tuple[Part, ...]

    @property
    def training(self) -> Integers:
        """Return the ids of all clips that train."""
        return np.concatenate([part.training for part in self.parts])

    @property
    def held_out(self) -> Integers:
        """Return the ids of all clips that are held out."""
        return np.concatenate([part.held_out for part in self.parts])

    def samplers(
        self, frames: int, strides: Sequence[int], seed: int, weights: Mapping[str, float] | None = None
    ) -> tuple[MixtureSampler, MixtureSampler | None]:
        """Return the samplers of training and held-out samples of `frames` frames; None where nothing is held out.

        `weights` by source; null: each by the number of its training frames. ValueError where a source has no training
        clip that is long enough, with the number of frames that is needed, or has no weight.
        """
        if weights is None:
            weights = {part.source: float(self.lengths[part.training].sum()) for part in self.parts}
        training: dict[str, ClipSampler | PictureSampler] = {}
        held_out: dict[str, ClipSampler | PictureSampler] = {}
        for part in self.parts:
            strides_here = self._fitting(part, frames, strides)
            training[part.source] = self._sampler(part.kind, part.training, frames, strides_here, seed)
            if self._is_enough(part.kind, part.held_out, frames, strides_here):
                held_out[part.source] = self._sampler(part.kind, part.held_out, frames, strides_here, seed + 1)
            elif len(self.parts) > 1:
                print(f"{part.source}: too little is held out to validate on it")
        mixed = MixtureSampler(training, weights)
        known = {name: mixed.weights[name] for name in held_out}
        return mixed, MixtureSampler(held_out, known) if held_out else None

    @property
    def lengths(self) -> Integers:
        """Return the frames of every clip (E,)."""
        return np.diff(self.ends, prepend=0)

    def _sampler(
        self, kind: Kind, clips: Integers, frames: int, strides: Sequence[int], seed: int
    ) -> ClipSampler | PictureSampler:
        if kind == "images":
            return PictureSampler(self._rows(clips), frames, seed)
        return ClipSampler(self.ends, clips, frames, strides, seed)

    def _fitting(self, part: Part, frames: int, strides: Sequence[int]) -> tuple[int, ...]:
        lengths = self.lengths[part.training]
        if part.kind == "video":
            return fitting_strides(lengths, frames, strides, part.source)
        if lengths.sum() < frames:
            raise ValueError(
                f"{part.source} has {lengths.sum()} training pictures, but a training sample is {frames} different "
                f"ones: add pictures, or leave it out"
            )
        return (1,)

    def _is_enough(self, kind: Kind, clips: Integers, frames: int, strides: Sequence[int]) -> bool:
        lengths = self.lengths[clips]
        if kind == "images":
            return int(lengths.sum()) >= frames
        return int(lengths.max(initial=0)) > (frames - 1) * min(strides)

    def _rows(self, clips: Integers) -> Integers:
        """Return all rows of the clips; of pictures that is one row each."""
        lengths = self.lengths[clips]
        first = np.repeat(self.ends[clips] - np.cumsum(lengths), lengths)
        return first + np.arange(int(lengths.sum()))


def check_mixture(
    data: Sequence[str] | None,
    weights: Sequence[float] | None,
    limit_files: Sequence[int] | None,
    limit_frames: int | None,
) -> None:
    """Raise ValueError where settings of a mixture do not fit each other."""
    if isinstance(data, str) or (data is not None and not data):
        raise ValueError(f"expected data as a tuple of at least one path, got {data!r}")
    if weights is not None and data is not None and len(weights) != len(data):
        raise ValueError(f"expected a weight for each of the {len(data)} in data, got {list(weights)}")
    if limit_files is not None and (data is None or len(limit_files) not in (1, len(data))):
        raise ValueError(f"expected limit_files as one number or one for each of data, got {list(limit_files)}")
    if limit_frames is not None and data is not None and len(data) > 1:
        raise ValueError("limit_frames counts frames from the first folder on; limit several with limit_files")


def weights_of(
    division: Division, data: Sequence[str] | None, weights: Sequence[float] | None
) -> Mapping[str, float] | None:
    """Return the weights by source: what was given in the order of `data` (null: of the store), or the paper's.

    None, which means by frames, where nothing was given and not all are the paper's data sets. ValueError where a
    source has no usable clip, or the numbers do not match.
    """
    there = [part.source for part in division.parts]
    names = source_names(data) if data else there
    if missing := [name for name in names if name not in there]:
        raise ValueError(
            f"no clip of {', '.join(missing)} can be used: rejected.json beside the frames has the reasons; leave it "
            "out of data, or mend it and use a new run folder"
        )
    if weights is None:
        return paper_weights(there)
    if len(weights) != len(names):
        raise ValueError(f"expected a weight for each of {', '.join(names)}, got {list(weights)}")
    return dict(zip(names, weights, strict=True))


def divide(ends: Integers, records: Records, val_fraction: float, seed: int, min_frames: int = 1) -> Division:
    """Hold out `val_fraction` of every source's videos or episodes, whole; where it has a single one, its end.

    A single video too short to leave `min_frames` frames on both sides all trains, which is printed. Of pictures at
    least `min_frames` are held out where twice as many are there: a sample takes so many.
    """
    ends = np.asarray(ends, np.int64)
    of_source: dict[str, list[int]] = {}
    for clip, record in enumerate(records):
        of_source.setdefault(source_of(record), []).append(clip)
    held = np.zeros(len(ends), bool)
    cuts = np.full(len(ends), -1)
    for name, clips in of_source.items():
        groups = [str(records[clip]["group"]) for clip in clips]
        if not val_fraction or len(set(groups)) > 1:
            pictures = kind_of(records[clips[0]]) == "images" and len(clips) >= 2 * min_frames
            fraction = max(val_fraction, min_frames / len(clips)) if val_fraction and pictures else val_fraction
            held[np.asarray(clips)[split_by_group(groups, fraction, seed)[1]]] = True
        else:
            cuts[clips] = _cuts(ends, np.asarray(clips), val_fraction, min_frames, name)
    return _cut_apart(
        ends, held, cuts, {name: kind_of(records[clips[0]]) for name, clips in of_source.items()}, records
    )


def _cuts(ends: Integers, clips: Integers, val_fraction: float, min_frames: int, name: str) -> Integers:
    """Return where each clip of a single video or episode is divided in time; -1 where it is too short."""
    lengths = np.diff(ends, prepend=0)[clips]
    kept = lengths - np.maximum(min_frames, (lengths * val_fraction).astype(np.int64))
    if kept.min() >= min_frames:
        return ends[clips] - lengths + kept
    print(f"nothing is held out of {name}: a single video of {lengths.max()} frames is too short to be divided")
    return np.full(len(clips), -1)


def _cut_apart(ends: Integers, held: Integers, cuts: Integers, kinds: Mapping[str, Kind], records: Records) -> Division:
    """Make two clips of each that has a cut, the second of them held out."""
    is_cut = cuts >= 0
    origin = np.repeat(np.arange(len(ends)), 1 + is_cut)  # which clip a piece was a part of
    last = np.append(np.diff(origin) != 0, True)
    pieces = np.where(last, ends[origin], cuts[origin])
    out = held[origin] | (last & is_cut[origin])
    names = np.array([source_of(record) for record in records])[origin]
    return Division(
        pieces,
        tuple(
            Part(name, kind, np.flatnonzero((names == name) & ~out), np.flatnonzero((names == name) & out))
            for name, kind in kinds.items()
        ),
    )


def fitting_strides(lengths: Integers, frames: int, strides: Sequence[int], source: str) -> tuple[int, ...]:
    """Return those strides at which a window of `frames` frames fits into the longest clip, or the largest that does.

    ValueError says how many frames are needed where even consecutive ones do not fit.
    """
    longest = int(lengths.max())
    fitting = tuple(stride for stride in strides if (frames - 1) * stride < longest)
    if fitting:
        return fitting
    if longest < frames:
        raise ValueError(
            f"the longest training clip of {source} has {longest} frames, but a training sample is {frames} frames: "
            f"add videos of at least {frames} frames"
        )
    largest = (longest - 1) // (frames - 1) if frames > 1 else 1
    print(f"no clip of {source} is long enough for strides {tuple(strides)}: using every {largest}. frame instead")
    return (largest,)
