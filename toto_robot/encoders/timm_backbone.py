"""How is a model of timm, by its name, a backbone of ours?

Weights come from a local safetensors file, or are drawn from a seed: nothing is downloaded.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from toto_robot.encoders.vision import Pixels, cut_blocks, read_pixels
from toto_robot.weights import check_fit, read_config, read_weights, write_model

_HEADS = ("head.", "fc.", "classifier.", "head_dist.", "fc_norm.")  # of the classifier that was trained on top


class TimmBackbone:
    """A model of timm (`Backbone`): whatever knows `forward_intermediates`."""

    kind = "timm"

    def __init__(self, module: nn.Module, name: str, pixels: Pixels) -> None:
        self.module, self.timm_name, self.pixels = module, name, pixels
        self.depth = len(module.feature_info)  # type: ignore[arg-type]  # a block of a ViT, a stage of others

    def features(self, pixels: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
        """Map normalised pixels (B, 3, h, w) to the patch tokens (B, P, D) of layers; 0 is not to be had."""
        if 0 in layers:
            raise ValueError(f"timm does not hand out the embedding; encoder.layer must lie in 1..{self.depth}")
        found: dict[int, Tensor] = {}
        for normed in (False, True):  # the final norm belongs to the last layer only
            wanted = sorted(layer for layer in layers if (layer == self.depth) == normed)  # timm's order
            if wanted:
                maps = self._maps(pixels, wanted, normed)
                found |= {layer: one.flatten(2).transpose(1, 2) for layer, one in zip(wanted, maps, strict=True)}
        return found

    def _maps(self, pixels: Tensor, layers: Sequence[int], normed: bool) -> list[Tensor]:
        model: Any = self.module
        maps: list[Tensor] = model.forward_intermediates(
            pixels, indices=[layer - 1 for layer in layers], norm=normed, stop_early=True, output_fmt="NCHW",
            intermediates_only=True,
        )  # fmt: skip
        return maps

    def cut(self, deepest: int) -> TimmBackbone:
        """Return a copy; blocks above `deepest` are left out by `stop_early`, and taken away where they are a list."""
        shorter = TimmBackbone(cut_blocks(self.module, self.depth, deepest), self.timm_name, self.pixels)
        shorter.depth = self.depth
        return shorter

    def describe(self) -> dict[str, Any]:
        """Return what makes the network again."""
        pixels = {"image_px": self.pixels.image_px, "mean": list(self.pixels.mean), "std": list(self.pixels.std)}
        return {"model_type": self.kind, "timm_name": self.timm_name, **pixels}

    def save(self, folder: Path) -> None:
        """Write name, picture and weights."""
        write_model(folder, self.describe(), self.module.state_dict())


def load_timm(name: str, weights: str | Path | None, *, seed: int = 0, image_px: int | None = None) -> TimmBackbone:
    """Build a model by its timm name, with the weights of a safetensors file, or drawn from `seed` without one.

    A classifier in the file is left out. ValueError for an unknown name, weights that do not fit, or timm missing.
    """
    module, pixels = _build(name, image_px, seed)
    if weights is not None:
        path = Path(weights)
        if path.suffix != ".safetensors" or not path.is_file():
            raise ValueError(f"expected the weights of {name} in a .safetensors file, got {path}")
        own = module.state_dict()  # of some models `head.norm` and `fc_norm` belong to the features
        stored = {key: value for key, value in load_file(path).items() if key in own or not key.startswith(_HEADS)}
        check_fit(own, stored, str(path))
        module.load_state_dict(stored)
    return TimmBackbone(module, name, pixels)


def read_timm(folder: Path) -> TimmBackbone:
    """Read what `TimmBackbone.save` wrote."""
    config = read_config(folder, "timm")
    module, _ = _build(config["timm_name"], config["image_px"], seed=0)
    read_weights(folder, module)
    return TimmBackbone(module, config["timm_name"], read_pixels(config))


def _build(name: str, image_px: int | None, seed: int) -> tuple[nn.Module, Pixels]:
    timm = _timm()
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:5]) or "none"
        raise ValueError(f"timm has no model {name!r}; there are {near}, ...")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = timm.create_model(name, pretrained=False, num_classes=0)
        _, height, width = model.pretrained_cfg["input_size"]
        if image_px is not None and (height, width) != (image_px, image_px):
            takes_size = "img_size" in inspect.signature(type(model).__init__).parameters
            torch.manual_seed(seed)
            size = {"img_size": image_px} if takes_size else {}
            model = timm.create_model(name, pretrained=False, num_classes=0, **size)
            height = width = image_px
    if height != width:
        raise ValueError(f"{name} wants pictures of {height} x {width} px, no square; give image_px")
    told = model.pretrained_cfg
    pixels = Pixels(image_px=height, mean=tuple(told["mean"]), std=tuple(told["std"]))
    return model.eval(), pixels


def _timm() -> Any:
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision of another build than torch
        raise ValueError(
            f"encoder=timm needs the extra [vision]: pip install 'toto-robot[vision]' ({error})"
        ) from error
    return timm
