"""How does a tokenizer, or somebody else's vision backbone, become an encoder?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from toto_robot.encoders.base import Encoder
from toto_robot.encoders.hf_backbone import load_hf, read_hf
from toto_robot.encoders.timm_backbone import load_timm, read_timm
from toto_robot.encoders.tokens import TokenEncoder
from toto_robot.encoders.vision import Backbone, VisionEncoder
from toto_robot.run_folder import read_json
from toto_robot.tokenizers.load import load_tokenizer
from toto_robot.weights import CONFIG_FILE, read_config

TOKENIZERS = ("dvae", "vqgan")
VISION = ("hf", "timm")
OTHERS = (*TOKENIZERS, *VISION)


def load_other(
    name: str, source: Path, numbered: Callable[[int], Sequence[int]], *, layer_given: bool, image_px: int | None,
    weights: str | Path | None, seed: int, device: torch.device, precision: str,
) -> Encoder:  # fmt: skip
    """Open one of OTHERS; `numbered` turns the layer asked for into numbers, given the deepest.

    `source`: the tokenizer's folder; for `hf` a folder or cached id of transformers; for `timm` a model's name; or what
    `Encoder.save` wrote. ValueError for options that the encoder does not have.
    """
    if weights is not None and name != "timm":
        raise ValueError(f"weights= is for timm; {name} finds its own in path=")
    if name in TOKENIZERS:
        return _tokens(name, source, numbered, layer_given, image_px, device, precision)
    backbone = _backbone(name, source, image_px, weights, seed)
    return VisionEncoder(backbone, layers=numbered(backbone.depth), device=device, precision=precision)


def _tokens(
    name: str, folder: Path, numbered: Callable[[int], Sequence[int]], layer_given: bool, image_px: int | None,
    device: torch.device, precision: str,
) -> TokenEncoder:  # fmt: skip
    read_config(folder)  # says what is missing before what is wrong
    tokenizer = load_tokenizer(folder)
    encoder = TokenEncoder(tokenizer, image_px=image_px, device=device, precision=precision)
    if encoder.name != name:
        raise ValueError(f"{folder} holds a {encoder.name}, encoder={name} was asked for")
    if layer_given and tuple(numbered(0)) != (0,):
        raise ValueError(f"{name} has one layer, 0: the table of its codes")
    return encoder


def _backbone(name: str, source: Path, image_px: int | None, weights: str | Path | None, seed: int) -> Backbone:
    config = source / CONFIG_FILE
    saved = config.is_file() and read_json(config).get("model_type") == name
    if saved and (image_px is not None or weights is not None):
        raise ValueError(f"{source} says itself which pictures and weights it has; leave image_px and weights unset")
    if name == "hf":
        return read_hf(source) if saved else load_hf(source, image_px)
    return read_timm(source) if saved else load_timm(str(source), weights, seed=seed, image_px=image_px)
