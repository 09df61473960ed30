"""Does `train-tokenizer` go from videos to a tokenizer, and measure it rightly?"""

import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.pretrain.toy_videos import write_plain
from toto_robot.data.frames import FrameStore
from toto_robot.pretrain.tokenizer import TrainTokenizerConfig, measure, train_tokenizer
from toto_robot.tokenizers.dvae import load_dvae

TOY = {"image_px": 16, "vocab": 32, "steps": 12, "warmup_steps": 2, "batch_size": 4, "precision": "fp32"}


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


def test_from_videos_to_a_tokenizer(tmp_path, capsys):
    videos = write_plain(tmp_path / "videos", 4, 12)
    config = TrainTokenizerConfig(data=str(videos), **TOY)
    assert train_tokenizer(config, tmp_path / "run") == 0
    tokenizer = load_dvae(tmp_path / "run" / "pretrained_model")
    assert tokenizer.vocab == 32
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["held_out"] is True
    assert 0 < summary["codes_used"] <= 32
    assert summary["images"] == 12 * 4
    for name in ("reconstructions.png", "loss.png"):
        assert (tmp_path / "run" / name).read_bytes().startswith(b"\x89PNG")
    # again: nothing is trained; the frames can be used by another run
    weights = (tmp_path / "run" / "pretrained_model" / "model.safetensors").stat()
    capsys.readouterr()
    train_tokenizer(config, tmp_path / "run")
    assert capsys.readouterr().out.count("(done before)") == 4
    assert (tmp_path / "run" / "pretrained_model" / "model.safetensors").stat().st_mtime_ns == weights.st_mtime_ns
    shared = TrainTokenizerConfig(frames=str(tmp_path / "run" / "frames"), **TOY)
    train_tokenizer(shared, tmp_path / "other")
    assert load_dvae(tmp_path / "other" / "pretrained_model").fingerprint() == tokenizer.fingerprint()
    assert not (tmp_path / "other" / "frames").exists()
    # and another setting in the same folder is refused
    with pytest.raises(ValueError, match=r"other settings \(seed: 0 -> 1\)"):
        train_tokenizer(TrainTokenizerConfig(data=str(videos), seed=1, **TOY), tmp_path / "run")


def test_frames_of_another_size_are_refused(tmp_path):
    videos = write_plain(tmp_path / "videos", 2, 4)
    train_tokenizer(TrainTokenizerConfig(data=str(videos), **TOY), tmp_path / "run")
    assert FrameStore.open(tmp_path / "run" / "frames").image_px == 16
    other = {**TOY, "image_px": 24}
    with pytest.raises(ValueError, match="frames of 16 px, 24 px are needed"):
        train_tokenizer(TrainTokenizerConfig(frames=str(tmp_path / "run" / "frames"), **other), tmp_path / "other")


def test_settings_are_checked(tmp_path):
    with pytest.raises(ValueError, match="nothing to train on: give data="):
        train_tokenizer(TrainTokenizerConfig(), tmp_path)
    with pytest.raises(ValueError, match="no tokenizer preset 'vqgan'; there are dvae, dvae_nano"):
        TrainTokenizerConfig(model="vqgan")
    with pytest.raises(ValueError, match="data or frames, not both"):
        TrainTokenizerConfig(data="a", frames="b")
    with pytest.raises(ValueError, match="multiple of 8"):
        TrainTokenizerConfig(image_px=60)
    with pytest.raises(ValueError, match="plain_fraction must lie between 0 and 1"):
        TrainTokenizerConfig(plain_fraction=1.0)
