"""Does a stream, whatever its policy, length and resets, equal the forward pass that it promises?"""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from tests.models.small import CONFIG, codes, make
from toto_robot.models.streaming import POLICIES, open_stream
from toto_robot.models.toto import Toto

LAYERS = range(CONFIG.layers + 1)
FRAMES = 64


def expected_features(model: Toto, video: torch.Tensor, resets: torch.Tensor) -> dict[int, torch.Tensor]:
    """Return the features of every layer (B, T, P, D), each row's segments between resets run whole and alone."""
    B, T, P = video.shape
    expected = {layer: torch.zeros(B, T, P, CONFIG.width) for layer in LAYERS}
    for row in range(B):
        starts = [0, *(t for t in range(1, T) if resets[row, t]), T]
        for first, last in itertools.pairwise(starts):
            output = model(model.pack(video[row : row + 1, first:last])[0], layers=LAYERS, logits=False)
            for layer in LAYERS:
                expected[layer][row, first:last] = output.features[layer][0, 1:].unflatten(0, (-1, P))
    return expected


@torch.no_grad()
@pytest.mark.parametrize("context_frames", [1, 2, 3, 8])
def test_stream_equals_full_forward_in_every_layer_under_random_resets(context_frames: int) -> None:
    model = make(replace(CONFIG, context_frames=context_frames))
    generator = torch.Generator().manual_seed(context_frames)
    video = codes(3, FRAMES, seed=context_frames)
    resets = torch.rand(3, FRAMES, generator=generator) < 0.12
    resets[0] = False  # one row runs through, far beyond the window
    expected = expected_features(model, video, resets)
    streamed = run("ring", model, video, resets)
    for layer in LAYERS:
        torch.testing.assert_close(streamed[layer], expected[layer], atol=1e-5, rtol=1e-5)


def clip_start(policy: str, frame: int, window: int) -> int:
    """Return the first frame that the `frame`-th of a video (from 0) sees."""
    if policy == "recompute":
        return max(0, frame - window + 1)
    first_lane, second_lane = range(0, frame + 1, window), range(window // 2, frame + 1, window)
    return first_lane[-1] if policy == "reset" or not second_lane else min(first_lane[-1], second_lane[-1])


def clip_features(
    policy: str, model: Toto, video: torch.Tensor, resets: torch.Tensor, window: int
) -> dict[int, torch.Tensor]:
    """Return the features of every layer (B, T, P, D): of every frame's clip alone, run from position 0 on.

    Clips lie at the start of W frames in one batch: attention is causal, what follows a clip does not matter.
    """
    B, T, P = video.shape
    clips, newest = torch.zeros(B * T, window, P, dtype=torch.long), []
    for row in range(B):
        since = -1
        for t in range(T):
            since = 0 if resets[row, t] else since + 1
            first = t - since + clip_start(policy, since, window)
            clips[row * T + t, : t - first + 1] = video[row, first : t + 1]
            newest.append(t - first)
    output = model(model.pack(clips)[0], layers=LAYERS, logits=False)
    rows = torch.arange(B * T)
    return {
        layer: output.features[layer][:, 1:].unflatten(1, (window, P))[rows, newest].unflatten(0, (B, T))
        for layer in LAYERS
    }


def run(
    policy: str, model: Toto, video: torch.Tensor, resets: torch.Tensor, context_frames: int | None = None,
    fixed_shapes: bool = False,
) -> dict[int, torch.Tensor]:  # fmt: skip
    """Return the features of every layer (B, T, P, D), frame by frame."""
    options = {"layers": LAYERS, "context_frames": context_frames, "fixed_shapes": fixed_shapes}
    stream = open_stream(policy, model, len(video), **options)  # type: ignore[arg-type]
    steps = [stream.step(video[:, t] + CONFIG.first_visual_id, resets[:, t]) for t in range(video.shape[1])]
    return {layer: torch.stack([step[layer] for step in steps], dim=1) for layer in LAYERS}


@torch.no_grad()
@pytest.mark.parametrize("context_frames", [1, 5, 8])
@pytest.mark.parametrize("policy", ["reset", "staggered", "recompute"])
def test_clip_policies_equal_the_causal_model_on_their_clip_in_every_layer(policy: str, context_frames: int) -> None:
    model = make(replace(CONFIG, context_frames=8))  # plainly causal over all 8 frames of a sample
    video = codes(3, FRAMES, seed=context_frames)
    resets = torch.rand(3, FRAMES, generator=torch.Generator().manual_seed(context_frames)) < 0.08
    resets[0] = False
    streamed = run(policy, model, video, resets, context_frames)
    expected = clip_features(policy, model, video, resets, context_frames)
    for layer in LAYERS:
        torch.testing.assert_close(streamed[layer], expected[layer], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("policy", ["ring", "reset", "staggered"])
def test_fixed_shapes_change_memory_in_place_and_no_number(policy: str) -> None:
    """What a CUDA graph replays: the same operations on the same memory, whatever the step."""
    model, video = make(), codes(3, 20)
    resets = torch.rand(3, 20, generator=torch.Generator().manual_seed(4)) < 0.15
    free, fixed = (run(policy, model, video, resets, fixed_shapes=fixed) for fixed in (False, True))
    for layer in LAYERS:
        torch.testing.assert_close(free[layer], fixed[layer], atol=1e-5, rtol=1e-5)
    stream = open_stream(policy, model, 3, layers=(4,), fixed_shapes=True)
    ring, places = stream._ring, []  # type: ignore[attr-defined]
    for t in range(2):
        stream.step(video[:, t] + CONFIG.first_visual_id, resets[:, t])
        state = {**vars(ring), **vars(stream), "keys": tuple(ring._keys), "values": tuple(ring._values)}
        places.append({name: x.data_ptr() if isinstance(x, torch.Tensor) else x for name, x in state.items()})
        places[-1] |= {f"{name}{i}": x.data_ptr() for name in ("keys", "values") for i, x in enumerate(state[name])}
    del places[0]["keys"], places[0]["values"], places[1]["keys"], places[1]["values"]
    assert places[0] == places[1]
    with pytest.raises(ValueError, match="ring, reset or staggered"):
        open_stream("recompute", model, 3, layers=(4,), fixed_shapes=True)


@torch.no_grad()
def test_staggered_keeps_half_a_window_of_history_and_reset_does_not() -> None:
    """Frame 8 of 8-frame clips: nothing changes in `reset` when the past does, something does in `staggered`."""
    model = make(replace(CONFIG, context_frames=8))
    video = codes(2, 9)
    video[1, 5:] = video[0, 5:]  # the rows differ in frames 0..4
    for policy, differs in (("reset", False), ("staggered", True), ("recompute", True), ("ring", True)):
        stream = open_stream(policy, model, 2, layers=(4,))
        for t in range(9):
            features = stream.step(video[:, t] + CONFIG.first_visual_id)[4]
        assert torch.allclose(features[0], features[1], atol=1e-4) != differs, policy


@torch.no_grad()
def test_policies_agree_until_the_window_is_full_and_then_part() -> None:
    model, video = make(replace(CONFIG, context_frames=8)), codes(2, 6)
    streams = [open_stream(policy, model, 2, layers=(4,), context_frames=4) for policy in POLICIES]
    for t in range(6):
        ring, *others = (stream.step(video[:, t] + CONFIG.first_visual_id)[4] for stream in streams)
        for other in others:
            assert torch.allclose(ring, other, atol=1e-4) == (t < 4)


@torch.no_grad()
def test_a_smaller_window_than_trained_equals_a_model_configured_so() -> None:
    wide, narrow, video = make(), make(replace(CONFIG, context_frames=2)), codes(2, 7)
    rings = (wide.ring(2, context_frames=2), narrow.ring(2))
    for t in range(7):
        ids = video[:, t] + CONFIG.first_visual_id
        a, b = (m(ids, layers=(4,), logits=False, cache=r) for m, r in zip((wide, narrow), rings, strict=True))
        assert torch.equal(a.features[4], b.features[4])
    with pytest.raises(ValueError, match=r"1\.\.3"):
        wide.ring(2, context_frames=4)


@torch.no_grad()
def test_an_early_exit_stream_keeps_memory_of_its_layers_only() -> None:
    model, video = make(), codes(2, 5)
    whole, early = model.ring(2), model.ring(2, layers=2)
    for t in range(5):
        ids = video[:, t] + CONFIG.first_visual_id
        a = model(ids, layers=(2,), cache=whole).features[2]
        b = model(ids, layers=(2,), logits=False, cache=early).features[2]
        assert torch.equal(a, b)
    assert len(early._keys) == 2 and len(whole._keys) == CONFIG.layers


@torch.no_grad()
def test_features_do_not_drift_after_days() -> None:
    """At 20 Hz and 64 tokens a frame, position 10^9 is nine days of streaming; float32 angles would be noise there."""
    model, video = make(), codes(1, 6)
    young, old = model.ring(1), model.ring(1)
    young.frames_since_reset += 10
    old.frames_since_reset += 250_000_000
    for t in range(6):
        ids = video[:, t] + CONFIG.first_visual_id
        a, b = (model(ids, layers=(4,), logits=False, cache=ring).features[4] for ring in (young, old))
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_ring_made_in_inference_mode_works_outside() -> None:
    model, ids = make(), codes(1, 1)[:, 0] + CONFIG.first_visual_id
    with torch.inference_mode():
        ring = model.ring(1)
    first = model(ids, layers=(4,), logits=False, cache=ring).features[4]
    ring.reset(torch.tensor([True]))
    torch.testing.assert_close(model(ids, layers=(4,), logits=False, cache=ring).features[4], first)


def test_wrong_use_of_a_ring_is_refused() -> None:
    model = make()
    ring = model.ring(2)
    ids = codes(2, 1)[:, 0] + CONFIG.first_visual_id
    with pytest.raises(ValueError, match="no_grad"):
        model(ids, cache=ring)
    with torch.no_grad(), pytest.raises(ValueError, match=r"one frame a call, ids \(2, 4\)"):
        model(ids[:, :3], cache=ring)
    with torch.no_grad(), pytest.raises(ValueError, match="one frame a call"):
        model(ids[:1], cache=ring)
