"""Are the measures of a tokenizer what can be worked out by hand?"""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from toto_robot.pretrain.tokenizer_measures import measure


class MeanTokenizer(nn.Module):
    """Codes a patch by its mean grey level in 16 steps: everything about it can be worked out by hand."""

    vocab, stride = 16, 8

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def encode(self, images: Tensor) -> Tensor:
        B, h, w, _ = images.shape
        return (images.float().mean(-1).view(B, h // 8, 8, w // 8, 8).mean((2, 4)) / 16).long()

    def decode(self, codes: Tensor) -> Tensor:
        grey = (codes * 16 + 8).repeat_interleave(8, 1).repeat_interleave(8, 2)
        return grey.unsqueeze(-1).expand(-1, -1, -1, 3).to(torch.uint8)


class Frames:
    """Frames in memory with the `clip` of a frame store."""

    def __init__(self, frames: np.ndarray) -> None:
        self.frames = frames

    def clip(self, start: int, frames: int) -> np.ndarray:
        return self.frames[start : start + frames]


def test_measure_by_hand():
    frames = np.full((4, 16, 16, 3), 40, np.uint8)  # code 2, decoded as 40
    frames[1, 0, 0] = 41  # changes a pixel of one patch, not its code
    frames[2:, :8, :8] = 100  # code 6, decoded as 104: error 4 on a quarter of two frames
    measured = measure(MeanTokenizer(), Frames(frames), [(0, 4)])
    error = (2 * 0.25 * 16 + 1 / 256) / 4  # mean square over four frames
    assert measured["psnr_db"] == pytest.approx(10 * np.log10(255**2 / error), abs=0.01)
    assert measured["codes_used"] == 2
    entropy = -(2 / 16 * np.log(2 / 16) + 14 / 16 * np.log(14 / 16))
    assert measured["perplexity"] == pytest.approx(np.exp(entropy), abs=0.1)
    assert measured["stability"] == 1.0


def test_stability_counts_still_patches_whose_code_moved():
    class Flicker(MeanTokenizer):
        def encode(self, images: Tensor) -> Tensor:
            codes = super().encode(images)
            codes[1, 0, 0] += 1  # one of the four still patches of the second frame
            return codes

    measured = measure(Flicker(), Frames(np.full((2, 16, 16, 3), 40, np.uint8)), [(0, 2)])
    assert measured["stability"] == 0.75
    moving = np.random.default_rng(0).integers(0, 255, (2, 16, 16, 3), dtype=np.uint8)
    assert measure(MeanTokenizer(), Frames(moving), [(0, 2)])["stability"] is None
