"""Does a stream, whatever its length and resets, equal the full forward under the same mask?"""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from tests.models.small import CONFIG, codes, make
from toto_robot.models.toto import Toto

LAYERS = range(CONFIG.layers + 1)


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
    video = codes(3, 25, seed=context_frames)
    resets = torch.rand(3, 25, generator=generator) < 0.12
    resets[0] = False  # one row runs through: 25 frames, far beyond the window
    expected = expected_features(model, video, resets)
    ring = model.ring(3)
    for t in range(25):
        ring.reset(resets[:, t])
        features = model(video[:, t] + CONFIG.first_visual_id, layers=LAYERS, logits=False, cache=ring).features
        for layer in LAYERS:
            torch.testing.assert_close(features[layer], expected[layer][:, t], atol=1e-5, rtol=1e-5)


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
