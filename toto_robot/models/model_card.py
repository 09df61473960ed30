"""What does a model's folder tell a stranger: what it is, what it saw, what it cost, how good it is, how to load it?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from toto_robot.models.compute import CONVENTION

CARD_FILE = "README.md"

_TITLE = {"toto": "Toto", "mae": "MAE", "dvae": "Tokenizer", "vqgan": "Tokenizer"}
_WHAT = {
    "toto": "An autoregressive transformer over video tokens (Toto, arXiv 2501.05453): a LLaMA-style decoder that "
    "predicts the next token of a video. Its middle layers are features for robot policies.",
    "mae": "A masked autoencoder (arXiv 2111.06377, `ViTMAEForPreTraining` of transformers): the baseline of Toto.",
    "dvae": "Turns square frames into a grid of discrete codes and back, in the layout of OpenAI's dVAE.",
    "vqgan": "Turns square frames into a grid of discrete codes and back, in the layout of taming's VQGAN.",
}
_LOAD_TOKENIZER = """from toto_robot.tokenizers.load import load_tokenizer
tokenizer = load_tokenizer("<this folder>")
codes = tokenizer.encode(frames)                   # uint8 RGB (B, h, w, 3) -> int64 (B, rows, columns)
frames = tokenizer.decode(codes)                   # and back, uint8"""
_LOAD = {
    "toto": """from toto_robot.encoders.load import load_encoder
encoder = load_encoder("<this folder>")           # features of the middle layer, with the tokenizer beside it
features = encoder.encode(frames)                  # uint8 RGB (B, h, w, 3) -> float32 (B, P, D)

from toto_robot.models.hub import export_llama, from_pretrained
model = from_pretrained("<this folder>")          # the backbone alone: logits and features of any layer
export_llama(model).save_pretrained("<folder>")   # the same function for transformers""",
    "mae": """from toto_robot.encoders.load import load_encoder
encoder = load_encoder("<this folder>")           # features of the middle layer
features = encoder.encode(frames)                  # uint8 RGB (B, h, w, 3) -> float32 (B, P, D)

from toto_robot.models.hub import from_pretrained
model = from_pretrained("<this folder>")          # transformers' ViTMAEForPreTraining, decoder included""",
    "dvae": _LOAD_TOKENIZER,
    "vqgan": _LOAD_TOKENIZER,
}
_NO_LICENCE = (
    "Not stated. The code is Apache-2.0; whether the weights may be passed on also depends on the rights in the data. "
    "State a licence here, and in `license:` above, before you share them."
)


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What is worth knowing of a training; None where it is not known."""

    data: str  # what it was trained on, in words
    started_from: str | None = None  # model whose weights were the first ones; what it saw and cost is not counted here
    data_sha256: str | None = None  # of what was read
    clips: int | None = None
    data_frames: int | None = None
    hours: float | None = None  # of video
    seen: int  # tokens or images, repetitions counted
    unit: str  # "tokens" or "images"
    steps: int
    flops: float | None = None  # by the convention of models/compute.py
    commit: str | None = None  # of the code that trained it
    seed: int | None = None
    validation: Mapping[str, object] = field(default_factory=dict)  # what was measured on held-out data, with its unit
    licence: str | None = None  # SPDX identifier of the weights' licence; None: whoever trained it has to say

    def __post_init__(self) -> None:
        if self.unit not in ("tokens", "images"):
            raise ValueError(f'unit must be "tokens" or "images", got {self.unit!r}')

    def text(self, description: Mapping[str, Any], parameters: int) -> str:
        """Return the card as Markdown with the YAML header of model hubs; `description` is the model's config.json."""
        kind, name = str(description["model_type"]), str(description["name"])
        return "\n".join(
            [
                *("---", f"license: {self.licence or 'unknown'}", "library_name: toto_robot"),
                *("tags:", f"- {kind}", "- video", "- robotics", "---", ""),
                *(f"# {_TITLE[kind]} {name}", "", _WHAT[kind], ""),
                *_table("Model", _sizes(description, parameters)),
                *_table("Training", self._training()),
                *_table("Validation", self.validation or {"held out": "nothing was"}),
                *("## How to load", "", "```python", _LOAD[kind], "```", ""),
                *("## Licence", "", self.licence or _NO_LICENCE, ""),
            ]
        )

    def _training(self) -> dict[str, object]:
        amounts = [
            None if self.clips is None else f"{self.clips:,} clips",
            None if self.data_frames is None else f"{self.data_frames:,} frames",
            None if self.hours is None else f"{self.hours:.2f} hours",
        ]
        return {
            "first weights": f"{self.started_from}, whose training is not counted below"
            if self.started_from
            else "random",
            "data": self.data,
            "amount": ", ".join(amount for amount in amounts if amount) or "unknown",
            "SHA-256 of the data": self.data_sha256 or "unknown",
            f"{self.unit} seen": f"{self.seen:,}",
            "optimizer steps": f"{self.steps:,}",
            "compute": "not counted" if self.flops is None else f"{self.flops:.3g} FLOP ({CONVENTION})",
            "seed": "unknown" if self.seed is None else self.seed,
            "commit": self.commit or "unknown",
        }


def _sizes(description: Mapping[str, Any], parameters: int) -> dict[str, object]:
    backbone = ("width", "layers", "heads", "ffn_width", "image_px", "tokens_per_frame", "frames", "context_frames")
    sizes = (*backbone, "visual_vocab", "patch_px", "mask_ratio", "vocab", "encoder", "hidden", "decoder_init")
    return {"parameters": f"{parameters:,}", **{key: description[key] for key in sizes if key in description}}


def _table(title: str, rows: Mapping[str, object]) -> list[str]:
    lines = [f"| {key} | {str(value).replace('|', '/')} |" for key, value in rows.items()]
    return [f"## {title}", "", "| | |", "|---|---|", *lines, ""]
