"""Does the dVAE keep its promises as a tokenizer: shapes, errors, precision, disk?"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from toto_robot.tokenizers.base import Tokenizer
from toto_robot.tokenizers.dvae import DVAE, DVAEConfig, dvae_preset, frames_to_input, load_dvae, save_dvae

CONFIG = DVAEConfig(name="test", hidden=8, blocks_per_group=1, vocab=24, decoder_init=8)


def make(seed: int = 0) -> DVAE:
    """Return a small random dVAE whose codes vary: the mean logits over `images` are taken off."""
    model = DVAE(CONFIG, generator=torch.Generator().manual_seed(seed)).eval()
    with torch.no_grad():
        model.encoder.blocks.output.conv.bias -= model.encoder(frames_to_input(images())).mean(dim=(0, 2, 3))
    return model


def images(batch: int = 4, h: int = 32, w: int = 24) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (batch, h, w, 3), dtype=torch.uint8, generator=generator)


def test_codes_and_pictures_have_the_right_form() -> None:
    model: Tokenizer = make()
    codes = model.encode(images())
    assert codes.shape == (4, 4, 3) and codes.dtype == torch.int64
    assert codes.unique().numel() > 5 and codes.max() < model.vocab == 24 and model.stride == 8
    pictures = model.decode(codes)
    assert pictures.shape == (4, 32, 24, 3) and pictures.dtype == torch.uint8
    assert pictures.float().std() > 1


@torch.no_grad()
def test_decoding_codes_equals_decoding_one_hots() -> None:
    model = make()
    codes = model.encode(images())
    one_hot = F.one_hot(codes, 24).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(model.decoder.from_codes(codes), model.decoder(one_hot), atol=1e-5, rtol=1e-5)


def test_a_frame_is_encoded_on_its_own() -> None:
    model = make()
    together = model.encode(images())
    assert torch.equal(together, torch.cat([model.encode(image[None]) for image in images()]))


@torch.no_grad()
def test_bf16_keeps_the_logits_in_float32_and_close() -> None:
    model, mapped = make(), frames_to_input(images())
    exact = model.encoder(mapped)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model.encoder(mapped)
    assert half.dtype == torch.float32
    assert 0 < (half - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.zeros(1, 32, 32, 3), "expected uint8"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "expected uint8"),
        (torch.zeros(1, 30, 32, 3, dtype=torch.uint8), "multiples of 8"),
    ],
)
def test_wrong_images_are_refused(wrong: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make().encode(wrong)


def test_it_comes_back_from_disk_and_its_hash_names_it(tmp_path: Path) -> None:
    model = make()
    save_dvae(model, tmp_path)
    loaded = load_dvae(tmp_path)
    assert loaded.config == CONFIG and not loaded.training
    assert torch.equal(loaded.encode(images()), model.encode(images()))
    assert loaded.fingerprint() == model.fingerprint() != make(seed=1).fingerprint()
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "dvae"
    (tmp_path / "config.json").write_text(json.dumps({**config, "vocab": 32}))
    with pytest.raises(ValueError, match=r"output\.conv\.weight is \(24, 64, 1, 1\) in the file, \(32, 64, 1, 1\)"):
        load_dvae(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "colour": "red"}))
    with pytest.raises(ValueError, match="not a dVAE configuration"):
        load_dvae(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "toto"}))
    with pytest.raises(ValueError, match=r"type 'dvae'.*'toto'"):
        load_dvae(tmp_path)


def test_presets() -> None:
    assert dvae_preset("dvae").vocab == 8192 and dvae_preset("dvae_nano").hidden == 32
    with pytest.raises(ValueError, match="dvae, dvae_nano"):
        dvae_preset("vqgan")
    with pytest.raises(ValueError, match="multiple of 4"):
        DVAEConfig(name="odd", hidden=6, blocks_per_group=1, vocab=8, decoder_init=8)


def test_local_codes_depend_on_their_own_pixels_only() -> None:
    sizes = replace(CONFIG, encoder="local", vocab=64)
    model = DVAE(sizes, generator=torch.Generator().manual_seed(0)).eval()
    before = images(h=32, w=32)
    after = before.clone()
    after[:, 8:16, 16:24] = 255 - after[:, 8:16, 16:24]  # one patch, row 1 and column 2, changes
    logits = [model.encoder(frames_to_input(frames)) for frames in (before, after)]
    changed = (logits[0] - logits[1]).abs().amax(dim=(0, 1)) > 0
    assert changed.nonzero().tolist() == [[1, 2]]


def test_local_encoder_survives_the_disk(tmp_path: Path) -> None:
    model = DVAE(replace(CONFIG, encoder="local"), generator=torch.Generator().manual_seed(0)).eval()
    save_dvae(model, tmp_path)
    assert torch.equal(load_dvae(tmp_path).encode(images()), model.encode(images()))
    with pytest.raises(ValueError, match="dalle or local"):
        replace(CONFIG, encoder="wide")


def test_a_new_option_at_its_default_leaves_the_hash_of_old_folders_alone(tmp_path: Path) -> None:
    config = DVAEConfig(name="test", hidden=8, blocks_per_group=1, vocab=8, decoder_init=8)
    save_dvae(DVAE(config, generator=torch.Generator().manual_seed(0)), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()).keys() == {
        "model_type", "name", "hidden", "blocks_per_group", "vocab", "decoder_init",
    }  # fmt: skip
    wide = replace(config, decoder_hidden=16, decoder_blocks_per_group=2)
    model = DVAE(wide, generator=torch.Generator().manual_seed(0))
    assert model.decoder.blocks[-1].conv.weight.shape == (6, 16, 1, 1)
    save_dvae(model, tmp_path)
    assert load_dvae(tmp_path).config == wide
    with pytest.raises(ValueError, match="every size at least 1"):
        replace(config, decoder_hidden=6)
