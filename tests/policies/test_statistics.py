"""Do the intervals have the published values, and the coverage that they promise?"""

import numpy as np
import pytest

from policies.statistics import (
    Paired,
    Rate,
    detectable_difference,
    needed_pairs,
    needed_rollouts,
    newcombe_interval,
    paired,
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


@pytest.mark.parametrize("episodes", [20, 50, 100])
def test_wilson_covers_as_promised(episodes):
    """Exactly, from the binomial: on average over all rates 95 %, nowhere near the ends far below."""
    from scipy.stats import binom

    low, high = np.transpose([wilson_interval(k, episodes) for k in range(episodes + 1)])
    rates = np.linspace(0.01, 0.99, 99)
    holds = (low <= rates[:, None]) & (rates[:, None] <= high)
    coverage = (binom.pmf(np.arange(episodes + 1), episodes, rates[:, None]) * holds).sum(axis=1)
    assert 0.945 <= coverage.mean() <= 0.965
    assert coverage.min() > 0.83


def test_zero_successes_do_not_mean_never():
    """About Hanley and Lippman-Hand's rule of three: 0 of n leaves a rate of 3 / n possible, Wilson a little more."""
    for episodes in (20, 50, 200):
        low, high = wilson_interval(0, episodes)
        assert low == 0.0 and 3 / episodes < high < 4 / episodes


def test_needed_rollouts_detect_the_difference_with_the_promised_power():
    episodes = needed_rollouts(0.8, 0.9)
    assert episodes == 199
    generator = np.random.default_rng(1)
    first, second = (generator.binomial(episodes, rate, size=2000) for rate in (0.8, 0.9))
    pooled = (first + second) / (2 * episodes)
    z = (second - first) / episodes / np.sqrt(2 * pooled * (1 - pooled) / episodes)
    assert 0.77 <= np.mean(np.abs(z) > 1.96) <= 0.84


def test_needed_pairs_detect_the_difference_with_the_promised_power():
    """Connor's number for a known case, and McNemar's exact test on so many simulated pairs."""
    seen = Paired(both=50, only_first=20, only_second=10, neither=20)
    pairs = needed_pairs(seen)
    assert pairs == 234  # ((1.960 sqrt(0.3) + 0.842 sqrt(0.3 - 0.01)) / 0.1)^2 = 233.1
    random = np.random.default_rng(0)
    drawn = random.multinomial(pairs, [0.5, 0.2, 0.1, 0.2], size=2000)
    found = [Paired(both=a, only_first=b, only_second=c, neither=d).p_value < 0.05 for a, b, c, d in drawn.tolist()]
    assert 0.74 < np.mean(found) < 0.84  # the exact test is a little more careful than the formula
    with pytest.raises(ValueError, match="two different rates"):
        needed_pairs(Paired(both=5, only_first=2, only_second=2, neither=1))


def test_detectable_difference_is_what_needed_rollouts_says():
    size = detectable_difference(0.8, 199)
    assert size == pytest.approx(0.1)
    assert needed_rollouts(0.8, 0.9) <= 199 < needed_rollouts(0.8, 0.89)
    assert detectable_difference(1.0, 20) < detectable_difference(0.5, 20)


def test_paired_comparison_has_the_published_values():
    """Airway hyper-responsiveness (Bentur 2009) in Fagerland, Lydersen and Laake (2014), 1, 1, 7 and 12 of 21."""
    found = Paired(both=1, only_first=1, only_second=7, neither=12)
    assert found.difference == pytest.approx(-6 / 21)
    assert found.p_value == pytest.approx(0.0703, abs=1e-4)
    assert found.interval == pytest.approx((-0.507, -0.026), abs=5e-4)


@pytest.mark.parametrize(("fewer", "more"), [(0, 0), (0, 5), (3, 9), (10, 10), (1, 60)])
def test_mcnemar_is_the_binomial_test_of_scipy(fewer, more):
    from scipy.stats import binomtest

    expected = binomtest(fewer, fewer + more).pvalue if fewer + more else 1.0
    assert Paired(both=4, only_first=fewer, only_second=more, neither=2).p_value == pytest.approx(expected)
    assert Paired(both=4, only_first=more, only_second=fewer, neither=2).p_value == pytest.approx(expected)


def test_paired_counts_and_covers_where_episodes_agree():
    first, second = [True, True, False, False, True], [True, False, True, False, True]
    assert paired(first, second) == Paired(both=2, only_first=1, only_second=1, neither=1)
    with pytest.raises(ValueError, match="same episodes, got 5 and 4"):
        paired(first, second[:4])
    generator = np.random.default_rng(3)
    covered = widths = independent = 0.0
    for _ in range(600):  # a hard start fails both policies: outcomes agree, the difference is 0.1
        easy = generator.random(60)
        found = paired(easy < 0.8, (easy < 0.65) | (easy > 0.95))
        low, high = found.interval
        covered += low <= 0.1 <= high
        widths += high - low
        counts = (found.both + found.only_first, 60, found.both + found.only_second, 60)
        independent += float(np.diff(newcombe_interval(*counts))[0])
    assert 0.93 <= covered / 600 <= 0.99
    assert widths < 0.9 * independent


@pytest.mark.parametrize("counts", [(1, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_refused(counts):
    with pytest.raises(ValueError, match="expected"):
        wilson_interval(*counts)


def test_a_rate_never_prints_bare():
    assert str(Rate(successes=46, episodes=50)) == "46/50 = 92% [81%, 97%]"
