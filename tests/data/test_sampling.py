"""Is the order of samples a shuffled bijection, a pure function of seed and step, and never across a clip's end?"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toto_robot.data.sampling import ClipSampler, permutation_index, split_by_group


def starts(sampler: ClipSampler, step: int, batch_size: int) -> list[tuple[int, int]]:
    """Return (first row, stride) of the windows of a step's batch."""
    windows = sampler.at(step * batch_size + np.arange(batch_size))
    assert len({len(rows) for rows in windows}) == 1
    return [(rows.start, rows.step) for rows in windows]


@given(n=st.integers(1, 3000), seed=st.integers(0, 2**40), epoch=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_every_epoch_is_a_bijection(n: int, seed: int, epoch: int) -> None:
    order = permutation_index(seed, epoch, np.arange(n), n)
    assert sorted(order.tolist()) == list(range(n))
    some = np.arange(n)[:: max(1, n // 7)]
    assert [int(permutation_index(seed, epoch, int(i), n)) for i in some] == order[some].tolist(), "alone as in a batch"


def test_large_orders_do_not_repeat() -> None:
    n = 10**12 + 7
    order = permutation_index(3, 1, np.arange(200_000), n)
    assert len(np.unique(order)) == 200_000 and order.min() >= 0 and order.max() < n
    assert abs(order.mean() / n - 0.5) < 0.01


@pytest.mark.parametrize("n", [5, 64, 1000])
def test_orders_look_shuffled(n: int) -> None:
    """Over seeds and epochs every value comes at every position equally often, and neighbours are unrelated."""
    orders = np.stack([permutation_index(seed, epoch, np.arange(n), n) for seed in range(30) for epoch in range(25)])
    first = np.bincount(orders[:, 0], minlength=n)
    expected = len(orders) / n
    chi2 = ((first - expected) ** 2 / expected).sum()
    assert abs(chi2 - (n - 1)) < 5 * np.sqrt(2 * (n - 1))
    assert len({tuple(order) for order in orders.tolist()}) > min(len(orders), 120) * 0.95
    correlation = np.corrcoef(orders[:, :-1].ravel(), orders[:, 1:].ravel())[0, 1]
    assert abs(correlation + 1 / (n - 1)) < 0.05  # sampling without replacement correlates by -1 / (n - 1)
    assert abs(np.corrcoef(orders[0], orders[1])[0, 1]) < 5 / np.sqrt(n)


def test_the_order_is_fixed_for_ever() -> None:
    """A resumed or repeated run must see the same samples, also with the next version of this program."""
    assert permutation_index(0, 0, np.arange(10), 10).tolist() == FIXED_ORDER
    sampler = ClipSampler(np.array([10, 30]), [0, 1], 4, [1, 2], seed=5)
    assert starts(sampler, 3, 4) == FIXED_STARTS
    assert sampler.at(np.array([12])) == [range(4)] and sampler.at(np.array([13])) == [range(18, 25, 2)]


FIXED_ORDER = [6, 0, 8, 3, 2, 4, 1, 9, 5, 7]
FIXED_STARTS = [(0, 1), (18, 2), (20, 1), (11, 1)]


def test_positions_outside_are_refused() -> None:
    for i, n in ((5, 5), (-1, 5), (0, 0)):
        with pytest.raises(ValueError, match="inside range"):
            permutation_index(0, 0, i, n)


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    frames=st.integers(1, 6),
    strides=st.lists(st.integers(1, 4), min_size=1, max_size=3, unique=True),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 1000),
    data=st.data(),
)
@settings(max_examples=80, deadline=None)
def test_an_epoch_has_every_window_once(
    lengths: list[int], frames: int, strides: list[int], batch_size: int, seed: int, data: st.DataObject
) -> None:
    ends = np.cumsum(lengths)
    ids = sorted(data.draw(st.sets(st.integers(0, len(lengths) - 1), min_size=1)))
    windows = [
        (start, stride)
        for stride in strides
        for clip in ids
        for start in range(ends[clip] - lengths[clip], ends[clip] - (frames - 1) * stride)
    ]
    if not windows:
        with pytest.raises(ValueError, match="no clip is long enough"):
            ClipSampler(ends, ids, frames, strides, seed)
        return
    sampler = ClipSampler(ends, ids, frames, strides, seed)
    assert sampler.samples == len(windows)
    steps = -(-2 * len(windows) // batch_size)
    drawn = [window for step in range(steps) for window in starts(sampler, step, batch_size)]
    for epoch in (0, 1):
        part = drawn[epoch * len(windows) : (epoch + 1) * len(windows)]
        assert Counter(part) == Counter(windows), f"epoch {epoch}"


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    ends = np.array([50, 90, 200])
    one, again, other = (ClipSampler(ends, [0, 2], 8, [1, 2], seed) for seed in (1, 1, 2))
    batches = [starts(one, step, 6) for step in range(30)]
    assert [starts(again, step, 6) for step in reversed(range(30))] == batches[::-1], "in any order, by any process"
    assert [starts(other, step, 6) for step in range(30)] != batches
    flat = [sample for batch in batches for sample in batch]
    assert [sample for step in range(90) for sample in starts(one, step, 2)] == flat, "whatever the batch size"


def test_all_strides_come_about_equally_often() -> None:
    sampler = ClipSampler(np.array([2000]), [0], 16, [1, 2, 4], seed=0)
    counts = Counter(stride for step in range(100) for _, stride in starts(sampler, step, 30))
    assert all(900 < counts[stride] < 1100 for stride in (1, 2, 4))


def test_too_short_clips_are_told() -> None:
    with pytest.raises(ValueError, match=r"16 frames at stride 2 span 31 frames, the longest of 2 clips has 30"):
        ClipSampler(np.array([30, 50]), [0, 1], 16, [4, 2], seed=0)
    with pytest.raises(ValueError, match="of 0 clips"):
        ClipSampler(np.array([30, 50]), [], 16, [1], seed=0)
    with pytest.raises(ValueError, match="at least 1"):
        ClipSampler(np.array([30]), [0], 16, [0], seed=0)


def test_splits_hold_out_whole_groups() -> None:
    groups = [f"episode_{i // 2}" for i in range(40)]
    train, val = split_by_group(groups, 0.1, seed=0)
    assert len(val) == 4 and not {groups[i] for i in train} & {groups[i] for i in val}
    assert sorted([*train, *val]) == list(range(40))
    shuffled = np.random.default_rng(0).permutation(40)
    _, again = split_by_group([groups[i] for i in shuffled], 0.1, seed=0)
    assert {groups[shuffled[i]] for i in again} == {groups[i] for i in val}, "the choice depends on names, not on order"
    assert split_by_group(groups, 0.1, seed=1)[1].tolist() != val.tolist()
    assert len(split_by_group(groups, 0.001, seed=0)[1]) == 2, "at least one group"
    assert len(split_by_group(groups, 0.0, seed=0)[1]) == 0
    for bad, message in ((["a"], "add more data"), ([], "add more data")):
        with pytest.raises(ValueError, match=message):
            split_by_group(bad, 0.1, seed=0)
    with pytest.raises(ValueError, match=r"in \[0, 1\)"):
        split_by_group(groups, 1.0, seed=0)
