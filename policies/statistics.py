"""How sure can one be of a success rate, of the difference of two, and of a mean over seeds?

No rate of ours is printed without its interval. Sources: Wilson (1927), score interval; Newcombe (1998), "Interval
estimation for the difference between independent proportions", method 10; Agarwal et al. (2021), "Deep RL at the edge
of the statistical precipice", interquartile mean and stratified bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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


def interquartile_mean(values: np.ndarray) -> float:
    """Return the mean of the middle half of `values`, the outermost ones weighted by the fraction that lies inside.

    Robust to one lucky or dead seed, less noisy than the median.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64).ravel())
    edges = np.arange(len(ordered) + 1) / len(ordered)
    inside = np.minimum(edges[1:], 0.75) - np.maximum(edges[:-1], 0.25)
    weights = np.clip(inside, 0.0, None)
    return float(np.sum(weights * ordered) / np.sum(weights))


def bootstrap_interval(
    groups: Sequence[Sequence[float] | np.ndarray],
    statistic: Callable[[np.ndarray], float] | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Return (estimate, low, high) of a statistic over seeds by the stratified percentile bootstrap.

    `groups` holds one row of scores for each task (stratum), one score for each seed; seeds are drawn again within
    their own task, then all are given to `statistic` at once (default: the mean). Three seeds give a rough interval.
    """
    rows = [np.asarray(group, dtype=np.float64) for group in groups]
    if not rows or any(row.size == 0 for row in rows):
        raise ValueError("expected at least one score in every group, got an empty one")
    measure = _mean if statistic is None else statistic
    generator = np.random.default_rng(seed)
    draws = np.empty(resamples)
    for index in range(resamples):
        again = [row[generator.integers(row.size, size=row.size)] for row in rows]
        draws[index] = measure(np.concatenate(again))
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return measure(np.concatenate(rows)), float(low), float(high)


def rate_summary(successes: int, episodes: int) -> dict[str, Any]:
    """Return the part of `evaluation.json` that is a rate: `successes`, `episodes`, `rate`, `wilson95`."""
    low, high = wilson_interval(successes, episodes)
    return {
        "episodes": episodes,
        "successes": successes,
        "rate": successes / episodes,
        "wilson95": [round(low, 4), round(high, 4)],
    }


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values))


def _quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"expected a confidence between 0 and 1, such as 0.95, got {confidence}")
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def _check_counts(successes: int, episodes: int) -> None:
    if episodes < 1:
        raise ValueError(f"expected at least one episode, got {episodes}: a rate needs trials")
    if not 0 <= successes <= episodes:
        raise ValueError(f"expected successes between 0 and {episodes}, got {successes}")
