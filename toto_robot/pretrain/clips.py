"""Which clips train and which are held out, and at which strides do windows fit?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from toto_robot.data.sampling import ClipSampler, Integers, split_by_group


@dataclass(frozen=True)
class Division:
    """Clips of a store, divided: cumulative ends, and the ids of those that train and those that are held out."""

    ends: Integers
    training: Integers
    held_out: Integers

    def samplers(self, frames: int, strides: Sequence[int], seed: int) -> tuple[ClipSampler, ClipSampler | None]:
        """Return the samplers of training and held-out windows of `frames` frames; None where nothing is held out.

        ValueError, with the number of frames that is needed, where no training clip is long enough.
        """
        strides = fitting_strides(self._lengths()[self.training], frames, strides)
        training = ClipSampler(self.ends, self.training, frames, strides, seed)
        long_enough = [clip for clip in self.held_out if self._lengths()[clip] >= (frames - 1) * min(strides) + 1]
        if not long_enough:
            return training, None
        return training, ClipSampler(self.ends, long_enough, frames, strides, seed + 1)

    def _lengths(self) -> Integers:
        return np.diff(self.ends, prepend=0)


def divide(ends: Integers, groups: Sequence[str], val_fraction: float, seed: int, min_frames: int = 1) -> Division:
    """Hold out `val_fraction` of the videos or episodes, whole; of a single one hold out its end.

    A single video too short to leave `min_frames` frames on both sides all trains, which is printed.
    """
    if not val_fraction or len(set(groups)) > 1:
        return Division(np.asarray(ends), *split_by_group(groups, val_fraction, seed))
    starts = np.concatenate([[0], ends[:-1]])
    cuts = np.asarray(ends) - np.maximum(min_frames, ((ends - starts) * val_fraction).astype(np.int64))
    if (cuts - starts).min() < min_frames:
        print(f"nothing is held out: a single video of {int((ends - starts).max())} frames is too short to be divided")
        return Division(np.asarray(ends), np.arange(len(ends)), np.arange(0))
    divided = np.stack([cuts, ends], axis=1).ravel()
    return Division(divided, np.arange(0, len(divided), 2), np.arange(1, len(divided), 2))


def fitting_strides(lengths: Integers, frames: int, strides: Sequence[int]) -> tuple[int, ...]:
    """Return those strides at which a window of `frames` frames fits into the longest clip, or the largest that does.

    ValueError says how many frames are needed where even consecutive ones do not fit.
    """
    longest = int(lengths.max())
    fitting = tuple(stride for stride in strides if (frames - 1) * stride < longest)
    if fitting:
        return fitting
    if longest < frames:
        raise ValueError(
            f"the longest training clip has {longest} frames, but a training sample is {frames} frames: add videos of "
            f"at least {frames} frames"
        )
    largest = (longest - 1) // (frames - 1) if frames > 1 else 1
    print(f"no clip is long enough for strides {tuple(strides)}: using every {largest}. frame instead")
    return (largest,)
