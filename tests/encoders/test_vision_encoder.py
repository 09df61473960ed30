"""Do other people's vision backbones give through our protocol what their own code gives?"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.encoders.small import frames
from toto_robot.encoders.load import load_encoder
from toto_robot.encoders.vision import cut_blocks, patch_tokens

TINY = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}


def save_hf(folder: Path, kind: str = "vit", **settings: Any) -> Any:
    """Write a random model as transformers does, every parameter random."""
    import transformers as hf

    torch.manual_seed(0)
    config = {
        "vit": lambda: hf.ViTConfig(**TINY, image_size=32, patch_size=8, **settings),
        "dinov2": lambda: hf.Dinov2WithRegistersConfig(
            hidden_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            mlp_ratio=2,
            image_size=28,
            patch_size=14,
            num_register_tokens=3,
        ),
        "resnet": lambda: hf.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], layer_type="basic", hidden_act="relu"
        ),
        "mae": lambda: hf.ViTMAEConfig(**TINY, image_size=32, patch_size=8),
        "bert": lambda: hf.BertConfig(**TINY, vocab_size=40),
    }[kind]()
    model = hf.AutoModel.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return model


def write_processor(folder: Path, **settings: Any) -> None:
    told = {"image_processor_type": "ViTImageProcessor", "image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7]}
    (folder / "preprocessor_config.json").write_text(json.dumps({**told, **settings}))


def pixels_by_hand(images: torch.Tensor) -> torch.Tensor:
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.5, 0.6, 0.7])
    return ((images / 255 - mean) / std).permute(0, 3, 1, 2)


@torch.no_grad()
def test_a_vit_gives_the_patches_of_every_layer_and_its_own_preprocessing(tmp_path: Path) -> None:
    model = save_hf(tmp_path)
    write_processor(tmp_path, size={"height": 32, "width": 32})
    theirs = model(pixel_values=pixels_by_hand(frames(2, px=32)), output_hidden_states=True)
    for layer in range(4):
        encoder = load_encoder("hf", path=tmp_path, layer=layer, precision="fp32")
        assert (encoder.image_px, encoder.tokens_per_frame, encoder.width) == (32, 16, 16)
        expected = theirs.last_hidden_state if layer == 3 else theirs.hidden_states[layer]
        torch.testing.assert_close(encoder.encode(frames(2, px=32)), expected[:, 1:], atol=1e-5, rtol=1e-5)
    both = load_encoder("hf", path=tmp_path, layer=[1, 3], precision="fp32")
    assert both.encode(frames(2, px=32)).shape == (2, 16, 32)
    counts = [load_encoder("hf", path=tmp_path, layer=layer).parameters for layer in (0, 1, 3)]
    assert counts[0] < counts[1] < counts[2]  # blocks above are not run


@torch.no_grad()
def test_registers_are_dropped_and_other_sizes_are_met(tmp_path: Path) -> None:
    model = save_hf(tmp_path, "dinov2")
    write_processor(tmp_path, crop_size={"height": 28, "width": 28}, do_center_crop=True, size={"shortest_edge": 40})
    theirs = model(pixel_values=pixels_by_hand(frames(2, px=28))).last_hidden_state
    encoder = load_encoder("hf", path=tmp_path, precision="fp32")
    assert theirs.shape[1] == 1 + 3 + 4
    torch.testing.assert_close(encoder.encode(frames(2, px=28)), theirs[:, 4:], atol=1e-5, rtol=1e-5)
    larger = load_encoder("hf", path=tmp_path, image_px=56)
    assert larger.tokens_per_frame == 16 and larger.fingerprint != encoder.fingerprint


@torch.no_grad()
def test_a_convolutional_network_gives_its_feature_map_in_raster_order(tmp_path: Path) -> None:
    model = save_hf(tmp_path, "resnet")
    encoder = load_encoder("hf", path=tmp_path, image_px=32, precision="fp32")
    write_processor(tmp_path)
    encoder = load_encoder("hf", path=tmp_path, image_px=32, precision="fp32")
    theirs = model(pixel_values=pixels_by_hand(frames(2, px=32))).last_hidden_state  # (B, D, h, w)
    torch.testing.assert_close(encoder.encode(frames(2, px=32)), theirs.flatten(2).transpose(1, 2))


def test_a_saved_one_needs_its_source_no_more(tmp_path: Path) -> None:
    save_hf(tmp_path / "source")
    write_processor(tmp_path / "source", size=32)
    encoder = load_encoder("hf", path=tmp_path / "source", layer=1, precision="bf16")
    encoder.save(tmp_path / "bundle")
    (tmp_path / "source" / "config.json").unlink()
    again = load_encoder(tmp_path / "bundle", **encoder.settings())  # type: ignore[arg-type]
    assert again.fingerprint == encoder.fingerprint
    assert torch.equal(again.encode(frames(2)), encoder.encode(frames(2)))
    assert str(tmp_path) not in (tmp_path / "bundle" / "config.json").read_text()


def test_mistakes_say_what_to_do(tmp_path: Path) -> None:
    for kind in ("mae", "bert", "vit"):
        save_hf(tmp_path / kind, kind)
    torch.save({}, tmp_path / "vit" / "pytorch_model.bin")
    (tmp_path / "vit" / "model.safetensors").unlink()
    for arguments, told in (
        ({"path": tmp_path / "mae"}, "import-encoder"),
        ({"path": tmp_path / "bert"}, "no vision model"),
        ({"path": tmp_path / "vit"}, "safetensors"),  # a pickle is not read
        ({"path": "nobody/has-this"}, "nothing is downloaded"),
        ({}, "needs path="),
        ({"path": tmp_path / "mae", "context_frames": 3}, "no memory"),
    ):
        with pytest.raises(ValueError, match=told):
            load_encoder("hf", **arguments)  # type: ignore[arg-type]


@torch.no_grad()
def test_pixels_are_normalised_only_where_the_processor_says_so(tmp_path: Path) -> None:
    model = save_hf(tmp_path)
    write_processor(tmp_path, do_normalize=False)
    images = frames(2, px=32)
    plain = model((torch.as_tensor(images) / 255).permute(0, 3, 1, 2), output_hidden_states=True)
    encoder = load_encoder("hf", path=tmp_path, layer=1, precision="fp32")
    torch.testing.assert_close(encoder.encode(images), plain.hidden_states[1][:, 1:], rtol=1e-4, atol=1e-4)
    write_processor(tmp_path, do_flip_channel_order=True)
    with pytest.raises(ValueError, match="blue before red"):
        load_encoder("hf", path=tmp_path)


def test_patches_are_told_from_what_stands_before_them() -> None:
    hidden = torch.arange(17.0).view(1, 17, 1)
    assert patch_tokens(hidden, 16)[0, :, 0].tolist() == list(range(1, 17))
    assert patch_tokens(hidden, None).shape == (1, 16, 1) == patch_tokens(hidden, 64).shape
    assert patch_tokens(hidden[:, :16], None).shape == (1, 16, 1)
    assert patch_tokens(torch.zeros(1, 5, 2, 2), 16).shape == (1, 4, 5)
    with pytest.raises(ValueError, match="15 tokens"):
        patch_tokens(hidden[:, :15], None)


def test_only_the_list_of_blocks_is_cut() -> None:
    class Stage(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(1, 1) for _ in range(2))

    class Net(nn.Module):
        def __init__(self, stages: int) -> None:
            super().__init__()
            self.stages = nn.ModuleList(Stage() for _ in range(stages))

    assert [len(stage.blocks) for stage in cut_blocks(Net(2), 2, 1).stages] == [2]  # type: ignore[union-attr, arg-type]
    assert [len(stage.blocks) for stage in cut_blocks(Net(3), 2, 1).stages] == [2, 2, 2]  # type: ignore[union-attr, arg-type]


def test_nothing_of_it_is_imported_unless_it_is_used() -> None:
    code = (
        "import sys; from toto_robot.encoders.load import load_encoder; load_encoder('none');"
        "print([name for name in ('transformers', 'timm', 'torchvision') if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"
