"""Which source does sample i of a training come from, and which rows of the store is it?

Sources take turns by their weights, as evenly as whole samples allow: after any number of samples each has had its
share to within about one sample, so no batch lacks a source by chance and nothing drifts. Every source runs through its
own epochs at its own pace. All this is a function of (seed, i): nothing is stored or shared, any process computes any
sample.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from toto_robot.data.sampling import ClipSampler, Integers, Kind, permutation_index

Rows = range | tuple[int, ...]  # of a store: a run of frames, or pictures from anywhere


class Window(NamedTuple):
    """One sample: T rows of a store, of a video or of as many different pictures."""

    rows: Rows
    source: str
    kind: Kind


class RowArray(Protocol):
    """What can be read by rows: an array of a store."""

    def read(self, start: int, stop: int, step: int = 1) -> npt.NDArray[Any]:
        """Return every `step`-th row from `start` to before `stop`."""

    def take(self, indices: Sequence[int]) -> npt.NDArray[Any]:
        """Return the rows at `indices` (n,)."""


def read_rows(array: RowArray, rows: Rows) -> npt.NDArray[Any]:
    """Return the rows of a sample (T, ...)."""
    if isinstance(rows, range):
        return array.read(rows.start, rows.stop, rows.step)
    return array.take(rows)


class PictureSampler:
    """Sets of `count` different pictures, shuffled: each picture comes at most once per epoch.

    The remainder that fills no set sits an epoch out; another one in each.
    """

    kind: Kind = "images"

    def __init__(self, rows: Integers, count: int, seed: int) -> None:
        """Draw from the pictures that stand in `rows` (N,); ValueError where they fill no set."""
        self.samples = len(rows) // count  # sets per epoch
        self._rows, self._count, self._seed = np.asarray(rows, np.int64), count, seed
        if not self.samples:
            raise ValueError(f"a sample is {count} different pictures, and there are {len(rows)}; add more pictures")

    def at(self, numbers: Integers) -> list[Rows]:
        """Return the rows of sets number `numbers` (n,), counted through all epochs."""
        epochs, sets = np.divmod(np.asarray(numbers, np.int64), self.samples)
        places = sets[:, None] * self._count + np.arange(self._count)  # (n, count)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            places[here] = permutation_index(self._seed, int(epoch), places[here], len(self._rows))
        return [tuple(rows) for rows in self._rows[places].tolist()]


class MixtureSampler:
    """Samples of several sources, in turns by weight."""

    def __init__(self, parts: Mapping[str, ClipSampler | PictureSampler], weights: Mapping[str, float]) -> None:
        """Mix `parts` (source to sampler) by `weights`, which need not sum to 1.

        ValueError where weights do not name just these sources, or one is not above 0.
        """
        if set(weights) != set(parts) or not parts:
            raise ValueError(f"expected a weight for each of {', '.join(parts)}, got {', '.join(weights) or 'none'}")
        if bad := [f"{name}: {weight}" for name, weight in weights.items() if not 0 < weight < float("inf")]:
            raise ValueError(f"expected weights above 0, got {', '.join(bad)}; leave a source out of data instead")
        self.parts = {name: parts[name] for name in sorted(parts, key=lambda name: -weights[name])}
        exact = {name: Fraction(str(weights[name])) for name in self.parts}  # 0.1 is meant as a tenth
        self.weights = {name: float(weight / sum(exact.values())) for name, weight in exact.items()}
        self.samples = sum(part.samples for part in parts.values())  # different ones
        self._turns = _turns(list(exact.values()))

    def windows(self, step: int, batch_size: int) -> list[Window]:
        """Return the samples of a step's batch, in order; processes divide this list among them."""
        names = list(self.parts)
        drawn = [self._turn(number) for number in range(step * batch_size, (step + 1) * batch_size)]
        rows: list[Rows] = [range(0)] * batch_size
        for place, part in enumerate(self.parts.values()):
            mine = [index for index, (chosen, _) in enumerate(drawn) if chosen == place]
            found = part.at(np.array([drawn[index][1] for index in mine], np.int64))
            for index, one in zip(mine, found, strict=True):
                rows[index] = one
        chosen = [names[place] for place, _ in drawn]
        return [Window(row, name, self.parts[name].kind) for row, name in zip(rows, chosen, strict=True)]

    def alone(self, name: str) -> MixtureSampler:
        """Return the sampler of one source."""
        return MixtureSampler({name: self.parts[name]}, {name: 1.0})

    def _turn(self, number: int) -> tuple[int, int]:
        """Return (which source, how many samples of it came before) of sample `number`.

        The heaviest source takes its share of all numbers, evenly spaced (the nearest whole number at any time); the
        next its share of what is left, and so on. Python's integers, for numbers times weights do not fit into 64 bits.
        """
        for place, (share, left) in enumerate(self._turns):
            before = (2 * number * share + left) // (2 * left)
            if (2 * (number + 1) * share + left) // (2 * left) > before:
                return place, before
            number -= before
        raise AssertionError("the last source takes all that is left")


def _turns(weights: Sequence[Fraction]) -> list[tuple[int, int]]:
    """Return for each source (its weight, the sum of its and all later weights) as whole numbers."""
    scale = math.lcm(*(weight.denominator for weight in weights))
    whole = [int(weight * scale) for weight in weights]
    return [(weight, sum(whole[place:])) for place, weight in enumerate(whole)]
