"""Does the VQGAN keep its promises as a tokenizer: shapes, errors, precision, disk, and a place in a Toto encoder?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from toto_robot.encoders.load import load_encoder
from toto_robot.encoders.toto import TotoEncoder
from toto_robot.models.toto import Toto, TotoConfig
from toto_robot.tokenizers.base import Tokenizer
from toto_robot.tokenizers.dvae import DVAE, DVAEConfig, save_dvae
from toto_robot.tokenizers.load import load_tokenizer, save_tokenizer
from toto_robot.tokenizers.vqgan import (
    VQGAN,
    VQGANConfig,
    frames_to_input,
    load_vqgan,
    save_vqgan,
    vqgan_preset,
)

CONFIG = VQGANConfig(
    name="test", vocab=24, width=32, multipliers=(1, 1, 1, 1, 1), blocks=1, latent_width=8, code_width=4
)  # fmt: skip


@torch.no_grad()
def make(seed: int = 0) -> VQGAN:
    """Return a small random VQGAN whose table holds latents of `images`, so that its codes vary."""
    model = VQGAN(CONFIG, generator=torch.Generator().manual_seed(seed)).eval()
    rows = model.latents(frames_to_input(images(8), model.stride)).permute(0, 2, 3, 1).flatten(0, 2)
    model.quantize.embedding.weight.copy_(rows[:24])
    return model


def images(batch: int = 4, h: int = 64, w: int = 48) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randint(256, (batch, h // 8, w // 8, 3), dtype=torch.uint8, generator=generator)
    return coarse.repeat_interleave(8, 1).repeat_interleave(8, 2)


def test_codes_and_pictures_have_the_right_form() -> None:
    model: Tokenizer = make()
    codes = model.encode(images())
    assert codes.shape == (4, 4, 3) and codes.dtype == torch.int64 and model.stride == 16
    assert codes.unique().numel() > 5 and codes.max() < model.vocab == 24
    pictures = model.decode(codes)
    assert pictures.shape == (4, 64, 48, 3) and pictures.dtype == torch.uint8
    assert pictures.float().std() > 1


@torch.no_grad()
def test_the_code_is_the_nearest_row(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    latents = model.latents(frames_to_input(images(), 16)).permute(0, 2, 3, 1).flatten(0, 2)
    nearest = torch.cdist(latents.double(), model.quantize.embedding.weight.double()).argmin(dim=1)
    assert torch.equal(model.encode(images()).flatten(), nearest)
    monkeypatch.setattr("toto_robot.tokenizers.vqgan._ROWS", 7)  # a piece at a time, the last one short
    assert torch.equal(model.encode(images()).flatten(), nearest)


def test_a_frame_is_encoded_on_its_own() -> None:
    model = make()
    assert torch.equal(model.encode(images()), torch.cat([model.encode(image[None]) for image in images()]))


@torch.no_grad()
def test_bf16_keeps_the_latents_in_float32_and_close() -> None:
    model, mapped = make(), frames_to_input(images(), 16)
    exact = model.latents(mapped)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model.latents(mapped)
        codes = model.encode(images())
        assert model.decode(codes).dtype == torch.uint8
    assert half.dtype == torch.float32
    assert 0 < (half - exact).abs().max() < 0.05 * exact.abs().max()
    assert (codes == model.encode(images())).float().mean() > 0.7


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.zeros(1, 32, 32, 3), "expected uint8"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "expected uint8"),
        (torch.zeros(1, 24, 32, 3, dtype=torch.uint8), "multiples of 16"),
    ],
)
def test_wrong_images_are_refused(wrong: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make().encode(wrong)


def test_it_comes_back_from_disk_and_its_hash_names_it(tmp_path: Path) -> None:
    model = make()
    save_vqgan(model, tmp_path)
    loaded = load_vqgan(tmp_path)
    assert loaded.config == CONFIG and not loaded.training
    assert torch.equal(loaded.encode(images()), model.encode(images()))
    assert loaded.fingerprint() == model.fingerprint() != make(seed=1).fingerprint()
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "vqgan"
    (tmp_path / "config.json").write_text(json.dumps({**config, "vocab": 32}))
    with pytest.raises(ValueError, match=r"embedding\.weight is \(24, 4\) in the file, \(32, 4\) in the model"):
        load_vqgan(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "colour": "red"}))
    with pytest.raises(ValueError, match="not a VQGAN configuration"):
        load_vqgan(tmp_path)


def test_a_folder_says_which_tokenizer_it_holds(tmp_path: Path) -> None:
    dvae = DVAE(DVAEConfig(name="test", hidden=8, blocks_per_group=1, vocab=24, decoder_init=8))
    for tokenizer in (dvae, make()):
        save_tokenizer(tokenizer, tmp_path)
        loaded = load_tokenizer(tmp_path)
        assert type(loaded) is type(tokenizer) and loaded.fingerprint() == tokenizer.fingerprint()
    save_dvae(dvae, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "mae"}))
    with pytest.raises(ValueError, match="holds a mae, expected a tokenizer"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_toto_encoder_runs_on_it_and_comes_back(tmp_path: Path, precision: str) -> None:
    sizes = TotoConfig(
        name="test", width=32, layers=2, heads=2, ffn_width=64, frames=4, context_frames=4, visual_vocab=24,
        tokens_per_frame=16, image_px=64,
    )  # fmt: skip
    model = make()
    backbone = Toto(sizes, generator=torch.Generator().manual_seed(0))
    encoder = TotoEncoder(
        backbone, model, name="toto", layers=[1], context_frames=4, device=torch.device("cpu"), precision=precision
    )
    clip = images(6, 64, 64).view(2, 3, 64, 64, 3)
    features = encoder.encode_clip(clip)
    assert features.shape == (2, 3, 16, 32) and features.isfinite().all()
    assert model.quantize.embedding.weight.dtype == torch.float32
    used = [model.encoder, model.quant_conv, model.quantize, backbone.embed, backbone.blocks[0]]
    assert encoder.parameters == sum(p.numel() for part in used for p in part.parameters())
    if precision == "fp32":
        assert torch.equal(encoder.codes(clip[0]), model.encode(clip[0]).flatten(1))
    encoder.save(tmp_path)
    loaded = load_encoder(tmp_path, layer=1, precision=precision)
    assert loaded.fingerprint == encoder.fingerprint
    assert torch.equal(loaded.encode_clip(clip), features)


def test_presets_and_impossible_sizes() -> None:
    assert vqgan_preset("vqgan_16384").vocab == 16384 and vqgan_preset("vqgan_1024").widths == (128, 128, 256, 256, 512)
    with pytest.raises(ValueError, match="vqgan_1024, vqgan_16384"):
        vqgan_preset("dvae")
    for wrong, message in (
        ({"width": 48}, "multiple of 32"), ({"vocab": 0}, "at least 1"), ({"multipliers": ()}, "at least 1"),
        ({"attention_levels": (5,)}, r"0\.\.4"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            VQGANConfig(**{"name": "odd", "vocab": 8, **wrong})  # type: ignore[arg-type]
