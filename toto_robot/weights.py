"""How are a model's weights and configuration written to a folder, read back, and identified?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from toto_robot import packaged
from toto_robot.run_folder import atomic_path, read_json, write_json

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


def write_model(folder: Path, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Write `config.json` and `model.safetensors`, each atomically; the config last, because readers look for it."""
    with atomic_path(folder / WEIGHTS_FILE) as temporary:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, temporary)
    write_json(folder / CONFIG_FILE, dict(config))


def read_config(folder: Path, model_type: str | None = None) -> dict[str, Any]:
    """Read `config.json` of a model folder.

    Raises ValueError when the folder is missing, has no config, or holds another type than `model_type`.
    """
    path = Path(folder) / CONFIG_FILE
    if not path.is_file():
        nested = Path(folder) / "pretrained_model"
        advice = "make one with `toto_robot pretrain` and give the pretrained_model folder of that run"
        if (nested / CONFIG_FILE).is_file():
            advice = f"did you mean {nested}?"
        with_us = f" (packaged: {', '.join(packaged.names())})" if packaged.names() else ""
        raise ValueError(f"no model in {folder} ({CONFIG_FILE} is missing); {advice}{with_us}")
    config = read_json(path)
    if not isinstance(config, dict) or "model_type" not in config:
        raise ValueError(f"{path} names no model_type; it was not written by toto_robot")
    if model_type is not None and config["model_type"] != model_type:
        raise ValueError(f"expected a model of type {model_type!r}, {path} says {config['model_type']!r}")
    return config


def read_weights(folder: Path, module: nn.Module) -> None:
    """Load `model.safetensors` into `module` in place; ValueError names the first tensor that does not fit."""
    path = Path(folder) / WEIGHTS_FILE
    if not path.is_file():
        raise ValueError(f"{path} is missing: the folder has a {CONFIG_FILE} but no weights")
    stored = load_file(path)
    check_fit(module.state_dict(), stored, str(path))
    module.load_state_dict(stored)


def check_fit(expected: Mapping[str, Tensor], stored: Mapping[str, Tensor], source: str) -> None:
    """Raise ValueError at the first tensor that `stored` lacks, has in another shape, or has in excess."""
    for name, tensor in expected.items():
        if name not in stored:
            raise ValueError(f"{source} has no tensor {name} {tuple(tensor.shape)}; it is of another model")
        if stored[name].shape != tensor.shape:
            raise ValueError(
                f"{source} is a checkpoint of another size: {name} is {tuple(stored[name].shape)} in the file, "
                f"{tuple(tensor.shape)} in the model; load it with the configuration it was saved with"
            )
    for name in stored:
        if name not in expected:
            raise ValueError(f"{source} holds {name} {tuple(stored[name].shape)}, which the model does not have")


def fingerprint(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> str:
    """Return the hex SHA-256 of a configuration and the bytes of all tensors, by name."""
    digest = hashlib.sha256(json.dumps(dict(config), sort_keys=True, default=str).encode())
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
