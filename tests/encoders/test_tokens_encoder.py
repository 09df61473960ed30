"""Does a tokenizer on its own give what its codes mean to its decoder?"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.encoders.small import frames
from toto_robot.encoders.load import load_encoder
from toto_robot.tokenizers.dvae import DVAE, DVAEConfig, save_dvae
from toto_robot.tokenizers.load import load_tokenizer
from toto_robot.tokenizers.vqgan import VQGAN, VQGANConfig, save_vqgan

DVAE_SIZES = DVAEConfig(name="test", hidden=8, blocks_per_group=1, vocab=50, decoder_init=6)
VQGAN_SIZES = VQGANConfig(
    name="test", vocab=40, width=32, multipliers=(1, 2), blocks=1, attention_levels=(), latent_width=8, code_width=6
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokenizers")
    save_dvae(DVAE(DVAE_SIZES, generator=torch.Generator().manual_seed(1)), root / "dvae")
    save_vqgan(VQGAN(VQGAN_SIZES, generator=torch.Generator().manual_seed(1)), root / "vqgan")
    return {name: root / name for name in ("dvae", "vqgan")}


@torch.no_grad()
def test_features_are_all_that_the_decoder_is_told(folders: dict[str, Path]) -> None:
    """Feeding them to what stands behind the table gives the pictures that decoding the codes gives."""
    for name, folder in folders.items():
        encoder, tokenizer = load_encoder(name, path=folder, precision="fp32"), load_tokenizer(folder)
        assert encoder.fingerprint == load_encoder(folder, precision="fp32").fingerprint
        assert encoder.name == name and encoder.width == 6 and encoder.layers == (0,)
        pictures = frames(3, px=encoder.image_px)
        side = encoder.image_px // tokenizer.stride
        rows = encoder.encode(pictures).transpose(1, 2).unflatten(2, (side, side))  # (B, D, h, w)
        codes = tokenizer.encode(pictures)
        if isinstance(tokenizer, DVAE):
            bias = tokenizer.decoder.blocks[0].bias
            told = tokenizer.decoder.trunk(rows + bias[:, None, None])
            expected = tokenizer.decoder.from_codes(codes)
        else:
            told, expected = tokenizer.decoder(tokenizer.post_quant_conv(rows)), tokenizer.pixels(codes)
        torch.testing.assert_close(told, expected, atol=1e-5, rtol=1e-5)


def test_a_saved_one_loads_as_itself_and_size_and_precision_are_part_of_it(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    encoder = load_encoder("dvae", path=folders["dvae"], image_px=32, precision="bf16")
    assert encoder.image_px == 32 and encoder.tokens_per_frame == 16
    encoder.save(tmp_path)
    again = load_encoder(tmp_path, **encoder.settings())  # type: ignore[arg-type]
    assert again.fingerprint == encoder.fingerprint
    assert torch.equal(again.encode(frames(2)), encoder.encode(frames(2)))
    others = [load_encoder("dvae", path=folders["dvae"], image_px=px, precision="fp32") for px in (32, 64)]
    assert len({encoder.fingerprint, *(other.fingerprint for other in others)}) == 3
    clip = frames(4).reshape(2, 2, 16, 16, 3)
    stream = encoder.stream(2)
    by_stream = torch.stack([stream.step(clip[:, t]) for t in range(2)], dim=1)
    assert torch.equal(by_stream, encoder.encode_clip(clip))


def test_mistakes_say_what_to_do(folders: dict[str, Path]) -> None:
    for arguments, told in (
        ({"path": folders["vqgan"]}, "holds a vqgan"),
        ({"path": folders["dvae"], "image_px": 30}, "multiple of the tokenizer's 8 px"),
        ({"path": folders["dvae"], "layer": 1}, "one layer"),
        ({"path": folders["dvae"], "context_frames": 2}, "no memory"),
        ({}, "needs path="),
    ):
        with pytest.raises(ValueError, match=told):
            load_encoder("dvae", **arguments)  # type: ignore[arg-type]
