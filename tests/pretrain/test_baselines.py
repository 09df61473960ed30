"""Do the predictors without a network reach what theory says they must?"""

from __future__ import annotations

import numpy as np
import pytest

from toto_robot.pretrain.baselines import copy_previous_nats, unigram_nats


def _walk(keep: float, seed: int, vocab: int = 8) -> np.ndarray:
    """Return windows whose tokens stay with chance `keep` from frame to frame, else are drawn evenly."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(vocab, size=(400, 6, 10))
    for frame in range(1, 6):
        stays = rng.random((400, 10)) < keep
        codes[:, frame] = np.where(stays, codes[:, frame - 1], codes[:, frame])
    return codes


def test_unigram_is_the_entropy_of_even_tokens() -> None:
    assert unigram_nats(_walk(0.0, 1), 8) == pytest.approx(np.log(8), abs=0.01)
    # nothing to gain by copying, and nothing lost by trying
    assert copy_previous_nats(_walk(0.0, 0), _walk(0.0, 1), 8) == pytest.approx(np.log(8), abs=0.01)


def test_copying_reaches_the_entropy_of_tokens_that_stay() -> None:
    keep, vocab = 0.9, 8
    stay, other = keep + (1 - keep) / vocab, (1 - keep) / vocab
    per_later_frame = -(stay * np.log(stay) + (vocab - 1) * other * np.log(other))
    expected = (np.log(vocab) + 5 * per_later_frame) / 6  # the first of six frames has nothing to copy
    assert copy_previous_nats(_walk(keep, 0), _walk(keep, 1), vocab) == pytest.approx(expected, abs=0.02)


def test_a_code_that_training_never_saw_is_dear_not_infinite() -> None:
    held_out = np.full((4, 3, 2), 5)
    held_out[:, 1] = 6
    held_out[:, 2] = 7
    assert 3 < copy_previous_nats(np.zeros((4, 3, 2), int), held_out, 8) < 30


def test_single_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="at least two frames"):
        copy_previous_nats(np.zeros((4, 1, 2), int), np.zeros((4, 1, 2), int), 8)
