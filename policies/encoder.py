"""Which frozen encoder does a policy see through, and what must exist before it can be loaded?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from toto_robot import packaged
from toto_robot.encoders.base import Encoder
from toto_robot.encoders.load import NAMES, load_encoder, numbered_layers
from toto_robot.encoders.load_others import VISION
from toto_robot.models.streaming import check_policy

# What a policy looks through unless it is told otherwise: weights that come with the package.
PACKAGED = {"toto": "toto-small-sim", "mae": "mae-small-sim", "random_toto": "toto-small-sim"}
_MAKE = {
    "toto": "toto_robot pretrain",
    "mae": "toto_robot pretrain model=mae_nano run=outputs/pretrain/mae",
    "random_toto": "toto_robot pretrain",
}


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """A frozen encoder by name; `none` is proprioception only, `state` is told the simulator's state (the oracle)."""

    name: str = "toto"  # toto, mae, random_vit, random_toto, dvae, vqgan, hf, timm, none or state
    path: str | None = None  # folder or packaged name, or the model of hf or timm; null: toto-small-sim, mae-small-sim
    layer: str | None = None  # mid, last, a number, several as 0+mid, or auto (probed); null: mid, of hf and timm last
    context_frames: int | None = 1  # frames a Toto stream looks back on, 1: each alone; null: all it was trained with
    streaming: str | None = None  # how Toto goes on beyond them: ring (default), reset, staggered or recompute
    image_px: int | None = None  # size of the picture that dvae, vqgan, hf and timm see; null is their own
    weights: str | None = None  # safetensors file of a timm model; null draws them from seed
    seed: int = 0  # of the random encoders' weights
    device: str = "cpu"  # cpu or cuda
    precision: str = "auto"  # auto, fp32 or bf16

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ValueError(f"expected encoder.name {', '.join(NAMES)}, got {self.name!r}")
        if self.layer != "auto":
            numbered_layers(self.layer, 0, "mid")  # refuses other words before anything is loaded
        if self.streaming is not None:
            check_policy(self.streaming)

    @property
    def folder(self) -> Path | None:
        """Where the encoder's weights lie; None for those that need none (`random_vit` then has the nano size).

        `random_toto` takes the tokenizer and the size of the Toto that lies there. For hf and timm also the name of a
        model, which is no folder.
        """
        path = self.path or PACKAGED.get(self.name)
        return None if path is None else packaged.model_folder(path)


def open_encoder(config: EncoderConfig) -> Encoder:
    """Load the encoder (`none` has features of width 0); ValueError says which command makes what is missing."""
    folder = config.folder
    if config.layer == "auto":
        raise ValueError("encoder.layer=auto is chosen by train-policy and compare, from demonstrations; give a number")
    if folder is not None and config.name not in VISION and not (folder / "config.json").exists():
        make = _MAKE.get(config.name, "toto_robot pretrain")
        raise ValueError(f"no {config.name} encoder at {folder}; make it with `{make}`, or set encoder.path")
    return load_encoder(
        config.name,
        layer=config.layer,
        context_frames=config.context_frames,
        path=folder,
        seed=config.seed,
        device=config.device,
        precision=config.precision,
        streaming=config.streaming,
        image_px=config.image_px,
        weights=config.weights,
    )
