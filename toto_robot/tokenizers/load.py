"""Which tokenizer is in a folder, or behind a name?"""

from __future__ import annotations

from pathlib import Path

import torch

from toto_robot import packaged, weights
from toto_robot.tokenizers import dvae, vqgan
from toto_robot.tokenizers.dvae import DVAE, DVAEConfig, load_dvae, save_dvae
from toto_robot.tokenizers.vqgan import VQGAN, VQGANConfig, load_vqgan, save_vqgan

AnyTokenizer = DVAE | VQGAN

_PRESETS: dict[str, DVAEConfig | VQGANConfig] = {**dvae.PRESETS, **vqgan.PRESETS}


def tokenizer_preset(name: str) -> DVAEConfig | VQGANConfig:
    """Return the tokenizer configuration of that name, of either layout; ValueError lists the names."""
    if name not in _PRESETS:
        raise ValueError(f"no tokenizer preset {name!r}; there are {', '.join(_PRESETS)}")
    return _PRESETS[name]


def load_tokenizer(folder: Path | str, device: torch.device | str = "cpu") -> AnyTokenizer:
    """Load a tokenizer from a folder, or a packaged one by its name, in eval mode and float32.

    ValueError when config.json's model_type names another model.
    """
    folder = packaged.model_folder(folder)
    model_type = weights.read_config(folder)["model_type"]
    if model_type == "dvae":
        return load_dvae(folder, device)
    if model_type == "vqgan":
        return load_vqgan(folder, device)
    raise ValueError(
        f"{folder} holds a {model_type}, expected a tokenizer (dvae or vqgan): `toto_robot train-tokenizer` trains "
        "one, `toto_robot import-tokenizer` reads a published one"
    )


def save_tokenizer(tokenizer: AnyTokenizer, folder: Path | str) -> None:
    """Write a tokenizer to `folder`, atomically, for `load_tokenizer`."""
    if isinstance(tokenizer, VQGAN):
        save_vqgan(tokenizer, folder)
    else:
        save_dvae(tokenizer, folder)
