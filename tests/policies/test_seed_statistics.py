"""Do the statistics over seeds agree with their definitions and with scipy, and how often do their intervals hold?"""

import numpy as np
import pytest
from scipy import stats

from policies.seed_statistics import (
    bootstrap_interval,
    dead_seeds,
    interquartile_mean,
    mean,
    median_interval,
    needed_seeds,
    paired_difference,
    probability_of_improvement,
    steps_to,
    student_quantile,
)


def test_interquartile_mean_is_the_trimmed_mean_and_ignores_one_dead_seed():
    generator = np.random.default_rng(0)
    scores = generator.random((3, 40))  # 40 divides by four: rliable's scipy.stats.trim_mean is exact
    assert interquartile_mean(scores) == pytest.approx(stats.trim_mean(scores, 0.25, axis=1))
    assert interquartile_mean(np.array([0.0, 0.8, 0.9, 1.0])) == pytest.approx(0.85)
    assert interquartile_mean(np.array([0.0, 0.8, 1.0])) == pytest.approx((0.25 * 0.0 + 0.8 + 0.25 * 1.0) / 1.5)
    assert interquartile_mean(np.array([0.7])) == pytest.approx(0.7)


def test_bootstrap_agrees_with_scipy():
    scores = np.random.default_rng(1).beta(4, 2, size=12)
    ours = bootstrap_interval([scores], interquartile_mean, resamples=20_000)
    theirs = stats.bootstrap(
        (scores,), lambda x, axis: interquartile_mean(x), method="percentile", n_resamples=20_000, rng=5
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_bootstrap_stays_within_its_strata():
    """Two constant tasks: resampling within a task cannot change anything; mixing them would."""
    assert bootstrap_interval([[0.0] * 5, [1.0] * 5]).as_list() == [0.5, 0.5, 0.5]
    with pytest.raises(ValueError, match="at least one score"):
        bootstrap_interval([[0.5], []])


@pytest.mark.parametrize(("seeds", "expected"), [(5, 0.83), (10, 0.90), (40, 0.94)])
def test_bootstrap_covers_less_than_it_promises_with_few_seeds(seeds, expected):
    """Its real coverage, so that nobody reads 95 % into it; Student's interval keeps the promise."""
    generator = np.random.default_rng(2)
    trials = 1000
    boot = student = 0
    for trial in range(trials):
        scores = generator.normal(0.5, 0.1, size=seeds)
        found = bootstrap_interval([scores], resamples=400, seed=trial)
        boot += found.low <= 0.5 <= found.high
        found = paired_difference([scores], [np.zeros(seeds)])
        student += found.low <= 0.5 <= found.high
    assert boot / trials == pytest.approx(expected, abs=0.025)
    assert student / trials == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize(("seeds", "least", "most"), [(5, 0.86, 0.95), (10, 0.89, 0.97)])
def test_the_interquartile_mean_of_four_tasks_near_success_is_covered_a_little_too_rarely(seeds, least, most):
    """Policies that succeed in 9 of 10 episodes, 50 episodes each: 0.91 and 0.93 of 1500 trials, as reports say."""
    generator, trials = np.random.default_rng(4), 400
    truth = interquartile_mean(generator.binomial(50, 0.9, 400_000) / 50)
    inside = 0
    for trial in range(trials):
        found = bootstrap_interval(
            list(generator.binomial(50, 0.9, (4, seeds)) / 50), interquartile_mean, resamples=300, seed=trial
        )
        inside += found.low <= truth <= found.high
    assert least < inside / trials < most


def test_a_median_may_be_infinite_and_so_may_its_interval():
    found = median_interval([[1.0, 2.0, np.inf], [3.0, np.inf, np.inf]])
    assert found.value == np.inf and found.high == np.inf and found.low >= 1.5
    assert median_interval([[1.0, 2.0], [3.0, 4.0]]).value == 2.5


def test_probability_of_improvement_is_mann_whitney_averaged_over_tasks():
    generator = np.random.default_rng(3)
    first = [generator.integers(0, 12, 9) / 12, generator.integers(4, 12, 7) / 12]  # with ties
    second = [generator.integers(0, 12, 8) / 12, generator.integers(0, 9, 7) / 12]
    expected = np.mean(
        [stats.mannwhitneyu(a, b).statistic / (len(a) * len(b)) for a, b in zip(first, second, strict=True)]
    )
    found = probability_of_improvement(first, second)
    assert found.value == pytest.approx(expected)
    assert found.low < found.value < found.high
    other = probability_of_improvement(second, first)
    assert other.value == pytest.approx(1 - expected)
    assert probability_of_improvement([[0.9, 0.8]], [[0.1, 0.2]]).as_list() == [1.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="same tasks"):
        probability_of_improvement([[1.0]], [[1.0], [0.5]])


def test_paired_difference_is_the_paired_t_interval_of_scipy():
    generator = np.random.default_rng(4)
    first, second = generator.random(6), generator.random(6)
    ours = paired_difference([first], [second])
    theirs = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-4)
    # Two tasks of other spreads: the interval of their sum is Welch's, halved.
    other = generator.normal(0, 0.02, 9)
    two = paired_difference([first, other], [second, np.zeros(9)])
    welch = stats.ttest_ind(first - second, -other, equal_var=False).confidence_interval(0.95)
    assert (two.low, two.high) == pytest.approx((welch.low / 2, welch.high / 2), abs=1e-4)
    assert paired_difference([[0.9]], [[0.1]]).as_list() == [0.8, -1.0, 1.0]


@pytest.mark.parametrize("freedom", [1, 1.5, 2, 2.5, 3, 5, 9, 50])
def test_student_quantile(freedom):
    for probability in (0.9, 0.975):
        exact = stats.t.ppf(probability, freedom)
        assert student_quantile(probability, freedom) == pytest.approx(exact, rel=0.03 if freedom < 2 else 0.003)


def test_needed_seeds_show_the_difference_with_the_promised_power():
    generator = np.random.default_rng(5)
    wide = generator.normal(0, 0.1, 4000)
    seeds = needed_seeds([wide + 0.06], [np.zeros(4000)], 0.06)
    assert 20 <= seeds <= 30
    shown = 0
    for _ in range(1000):
        found = paired_difference([generator.normal(0.06, 0.1, seeds)], [np.zeros(seeds)])
        shown += found.low > 0
    assert shown / 1000 == pytest.approx(0.8, abs=0.04)
    with pytest.raises(ValueError, match="other than 0"):
        needed_seeds([wide], [wide], 0.0)


def test_steps_to_a_target_lie_on_the_curve():
    steps, scores = [10, 20, 40], [0.2, 0.6, 0.9]
    assert steps_to(steps, scores, 0.1) == 10
    assert steps_to(steps, scores, 0.4) == pytest.approx(15)
    assert steps_to(steps, scores, 0.9) == pytest.approx(40)
    assert steps_to(steps, scores, 0.95) is None
    for target in (0.3, 0.7):
        assert np.interp(steps_to(steps, scores, target), steps, scores) == pytest.approx(target)


def test_dead_seeds_are_counted():
    assert dead_seeds([0.0, 0.02, 0.05, 0.9]) == 2
    assert mean(np.array([0.0, 1.0])) == 0.5
