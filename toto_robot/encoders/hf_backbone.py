"""How is a vision model in transformers' layout, of a local folder or the local cache, a backbone of ours?

Nothing is downloaded, no code that comes with a model is run, and weights are read from safetensors only.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from toto_robot.encoders.vision import Pixels, cut_blocks, patch_tokens, read_pixels
from toto_robot.models.mae import IMAGENET_MEAN, IMAGENET_STD
from toto_robot.run_folder import read_json, write_json
from toto_robot.weights import CONFIG_FILE

_INSIDE = "backbone"  # folder of transformers' own files in a saved encoder
_LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
_VOLATILE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "_attn_implementation_autoset")


class HFBackbone:
    """A vision model of transformers (`Backbone`): ViT, DeiT, BEiT, DINOv2, CLIP's, ResNet and others."""

    kind = "hf"

    def __init__(self, module: nn.Module, pixels: Pixels, depth: int) -> None:
        self.module, self.pixels, self.depth = module, pixels, depth

    def features(self, pixels: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
        """Map normalised pixels (B, 3, h, w) to the patch tokens (B, P, D) of layers."""
        output = _run(self.module, pixels)
        hidden = {layer: output.hidden_states[layer] for layer in layers if layer < self.depth}
        if self.depth in layers:
            hidden[self.depth] = output.last_hidden_state
        patch_px = _side(_vision(self.module).get("patch_size"))
        patches = (pixels.shape[-1] // patch_px) ** 2 if patch_px else None
        return {layer: patch_tokens(state, patches) for layer, state in hidden.items()}

    def cut(self, deepest: int) -> HFBackbone:
        """Return a copy that ends one block above `deepest`: some models report the last block's state normed."""
        return HFBackbone(cut_blocks(self.module, self.depth, deepest + 1), self.pixels, self.depth)

    def describe(self) -> dict[str, Any]:
        """Return transformers' configuration, without what changes from machine to machine."""
        model: Any = self.module
        return {key: value for key, value in model.config.to_dict().items() if key not in _VOLATILE}

    def save(self, folder: Path) -> None:
        """Write transformers' folder, and beside it what the model wants of a picture."""
        model: Any = self.module
        model.save_pretrained(folder / _INSIDE)
        pixels = {"image_px": self.pixels.image_px, "mean": list(self.pixels.mean), "std": list(self.pixels.std)}
        write_json(folder / CONFIG_FILE, {"model_type": self.kind, "depth": self.depth, **pixels})


def load_hf(source: str | Path, image_px: int | None = None) -> HFBackbone:
    """Open a folder, or an id that lies in the local cache; `image_px` overrides the size of the picture.

    ValueError for what is not there, is no vision model, lacks weights, or is an MAE (`import-encoder` reads those).
    """
    from transformers import AutoConfig, AutoModel, logging

    try:
        config = AutoConfig.from_pretrained(str(source), **_LOCAL)
        if config.model_type == "vit_mae":
            raise ValueError(
                f"{source} is an MAE, which masks what it sees when run as it is; read it with `toto_robot "
                "import-encoder format=hf` and use encoder=mae"
            )
        loud = logging.get_verbosity()
        logging.set_verbosity_error()  # a missing pooler is announced at length, and not used here
        try:
            module, told = AutoModel.from_pretrained(
                str(source), **_LOCAL, use_safetensors=True, output_loading_info=True, dtype=torch.float32
            )
        finally:
            logging.set_verbosity(loud)
    except OSError as error:
        raise ValueError(
            f"no vision model at {source}: expected a folder with config.json and model.safetensors, or an id that was "
            f"downloaded before (nothing is downloaded here): {str(error).splitlines()[0]}"
        ) from error
    missing = sorted(name for name in told["missing_keys"] if "pooler" not in name)
    if missing:
        raise ValueError(f"{source} has no weights {', '.join(missing[:3])}: it is another model than its config says")
    module = getattr(module, "vision_model", module)  # CLIP and its like carry a text model too
    takes = getattr(module, "main_input_name", None)
    if takes != "pixel_values":
        raise ValueError(f"{type(module).__name__} is no vision model: it takes {takes}")
    return _backbone(module, _published_pixels(source, _vision(module), image_px))


def read_hf(folder: Path) -> HFBackbone:
    """Read what `HFBackbone.save` wrote."""
    stored = read_json(folder / CONFIG_FILE)
    return _backbone(load_hf(folder / _INSIDE, stored["image_px"]).module, read_pixels(stored))


def _backbone(module: nn.Module, pixels: Pixels) -> HFBackbone:
    """Tell the depth by trying: not every model counts its layers in its configuration."""
    with torch.no_grad():
        hidden = _run(module.eval(), torch.zeros(1, 3, pixels.image_px, pixels.image_px)).hidden_states
    if not hidden:
        raise ValueError(f"{type(module).__name__} does not tell its hidden states")
    return HFBackbone(module, pixels, depth=len(hidden) - 1)


def _run(module: Any, pixels: Tensor) -> Any:
    """Run the model; positions of another picture size than its own are interpolated by those models that can."""
    other = {}
    if pixels.shape[-1] != _side(_vision(module).get("image_size")):
        takes = inspect.signature(module.forward).parameters
        other = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in takes else {}
    return module(pixel_values=pixels, output_hidden_states=True, **other)


def _published_pixels(source: str | Path, config: Mapping[str, Any], image_px: int | None) -> Pixels:
    """Read size, mean and deviation from the processor's file; ImageNet's and the model's own size without one."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        stored, _ = ImageProcessingMixin.get_image_processor_dict(str(source), local_files_only=True)
    except OSError:
        stored = {}
    size = stored.get("crop_size") if stored.get("do_center_crop") else stored.get("size")
    size = size or config.get("image_size")
    if image_px is None and size is None:
        raise ValueError(f"{source} does not say which picture size it wants; give image_px")
    if stored.get("do_flip_channel_order"):
        raise ValueError(f"{source} wants blue before red; pictures are RGB here")
    mean, std = (tuple(stored.get(key) or other) for key, other in
                 (("image_mean", IMAGENET_MEAN), ("image_std", IMAGENET_STD)))  # fmt: skip
    if not stored.get("do_normalize", True):
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if abs(stored.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-3:
        raise ValueError(f"{source} rescales pixels by {stored['rescale_factor']}; only 1/255 is known here")
    return Pixels(image_px=_side(size) if image_px is None else image_px, mean=mean, std=std)


def _side(size: Any) -> int:
    """Return the side of a square size, written as a number, a pair or a mapping; 0 for none."""
    if isinstance(size, Mapping):
        size = [size[key] for key in ("shortest_edge", "height", "width") if key in size]
    sides = set(size) if isinstance(size, list | tuple) else {size or 0}
    if len(sides) != 1:
        raise ValueError(f"expected square pictures and patches, got {size}; give image_px")
    return int(sides.pop())


def _vision(module: Any) -> dict[str, Any]:
    """Return the configuration of the vision part."""
    told: dict[str, Any] = module.config.to_dict()
    return told.get("vision_config", told)
