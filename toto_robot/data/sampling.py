"""Which clip window is sample i of step s? A pure function of the seed, so there is no order to store or to share.

Training resumes at any step, on any number of processes and loader workers, with the same samples: the state of the
data is the step number alone. `mixture.py` says which source takes its turn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.integer[Any]]
Kind = Literal["video", "images"]  # of a source: frames that follow each other, or single pictures


def permutation_index(seed: int, epoch: int, i: int | Integers, n: int) -> npt.NDArray[np.int64]:
    """Return what stands at position `i` of a shuffled range(n), in the shape of `i`, without shuffling it.

    A Feistel network permutes the next power of two above n; positions that fall outside range(n) walk on along their
    cycle until they are inside (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002, cycle-walking).
    ValueError where `i` is not inside range(n).
    """
    positions = np.asarray(i, dtype=np.int64)
    if n < 1 or (positions.size and (positions.min() < 0 or positions.max() >= n)):
        raise ValueError(f"i must be inside range({n}); got {i}")
    bits = max(6, int(n - 1).bit_length())  # fewer than 6 mix badly, and the walk from 64 is short
    keys = np.frombuffer(hashlib.sha512(f"{seed}:{epoch}".encode()).digest(), "<u8")
    result = _feistel(positions.astype(np.uint64).reshape(-1), bits, keys)
    while len(outside := np.flatnonzero(result >= n)):
        result[outside] = _feistel(result[outside], bits, keys)
    return result.astype(np.int64).reshape(positions.shape)


def _feistel(value: npt.NDArray[np.uint64], bits: int, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Permute numbers of `bits` bits: each half in turn is changed by a hash of the other, which can be undone."""
    shift, low = np.uint64(bits // 2), np.uint64(2 ** (bits // 2) - 1)
    high = np.uint64(2 ** (bits - bits // 2) - 1)
    left, right = value >> shift, value & low
    for key in range(0, len(keys), 2):
        left = left ^ (_mix(right ^ keys[key]) & high)
        right = right ^ (_mix(left ^ keys[key + 1]) & low)
    return (left << shift) | right


def _mix(value: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Scramble 64 bits (the finaliser of SplitMix64, Steele et al. 2014)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


class ClipSampler:
    """Windows of `frames` frames inside clips, shuffled: every (start, stride) that fits comes once per epoch."""

    kind: Kind = "video"

    def __init__(
        self, clip_ends: Integers, clip_ids: Sequence[int] | Integers, frames: int, strides: Sequence[int], seed: int
    ) -> None:
        """Lay out the windows of the clips `clip_ids`; ValueError where none of them is long enough for any stride.

        `clip_ends` (E,) are the cumulative ends of all clips of the store; a window of stride s covers
        (frames - 1) * s + 1 frames of one clip.
        """
        if frames < 1 or not strides or min(strides) < 1:
            raise ValueError(f"frames and strides must be at least 1; got frames={frames}, strides={tuple(strides)}")
        ends = np.asarray(clip_ends, np.int64)
        ids = np.asarray(clip_ids, np.int64)
        starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)[ids]
        lengths = ends[ids] - starts
        spans = [(frames - 1) * stride + 1 for stride in strides]
        counts = np.concatenate([np.maximum(0, lengths - span + 1) for span in spans])  # strides outer, clips inner
        self.samples = int(counts.sum())  # windows per epoch
        self.seed, self._frames = seed, frames
        if not self.samples:
            raise ValueError(
                f"no clip is long enough: {frames} frames at stride {min(strides)} span {min(spans)} frames, the "
                f"longest of {len(ids)} clips has {lengths.max(initial=0)}; use fewer frames or a smaller stride"
            )
        self._upto = np.cumsum(counts)  # windows up to and with each (stride, clip)
        self._first = np.tile(starts, len(strides)) - (self._upto - counts)  # window number -> start, by one addition
        self._strides = np.repeat(np.asarray(strides, np.int64), len(ids))

    def at(self, numbers: Integers) -> list[range]:
        """Return the rows of windows number `numbers` (n,), counted through all epochs: never across clips."""
        epochs, positions = np.divmod(np.asarray(numbers, np.int64), self.samples)
        windows = np.empty(len(positions), np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            windows[here] = permutation_index(self.seed, int(epoch), positions[here], self.samples)
        where = np.searchsorted(self._upto, windows, side="right")
        starts, strides = (windows + self._first[where]).tolist(), self._strides[where].tolist()
        return [
            range(start, start + (self._frames - 1) * stride + 1, stride)
            for start, stride in zip(starts, strides, strict=True)
        ]


def split_by_group(groups: Sequence[str], val_fraction: float, seed: int) -> tuple[Integers, Integers]:
    """Divide items into (train, val) ids, sorted, so that no group is in both.

    Groups are ordered by a hash of seed and name and the first `val_fraction` of them are held out (at least one), so
    the choice does not depend on the order of the items. ValueError where nothing would be left to train on.
    """
    if not 0 <= val_fraction < 1:
        raise ValueError(f"val_fraction must be in [0, 1); got {val_fraction}")
    shuffled = sorted(set(groups), key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    held_out = set(shuffled[: max(1, round(val_fraction * len(shuffled)))]) if val_fraction else set()
    if len(held_out) == len(shuffled):
        raise ValueError(f"cannot hold out a part of {len(shuffled)} videos or episodes for validation; add more data")
    mine = np.array([group in held_out for group in groups], dtype=bool)
    return np.flatnonzero(~mine), np.flatnonzero(mine)
