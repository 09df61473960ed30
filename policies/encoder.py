"""Which frozen encoder does a policy see through, and what must exist before it can be loaded?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from toto_robot import packaged
from toto_robot.encoders.base import Encoder
from toto_robot.encoders.load import NAMES, load_encoder

# Where `toto_robot pretrain run=outputs/pretrain/<name>` leaves its result.
DEFAULT_PATHS = {
    "toto": Path("outputs/pretrain/toto/pretrained_model"),
    "mae": Path("outputs/pretrain/mae/pretrained_model"),
    "random_toto": Path("outputs/pretrain/toto/pretrained_model"),  # for its tokenizer and its size
}
_MAKE = {
    "toto": "toto_robot pretrain",
    "mae": "toto_robot pretrain model=mae_nano run=outputs/pretrain/mae",
    "random_toto": "toto_robot pretrain",
}


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """A frozen encoder by name; `none` is proprioception only, `state` is told the simulator's state (the oracle)."""

    name: str = "toto"  # toto, mae, random_vit, random_toto, none or state
    path: str | None = None  # its pretrained_model folder or packaged name; null is that of outputs/pretrain/<name>
    layer: str | None = None  # mid, last or the number of a block; null is mid for Toto and last for MAE
    context_frames: int | None = None  # frames a Toto stream looks back on; null is all that it was trained with
    seed: int = 0  # of the random encoders' weights
    device: str = "cpu"  # cpu or cuda
    precision: str = "auto"  # auto, fp32 or bf16

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ValueError(f"expected encoder.name {', '.join(NAMES)}, got {self.name!r}")
        if self.layer is not None and self.layer not in ("mid", "last") and not self.layer.isdigit():
            raise ValueError(f"expected encoder.layer mid, last or a number, got {self.layer!r}")

    @property
    def folder(self) -> Path | None:
        """Where the encoder's weights lie; None for those that need none (`random_vit` then has the nano size)."""
        if self.path is not None:
            return packaged.model_folder(self.path)
        return DEFAULT_PATHS.get(self.name)


def open_encoder(config: EncoderConfig) -> Encoder:
    """Load the encoder (`none` has features of width 0); ValueError says which command makes what is missing."""
    folder = config.folder
    if folder is not None and not (folder / "config.json").exists():
        make = _MAKE.get(config.name, "toto_robot pretrain")
        raise ValueError(f"no {config.name} encoder at {folder}; make it with `{make}`, or set encoder.path")
    layer: str | int | None = config.layer
    if isinstance(layer, str) and layer.isdigit():
        layer = int(layer)
    return load_encoder(
        config.name,
        layer=layer,
        context_frames=config.context_frames,
        path=folder,
        seed=config.seed,
        device=config.device,
        precision=config.precision,
    )
