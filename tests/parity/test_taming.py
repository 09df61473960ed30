"""Is our VQGAN taming-transformers', module by module, and diffusers' too?"""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from toto_robot.tokenizers.import_tokenizer import read_taming
from toto_robot.tokenizers.vqgan import VQGAN, VQGANConfig, frames_to_input, vqgan_preset

SMALL = VQGANConfig(name="test", vocab=64, width=32, multipliers=(1, 1, 2, 2, 4), latent_width=24, code_width=12)
SHALLOW = VQGANConfig(
    name="test", vocab=50, width=64, multipliers=(1, 2, 1), blocks=1, attention_levels=(1, 2),
    latent_width=8, code_width=8,
)  # fmt: skip
PUBLISHED_TENSORS, PUBLISHED_PARAMETERS = 343, 72_141_699  # f16 with 1024 codes, without the training loss


class TamingVQModel(torch.nn.Module):
    """taming's `VQModel` of its own modules: the class itself does not import beside today's pytorch-lightning."""

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        reason = "no reference: pip install --no-deps taming-transformers==0.0.1 (`make setup` does)"
        model = pytest.importorskip("taming.modules.diffusionmodules.model", reason=reason)
        quantize = pytest.importorskip("taming.modules.vqvae.quantize", reason=reason)
        resolution = 256
        sizes: dict[str, Any] = {
            "ch": config.width, "out_ch": 3, "ch_mult": config.multipliers, "num_res_blocks": config.blocks,
            "attn_resolutions": [resolution >> level for level in config.attention_levels], "in_channels": 3,
            "resolution": resolution, "z_channels": config.latent_width, "double_z": False, "dropout": 0.0,
        }  # fmt: skip
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its shape
            self.encoder, self.decoder = model.Encoder(**sizes), model.Decoder(**sizes)
        self.quantize = quantize.VectorQuantizer(config.vocab, config.code_width, beta=0.25)
        self.quant_conv = torch.nn.Conv2d(config.latent_width, config.code_width, 1)
        self.post_quant_conv = torch.nn.Conv2d(config.code_width, config.latent_width, 1)

    def run(self, mapped: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return latents, codes (B, h, w) and reconstruction, by the steps of taming's `forward`."""
        latents = self.quant_conv(self.encoder(mapped))
        quantised, _, (_, _, codes) = self.quantize(latents)
        B, _, h, w = latents.shape
        return latents, codes.view(B, h, w), self.decoder(self.post_quant_conv(quantised))


def images(batch: int, h: int, w: int) -> torch.Tensor:
    """Return frames (B, h, w, 3) of coarse blotches with noise: pure noise averages to the same latent everywhere."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(batch, 3, h // 8, w // 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(h, w), mode="bilinear")
    noisy = smooth + 0.05 * torch.randn(batch, 3, h, w, generator=generator)
    return (noisy.clamp(0, 1) * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


@torch.no_grad()
def taming_reference(config: VQGANConfig) -> TamingVQModel:
    """Return a random taming model whose table holds latents of other frames, so that many codes are in use."""
    torch.manual_seed(7)
    model = TamingVQModel(config).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:  # norms and biases start as ones and zeros, which would hide a swap
            parameter += 0.1 * torch.randn_like(parameter)
    stride = 2 ** (len(config.multipliers) - 1)
    rows = model.quant_conv(model.encoder(frames_to_input(images(12, 4 * stride, 6 * stride), stride)))
    rows = rows.permute(0, 2, 3, 1).flatten(0, 2)
    model.quantize.embedding.weight.copy_(rows[torch.randperm(len(rows))[: config.vocab]])
    return model


@torch.no_grad()
@pytest.mark.parametrize("config", [SMALL, SHALLOW], ids=["f16", "f4"])
def test_tamings_weights_give_the_same_latents_codes_and_pictures(config: VQGANConfig, tmp_path: Path) -> None:
    reference = taming_reference(config)
    ours = VQGAN(config).eval()
    ours.load_state_dict(reference.state_dict())  # strict: the same names and shapes
    frames = images(2, 4 * ours.stride, 5 * ours.stride)
    mapped = frames.permute(0, 3, 1, 2).float() / 127.5 - 1
    latents, codes, picture = reference.run(mapped)
    assert codes.unique().numel() > 8 and picture.std() > 0.05  # or the next lines could not fail
    torch.testing.assert_close(ours.latents(frames_to_input(frames, ours.stride)), latents, atol=1e-4, rtol=1e-4)
    assert torch.equal(ours.encode(frames), codes)
    torch.testing.assert_close(ours.pixels(codes), picture, atol=1e-4, rtol=1e-4)
    expected = (picture.clamp(-1, 1) + 1) * 127.5
    assert (ours.decode(codes).permute(0, 3, 1, 2).float() - expected).abs().max() <= 0.51
    torch.save({"state_dict": {**reference.state_dict(), "loss.logvar": torch.zeros(1)}}, tmp_path / "last.ckpt")
    read, _ = read_taming(tmp_path)
    assert replace(read.config, name="test") == config  # told by names and shapes alone
    assert torch.equal(read.encode(frames), codes)


@pytest.mark.parametrize("name", ["vqgan_1024", "vqgan_16384"])
def test_the_full_sizes_have_the_published_tensors(name: str) -> None:
    config = vqgan_preset(name)
    with torch.device("meta"):
        ours, reference = VQGAN(config), TamingVQModel(config)
    shapes = {key: tensor.shape for key, tensor in ours.state_dict().items()}
    assert shapes == {key: tensor.shape for key, tensor in reference.state_dict().items()}
    extra_codes = (config.vocab - 1024) * config.code_width
    assert sum(p.numel() for p in ours.parameters()) == PUBLISHED_PARAMETERS + extra_codes
    assert len(shapes) == PUBLISHED_TENSORS and ours.stride == 16


def diffusers_names(state: dict[str, torch.Tensor], levels: int) -> dict[str, torch.Tensor]:
    """Call our tensors what diffusers' `VQModel` calls them; its attention is linear where ours is a 1x1 conv."""
    renamed = {}
    for key, tensor in state.items():
        if ".attn" in key and tensor.ndim == 4:
            tensor = tensor[:, :, 0, 0]
        renamed[_diffusers_name(key, levels)] = tensor
    return renamed


def _diffusers_name(key: str, levels: int) -> str:
    side, *rest = key.split(".")
    if side not in ("encoder", "decoder"):
        return key
    path = ".".join(rest)
    if rest[0] in ("down", "up"):
        level = int(rest[1]) if rest[0] == "down" else levels - 1 - int(rest[1])
        sampler = {"downsample": "downsamplers.0", "upsample": "upsamplers.0"}
        inner = sampler.get(rest[2]) or {"block": "resnets", "attn": "attentions"}[rest[2]]
        path = ".".join([f"{rest[0]}_blocks", str(level), inner, *rest[3:]])
    for ours, theirs in (
        ("mid.block_1", "mid_block.resnets.0"), ("mid.block_2", "mid_block.resnets.1"),
        ("mid.attn_1", "mid_block.attentions.0"), ("nin_shortcut", "conv_shortcut"), ("norm_out", "conv_norm_out"),
    ):  # fmt: skip
        path = path.replace(ours, theirs)
    if "attentions" in path:
        for ours, theirs in ((".norm.", ".group_norm."), (".proj_out.", ".to_out.0."),
                             (".q.", ".to_q."), (".k.", ".to_k."), (".v.", ".to_v.")):  # fmt: skip
            path = path.replace(ours, theirs)
    return f"{side}.{path}"


@torch.no_grad()
def test_diffusers_agrees() -> None:
    """Ask a second opinion; diffusers (28 MB) is no test dependency."""
    diffusers = pytest.importorskip("diffusers", reason="pip install --no-deps diffusers importlib_metadata")
    levels = len(SMALL.multipliers)
    theirs = diffusers.VQModel(
        down_block_types=("DownEncoderBlock2D",) * (levels - 1) + ("AttnDownEncoderBlock2D",),
        up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * (levels - 1),
        block_out_channels=SMALL.widths, layers_per_block=SMALL.blocks, latent_channels=SMALL.latent_width,
        num_vq_embeddings=SMALL.vocab, vq_embed_dim=SMALL.code_width, norm_num_groups=32,
    ).eval()  # fmt: skip
    ours = VQGAN(SMALL, generator=torch.Generator().manual_seed(5)).eval()
    frames = images(4, 64, 96)
    mapped = frames_to_input(frames, ours.stride)
    rows = ours.latents(mapped).permute(0, 2, 3, 1).flatten(0, 2)
    ours.quantize.embedding.weight.copy_(rows[torch.randperm(len(rows))[: SMALL.vocab]])
    theirs.load_state_dict(diffusers_names(ours.state_dict(), levels))
    codes = theirs.quantize(theirs.encode(mapped).latents)[2][2].view(4, 4, 6)
    assert codes.unique().numel() > 8 and torch.equal(ours.encode(frames), codes)
    torch.testing.assert_close(ours.pixels(codes), theirs(mapped).sample, atol=1e-4, rtol=1e-4)
