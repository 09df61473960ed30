"""Is our dVAE OpenAI's, module by module?"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from toto_robot.tokenizers.dvae import DVAE, DVAEConfig, dvae_preset, map_pixels, unmap_pixels


def reference(module: str) -> Any:
    """Import a module of the DALL-E package past its `__init__`, which wants an HTTP client for downloads."""
    if "dall_e" not in sys.modules:
        spec = importlib.util.find_spec("dall_e")
        assert spec is not None, "no reference: pip install --no-deps DALL-E==0.1 attrs (`make setup` does)"
        package = importlib.util.module_from_spec(spec)  # made, not executed
        sys.modules["dall_e"] = package
    return importlib.import_module(f"dall_e.{module}")


def renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Call .w and .b what torch calls them."""
    names = {"w": "weight", "b": "bias"}
    return {f"{key.rpartition('.')[0]}.{names[key.rpartition('.')[2]]}": tensor for key, tensor in state.items()}


@torch.no_grad()
@pytest.mark.parametrize("blocks", [1, 2])
def test_copied_weights_give_the_same_logits_codes_and_pictures(blocks: int) -> None:
    torch.manual_seed(blocks)
    encoder = reference("encoder").Encoder(n_hid=64, n_blk_per_group=blocks, vocab_size=512)
    decoder = reference("decoder").Decoder(n_init=16, n_hid=64, n_blk_per_group=blocks, vocab_size=512)
    images = torch.randint(256, (2, 32, 40, 3), dtype=torch.uint8)
    utils = reference("utils")
    mapped = utils.map_pixels(images.permute(0, 3, 1, 2).float() / 255)
    encoder.blocks.output.conv.b -= encoder(mapped).mean(dim=(0, 2, 3))  # random weights favour a few codes otherwise
    config = DVAEConfig(name="test", hidden=64, blocks_per_group=blocks, vocab=512, decoder_init=16)
    ours = DVAE(config)
    ours.encoder.load_state_dict(renamed(encoder.state_dict()))
    ours.decoder.load_state_dict(renamed(decoder.state_dict()))
    torch.testing.assert_close(map_pixels(images.permute(0, 3, 1, 2).float() / 255), mapped)
    logits = encoder(mapped)
    torch.testing.assert_close(ours.encoder(mapped), logits, atol=1e-4, rtol=1e-4)
    codes = logits.argmax(dim=1)
    assert codes.unique().numel() > 8  # or the next line could not fail
    assert torch.equal(ours.encode(images), codes)
    out = decoder(F.one_hot(codes, 512).permute(0, 3, 1, 2).float())
    torch.testing.assert_close(ours.decoder.from_codes(codes), out, atol=1e-4, rtol=1e-4)
    picture = utils.unmap_pixels(torch.sigmoid(out[:, :3]))
    torch.testing.assert_close(unmap_pixels(torch.sigmoid(out[:, :3])), picture)
    assert (ours.decode(codes).permute(0, 3, 1, 2).float() - picture * 255).abs().max() <= 0.51


def test_the_full_size_has_the_published_tensors() -> None:
    with torch.device("meta"):
        ours = DVAE(dvae_preset("dvae"))
    encoder, decoder = dict(ours.encoder.named_parameters()), dict(ours.decoder.named_parameters())
    assert sum(p.numel() for p in encoder.values()) == 53_786_240 and len(encoder) == 74
    assert sum(p.numel() for p in decoder.values()) == 43_829_766 and len(decoder) == 76
    assert encoder["blocks.output.conv.weight"].shape == (8192, 2048, 1, 1)
    assert decoder["blocks.group_1.block_1.id_path.weight"].shape == (2048, 128, 1, 1)
