"""Is the surprise of a running video the likelihood that the full forward gives, frame by frame and row by row?"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tests.models.small import CONFIG, codes, make
from toto_robot.models.hub import export_llama
from toto_robot.models.surprise import SurpriseStream
from toto_robot.models.toto import Toto

T = 10  # frames, more than any window here


def streamed(model: Toto, video: torch.Tensor, context_frames: int) -> torch.Tensor:
    stream = SurpriseStream(model, len(video), context_frames)
    return torch.stack([stream.step(frame) for frame in video.unbind(1)], dim=1)


@torch.no_grad()
def by_full_forward(model: Toto, video: torch.Tensor, context_frames: int) -> torch.Tensor:
    other = make(replace(model.config, context_frames=context_frames))
    other.load_state_dict(model.state_dict())
    inputs, targets = model.pack(video)
    logits = other(inputs).logits[:, :-1]
    logits[:, CONFIG.frames * CONFIG.tokens_per_frame :, : CONFIG.first_visual_id] = -torch.inf
    return F.cross_entropy(logits.transpose(1, 2), targets[:, :-1], reduction="none").view(video.shape)


@pytest.mark.parametrize("context_frames", range(1, CONFIG.context_frames + 1))
def test_every_window_gives_the_full_forward_under_its_mask(context_frames: int) -> None:
    model, video = make(), codes(2, T)
    found, expected = streamed(model, video, context_frames), by_full_forward(model, video, context_frames)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_window_changes_the_surprise() -> None:
    model, video = make(), codes(2, T)
    difference = (streamed(model, video, 1) - streamed(model, video, 2)).abs().amax(dim=2)  # (B, T)
    assert float(difference[:, 0].max()) < 1e-5 and float(difference[:, 1:].min()) > 1e-3


def test_rows_restart_apart_and_then_know_nothing_of_their_past() -> None:
    model, first, second = make(), codes(2, 4), codes(2, 5, seed=9)
    stream = SurpriseStream(model, 2, CONFIG.context_frames)
    for frame in first.unbind(1):
        stream.step(frame)
    restart = torch.tensor([True, False])
    found = torch.stack([stream.step(f, restart & (t == 0)) for t, f in enumerate(second.unbind(1))], dim=1)
    fresh = streamed(model, second, CONFIG.context_frames)
    carried = streamed(model, torch.cat([first, second], dim=1), CONFIG.context_frames)[:, 4:]
    torch.testing.assert_close(found[0], fresh[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1], carried[1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(fresh[1], carried[1], atol=1e-3)


@torch.no_grad()
def test_within_the_window_it_is_that_of_a_llama() -> None:
    pytest.importorskip("transformers")
    model = make(replace(CONFIG, context_frames=CONFIG.frames))
    video = codes(2, CONFIG.frames)
    inputs, targets = model.pack(video)
    logits = export_llama(model).eval()(inputs).logits[:, :-1]
    expected = F.cross_entropy(logits.transpose(1, 2), targets[:, :-1], reduction="none").view(video.shape)
    torch.testing.assert_close(streamed(model, video, CONFIG.frames), expected, atol=1e-5, rtol=1e-5)
