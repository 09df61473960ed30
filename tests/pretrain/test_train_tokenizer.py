"""Does `train-tokenizer` go from videos to a tokenizer, by every method?"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.pretrain.toy import SIZES
from tests.pretrain.toy_videos import write_plain
from toto_robot.data.frames import FrameStore, prepare_frames
from toto_robot.data.sources import find_sources
from toto_robot.models.hub import save_pretrained
from toto_robot.models.toto import Toto
from toto_robot.pretrain.tokenizer import train_tokenizer
from toto_robot.pretrain.tokenizer_config import TrainTokenizerConfig
from toto_robot.pretrain.tokenizer_methods import Gumbel, Student, VQGANMethod
from toto_robot.run_folder import read_metrics
from toto_robot.tokenizers.dvae import DVAE, DVAEConfig, load_dvae, save_dvae
from toto_robot.tokenizers.load import load_tokenizer, save_tokenizer
from toto_robot.tokenizers.vqgan import VQGAN, vqgan_preset

TOY = {"image_px": 16, "vocab": 32, "steps": 12, "warmup_steps": 2, "batch_size": 4, "precision": "fp32"}


def test_from_videos_to_a_tokenizer(tmp_path, capsys):
    videos = write_plain(tmp_path / "videos", 4, 12)
    config = TrainTokenizerConfig(data=(str(videos),), **TOY)
    assert train_tokenizer(config, tmp_path / "run") == 0
    tokenizer = load_dvae(tmp_path / "run" / "pretrained_model")
    assert tokenizer.vocab == 32
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["held_out"] is True
    assert 0 < summary["codes_used"] <= 32
    assert summary["images"] == 12 * 4
    for name in ("reconstructions.png", "loss.png"):
        assert (tmp_path / "run" / name).read_bytes().startswith(b"\x89PNG")
    card = (tmp_path / "run" / "pretrained_model" / "README.md").read_text()
    for words in ("# Tokenizer dvae_nano", "| images seen | 48 |", f"| {summary['psnr_db']} dB |", "data videos"):
        assert words in card
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
        train_tokenizer(TrainTokenizerConfig(data=(str(videos),), seed=1, **TOY), tmp_path / "run")


def test_frames_of_another_size_are_refused(tmp_path):
    videos = write_plain(tmp_path / "videos", 2, 4)
    train_tokenizer(TrainTokenizerConfig(data=(str(videos),), **TOY), tmp_path / "run")
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
        TrainTokenizerConfig(data=("a",), frames="b")
    with pytest.raises(ValueError, match="multiple of 8"):
        TrainTokenizerConfig(image_px=60)
    with pytest.raises(ValueError, match="plain_fraction must lie between 0 and 1"):
        TrainTokenizerConfig(plain_fraction=1.0)


@pytest.fixture(scope="module")
def frames(tmp_path_factory) -> Path:
    """Return a frame store of moving squares."""
    folder = tmp_path_factory.mktemp("frames")
    prepare_frames(find_sources(write_plain(folder / "videos", 4, 12)), folder / "frames", 16, progress=False)
    return folder / "frames"


def run(run_dir: Path, frames: Path, **options: object) -> dict[str, Any]:
    """Train a toy tokenizer; return its summary."""
    given = {**TOY, "frames": str(frames), **options}
    assert train_tokenizer(TrainTokenizerConfig(**given), run_dir) == 0
    return json.loads((run_dir / "summary.json").read_text())


def test_gumbel_learns_and_says_how_the_codes_are_used(tmp_path, frames):
    summary = run(tmp_path, frames, method="gumbel", steps=40, pictures_every=16)
    tokenizer = load_tokenizer(tmp_path / "pretrained_model")
    assert type(tokenizer) is DVAE
    assert tokenizer.vocab == 32
    assert 1 <= summary["codes_used"] <= 32
    lines = [line for line in read_metrics(tmp_path) if "train/loss" in line]
    assert lines[-1]["train/nll"] < lines[0]["train/nll"] - 0.3
    assert lines[-1]["train/temperature"] == pytest.approx(1 / 16)
    assert (tmp_path / "pictures" / "reconstructions_000016.png").read_bytes().startswith(b"\x89PNG")
    assert {"val/perplexity", "val/codes_used", "val/psnr_db"} <= set(read_metrics(tmp_path)[-1])


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (VQGANMethod, {"model": "vqgan_nano", "adversarial": True, "batch_size": 2}),
        (Gumbel, {"method": "gumbel"}),
        (Student, {"student_of": "teacher", "vocab": None, "soft": 0.5}),
    ],
    ids=["vqgan", "gumbel", "student"],
)
def test_a_run_stopped_in_between_ends_with_the_same_bits(tmp_path, frames, monkeypatch, method, options):
    monkeypatch.chdir(tmp_path)
    save_dvae(DVAE(DVAEConfig(name="toy", hidden=16, blocks_per_group=1, vocab=16, decoder_init=8)), Path("teacher"))
    options = {**options, "steps": 12, "checkpoint_every": 4}
    run(tmp_path / "whole", frames, **options)
    real = method.loss

    def interrupted(self, frames, step, generator):
        if step == 9:  # a discriminator has started at 6; the last checkpoint is after 8 steps
            raise KeyboardInterrupt
        return real(self, frames, step, generator)

    monkeypatch.setattr(method, "loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", frames, **options)
    monkeypatch.setattr(method, "loss", real)
    run(tmp_path / "broken", frames, **options)
    state = "checkpoints/last/training_state/optimizer/00001-of-00001"
    for name in ("checkpoints/last/pretrained_model/model", state, "pretrained_model/model"):
        whole, broken = (load_file(tmp_path / which / f"{name}.safetensors") for which in ("whole", "broken"))
        assert whole.keys() == broken.keys()
        assert [key for key in whole if not torch.equal(whole[key], broken[key])] == []


def test_vqgan_trains_with_its_discriminator(tmp_path, frames):
    run(tmp_path, frames, model="vqgan_nano", adversarial=True, batch_size=2)
    state = load_file(tmp_path / "checkpoints/last/training_state/optimizer/00001-of-00001.safetensors")
    assert any(name.startswith("discriminator.") for name in state)
    lines = {line["step"]: line for line in read_metrics(tmp_path) if "train/loss" in line}
    assert lines[12]["train/discriminator"] > 0
    assert type(load_tokenizer(tmp_path / "pretrained_model")) is VQGAN


def test_student_is_measured_beside_its_teacher_and_by_toto(tmp_path, frames):
    teacher = DVAE(DVAEConfig(name="toy", hidden=16, blocks_per_group=1, vocab=16, decoder_init=8))
    save_dvae(teacher, tmp_path / "teacher")
    toto = Toto(replace(SIZES, tokens_per_frame=4), generator=torch.Generator().manual_seed(0))
    save_pretrained(toto, tmp_path / "toto")
    save_dvae(teacher, tmp_path / "toto" / "tokenizer")
    options = {"vocab": None, "student_of": str(tmp_path / "teacher"), "toto": str(tmp_path / "toto"), "steps": 40}
    summary = run(tmp_path / "run", frames, **options)
    student = load_tokenizer(tmp_path / "run" / "pretrained_model")
    images = torch.from_numpy(FrameStore.open(frames).read(range(12)))
    assert 0 < summary["agreement"] <= 1
    assert summary["encoder_gflop"] < 0.2 * summary["teacher"]["encoder_gflop"]
    assert torch.equal(student.decode(teacher.encode(images)), teacher.decode(teacher.encode(images)))
    change = summary["toto_nats_student"] - summary["toto_nats_teacher"]
    assert summary["toto_nats_change"] == pytest.approx(change, abs=2e-4)
    save_dvae(DVAE(teacher.config), tmp_path / "toto" / "tokenizer")  # another one's codes
    with pytest.raises(ValueError, match="trained on the codes of another tokenizer"):
        run(tmp_path / "other", frames, **options)


def test_options_of_another_method_are_refused(tmp_path, frames):
    for wrong, message in (
        ({"method": "vae"}, "method must be vq_ema or gumbel, got 'vae'"),
        ({"model": "vqgan_nano", "method": "gumbel"}, "method=gumbel is for a dVAE"),
        ({"adversarial": True}, "adversarial needs a vqgan model"),
        ({"toto": "x"}, "toto needs student_of"),
        ({"student_of": "x", "model": "dvae"}, "vocabulary and layout of its teacher: drop model"),
        ({"model": "vqgan_1024", "image_px": 24}, r"multiple of 16 \(the tokenizer's stride\), got 24"),
        ({"model": "vqgan_nano", "perceptual": "x", "image_px": 8}, "image_px of at least 16, got 8"),
        ({"soft": 2.0}, "soft must lie from 0 to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            TrainTokenizerConfig(**wrong)
    with pytest.raises(ValueError, match="no perceptual weights at"):
        run(tmp_path / "vqgan", frames, model="vqgan_nano", perceptual=str(tmp_path / "absent"))
    save_tokenizer(VQGAN(vqgan_preset("vqgan_nano")), tmp_path / "vqgan_nano")
    with pytest.raises(ValueError, match="only a dVAE can have a student"):
        run(tmp_path / "student", frames, vocab=None, student_of=str(tmp_path / "vqgan_nano"))


def test_recipes_are_the_published_ones_at_the_published_sizes():
    dalle = TrainTokenizerConfig(model="dvae", method="gumbel", steps=3_000_000).loop()
    assert [dalle.learning_rate(step) for step in (0, 600_000)] == pytest.approx(
        [1e-4, 0.5 * (1e-4 + 1.25e-6)], rel=1e-4
    )
    assert dalle.learning_rate(1_200_000) == dalle.learning_rate(2_999_999) == pytest.approx(1.25e-6)
    assert (dalle.beta1, dalle.beta2, dalle.weight_decay, dalle.ema_decay) == (0.9, 0.999, 1e-4, 0.999)
    taming = TrainTokenizerConfig(model="vqgan_16384", image_px=256, batch_size=24).loop()
    assert (taming.beta1, taming.beta2, taming.learning_rate(0)) == (0.5, 0.9, taming.learning_rate(1_000))
    assert taming.lr == pytest.approx(24 * 4.5e-6)
    short = TrainTokenizerConfig(method="gumbel", steps=500).loop()
    assert short.ema_decay == pytest.approx(0.98)  # the average spans a tenth of the steps
