"""How does a trained Toto go on at another resolution, with the weights it has?

The stage of arXiv 2501.05453, table 4: trained at 16x16 tokens a frame (128 px), continued at 32x32 (256 px), with the
rotary base raised from 10 000 to 50 000; the raised base is worth 1.2 points of ImageNet accuracy there. Rotary
positions have no weights and the tokenizer takes frames of any size, so every tensor keeps its shape. How many frames
their samples had at 32x32 is not said: 4 keep 4096 tokens a sample, 16 make 16384.

    toto_robot pretrain model=large start=<run>/pretrained_model tokenizer=<run>/pretrained_model/tokenizer \
        image_px=256 rope_base=50000 window_frames=4 data=<videos>
"""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path

from toto_robot import weights
from toto_robot.models.hub import from_pretrained
from toto_robot.models.toto import Toto, TotoConfig
from toto_robot.tokenizers.load import load_tokenizer

MAY_DIFFER = ("name", "tokens_per_frame", "frames", "context_frames", "image_px", "rope_base")


def at_resolution(
    config: TotoConfig, *, image_px: int | None = None, frames: int | None = None, rope_base: float | None = None
) -> TotoConfig:
    """Return `config` for frames of `image_px` px, samples of `frames` frames and another rotary base; None keeps.

    The tokens of a frame follow from the tokenizer's stride; all frames of a sample see each other's past. ValueError
    where `image_px` is no multiple of that stride.
    """
    if rope_base is not None:
        if not rope_base > 1:
            raise ValueError(f"expected a rope_base above 1, such as 50000, got {rope_base}")
        config = replace(config, rope_base=float(rope_base))
    if frames is not None:
        if frames < 1:
            raise ValueError(f"expected window_frames of at least 1, got {frames}")
        config = replace(config, frames=frames, context_frames=frames)
    if image_px in (None, config.image_px):
        return config
    assert image_px is not None
    stride_px = config.image_px // math.isqrt(config.tokens_per_frame)
    if image_px < stride_px or image_px % stride_px:
        raise ValueError(f"expected image_px as a multiple of the token's {stride_px} px, got {image_px}")
    tokens = (image_px // stride_px) ** 2
    return replace(config, name=f"{config.name}_{image_px}px", image_px=image_px, tokens_per_frame=tokens)


def start_from(model: Toto, folder: Path, tokenizer_dir: Path) -> None:
    """Give `model` the weights of the published model in `folder`, in place.

    They may differ in resolution, frames and rotary base only, and must have been trained on the codes of the same
    tokenizer. ValueError says what else differs.
    """
    weights.read_config(folder, "toto")
    before = from_pretrained(folder)
    assert isinstance(before, Toto)
    theirs, ours = asdict(before.config), asdict(model.config)
    if wrong := [name for name in ours if name not in MAY_DIFFER and theirs[name] != ours[name]]:
        what = ", ".join(f"{name} {theirs[name]} -> {ours[name]}" for name in wrong)
        raise ValueError(f"{folder} cannot start this model ({what}); give model= the preset it was trained with")
    if not (folder / "tokenizer").is_dir():
        raise ValueError(
            f"{folder} has no tokenizer/, so what its codes mean is unknown; give a run's pretrained_model"
        )
    if load_tokenizer(folder / "tokenizer").fingerprint() != load_tokenizer(tokenizer_dir).fingerprint():
        raise ValueError(f"{folder} was trained on codes of another tokenizer; give tokenizer={folder / 'tokenizer'}")
    model.load_state_dict(before.state_dict())
