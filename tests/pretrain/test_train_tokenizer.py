"""Does `train-tokenizer` go from videos to a tokenizer, by every method?"""

import json

import pytest

from tests.pretrain.toy_videos import write_plain
from toto_robot.data.frames import FrameStore
from toto_robot.pretrain.tokenizer import train_tokenizer
from toto_robot.pretrain.tokenizer_config import TrainTokenizerConfig
from toto_robot.tokenizers.dvae import load_dvae

TOY = {"image_px": 16, "vocab": 32, "steps": 12, "warmup_steps": 2, "batch_size": 4, "precision": "fp32"}


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
    with pytest.raises(ValueError, match=r"no tokenizer preset 'vqgan'; there are dvae, dvae_nano, .*vqgan_nano"):
        TrainTokenizerConfig(model="vqgan")
    with pytest.raises(ValueError, match="data or frames, not both"):
        TrainTokenizerConfig(data="a", frames="b")
    with pytest.raises(ValueError, match="multiple of 8"):
        TrainTokenizerConfig(image_px=60)
    with pytest.raises(ValueError, match="plain_fraction must lie between 0 and 1"):
        TrainTokenizerConfig(plain_fraction=1.0)
