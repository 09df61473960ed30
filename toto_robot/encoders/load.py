"""How does a name or a folder become an encoder?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from toto_robot import packaged
from toto_robot.encoders.base import Encoder
from toto_robot.encoders.load_others import OTHERS, load_other
from toto_robot.encoders.mae import MAEEncoder, NoEncoder
from toto_robot.encoders.toto import TotoEncoder
from toto_robot.models.hub import from_pretrained
from toto_robot.models.mae import build_mae, mae_config
from toto_robot.models.presets import mae_preset
from toto_robot.models.toto import Toto
from toto_robot.tokenizers.load import AnyTokenizer, load_tokenizer
from toto_robot.weights import read_config

if TYPE_CHECKING:
    from transformers import ViTMAEForPreTraining

Layer = str | int
BLIND = ("none", "state")  # features of width 0
NAMES = ("toto", "mae", "random_vit", "random_toto", *OTHERS, *BLIND)

_WANTED = {  # as path=
    "toto": "<run>/pretrained_model; `toto_robot pretrain` makes one",
    "dvae": "<tokenizer>; `toto_robot train-tokenizer` makes one",
    "vqgan": "<tokenizer>; `toto_robot train-tokenizer` makes one",
    "hf": "<folder or cached id of a vision model of transformers>",
    "timm": "<model name>, such as vit_tiny_patch16_224",
}


def load_encoder(
    name_or_dir: str | Path, *, layer: Layer | Sequence[Layer] | None = None, context_frames: int | None = None,
    path: str | Path | None = None, seed: int = 0, device: str | torch.device = "cpu", precision: str = "auto",
    streaming: str | None = None, image_px: int | None = None, weights: str | Path | None = None,
) -> Encoder:  # fmt: skip
    """Return a frozen encoder by name, or from a folder that `toto_robot pretrain` wrote (`<run>/pretrained_model`).

    A folder may be the name of packaged weights (`packaged.names()`). `toto`, `mae`: the model in `path`. `random_vit`:
    MAE's ViT (of `path`, or the nano preset) with weights drawn from `seed`. `random_toto`: the tokenizer and sizes of
    the Toto in `path`, its backbone drawn from `seed`. `dvae`, `vqgan`: what the codes of the tokenizer in `path` mean
    to its decoder. `hf`: a vision model of transformers, a folder or cached id; `timm`: a model's name, with the
    safetensors file `weights` or drawn from `seed`; `image_px` is the picture that these four see, by default their
    own. `none`: no vision. `state`: none either, the policy is told the simulator's state. `layer`: a block (0 =
    embedding), "mid", or "last", by default mid for Toto, MAE and their random twins and last for hf and timm; several,
    in a list or a string like "0+mid", lie side by side in the features. `context_frames`: how many frames a Toto
    stream looks back on, by default all it was trained with. `streaming`: how it goes beyond them, "ring" (the
    default), "reset", "staggered" or "recompute" (`models/streaming.py`). `precision`: "auto", "bf16", "fp32". Raises
    ValueError for an unknown name, a folder that is missing or holds another model, or arguments out of range.
    """
    device = torch.device(device)
    name, folder = _resolve(name_or_dir, path)
    if name in BLIND:
        return NoEncoder(name)
    if folder is None and name != "random_vit":
        raise ValueError(f"encoder {name!r} needs path={_WANTED.get(name, _WANTED['toto'])}")
    if name not in ("toto", "random_toto"):
        if context_frames not in (None, 1):
            raise ValueError(f"{name} has no memory; context_frames must be 1 or unset, got {context_frames}")
        if streaming is not None:
            raise ValueError(f"{name} has no memory; streaming must be unset, got {streaming!r}")
    if name in OTHERS:
        assert folder is not None
        return load_other(
            name, folder, lambda deepest: numbered_layers(layer, deepest, "last"), layer_given=layer is not None,
            image_px=image_px, weights=weights, seed=seed, device=device, precision=precision,
        )  # fmt: skip
    if image_px is not None or weights is not None:
        raise ValueError(f"image_px and weights are for {', '.join(OTHERS)}; {name} has its own")
    if name in ("mae", "random_vit"):
        mae = _mae(folder, None if name == "mae" else seed)
        layers = numbered_layers(layer, mae_config(mae).layers, "mid")  # Toto's place: the last one is made for pixels
        return MAEEncoder(mae, name=name, layers=layers, device=device, precision=precision)
    assert folder is not None
    toto = _model(folder, "toto")
    assert isinstance(toto, Toto)
    if name == "random_toto":
        toto = Toto(toto.config, generator=torch.Generator().manual_seed(seed))
    return TotoEncoder(
        toto, _tokenizer(folder), name=name, layers=numbered_layers(layer, toto.config.layers, "mid"),
        context_frames=toto.config.context_frames if context_frames is None else context_frames,
        device=device, precision=precision, streaming="ring" if streaming is None else streaming,
    )  # fmt: skip


def _resolve(name_or_dir: str | Path, path: str | Path | None) -> tuple[str, Path | None]:
    """Return the kind of encoder and its folder, if any."""
    if str(name_or_dir) in NAMES:
        return str(name_or_dir), None if path is None else packaged.model_folder(path)
    folder = packaged.model_folder(name_or_dir)
    if not folder.is_dir():
        raise ValueError(
            f"no encoder {str(name_or_dir)!r}: not one of {', '.join([*NAMES, *packaged.names()])}, and no such folder "
            "(`toto_robot pretrain` writes one, <run>/pretrained_model)"
        )
    if path is not None:
        raise ValueError(f"give a folder or a name with path=, not both: {name_or_dir} and path={path}")
    model_type = str(read_config(folder)["model_type"])
    if model_type not in ("toto", "mae", *OTHERS, *BLIND):
        raise ValueError(
            f"{name_or_dir} holds a {model_type}; expected a folder written by `toto_robot pretrain` "
            "(encoder=hf reads vision models of transformers, import-encoder published MAEs)"
        )
    return model_type, folder


def _mae(folder: Path | None, seed: int | None) -> ViTMAEForPreTraining:
    """Return the MAE of a folder; with a seed, a random one of its size (without a folder: the nano preset's)."""
    if folder is None:
        return build_mae(mae_preset("nano"), seed=seed or 0)
    trained: Any = _model(folder, "mae")
    return trained if seed is None else build_mae(mae_config(trained), seed=seed)


def _model(folder: Path, model_type: str) -> torch.nn.Module:
    read_config(folder, model_type)
    return from_pretrained(folder)


def _tokenizer(folder: Path) -> AnyTokenizer:
    tokenizer = folder / "tokenizer"
    if not tokenizer.is_dir():
        raise ValueError(f"{folder} has no tokenizer/ folder; `toto_robot pretrain` puts it there beside the backbone")
    return load_tokenizer(tokenizer)


def numbered_layers(layer: Layer | Sequence[Layer] | None, deepest: int, default: str) -> tuple[int, ...]:
    """Turn names and numbers of layers, one or several, into numbers; ValueError for another name."""
    if layer is None:
        layer = default
    if isinstance(layer, int):
        return (layer,)
    named = {"mid": deepest // 2, "last": deepest}
    numbers = []
    for one in re.split("[+,]", layer) if isinstance(layer, str) else layer:
        text = str(one).strip()
        if text not in named and not text.removeprefix("-").isdigit():
            raise ValueError(f"layer must be mid, last, a number, or several of them joined by +, got {layer!r}")
        numbers.append(named[text] if text in named else int(text))
    return tuple(numbers)
