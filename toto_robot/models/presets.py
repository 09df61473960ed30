"""Which sizes have names, and where do they come from?

| name | width x layers, heads, FFN | parameters | frame | source |
|---|---|---|---|---|
| nano | 256 x 6, 4, 768 | 5.64 M | 64 px, 64 tokens, 1024 codes | ours: the demo on two CPU cores |
| tiny | 384 x 6, 6, 1024 | 16.9 M | 128 px, 256 tokens, 8192 codes | ours: the size of our CPU throughput study |
| small | 512 x 8, 8, 2048 | 42.0 M | 128 px, 256 tokens, 8192 codes | ours: one step below base |
| base | 768 x 12, 12, 3072 | 126 M | 128 px, 256 tokens, 8192 codes | paper, Table 1; FFN from its counts |
| large | 1024 x 16, 16, 4096 | 285 M | as base | as base; its multiply-adds are Table 4's |
| 1b | 2048 x 22, 16, 5632 | 1164 M | as base | as base |
| a1 | 256 x 12, 16, 1024 | 21.0 M | 256 px, 256 tokens, 16384 VQGAN codes | paper, Table 15 (recalled); FFN is ours |
| a2 | 512 x 16, 16, 2048 | 83.9 M | as a1 | as a1 |
| a3 | 768 x 20, 16, 3072 | 214 M | as a1 | as a1 |
| a4 | 1024 x 24, 16, 4096 | 436 M | as a1 | as a1 |
| a5 | 1536 x 28, 16, 6144 | 1107 M | as a1 | as a1 |
| a6 | 1792 x 32, 16, 7168 | 1703 M | as a1 | as a1 |

Embedding and head are untied and both counted; the paper's 120 M, 280 M and 1.1 B are the counts with one of the two.
The counts recalled for Table 15 (14.8, 77.2, 215, 458, 1200, 1900 M) agree with these in a3 only, but the multiply-adds
read off the paper's scaling figure agree in all of a1, a2, a3, a4, a6 to 1.5 %: shapes confirmed, counts unexplained.

Unless said, 16 frames a sample, full causal attention over them (context 16), rotary base 10 000, norm eps 1e-5 (the
last is LLaMA's; the paper does not say).

MAE, the baseline. Encoders are counted without patch embedding and positions (which are fixed); `nano`, `tiny` and
`small` have the width, depth and heads, the tokens a frame and, to 0.5 %, the parameters of the blocks of the Toto of
that name (SwiGLU has three matrices, so the FFN is 1.5 times as wide).

| name | width x layers, heads, FFN | blocks | Toto's blocks | all, with decoder | frame | decoder |
|---|---|---|---|---|---|---|
| nano | 256 x 6, 4, 1152 | 5.13 M | 5.11 M | 5.64 M | 64 px, 64 patches | 128 x 2 |
| tiny | 384 x 6, 6, 1536 | 10.65 M | 10.62 M | 11.7 M | 128 px, 256 patches | 192 x 2 |
| small | 512 x 8, 8, 3072 | 33.6 M | 33.6 M | 37.1 M | 128 px, 256 patches | 256 x 4 |
| vit_s16 | 384 x 12, 6, 1536 | 21.3 M | - | 47.4 M | 224 px, 196 patches | 512 x 8 |
| vit_b16 | 768 x 12, 12, 3072 | 85.1 M | 113 M (base) | 112 M | 224 px, 196 patches | 512 x 8 |

ViT-B/16 with that decoder is arXiv 2111.06377; ViT-S/16 is DeiT's, with the same decoder.
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
    "tiny": MAEConfig(
        name="tiny", image_px=128, patch_px=8, width=384, layers=6, heads=6, ffn_width=1536,
        decoder_width=192, decoder_layers=2, decoder_heads=6, decoder_ffn_width=768,
    ),
    "small": MAEConfig(
        name="small", image_px=128, patch_px=8, width=512, layers=8, heads=8, ffn_width=3072,
        decoder_width=256, decoder_layers=4, decoder_heads=8, decoder_ffn_width=1024,
    ),
    "vit_s16": MAEConfig(
        name="vit_s16", image_px=224, patch_px=16, width=384, layers=12, heads=6, ffn_width=1536,
        decoder_width=512, decoder_layers=8, decoder_heads=16, decoder_ffn_width=2048,
    ),
    "vit_b16": MAEConfig(
        name="vit_b16", image_px=224, patch_px=16, width=768, layers=12, heads=12, ffn_width=3072,
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
