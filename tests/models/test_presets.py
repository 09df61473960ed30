"""Have the named sizes the parameters, multiply-adds and shapes of the paper? (On torch's meta device.)"""

from __future__ import annotations

from math import prod

import pytest
import torch

from toto_robot.models.mae import build_mae
from toto_robot.models.presets import mae_preset, preset
from toto_robot.models.toto import Toto


def matrices(name: str) -> dict[str, int]:
    """Return the number of entries of every weight matrix, by name."""
    model = Toto(preset(name), device="meta")
    return {key: prod(tensor.shape) for key, tensor in model.named_parameters() if tensor.ndim == 2}


def multiply_adds_per_token(name: str) -> float:
    """Return the MACs of blocks and head: every weight but the embedding's once."""
    return sum(size for key, size in matrices(name).items() if key != "embed.weight")


@pytest.mark.parametrize(
    ("name", "untied_m", "tied_m", "printed_m"),
    [("base", 125.8, 119.6, 120), ("large", 285.2, 276.9, 280), ("1b", 1164.0, 1147.0, 1100)],
)
def test_counts_of_table_1(name: str, untied_m: float, tied_m: float, printed_m: float) -> None:
    """The paper prints two digits; they are those of a tied count. Three digits: facts, derived from its shapes."""
    count_m = sum(parameter.numel() for parameter in Toto(preset(name), device="meta").parameters()) / 1e6
    head_m = matrices(name)["head.weight"] / 1e6
    assert count_m == pytest.approx(untied_m, rel=1e-3)
    assert count_m - head_m == pytest.approx(tied_m, rel=1e-3)
    assert count_m - head_m == pytest.approx(printed_m, rel=0.05)


def test_multiply_adds_of_large_are_those_of_table_4() -> None:
    """Table 4 says 1.42e17 MACs for large on ImageNet-1k, 400 epochs: MACs a token, times images, times epochs."""
    assert multiply_adds_per_token("large") * 400 * 1.281167e6 == pytest.approx(1.42e17, rel=2e-3)


def test_multiply_adds_of_the_scaling_study_have_the_ratios_of_its_figure() -> None:
    """The first points of a1, a2, a3, a4, a6 in the scaling figure; with 512 positions of attention, as they fit."""
    shown = {"a1": 2.585e13, "a2": 1.084e14, "a3": 2.827e14, "a4": 5.79e14, "a6": 2.27e15}
    macs = {}
    for name in shown:
        config = preset(name)
        macs[name] = multiply_adds_per_token(name) + 2 * config.layers * config.width * 512
    for name in shown:
        assert macs[name] / macs["a1"] == pytest.approx(shown[name] / shown["a1"], rel=0.015), name


@pytest.mark.parametrize(
    ("name", "millions"),
    [("nano", 5.64), ("tiny", 16.9), ("small", 41.9), ("a1", 21.0), ("a2", 83.9), ("a3", 214), ("a4", 436)],
)
def test_counts_of_the_sizes_the_paper_does_not_count(name: str, millions: float) -> None:
    """As in the table of presets; a3 agrees with the count recalled for it (215 M), the others of Table 15 do not."""
    count = sum(parameter.numel() for parameter in Toto(preset(name), device="meta").parameters())
    assert count / 1e6 == pytest.approx(millions, rel=5e-3)


def test_sizes_grow_along_each_series() -> None:
    for series in (("nano", "tiny", "small", "base", "large", "1b"), ("a1", "a2", "a3", "a4", "a5", "a6")):
        totals = [sum(matrices(name).values()) for name in series]
        assert totals == sorted(totals)
    for name in ("a1", "a2", "a3", "a4", "a5", "a6"):
        config = preset(name)
        assert (config.heads, config.visual_vocab, config.ffn_width) == (16, 16384, 4 * config.width)


def test_every_preset_has_16_frames_of_4096_tokens_but_the_demo() -> None:
    for name in ("tiny", "small", "base", "large", "1b", "a1", "a6"):
        config = preset(name)
        assert config.frames * config.tokens_per_frame == 4096
        stride_px = 16 if name.startswith("a") else 8
        assert config.tokens_per_frame == (config.image_px // stride_px) ** 2
    assert preset("nano").frames * preset("nano").tokens_per_frame == 1024


@pytest.mark.parametrize("name", ["nano", "tiny", "small"])
def test_mae_has_the_shape_and_the_parameters_of_totos_blocks(name: str) -> None:
    mae, toto = mae_preset(name), preset(name)
    for size in ("width", "layers", "heads", "image_px", "tokens_per_frame"):
        assert getattr(mae, size) == getattr(toto, size), size
    blocks = sum(parameter.numel() for parameter in Toto(toto, device="meta").blocks.parameters())
    assert sum(p.numel() for p in build_mae(mae).vit.layers.parameters()) == pytest.approx(blocks, rel=0.005)


@pytest.mark.parametrize(
    ("name", "blocks_m", "all_m"),
    [("nano", 5.13, 5.64), ("tiny", 10.65, 11.7), ("small", 33.6, 37.1), ("vit_s16", 21.3, 47.4)],
)
def test_counts_of_mae_are_those_of_the_table(name: str, blocks_m: float, all_m: float) -> None:
    model = build_mae(mae_preset(name))
    assert sum(p.numel() for p in model.vit.layers.parameters()) / 1e6 == pytest.approx(blocks_m, rel=5e-3)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6 == pytest.approx(all_m, rel=5e-3)


def test_vit_b16_is_the_published_mae() -> None:
    """With the fixed positions; transformers and timm count the same."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    with torch.device("meta"):
        theirs = ViTMAEForPreTraining(ViTMAEConfig())
        ours = build_mae(mae_preset("vit_b16"))
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    assert sum(p.numel() for p in ours.parameters()) == 111_907_840
    assert sum(p.numel() for p in ours.vit.parameters()) == 85_798_656
