"""Do the intervals have the published values, and the coverage that they promise?"""

import numpy as np
import pytest

from policies.statistics import (
    Rate,
    bootstrap_interval,
    interquartile_mean,
    needed_rollouts,
    newcombe_interval,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("successes", "episodes", "expected"),
    [
        # Newcombe (1998), "Two-sided confidence intervals for the single proportion", table I, method 3 (score).
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
        (10, 10, (0.7225, 1.0)),
    ],
)
def test_wilson_has_the_published_values(successes, episodes, expected):
    assert wilson_interval(successes, episodes) == pytest.approx(expected, abs=1e-4)


def test_newcombe_has_the_published_values():
    # Newcombe (1998), "Interval estimation for the difference ...", table II, method 10.
    assert newcombe_interval(56, 70, 48, 80) == pytest.approx((0.0524, 0.3339), abs=1e-4)
    assert newcombe_interval(9, 10, 3, 10) == pytest.approx((0.1705, 0.8090), abs=1e-4)
    assert newcombe_interval(10, 10, 0, 20) == pytest.approx((0.6791, 1.0), abs=1e-4)


def test_wilson_covers_as_promised():
    generator = np.random.default_rng(0)
    for rate in (0.5, 0.9):
        draws = generator.binomial(100, rate, size=4000)
        intervals = {int(k): wilson_interval(int(k), 100) for k in np.unique(draws)}
        covered = np.mean([intervals[int(k)][0] <= rate <= intervals[int(k)][1] for k in draws])
        assert 0.93 <= covered <= 0.97


def test_needed_rollouts_detect_the_difference_with_the_promised_power():
    episodes = needed_rollouts(0.8, 0.9)
    assert episodes == 199
    generator = np.random.default_rng(1)
    first, second = (generator.binomial(episodes, rate, size=2000) for rate in (0.8, 0.9))
    pooled = (first + second) / (2 * episodes)
    z = (second - first) / episodes / np.sqrt(2 * pooled * (1 - pooled) / episodes)
    assert 0.77 <= np.mean(np.abs(z) > 1.96) <= 0.84


def test_interquartile_mean_ignores_one_dead_seed():
    assert interquartile_mean(np.array([0.0, 0.8, 0.9, 1.0])) == pytest.approx(0.85)
    assert interquartile_mean(np.array([0.0, 0.8, 1.0])) == pytest.approx((0.25 * 0.0 + 0.8 + 0.25 * 1.0) / 1.5)
    assert interquartile_mean(np.array([0.7])) == pytest.approx(0.7)


def test_bootstrap_covers_and_stays_within_its_strata():
    generator = np.random.default_rng(2)
    hits = 0
    for trial in range(200):
        scores = generator.normal(0.5, 0.1, size=20)
        _, low, high = bootstrap_interval([scores], resamples=300, seed=trial)
        hits += low <= 0.5 <= high
    assert 170 <= hits <= 200
    # Two constant tasks: resampling within a task cannot change anything; mixing them would.
    assert bootstrap_interval([[0.0] * 5, [1.0] * 5]) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("counts", [(1, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_refused(counts):
    with pytest.raises(ValueError, match="expected"):
        wilson_interval(*counts)


def test_a_rate_never_prints_bare():
    assert str(Rate(successes=46, episodes=50)) == "46/50 = 92% [81%, 97%]"
