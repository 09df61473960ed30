"""How sure can one be of a success rate, and of the difference of two, on other episodes or on the same ones?

No rate of ours is printed without its interval. Sources: Wilson (1927), score interval; Newcombe (1998), "Interval
estimation for the difference between independent proportions", method 10, and "Improved confidence intervals for the
difference between binomial proportions based on paired data", method 10; McNemar (1947), here the exact test. What
comes on top when a policy is trained again stands in seed_statistics.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A success rate with what makes it readable: the counts and the Wilson interval."""

    successes: int
    episodes: int
    confidence: float = 0.95

    @property
    def value(self) -> float:
        """Successes over episodes."""
        return self.successes / self.episodes

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson interval at `confidence`."""
        return wilson_interval(self.successes, self.episodes, self.confidence)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.successes}/{self.episodes} = {self.value:.0%} [{low:.0%}, {high:.0%}]"


def wilson_interval(successes: int, episodes: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a success rate.

    Unlike the normal interval it stays inside [0, 1] and keeps its coverage at 0/n and n/n, where policies end up.
    ValueError for counts that no experiment gives.
    """
    _check_counts(successes, episodes)
    z = _quantile(confidence)
    rate = successes / episodes
    scale = 1 + z * z / episodes
    centre = (rate + z * z / (2 * episodes)) / scale
    half = z / scale * math.sqrt(rate * (1 - rate) / episodes + z * z / (4 * episodes**2))
    # At 0/n and n/n the end is exactly 0 and 1; floating point misses it by 1e-17.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == episodes else centre + half
    return low, high


def newcombe_interval(
    successes_1: int, episodes_1: int, successes_2: int, episodes_2: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the interval of the difference of two independent success rates, the first minus the second.

    Newcombe's method 10: the Wilson intervals of the two, combined by their distances from the rates. An interval that
    holds zero means that the two policies are not shown to differ.
    """
    rate_1, rate_2 = successes_1 / episodes_1, successes_2 / episodes_2
    low_1, high_1 = wilson_interval(successes_1, episodes_1, confidence)
    low_2, high_2 = wilson_interval(successes_2, episodes_2, confidence)
    difference = rate_1 - rate_2
    low = difference - math.hypot(rate_1 - low_1, high_2 - rate_2)
    high = difference + math.hypot(high_1 - rate_1, rate_2 - low_2)
    return low, high


def needed_rollouts(rate_1: float, rate_2: float, power: float = 0.8, confidence: float = 0.95) -> int:
    """Return the episodes per policy that show rate_1 and rate_2 to differ with the given power (two-sided test).

    80 % against 90 % takes 199 each, 80 % against 85 % takes 906: what 50 episodes cannot tell should not be claimed.
    """
    for rate in (rate_1, rate_2):
        if not 0 <= rate <= 1:
            raise ValueError(f"expected a rate between 0 and 1, got {rate}")
    if rate_1 == rate_2:
        raise ValueError(f"expected two different rates, got {rate_1} twice: no number of rollouts tells them apart")
    mean = (rate_1 + rate_2) / 2
    spread_null = math.sqrt(2 * mean * (1 - mean))
    spread = math.sqrt(rate_1 * (1 - rate_1) + rate_2 * (1 - rate_2))
    z_power = NormalDist().inv_cdf(power)
    root = (_quantile(confidence) * spread_null + z_power * spread) / (rate_1 - rate_2)
    return math.ceil(root**2)


def detectable_difference(rate: float, episodes: int, power: float = 0.8, confidence: float = 0.95) -> float:
    """Return the smallest difference from `rate` that `episodes` rollouts of each policy would show with that power."""
    sizes = np.arange(1, 101) / 100
    for size in sizes:
        others = [other for other in (rate - size, rate + size) if 0 <= other <= 1]
        if others and min(needed_rollouts(rate, other, power, confidence) for other in others) <= episodes:
            return float(size)
    return 1.0


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Two policies on the same episodes: how often both, one, or neither succeeded."""

    both: int
    only_first: int
    only_second: int
    neither: int

    @property
    def episodes(self) -> int:
        """Episodes that both policies ran."""
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def difference(self) -> float:
        """The first policy's rate minus the second's."""
        return (self.only_first - self.only_second) / self.episodes

    @property
    def p_value(self) -> float:
        """Exact two-sided McNemar test: how likely so uneven a split of the disagreements is between equals."""
        disagreements, fewer = self.only_first + self.only_second, min(self.only_first, self.only_second)
        tail = sum(math.comb(disagreements, k) for k in range(fewer + 1))
        return min(1.0, 2 * tail / 2**disagreements)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the difference: Newcombe's for independent rates, narrowed by how far outcomes agree."""
        n, first, second = self.episodes, self.both + self.only_first, self.both + self.only_second
        low_1, high_1 = wilson_interval(first, n)
        low_2, high_2 = wilson_interval(second, n)
        down_1, up_1, down_2, up_2 = first / n - low_1, high_1 - first / n, second / n - low_2, high_2 - second / n
        agreement = self._agreement(first, second)
        low = math.sqrt(max(0.0, down_1**2 - 2 * agreement * down_1 * up_2 + up_2**2))
        high = math.sqrt(max(0.0, down_2**2 - 2 * agreement * down_2 * up_1 + up_1**2))
        return self.difference - low, self.difference + high

    def _agreement(self, first: int, second: int) -> float:
        """Correlation of the outcomes with Newcombe's continuity correction, 0 where it does not exist."""
        n = self.episodes
        product = first * (n - first) * second * (n - second)
        cross: float = self.both * self.neither - self.only_first * self.only_second
        if cross > 0:
            cross = max(cross - n / 2, 0.0)
        return cross / math.sqrt(product) if product else 0.0

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{100 * self.difference:+.0f} points [{100 * low:+.0f}, {100 * high:+.0f}], McNemar p = {self.p_value:.2g}"
        )


def needed_pairs(seen: Paired, power: float = 0.8, confidence: float = 0.95) -> int:
    """Return the paired episodes with which McNemar's test shows the difference that was seen, with the given power.

    Connor (1987), "Sample size for testing differences in proportions for the paired-sample design", from the shares of
    episodes that only one of the two won. ValueError where both won equally often: no number shows that.
    """
    difference = seen.difference
    if difference == 0:
        raise ValueError("expected two different rates: no number of episodes tells equal ones apart")
    disagree = (seen.only_first + seen.only_second) / seen.episodes
    z_power = NormalDist().inv_cdf(power)
    root = _quantile(confidence) * math.sqrt(disagree) + z_power * math.sqrt(max(0.0, disagree - difference**2))
    return math.ceil((root / difference) ** 2)


def paired(first: Sequence[bool], second: Sequence[bool]) -> Paired:
    """Compare two policies' outcomes on the same episodes, given in the same order."""
    if len(first) != len(second) or not len(first):
        raise ValueError(f"expected outcomes of the same episodes, got {len(first)} and {len(second)}")
    one, two = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    return Paired(
        both=int((one & two).sum()),
        only_first=int((one & ~two).sum()),
        only_second=int((~one & two).sum()),
        neither=int((~one & ~two).sum()),
    )


def rate_summary(successes: int, episodes: int) -> dict[str, Any]:
    """Return the part of `evaluation.json` that is a rate: `successes`, `episodes`, `rate`, `wilson95`."""
    low, high = wilson_interval(successes, episodes)
    return {
        "episodes": episodes,
        "successes": successes,
        "rate": successes / episodes,
        "wilson95": [round(low, 4), round(high, 4)],
    }


def _quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"expected a confidence between 0 and 1, such as 0.95, got {confidence}")
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def _check_counts(successes: int, episodes: int) -> None:
    if episodes < 1:
        raise ValueError(f"expected at least one episode, got {episodes}: a rate needs trials")
    if not 0 <= successes <= episodes:
        raise ValueError(f"expected successes between 0 and {episodes}, got {successes}")
