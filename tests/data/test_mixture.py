"""Do sources take turns by their exact weights, evenly, in an order that no cut into batches or ranks changes?"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toto_robot.data.mixture import MixtureSampler, PictureSampler, Window
from toto_robot.data.sampling import ClipSampler

PAPER = {"imagenet": 20.0, "kinetics600": 10.0, "ego4d": 10.0, "howto100m": 60.0}


def clips(rows: int, frames: int = 4, seed: int = 0) -> ClipSampler:
    """Return the windows of one clip of `rows` rows."""
    return ClipSampler(np.array([rows]), [0], frames, [1], seed)


def mixture(weights: dict[str, float], seed: int = 0) -> MixtureSampler:
    """Return sources of different lengths, the first one of pictures."""
    parts: dict[str, ClipSampler | PictureSampler] = {
        name: clips(20 + 7 * place, seed=seed) for place, name in enumerate(weights)
    }
    parts[next(iter(weights))] = PictureSampler(np.arange(100, 137), 4, seed)
    return MixtureSampler(parts, weights)


def order(sampler: MixtureSampler, samples: int, batch_size: int = 1) -> list[Window]:
    """Return the first samples, drawn in batches."""
    return [window for step in range(samples // batch_size) for window in sampler.windows(step, batch_size)]


weightings = st.lists(st.integers(1, 300), min_size=1, max_size=6).map(
    lambda values: {f"s{place}": float(value) for place, value in enumerate(values)}
)


@given(weights=weightings)
@settings(max_examples=40, deadline=None)
def test_weights_are_exact_and_even_from_the_first_sample_on(weights: dict[str, float]) -> None:
    """After one round (the sum of whole weights) counts are exact; on the way nobody is 1.5 samples off."""
    total = round(sum(weights.values()))
    sampler = mixture(weights)
    names = list(weights)
    drawn = np.array([names.index(window.source) for window in sampler.windows(0, total)])
    for place, name in enumerate(names):
        share = weights[name] / total
        counts = np.cumsum(drawn == place)
        assert counts[-1] == weights[name]
        off = counts - share * np.arange(1, total + 1)
        assert np.abs(off).max() <= 1.5
        assert sampler.weights[name] == pytest.approx(share)


def test_decimal_weights_are_meant_as_written() -> None:
    """0.1 + 0.2 + ... in binary would drift by a sample in 10^16; as decimals the counts never drift at all."""
    sampler = mixture({"a": 0.2, "b": 0.1, "c": 0.1, "d": 0.6})
    far = 10**17
    assert Counter(window.source for window in sampler.windows(far // 1000, 1000)) == {
        "a": 200, "b": 100, "c": 100, "d": 600,
    }  # fmt: skip
    assert [window.source for window in sampler.windows(far // 10, 10)] == [w.source for w in sampler.windows(0, 10)]


def test_the_papers_mixture_never_leaves_a_source_out() -> None:
    sources = [window.source for window in mixture(PAPER).windows(0, 4000)]
    for name, percent in PAPER.items():
        places = [place for place, source in enumerate(sources) if source == name]
        gaps = [later - earlier for earlier, later in pairwise(places)]
        assert len(places) == 40 * percent
        assert max(gaps) <= 100 / percent + 2, f"{name} waits {max(gaps)} samples"


@given(
    weights=weightings,
    seed=st.integers(0, 1000),
    world=st.sampled_from([1, 2, 4]),
    batch_size=st.sampled_from([4, 8, 12]),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_order_depends_neither_on_batches_nor_on_ranks_nor_on_where_it_starts(
    weights: dict[str, float], seed: int, world: int, batch_size: int, data: st.DataObject
) -> None:
    sampler, again = mixture(weights, seed), mixture(weights, seed)
    stream = order(sampler, 48, batch_size=48)
    shares = [[order(again, 48, batch_size)[rank::world]] for rank in range(world)]
    joined = [shares[place % world][0][place // world] for place in range(48)]
    assert joined == stream
    step = data.draw(st.integers(0, 48 // batch_size - 1))
    assert mixture(weights, seed).windows(step, batch_size) == stream[step * batch_size : (step + 1) * batch_size]


@given(weights=weightings, seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_every_source_shows_each_window_once_an_epoch(weights: dict[str, float], seed: int) -> None:
    sampler = mixture(weights, seed)
    stream = order(sampler, 600, batch_size=600)
    for name, part in sampler.parts.items():
        drawn = [window.rows for window in stream if window.source == name]
        for start in range(0, len(drawn) - part.samples + 1, part.samples):
            epoch = drawn[start : start + part.samples]
            rows = [row for window in epoch for row in window]
            if part.kind == "images":
                assert len(rows) == len(set(rows)) == 36, "of 37 pictures, 9 sets of 4 without a repetition"
            else:
                assert len(set(epoch)) == part.samples == max(rows) - 2
                assert min(rows) == 0


def test_the_order_of_a_source_is_its_own() -> None:
    """Weights and neighbours decide when a source has its turn, not what it shows: alone it shows the same."""
    sampler = mixture(PAPER)
    alone = sampler.alone("ego4d")
    mine = [window for window in order(sampler, 500, 500) if window.source == "ego4d"]
    assert mine == order(alone, len(mine), 1)
    assert [window.rows for window in mine] == clips(20 + 14).at(np.arange(len(mine)))


def test_pictures_that_sit_out_change() -> None:
    sampler = PictureSampler(np.arange(37), 4, seed=0)
    out = {
        frozenset(range(37)) - {row for rows in sampler.at(epoch * 9 + np.arange(9)) for row in rows}
        for epoch in range(20)
    }
    assert all(len(one) == 1 for one in out)
    assert len(out) > 5


def test_seeds_differ() -> None:
    assert order(mixture(PAPER, 0), 50) != order(mixture(PAPER, 1), 50)


def test_wrong_mixtures_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a weight for each of a, b, got a, c"):
        MixtureSampler({"a": clips(9), "b": clips(9)}, {"a": 1.0, "c": 1.0})
    with pytest.raises(ValueError, match=r"above 0, got b: 0"):
        MixtureSampler({"a": clips(9), "b": clips(9)}, {"a": 1.0, "b": 0.0})
    with pytest.raises(ValueError, match=r"above 0, got a: nan"):
        MixtureSampler({"a": clips(9)}, {"a": float("nan")})
    with pytest.raises(ValueError, match=r"16 different pictures, and there are 15"):
        PictureSampler(np.arange(15), 16, 0)
