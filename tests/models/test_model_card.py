"""Does a model's folder say what it is and saw, and is its compute what a profiler counts?"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.models.small import CONFIG, MAE, codes, make
from toto_robot.models.compute import mae_training_flops, toto_training_flops
from toto_robot.models.hub import from_pretrained, save_pretrained
from toto_robot.models.mae import build_mae
from toto_robot.models.model_card import ModelCard
from toto_robot.models.presets import preset

CARD = ModelCard(
    data="my videos", clips=3, data_frames=1200, hours=0.0167, seen=2_048_000, unit="tokens", steps=500, flops=7.7e13,
    commit="abc1234", seed=0, validation={"loss": "1.23 nats per token"},
)  # fmt: skip


def counted(step: object) -> int:
    """Return the FLOPs that torch counts; with the plain attention, whose backward recomputes nothing."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step()  # type: ignore[operator]
    return counter.get_total_flops()


def test_toto_flops_are_what_torch_counts() -> None:
    model, video = make(CONFIG), codes(2, CONFIG.context_frames)
    config = model.config.__class__(**{**vars(CONFIG), "frames": CONFIG.context_frames})
    inputs, targets = config.pack(video)

    def step() -> None:
        F.cross_entropy(model(inputs).logits.flatten(0, 1), targets.flatten()).backward()

    assert toto_training_flops(config, video.numel()) == pytest.approx(counted(step), rel=1e-12)


def test_mae_flops_are_what_torch_counts() -> None:
    model = build_mae(MAE)
    images = torch.rand(3, 3, MAE.image_px, MAE.image_px)
    assert mae_training_flops(MAE, 3) == pytest.approx(counted(lambda: model(images).loss.backward()), rel=1e-12)


def test_base_needs_six_flops_a_weight_and_token_and_attention() -> None:
    """The figure everyone uses, 6 N a token, and on top 12 L T D for a context of 4096."""
    base = preset("base")
    weights = 12 * (4 * 768**2 + 3 * 768 * 3072) + 768 * base.vocab_size
    assert toto_training_flops(base, 10**6) == pytest.approx(1e6 * (6 * weights + 12 * 12 * 4096 * 768), rel=1e-3)


def test_the_card_stands_beside_the_weights_and_says_what_was_seen(tmp_path: Path) -> None:
    save_pretrained(make(), tmp_path, CARD)
    assert from_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    header = yaml.safe_load(text.split("---")[1])
    assert header == {"license": "unknown", "library_name": "toto_robot", "tags": ["toto", "video", "robotics"]}
    for words in (
        "# Toto test", "| parameters | 36,640 |", "| tokens seen | 2,048,000 |", "3 clips, 1,200 frames, 0.02 hours",
        "7.7e+13 FLOP (2 per multiply-add", "| commit | abc1234 |", "| loss | 1.23 nats per token |", "| width | 32 |",
        "load_encoder(", "Not stated. The code is Apache-2.0",
    ):  # fmt: skip
        assert words in text, words
    assert sum(parameter.numel() for parameter in make().parameters()) == 36_640


def test_the_card_of_mae_and_what_is_not_known(tmp_path: Path) -> None:
    card = ModelCard(data="?", seen=64, unit="images", steps=1, flops=0.0, licence="apache-2.0")
    save_pretrained(build_mae(MAE), tmp_path, card)
    text = (tmp_path / "README.md").read_text()
    assert yaml.safe_load(text.split("---")[1])["license"] == "apache-2.0"
    for words in ("# MAE test", "| images seen | 64 |", "| commit | unknown |", "| held out | nothing was |"):
        assert words in text, words
    with pytest.raises(ValueError, match=r'"tokens" or "images", got .frames'):
        ModelCard(data="?", seen=1, unit="frames", steps=1, flops=0.0)
