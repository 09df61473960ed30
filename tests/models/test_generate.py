"""Is a generated frame what the full forward predicts?"""

from __future__ import annotations

import pytest
import torch

from tests.models.small import CONFIG, codes, make
from toto_robot.models.generate import generate
from toto_robot.models.toto import Toto


@torch.no_grad()
def greedy(model: Toto, video: torch.Tensor, frames: int) -> torch.Tensor:
    """Continue a video by running the whole sequence again for every token."""
    ids, _ = model.pack(video)
    for _ in range(frames * CONFIG.tokens_per_frame):
        last = model(ids).logits[:, -1, CONFIG.first_visual_id :]
        ids = torch.cat([ids, last.argmax(-1, keepdim=True) + CONFIG.first_visual_id], dim=1)
    return (ids[:, 1:] - CONFIG.first_visual_id).unflatten(1, (-1, CONFIG.tokens_per_frame))


@pytest.mark.parametrize("given", [0, 1, 2, 5])
def test_temperature_zero_is_the_argmax_of_the_full_forward_beyond_the_window(given: int) -> None:
    model, video = make(), codes(2, given)
    made = generate(model, video, 6, temperature=0)
    assert made.shape == (2, given + 6, 4) and torch.equal(made[:, :given], video)
    assert torch.equal(made, greedy(model, video, 6))


def test_draws_follow_the_generator_and_top_k() -> None:
    model, video = make(), codes(2, 1)
    a, b, c = (generate(model, video, 3, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert a.min() >= 0 and a.max() < CONFIG.visual_vocab
    greedy_codes = generate(model, video, 3, temperature=0)
    assert torch.equal(generate(model, video, 3, top_k=1), greedy_codes)
    assert torch.equal(generate(model, video, 0), video)


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"top_k": 0}])
def test_impossible_sampling_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected temperature"):
        generate(make(), codes(1, 1), 1, **wrong)  # type: ignore[arg-type]


@torch.no_grad()
def test_a_full_cache_says_so() -> None:
    model = make()
    cache = model.token_cache(5)
    ids, _ = model.pack(codes(1, 1))
    model(ids, cache=cache)
    with pytest.raises(ValueError, match="room for 5"):
        model(ids[:, :1], cache=cache)
