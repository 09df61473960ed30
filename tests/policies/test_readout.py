"""Does the readout find what is there, find nothing where there is nothing, and follow its seed?"""

from __future__ import annotations

import pytest
import torch

from policies.readout import REDUCED, Asked, read_off, reduce_tokens


def scene(frames: int = 500, side: int = 6, width: int = 24, seed: int = 0) -> tuple[torch.Tensor, Asked]:
    """Return tokens (n, P, D) of frames with one bright thing on a noisy ground, and where it is asked for."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(frames, side * side, width, generator=generator)
    place = torch.randint(side * side, (frames,), generator=generator)
    tokens[torch.arange(frames), place] += 3 * torch.randn(width, generator=generator)
    target = torch.stack([place // side, place % side], dim=1).float()
    return tokens.half(), Asked(torch.randn(frames, 5, generator=generator), target)


def error(tokens: dict[str, torch.Tensor], asked: Asked, seed: int = 0) -> float:
    labelled, held_out = torch.arange(400), torch.arange(400, 500)
    found = read_off(tokens, asked, labelled, held_out, steps=200, seed=seed)
    return float((found - asked.target[held_out]).norm(dim=1).mean())


def test_a_thing_is_found_wherever_it_lies_and_only_where_it_is_shown() -> None:
    tokens, asked = scene()
    blind = error({}, asked)
    assert blind > 1.8  # of a picture of 6 x 6
    noise = torch.randn(500, 36, 24, generator=torch.Generator().manual_seed(5)).half()
    assert error({"front": reduce_tokens(tokens)}, asked) < 0.5 * blind
    assert error({"front": reduce_tokens(noise)}, asked) > 0.8 * blind


def test_what_the_proprioception_tells_needs_no_picture() -> None:
    _, asked = scene()
    told = Asked(torch.cat([asked.proprio, asked.target], dim=1), asked.target)
    assert error({}, told) < 0.8


def test_a_readout_follows_its_seed_and_leaves_the_global_one_alone() -> None:
    tokens, asked = scene()
    reduced = {"front": reduce_tokens(tokens)}
    rows = torch.arange(20), torch.arange(20, 30)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = read_off(reduced, asked, *rows, steps=5, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(read_off(reduced, asked, *rows, steps=5, seed=1), first)
    assert not torch.equal(read_off(reduced, asked, *rows, steps=5, seed=2), first)


def test_what_is_held_out_does_not_teach() -> None:
    tokens, asked = scene()
    rows = torch.arange(20), torch.arange(20, 30)
    changed = asked.target.clone()
    changed[20:] += 100
    reduced = {"front": reduce_tokens(tokens)}
    expected = read_off(reduced, asked, *rows, steps=5)
    assert torch.equal(read_off(reduced, Asked(asked.proprio, changed), *rows, steps=5), expected)


def test_reduced_tokens_keep_their_geometry() -> None:
    """Distances among tokens that vary in few directions are kept, up to one scale; the width is bounded."""
    generator = torch.Generator().manual_seed(0)
    plane = torch.randn(20, 9, 10, generator=generator) @ torch.randn(10, 200, generator=generator) + 7
    reduced = reduce_tokens(plane).float()
    assert reduced.shape == (20, 9, REDUCED)
    ratio = torch.cdist(reduced[0], reduced[1]) / torch.cdist(plane[0], plane[1])
    assert float(ratio.std() / ratio.mean()) == pytest.approx(0, abs=5e-3)
    assert reduce_tokens(torch.zeros(3, 4, 5)).isfinite().all() and reduce_tokens(plane[:, :, :3]).shape == (20, 9, 3)
