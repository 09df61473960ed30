"""Does a Toto trained at one resolution go on at another with its weights, its codes and the sizes that follow?"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.models.small import CONFIG, codes
from tests.pretrain.toy import DVAE_SIZES, frame_store
from toto_robot.encoders.load import load_encoder
from toto_robot.models.hub import from_pretrained, save_pretrained
from toto_robot.models.presets import preset
from toto_robot.models.toto import Toto
from toto_robot.pretrain.command import pretrain
from toto_robot.pretrain.config import PretrainConfig
from toto_robot.pretrain.resolution import at_resolution, start_from
from toto_robot.tokenizers.dvae import DVAE, dvae_preset, save_dvae


def test_sizes_of_the_papers_stage() -> None:
    low = preset("large")
    high = at_resolution(low, image_px=256, frames=4, rope_base=50_000)
    assert (high.tokens_per_frame, high.frames, high.context_frames, high.rope_base) == (32 * 32, 4, 4, 50_000)
    assert high.pack(torch.zeros(1, 4, 1024))[0].shape == (1, 4097)
    assert (high.width, high.layers, high.heads, high.ffn_width) == (low.width, low.layers, low.heads, low.ffn_width)
    assert high.name == "large_256px"
    assert at_resolution(low) == at_resolution(low, image_px=128) == low
    assert at_resolution(preset("nano"), image_px=96).tokens_per_frame == 144


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"image_px": 100}, "expected image_px as a multiple of the token's 8 px, got 100"),
        ({"image_px": 0}, "expected image_px as a multiple of the token's 8 px, got 0"),
        ({"rope_base": 0.0}, "expected a rope_base above 1, such as 50000"),
        ({"frames": 0}, "expected window_frames of at least 1"),
    ],
)
def test_impossible_sizes_are_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        at_resolution(preset("base"), **wrong)  # type: ignore[arg-type]


def published(folder: Path, seed: int = 0) -> Path:
    """Write a model and its tokenizer as a run leaves them."""
    save_pretrained(Toto(CONFIG, generator=torch.Generator().manual_seed(seed)), folder)
    save_dvae(DVAE(DVAE_SIZES, generator=torch.Generator().manual_seed(seed)), folder / "tokenizer")
    return folder


@torch.no_grad()
def test_the_weights_are_taken_over_and_the_rotary_base_changes_what_they_compute(tmp_path: Path) -> None:
    before = from_pretrained(published(tmp_path))
    ids, _ = CONFIG.pack(codes(2, 3))
    logits = {}
    for base in (10_000, 50_000):
        config = at_resolution(CONFIG, image_px=32, rope_base=base)
        assert config.tokens_per_frame == 16
        model = Toto(config)
        start_from(model, tmp_path, tmp_path / "tokenizer")
        assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.state_dict().items())
        logits[base] = model(ids).logits
    torch.testing.assert_close(logits[10_000], before(ids).logits)  # 13 ids, within every window of either model
    assert not torch.equal(logits[50_000], logits[10_000])


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    start, other = published(tmp_path / "a"), published(tmp_path / "b", seed=1)
    with pytest.raises(ValueError, match=r"cannot start this model \(layers 4 -> 3\)"):
        start_from(Toto(replace(CONFIG, layers=3)), start, start / "tokenizer")
    with pytest.raises(ValueError, match=r"codes of another tokenizer; give tokenizer=.*a/tokenizer"):
        start_from(Toto(CONFIG), start, other / "tokenizer")
    save_pretrained(Toto(CONFIG), tmp_path / "c")
    with pytest.raises(ValueError, match="has no tokenizer/"):
        start_from(Toto(CONFIG), tmp_path / "c", start / "tokenizer")
    with pytest.raises(ValueError, match="no model in"):
        start_from(Toto(CONFIG), tmp_path / "nowhere", start / "tokenizer")


def _largest_moves(trained: torch.nn.Module) -> dict[str, float]:
    """Return how far the entries of each weight of a Toto are from those that seed 0 draws."""
    assert isinstance(trained, Toto)
    first = Toto(trained.config, generator=torch.Generator().manual_seed(0)).state_dict()
    return {name: float((tensor - first[name]).abs().max()) for name, tensor in trained.state_dict().items()}


@pytest.mark.e2e
def test_pretrain_goes_on_at_twice_the_resolution(tmp_path: Path) -> None:
    """With a learning rate near zero the second stage must end where the first one ended.

    Both in muP with a base of twice the width: blocks learn twice as fast, which Adam's first step shows.
    """
    save_dvae(DVAE(dvae_preset("dvae_nano"), generator=torch.Generator().manual_seed(0)), tmp_path / "tokenizer")
    short = {"warmup_steps": 0, "val_samples": 2, "val_fraction": 0.5, "window_frames": 2, "mup_base": "small"}
    low = PretrainConfig(
        frames=str(frame_store(tmp_path / "low", size_px=64).path), tokenizer=str(tmp_path / "tokenizer"),
        batch_size=1, steps=1, lr=1e-3, final_lr_ratio=1.0, weight_decay=0.0, **short,
    )  # fmt: skip
    pretrain(low, tmp_path / "run")
    start = tmp_path / "run" / "pretrained_model"
    moved = _largest_moves(from_pretrained(start))
    assert moved["head.weight"] == pytest.approx(1e-3, rel=0.01)
    assert moved["blocks.3.ffn.down.weight"] == pytest.approx(2e-3, rel=0.01)
    high = PretrainConfig(
        frames=str(frame_store(tmp_path / "high", size_px=128).path), start=str(start),
        tokenizer=str(start / "tokenizer"), image_px=128, rope_base=50_000, lr=1e-9, batch_tokens=1024, micro_batch=1,
        ema_decay=0.5, wsd_decay=0.5, steps=2, **short,
    )  # fmt: skip
    pretrain(high, tmp_path / "high_run")
    first, second = from_pretrained(start), from_pretrained(tmp_path / "high_run" / "pretrained_model")
    assert isinstance(second, Toto)
    assert (second.config.tokens_per_frame, second.config.image_px, second.config.rope_base) == (256, 128, 50_000)
    for name, tensor in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], tensor, atol=1e-7, rtol=1e-6, msg=name)
    assert _largest_moves(second)["embed.weight"] > 5e-4  # it did not begin with weights of its own
    summary = json.loads((tmp_path / "high_run" / "summary.json").read_text())
    assert summary["tokens_seen"] == 2 * 1024
    encoder = load_encoder(tmp_path / "high_run" / "pretrained_model")
    assert encoder.encode(np.zeros((1, 128, 128, 3), np.uint8)).shape == (1, 256, 256)
    with pytest.raises(ValueError, match=r"other settings \(rope_base: 50000.* -> 10000"):
        pretrain(replace(high, rope_base=10_000), tmp_path / "high_run")
