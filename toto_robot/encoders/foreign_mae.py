"""How does a published masked autoencoder become one of ours: facebook's and MVP's .pth, and transformers' folders?

facebookresearch/mae and ir413/mvp name tensors as timm does (`blocks.N.attn.qkv`), in a dict under "model"; ours is
transformers' ViTMAE. Most published files hold the encoder alone: the MAE then has a decoder of no blocks. A .pth is a
pickle and is only described, never run (`toto_robot/foreign_weights.py`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from toto_robot.foreign_weights import Checkpoint, state_dict
from toto_robot.models.mae import MAEConfig, build_mae, mae_config
from toto_robot.run_folder import sha256_file
from toto_robot.weights import WEIGHTS_FILE, check_fit

if TYPE_CHECKING:
    from transformers import ViTMAEForPreTraining

FORMATS = ("mae", "mvp", "hf")
# Attention heads by width, which no tensor tells. MVP's small model has twelve of 32 where others have six of 64.
HEADS = {"mae": {768: 12, 1024: 16, 1280: 16}, "mvp": {384: 12, 768: 12, 1024: 16}}
_DECODER_HEADS = 16  # of all published decoders
_NO_DECODER = {"decoder_width": 4, "decoder_layers": 0, "decoder_heads": 1, "decoder_ffn_width": 4}
_OUTSIDE = {
    "cls_token": "vit.embeddings.cls_token",
    "pos_embed": "vit.embeddings.position_embeddings",
    "patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
    "norm": "vit.layernorm",
    "mask_token": "decoder.mask_token",
    "decoder_pos_embed": "decoder.decoder_pos_embed",
    "decoder_embed": "decoder.decoder_embed",
    "decoder_norm": "decoder.decoder_norm",
    "decoder_pred": "decoder.decoder_pred",
}
_INSIDE = {  # of a block
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_QKV = ("attention.q_proj", "attention.k_proj", "attention.v_proj")
_IGNORED = ("head.", "head_dist.")  # a classifier, as MVP's supervised model has


def read_mae(
    source: Path, format: str, *, heads: int | None = None, sha256: str | None = None
) -> tuple[ViTMAEForPreTraining, dict[str, str]]:
    """Read a published MAE; return the model in eval mode and the SHA-256 of what was read, by file name.

    `heads`: attention heads where the width does not tell (`HEADS`). ValueError for a hostile, damaged or other file.
    """
    if format == "hf":
        return _read_hf(source, sha256)
    with Checkpoint(source, sha256=sha256) as file:
        content = file.content
        if isinstance(content, dict) and isinstance(content.get("model"), dict):
            content = content["model"]
        try:
            stored = state_dict(content)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
        tensors = {name: file.tensor(at) for name, at in stored.items() if not name.startswith(_IGNORED)}
        model = mae_from_timm(tensors, HEADS[format], heads=heads, source=str(source), name=source.stem)
        return model, {source.name: file.sha256}


def mae_from_timm(
    tensors: Mapping[str, Tensor], heads_by_width: Mapping[int, int], *, heads: int | None, source: str, name: str
) -> ViTMAEForPreTraining:
    """Build the MAE that tensors under timm's names are; ValueError names the first that is missing or does not fit."""
    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{source}: {key} holds NaN or infinity; download it again")
    try:
        config = _timm_config(tensors, heads_by_width, heads, name)
    except KeyError as error:
        raise ValueError(
            f"{source} has no tensor {error.args[0]}; expected an MAE's encoder under timm's names (a fine-tuned one, "
            "with fc_norm instead of norm, is not read)"
        ) from error
    renamed = _renamed(tensors)
    model = build_mae(config)
    if config.decoder_layers == 0:  # what the encoder's file does not hold stays as built, and is never run
        renamed |= {key: tensor for key, tensor in model.state_dict().items() if key.startswith("decoder.")}
    check_fit(model.state_dict(), renamed, source)
    model.load_state_dict(renamed)
    return model.eval()


def _timm_config(
    tensors: Mapping[str, Tensor], heads_by_width: Mapping[int, int], heads: int | None, name: str
) -> MAEConfig:
    """Read the sizes off the tensors; KeyError names a missing one."""
    width, _, patch_px, _ = tensors["patch_embed.proj.weight"].shape
    patches = tensors["pos_embed"].shape[1] - 1
    side = math.isqrt(patches)
    if side * side != patches:
        raise ValueError(f"{name}: positions of {patches} patches are no square; only square pictures are read")
    if heads is None and width not in heads_by_width:
        raise ValueError(
            f"{name}: how many attention heads a width of {width} has is not known; say it with heads=<n> "
            f"(known: {', '.join(f'{w}: {h}' for w, h in heads_by_width.items())})"
        )
    heads = heads_by_width[width] if heads is None else heads
    if width % heads:
        raise ValueError(f"{name}: a width of {width} is no multiple of heads={heads}")
    decoder: dict[str, Any] = _NO_DECODER
    if "decoder_embed.weight" in tensors:
        decoder = {
            "decoder_width": tensors["decoder_embed.weight"].shape[0],
            "decoder_layers": _blocks(tensors, "decoder_blocks"),
            "decoder_heads": _DECODER_HEADS,
            "decoder_ffn_width": tensors["decoder_blocks.0.mlp.fc1.weight"].shape[0],
        }
    return MAEConfig(
        name=name, image_px=side * patch_px, patch_px=patch_px, width=width, layers=_blocks(tensors, "blocks"),
        heads=heads, ffn_width=tensors["blocks.0.mlp.fc1.weight"].shape[0], **decoder,
    )  # fmt: skip


def _blocks(tensors: Mapping[str, Tensor], list_name: str) -> int:
    return len({name.split(".")[1] for name in tensors if name.startswith(f"{list_name}.")})


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Call timm's tensors what transformers' ViTMAE calls them; a fused qkv becomes three. Unknown names stay."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        inside = re.fullmatch(r"(decoder_)?blocks\.(\d+)\.(.+)\.(weight|bias)", name)
        if inside is None:
            path, _, last = name.rpartition(".")
            known = _OUTSIDE.get(name) or (f"{_OUTSIDE[path]}.{last}" if path in _OUTSIDE else name)
            found[known] = tensor
            continue
        block = f"decoder.decoder_layers.{inside[2]}" if inside[1] else f"vit.layers.{inside[2]}"
        if inside[3] == "attn.qkv":
            parts = zip(_QKV, tensor.chunk(3), strict=True)
            found |= {f"{block}.{part}.{inside[4]}": third.contiguous() for part, third in parts}
        else:
            found[f"{block}.{_INSIDE.get(inside[3], inside[3])}.{inside[4]}"] = tensor
    return found


def _read_hf(source: Path, sha256: str | None) -> tuple[ViTMAEForPreTraining, dict[str, str]]:
    """Read a folder of transformers, through transformers: it knows the names of its older versions."""
    from transformers import ViTMAEForPreTraining

    path = source / WEIGHTS_FILE
    if not path.is_file():
        raise ValueError(f"expected a folder of transformers with {WEIGHTS_FILE} (no pickles), got {source}")
    found = sha256_file(path)
    if sha256 is not None and found != sha256.lower().removeprefix("sha256:"):
        raise ValueError(f"{path} is not the file you want: expected SHA-256 {sha256}, got {found}; download it again")
    loaded: Any = ViTMAEForPreTraining.from_pretrained(
        source, local_files_only=True, use_safetensors=True, output_loading_info=True, dtype=torch.float32
    )
    model, told = loaded
    if model.config.model_type != "vit_mae":
        raise ValueError(f"{source} holds a {model.config.model_type}, expected a vit_mae; encoder=hf reads others")
    missing = [name for name in told["missing_keys"] if not name.startswith("decoder.")]
    if missing:
        raise ValueError(f"{source} has no tensor {sorted(missing)[0]}; it is of another model")
    model.config.name_or_path = source.name  # not where it lay on this machine
    mae_config(model)  # refuses sizes that are no square of patches
    return model.eval(), {path.name: found}
