"""Does muP keep the base as it is, scale what grows with the width, and survive saving, loading and export?"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.models.small import CONFIG, codes
from toto_robot.models.hub import export_llama, from_pretrained, save_pretrained
from toto_robot.models.mup import learning_rate_scales, with_mup
from toto_robot.models.presets import preset
from toto_robot.models.toto import Toto, TotoConfig

WIDE = replace(CONFIG, width=128, ffn_width=192)  # four times the width, the same two heads
MORE_HEADS = replace(WIDE, heads=8)  # the same head dimension


def build(config: TotoConfig) -> Toto:
    return Toto(config, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_the_base_itself_is_the_standard_model_to_the_bit() -> None:
    standard, base = build(CONFIG), build(with_mup(CONFIG, CONFIG))
    assert all(torch.equal(tensor, base.state_dict()[name]) for name, tensor in standard.state_dict().items())
    ids, _ = CONFIG.pack(codes(2, 5))
    assert torch.equal(standard(ids).logits, base(ids).logits)
    assert set((learning_rate_scales(base.named_parameters(), base.config) or {}).values()) == {1.0}
    assert learning_rate_scales(standard.named_parameters(), CONFIG) is None


@pytest.mark.parametrize("config", [WIDE, MORE_HEADS])
def test_only_what_grows_both_ways_starts_smaller_and_learns_slower(config: TotoConfig) -> None:
    model = build(with_mup(config, CONFIG))
    scales = learning_rate_scales(model.named_parameters(), model.config)
    assert scales is not None
    slow = {name for name, scale in scales.items() if scale == 0.25}
    assert slow == {name for name in model.state_dict() if name.startswith("blocks.") and "norm" not in name}
    assert {scale for name, scale in scales.items() if name not in slow} == {1.0}
    residual = 1 / math.sqrt(2 * CONFIG.layers)
    for name, expected in {
        "embed.weight": 0.02, "head.weight": 0.02, "blocks.1.attention.qkv.weight": 0.01,
        "blocks.1.ffn.gate_up.weight": 0.01, "blocks.1.attention.out.weight": 0.01 * residual,
        "blocks.1.ffn.down.weight": 0.01 * residual,
    }.items():  # fmt: skip
        assert model.state_dict()[name].std().item() == pytest.approx(expected, rel=0.05), name


@torch.no_grad()
def test_attention_divides_by_the_head_dimension_and_the_head_by_the_width() -> None:
    """Twice the head dimension, all features doubled up: dot products double, so 1 / K keeps the weights, 1 / m logits.

    Every unit of the narrow model exists twice in the wide one, and matrices in blocks are halved to make up for it.
    """
    narrow = build(replace(CONFIG, rope_base=1.0))  # one rotary frequency, so that twice the features turn alike
    wide_config = with_mup(replace(narrow.config, width=64, ffn_width=96), narrow.config)
    wide = Toto(wide_config)
    for name, tensor in narrow.state_dict().items():
        tensor = tensor * 4 if tensor.ndim > 1 else tensor  # far from uniform attention
        narrow.state_dict()[name].copy_(tensor)
        if name == "norm.weight" or name.endswith("norm.weight"):
            doubled = tensor.repeat_interleave(2)
        elif name in ("embed.weight", "head.weight"):
            doubled = tensor.repeat_interleave(2, dim=1)
        else:
            doubled = tensor.repeat_interleave(2, dim=0).repeat_interleave(2, dim=1) / 2
        wide.state_dict()[name].copy_(doubled)
    ids, _ = CONFIG.pack(codes(2, 6))
    expected = narrow(ids).logits
    torch.testing.assert_close(wide(ids).logits, expected, atol=1e-4, rtol=1e-4)
    wide.norm.multiplier = 1.0
    assert not torch.allclose(wide(ids).logits, expected, atol=1e-2)
    wide.norm.multiplier = 0.5
    for block in wide.blocks:
        block.attention.scale = None
    assert not torch.allclose(wide(ids).logits, expected, atol=1e-3)


@torch.no_grad()
def test_a_saved_model_and_an_exported_llama_are_the_same_function(tmp_path: Path) -> None:
    config = with_mup(replace(WIDE, context_frames=8), CONFIG)
    model = build(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.mul_(6)
    ids, _ = config.pack(codes(2, 5))
    save_pretrained(model, tmp_path)
    loaded = from_pretrained(tmp_path)
    assert isinstance(loaded, Toto) and loaded.config == config
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    torch.testing.assert_close(export_llama(model)(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-4)
    save_pretrained(build(CONFIG), tmp_path / "standard")
    assert not [key for key in json.loads((tmp_path / "standard" / "config.json").read_text()) if "mup" in key]


@torch.no_grad()
def test_stream_and_batch_agree_in_mup() -> None:
    model = build(with_mup(WIDE, CONFIG))
    video = codes(2, 7)
    batch = model(model.pack(video)[0], layers=(4,), logits=False).features[4][:, 1:]
    ring = model.ring(2)
    frames = [
        model(video[:, frame] + CONFIG.first_visual_id, layers=(4,), logits=False, cache=ring).features[4]
        for frame in range(7)
    ]
    torch.testing.assert_close(torch.cat(frames, dim=1), batch, atol=1e-5, rtol=1e-5)


def test_every_preset_takes_mup_and_half_a_base_is_refused() -> None:
    for name in ("tiny", "small", "base", "large", "1b"):
        assert Toto(with_mup(preset(name), preset("nano")), device="meta").norm.multiplier < 1
    scales = [Toto(with_mup(preset(f"a{n}"), preset("a1")), device="meta").blocks[0].attention.scale for n in (1, 2, 4)]
    assert scales == [None, 4 / 32, 4 / 64]
    for wrong in ({"mup_base_width": 32}, {"mup_base_head_dim": 16}, {"mup_base_width": 0, "mup_base_head_dim": 16}):
        with pytest.raises(ValueError, match="muP needs mup_base_width and mup_base_head_dim"):
            replace(CONFIG, **wrong)
