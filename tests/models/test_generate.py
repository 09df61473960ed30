"""Is a generated frame what the full forward predicts, and is the surprise its likelihood?"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tests.models.small import CONFIG, codes, make
from toto_robot.models.generate import draw, generate, keep_likely, surprise
from toto_robot.models.toto import Toto

FULL = {"temperature": 0.8, "top_k": 12, "top_p": 0.9}


@torch.no_grad()
def by_full_forward(model: Toto, video: torch.Tensor, frames: int, temperature: float = 0.0, **how) -> torch.Tensor:  # type: ignore[no-untyped-def]
    """Continue a video by running the whole sequence again for every token."""
    ids, _ = model.pack(video)
    for _ in range(frames * CONFIG.tokens_per_frame):
        last = model(ids).logits[:, -1, CONFIG.first_visual_id :]
        code = draw(last, temperature, how.get("top_k"), how.get("top_p"), how.get("generator"))
        ids = torch.cat([ids, code + CONFIG.first_visual_id], dim=1)
    return (ids[:, 1:] - CONFIG.first_visual_id).unflatten(1, (-1, CONFIG.tokens_per_frame))


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("given", [0, 1, 2, 5])
def test_temperature_zero_is_the_argmax_of_the_full_forward_beyond_the_window(given: int) -> None:
    model, video = make(), codes(2, given)
    made = generate(model, video, 6, temperature=0)
    assert made.shape == (2, given + 6, 4) and torch.equal(made[:, :given], video)
    assert torch.equal(made, by_full_forward(model, video, 6))


@pytest.mark.parametrize("how", [{"temperature": 1.0}, {"temperature": 1.3, "top_k": 5}, FULL])
def test_cached_draws_equal_those_of_the_full_forward_token_by_token(how: dict[str, float]) -> None:
    model, video = make(), codes(3, 2)
    made = generate(model, video, 5, generator=torch.Generator().manual_seed(4), **how)  # type: ignore[arg-type]
    again = by_full_forward(model, video, 5, generator=torch.Generator().manual_seed(4), **how)
    assert torch.equal(made, again)
    assert not torch.equal(made, generate(model, video, 5, temperature=0))


def test_a_row_with_its_own_generator_does_not_depend_on_its_neighbours() -> None:
    model, video = make(), codes(3, 2)
    together = generate(model, video, 3, generator=seeded(7, 8, 9), **FULL)  # type: ignore[arg-type]
    alone = generate(model, video[1:2], 3, generator=seeded(8), **FULL)  # type: ignore[arg-type]
    assert torch.equal(together[1:2], alone)
    with pytest.raises(ValueError, match="one for each of 3 rows; got 2"):
        generate(model, video, 1, generator=seeded(0, 1))


def test_draws_follow_the_generator() -> None:
    model, video = make(), codes(2, 1)
    a, b, c = (generate(model, video, 3, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert a.min() >= 0 and a.max() < CONFIG.visual_vocab
    assert torch.equal(generate(model, video, 0), video)
    calls: list[int] = []
    generate(model, video, 2, on_token=lambda: calls.append(1))
    assert len(calls) == 2 * CONFIG.tokens_per_frame


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-6}])
def test_the_narrow_end_of_top_k_and_top_p_is_greedy(narrow: dict[str, float]) -> None:
    model, video = make(), codes(2, 1)
    greedy = generate(model, video, 3, temperature=0)
    assert torch.equal(generate(model, video, 3, **narrow), greedy)  # type: ignore[arg-type]
    assert not torch.equal(generate(model, video, 3, generator=seeded(0, 1)), greedy)


@pytest.mark.parametrize("wide", [{"top_k": CONFIG.visual_vocab}, {"top_p": 1.0}, {"top_k": 999, "top_p": 1.0}])
def test_the_wide_end_of_top_k_and_top_p_is_plain_sampling(wide: dict[str, float]) -> None:
    model, video = make(), codes(2, 1)
    plain = generate(model, video, 4, generator=seeded(0, 1))
    assert torch.equal(generate(model, video, 4, generator=seeded(0, 1), **wide), plain)  # type: ignore[arg-type]


@pytest.mark.parametrize(("top_k", "top_p"), [(5, None), (None, 0.7), (9, 0.5), (None, 0.999)])
def test_what_is_kept_is_what_transformers_keeps(top_k: int | None, top_p: float | None) -> None:
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    logits = theirs = torch.randn(64, 200, generator=torch.Generator().manual_seed(0)) * 3
    if top_k:
        theirs = TopKLogitsWarper(top_k)(None, theirs)
    if top_p:
        theirs = TopPLogitsWarper(top_p)(None, theirs)
    kept = keep_likely(logits, top_k, top_p)
    assert torch.equal(kept, theirs)
    assert 0 < int(kept.isfinite().sum()) < kept.numel()


def test_draws_have_the_frequencies_of_the_distribution() -> None:
    logits = torch.tensor([[1.0, 0.0, -1.0, 3.0, 0.5]])
    n = 40_000
    drawn = draw(logits.expand(n, -1), 0.7, None, 0.97, torch.Generator().manual_seed(0))
    expected = keep_likely(logits / 0.7, None, 0.97).softmax(-1)[0]
    found = torch.bincount(drawn.flatten(), minlength=5) / n
    deviation = (expected * (1 - expected) / n).sqrt()  # binomial
    assert bool(((found - expected).abs() <= 4 * deviation).all())
    assert float(expected[2]) == 0


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}]
)
def test_impossible_sampling_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected temperature"):
        generate(make(), codes(1, 1), 1, **wrong)  # type: ignore[arg-type]


def test_impossible_codes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"codes must lie in 0\.\.19, got 3\.\.20"):
        generate(make(), torch.tensor([[[3, 4, 5, 20]]]), 1)
    with pytest.raises(ValueError, match=r"expected codes \(B, T, 4\), got \(1, 1, 5\)"):
        surprise(make(), torch.zeros(1, 1, 5, dtype=torch.long))


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 3, 10])
def test_surprise_is_the_cross_entropy_of_the_full_forward_beyond_the_window(frames: int) -> None:
    model, video = make(), codes(2, frames)
    inputs, targets = model.pack(video)
    logits = model(inputs).logits[:, :-1]
    trained = CONFIG.frames * CONFIG.tokens_per_frame
    logits[:, trained:, : CONFIG.first_visual_id] = -torch.inf  # the video goes on where training ended it
    expected = F.cross_entropy(logits.transpose(1, 2), targets[:, :-1], reduction="none").view(video.shape)
    torch.testing.assert_close(surprise(model, video), expected, atol=2e-4, rtol=1e-4)
    assert surprise(model, video, on_frame=lambda: None).shape == (2, frames, 4)


@torch.no_grad()
def test_the_model_is_less_surprised_by_its_own_greedy_continuation_than_by_noise() -> None:
    model = make(replace(CONFIG, context_frames=8))
    made = generate(model, codes(4, 1), 5, temperature=0)
    noise = torch.cat([made[:, :1], codes(4, 5, seed=9)], dim=1)
    assert float(surprise(model, made)[:, 1:].mean()) < float(surprise(model, noise)[:, 1:].mean()) - 1


@torch.no_grad()
def test_autocast_leaves_the_readout_in_float32() -> None:
    model, video = make(), codes(1, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        nats = surprise(model, video)
        made = generate(model, video[:, :2], 2, generator=seeded(0))
    assert nats.dtype == torch.float32 and made.shape == video.shape
    torch.testing.assert_close(nats, surprise(model, video), atol=0.5, rtol=0.1)


@torch.no_grad()
def test_a_full_cache_says_so() -> None:
    model = make()
    cache = model.token_cache(5)
    ids, _ = model.pack(codes(1, 1))
    model(ids, cache=cache)
    with pytest.raises(ValueError, match="room for 5"):
        model(ids[:, :1], cache=cache)
