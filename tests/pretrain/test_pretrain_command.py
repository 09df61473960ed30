"""Does `pretrain` take a stranger's folder of videos to a model that an encoder loads, and refuse what cannot work?"""

import json
import shutil

import numpy as np
import pytest
import torch

from tests.pretrain.toy_videos import write_odd, write_plain
from toto_robot.data.frames import prepare_frames
from toto_robot.data.sources import find_sources
from toto_robot.encoders.load import load_encoder
from toto_robot.pretrain import command
from toto_robot.pretrain.command import pretrain
from toto_robot.pretrain.config import PretrainConfig
from toto_robot.run_folder import read_metrics
from toto_robot.tokenizers.dvae import DVAE, dvae_preset, load_dvae, save_dvae

SHORT = {"steps": 3, "batch_size": 1, "val_samples": 2, "tokenizer_steps": 6}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One run over five odd videos, which several tests look at."""
    folder = tmp_path_factory.mktemp("pretrain")
    config = PretrainConfig(data=(str(write_odd(folder / "videos")),), pictures_every=2, **SHORT)
    pretrain(config, folder / "run")
    return folder / "run"


@pytest.mark.e2e
def test_five_odd_videos_become_an_encoder(trained):
    encoder = load_encoder(trained / "pretrained_model")
    features = encoder.encode(np.zeros((1, 64, 64, 3), np.uint8))
    assert features.shape == (1, 64, 256)
    assert bool(features.isfinite().all())
    rejected = json.loads((trained / "frames" / "rejected.json").read_text())
    assert [entry["source"] for entry in rejected] == ["videos/corrupt.mp4", "videos/three_frames.mp4"]
    assert "at least 16 are needed" in rejected[1]["reason"]


@pytest.mark.e2e
def test_the_run_folder_holds_what_the_contract_says(trained):
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["parameters"] == 5_641_472
    assert summary["tokens_seen"] == 3 * 16 * 64
    assert 0 < summary["val_unigram"] < 7
    assert summary["val_loss"] > 0
    assert set(summary["minutes"]) == {"frames", "tokenizer", "tokens", "train", "validate", "pictures"}
    position = json.loads((trained / "per_position.json").read_text())
    assert len(position["per_position"]) == 1024
    assert len(position["per_frame"]) == 16
    assert np.mean(position["per_position"]) == pytest.approx(summary["val_loss"], abs=1e-3)
    pictures = ("loss.png", "continuation.png", "per_position.png", "pictures/continuation_000002.png")
    for name in (*pictures, "tokenizer/reconstructions.png"):
        assert (trained / name).read_bytes().startswith(b"\x89PNG"), name
    assert (trained / "checkpoints" / "last").readlink().name == "000003"
    assert [line["step"] for line in read_metrics(trained) if "val/loss" in line] == [3]
    card = (trained / "pretrained_model" / "README.md").read_text()
    loss = f"| loss | {summary['val_loss']} nats per token"
    for words in ("| parameters | 5,641,472 |", "| tokens seen | 3,072 |", loss):
        assert words in card


@pytest.mark.e2e
def test_the_same_command_again_does_nothing(trained, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "run", symlinks=True)
    settings = json.loads((trained / "summary.json").read_text())["settings"]
    settings["strides"] = tuple(settings["strides"])
    pretrain(PretrainConfig(**settings), tmp_path / "run")
    printed = capsys.readouterr().out
    assert printed.count("(done before)") == 6
    with pytest.raises(ValueError, match=r"other settings \(steps: 3 -> 4\).*run=<another"):
        pretrain(PretrainConfig(**{**settings, "steps": 4}), tmp_path / "run")


@pytest.mark.e2e
def test_frames_tokens_and_tokenizer_of_another_run_are_taken_as_they_are(trained, tmp_path):
    tokenizer = str(trained / "tokenizer" / "pretrained_model")
    shared = PretrainConfig(tokens=str(trained / "tokens"), tokenizer=tokenizer, **SHORT)
    pretrain(shared, tmp_path / "toto")
    assert not (tmp_path / "toto" / "frames").exists()
    assert not (tmp_path / "toto" / "tokens").exists()
    same = (trained / "pretrained_model" / "model.safetensors").read_bytes()
    assert (tmp_path / "toto" / "pretrained_model" / "model.safetensors").read_bytes() == same  # the seed decides
    copied = load_dvae(tmp_path / "toto" / "pretrained_model" / "tokenizer").fingerprint()
    assert copied == load_dvae(tokenizer).fingerprint()


@pytest.mark.e2e
def test_mae_trains_on_the_same_frames(trained, tmp_path):
    config = PretrainConfig(model="mae_nano", equal_to=str(trained), batch_size=16, val_samples=8, pictures_every=2)
    pretrain(config, tmp_path / "mae")
    encoder = load_encoder("mae", path=tmp_path / "mae" / "pretrained_model")
    assert encoder.encode(np.zeros((1, 64, 64, 3), np.uint8)).shape == (1, 64, 256)
    summary = json.loads((tmp_path / "mae" / "summary.json").read_text())
    assert set(summary["minutes"]) == {"train", "validate", "pictures"}
    toto = json.loads((trained / "summary.json").read_text())
    assert (summary["images_seen"], summary["patches_seen"]) == (48, toto["tokens_seen"])
    assert 0 < summary["training_flops"] < toto["training_flops"]
    assert [path.name for path in (tmp_path / "mae" / "pictures").iterdir()] == ["reconstructions_000002.png"]
    assert "| images seen | 48 |" in (tmp_path / "mae" / "pretrained_model" / "README.md").read_text()
    assert (tmp_path / "mae" / "reconstructions.png").exists()


@pytest.mark.e2e
def test_tokens_of_another_tokenizer_are_refused(trained, tmp_path):
    other = DVAE(dvae_preset("dvae_nano"), generator=torch.Generator().manual_seed(9))
    save_dvae(other, tmp_path / "other")
    config = PretrainConfig(tokens=str(trained / "tokens"), tokenizer=str(tmp_path / "other"), **SHORT)
    with pytest.raises(ValueError, match="made by another tokenizer"):
        pretrain(config, tmp_path / "run")


def test_a_tokenizer_that_does_not_fit_the_model_is_refused(tmp_path):
    frames = _frames(tmp_path, clips=2, length=20)
    save_dvae(DVAE(dvae_preset("dvae_nano")), tmp_path / "tokenizer")
    config = PretrainConfig(model="tiny", tokenizer=str(tmp_path / "tokenizer"), frames=str(frames), **SHORT)
    with pytest.raises(ValueError, match="frames of 64 px, 128 px are needed"):
        pretrain(config, tmp_path / "a")
    frames = _frames(tmp_path / "large", clips=2, length=20, size_px=128)
    config = PretrainConfig(model="tiny", tokenizer=str(tmp_path / "tokenizer"), frames=str(frames), **SHORT)
    with pytest.raises(ValueError, match=r"tiny expects 8192 codes and 256 tokens.*has 1024 codes and makes 256"):
        pretrain(config, tmp_path / "b")


def test_videos_too_short_say_what_is_needed(tmp_path):
    videos = write_plain(tmp_path / "videos", 3, 9)
    with pytest.raises(ValueError, match="has 9 frames, at least 16 are needed"):
        pretrain(PretrainConfig(data=(str(videos),), **SHORT), tmp_path / "run")


def test_without_data_the_collect_command_is_asked_for_it(tmp_path, monkeypatch):
    """Only the call is looked at here; that the real command answers it is tested by the console's e2e tests."""
    asked = []

    def run_command(name, overrides, run_dir):
        asked.append((name, list(overrides), run_dir))
        write_plain(tmp_path / "run's" / "video", 3, 9)
        return 0

    monkeypatch.setattr("toto_robot.cli.run_command", run_command)
    run_dir = tmp_path / "run's"
    with pytest.raises(ValueError, match="at least 16 are needed"):
        pretrain(PretrainConfig(episodes=7, **SHORT), run_dir)
    ((name, overrides, where),) = asked
    assert name == "collect"
    assert where == run_dir / "collect"
    assert overrides[:3] == ["env=franka_pick", "episodes=7", "image_size=64"]
    # the path survives Hydra's grammar
    from hydra.core.override_parser.overrides_parser import OverridesParser

    assert OverridesParser.create().parse_override(overrides[3]).value() == str(run_dir / "video")
    with pytest.raises(ValueError, match="at least 16 are needed"):
        pretrain(PretrainConfig(episodes=7, **SHORT), run_dir)
    assert len(asked) == 1  # the stage is done


def test_collect_that_fails_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("toto_robot.cli.run_command", lambda *arguments: 1)
    with pytest.raises(ValueError, match="collect ended with exit code 1"):
        pretrain(PretrainConfig(**SHORT), tmp_path / "run")


def test_settings_are_checked():
    with pytest.raises(ValueError, match="no Toto preset 'nanoo'; there are nano"):
        PretrainConfig(model="nanoo")
    with pytest.raises(ValueError, match="no MAE preset 'huge'; there are nano, tiny, small, vit_s16, vit_b16"):
        PretrainConfig(model="mae_huge")
    with pytest.raises(ValueError, match="needs tokenizer="):
        PretrainConfig(tokens="somewhere")
    with pytest.raises(ValueError, match="mae_nano trains on pixels"):
        PretrainConfig(model="mae_nano", tokenizer="somewhere")
    with pytest.raises(ValueError, match="data or frames, not both"):
        PretrainConfig(data=("a",), frames="b")
    with pytest.raises(ValueError, match=r"strides of 1 or more.*got \[0\]"):
        PretrainConfig(strides=(0,))
    with pytest.raises(ValueError, match="batch_size of at least 1, got 0"):
        PretrainConfig(batch_size=0)


def test_recipes_follow_the_model_and_what_is_given():
    assert PretrainConfig().recipe().lr == 1.5e-3
    assert PretrainConfig(model="base").recipe().lr == 3e-4
    assert PretrainConfig(model="base").recipe().batch_size * 4096 == 2**20  # tokens a step in the paper
    assert PretrainConfig(model="mae_nano").recipe().weight_decay == 0.05
    assert PretrainConfig(lr=0.01).recipe().lr == 0.01
    assert PretrainConfig(steps=20).recipe().warmup_steps == 2
    assert PretrainConfig(steps=20, warmup_steps=5).recipe().warmup_steps == 5
    assert command.pretrain.__doc__


def _frames(folder, clips, length, size_px=64):
    videos = write_plain(folder / "videos", clips, length)
    return prepare_frames(find_sources(videos), folder / "frames", size_px, progress=False).path
