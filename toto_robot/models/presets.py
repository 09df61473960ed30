"""Which sizes have names, and where do they come from?

| name | width x layers, heads, FFN | frame | source |
|---|---|---|---|
| nano | 256 x 6, 4, 768 | 64 px, 64 tokens, 1024 codes | ours: the demo on two CPU cores (5.6 M) |
| tiny | 384 x 6, 6, 1024 | 128 px, 256 tokens, 8192 codes | ours: the size of our CPU throughput study (16.9 M) |
| small | 512 x 8, 8, 2048 | 128 px, 256 tokens, 8192 codes | ours: one step below base (42 M) |
| base, large, 1b | table | 128 px, 256 tokens, 8192 codes | paper, Table 1; FFN from parameter counts |
| a1..a6 | table | 256 px, 256 tokens, 16384 VQGAN codes | paper, Table 15 (recalled, fits its MACs); FFN 4x is ours |

Unless said, 16 frames a sample, full causal attention over them (context 16), rotary base 10 000, norm eps 1e-5 (the
last is LLaMA's; the paper does not say). MAE: `base` is ViT-B/16 of arXiv 2111.06377; `nano` has the parameters of Toto
nano's blocks.
"""

from __future__ import annotations

from toto_robot.models.mae import MAEConfig
from toto_robot.models.toto import TotoConfig

_DVAE_128PX = {"visual_vocab": 8192, "tokens_per_frame": 256, "image_px": 128}
_VQGAN_256PX = {"visual_vocab": 16384, "tokens_per_frame": 256, "image_px": 256}
_NANO = {"visual_vocab": 1024, "tokens_per_frame": 64, "image_px": 64}

#         width, layers, heads, ffn_width, tokens
_SIZES: dict[str, tuple[int, int, int, int, dict[str, int]]] = {
    "nano": (256, 6, 4, 768, _NANO),
    "tiny": (384, 6, 6, 1024, _DVAE_128PX),
    "small": (512, 8, 8, 2048, _DVAE_128PX),
    "base": (768, 12, 12, 3072, _DVAE_128PX),
    "large": (1024, 16, 16, 4096, _DVAE_128PX),
    "1b": (2048, 22, 16, 5632, _DVAE_128PX),
    "a1": (256, 12, 16, 1024, _VQGAN_256PX),
    "a2": (512, 16, 16, 2048, _VQGAN_256PX),
    "a3": (768, 20, 16, 3072, _VQGAN_256PX),
    "a4": (1024, 24, 16, 4096, _VQGAN_256PX),
    "a5": (1536, 28, 16, 6144, _VQGAN_256PX),
    "a6": (1792, 32, 16, 7168, _VQGAN_256PX),
}

_MAE: dict[str, MAEConfig] = {
    # FFN 1152: 855 k parameters a block, against 852 k in a block of Toto nano.
    "nano": MAEConfig(
        name="nano", image_px=64, patch_px=8, width=256, layers=6, heads=4, ffn_width=1152,
        decoder_width=128, decoder_layers=2, decoder_heads=4, decoder_ffn_width=512,
    ),
    "base": MAEConfig(
        name="base", image_px=224, patch_px=16, width=768, layers=12, heads=12, ffn_width=3072,
        decoder_width=512, decoder_layers=8, decoder_heads=16, decoder_ffn_width=2048,
    ),
}  # fmt: skip


def preset(name: str) -> TotoConfig:
    """Return the Toto configuration of that name; ValueError lists the names."""
    if name not in _SIZES:
        raise ValueError(f"no Toto preset {name!r}; there are {', '.join(_SIZES)}")
    width, layers, heads, ffn_width, tokens = _SIZES[name]
    return TotoConfig(
        name=name, width=width, layers=layers, heads=heads, ffn_width=ffn_width, frames=16, context_frames=16, **tokens
    )


def mae_preset(name: str) -> MAEConfig:
    """Return the MAE configuration of that name; ValueError lists the names."""
    if name not in _MAE:
        raise ValueError(f"no MAE preset {name!r}; there are {', '.join(_MAE)}")
    return _MAE[name]
