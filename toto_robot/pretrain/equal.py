"""How long does the baseline train to have had what a finished Toto had, on the same clips?

    toto_robot pretrain model=mae_nano equal_to=<Toto's run folder> equal=tokens run=<another folder>

`equal=tokens`: as many patches as the Toto saw tokens. Every patch of every image counts, the hidden ones too: they are
what is predicted, as tokens are. On the same grid both saw equally many frames, repetitions counted.

`equal=compute`: as many training FLOPs, by the convention of `models/compute.py`; the tokenizer of the Toto is not in
its count. Three quarters of an image never enter MAE's encoder, so it sees several times as many images.

Images come from the frames of the same clips, and the same of them are held out: the division is the Toto's (its seed
and share), whatever the seed of the baseline, and it is checked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from toto_robot.data.recipes import recipe_of
from toto_robot.models.compute import mae_training_flops, toto_training_flops
from toto_robot.models.mae import MAEConfig
from toto_robot.models.toto import TotoConfig
from toto_robot.pretrain.clips import Division, divide
from toto_robot.pretrain.config import PretrainConfig
from toto_robot.run_folder import read_json
from toto_robot.weights import read_config


@dataclass(frozen=True)
class FinishedToto:
    """What a finished run of Toto was: its sizes, the tokens it saw, its settings, and how it divided the clips."""

    run: Path
    sizes: TotoConfig
    tokens: int
    settings: Mapping[str, Any]
    division: str  # fingerprint

    @classmethod
    def read(cls, run: Path) -> FinishedToto:
        """Read a run folder; ValueError where it is not that of a finished Toto."""
        if not (run / "summary.json").is_file():
            raise ValueError(f"equal_to={run} is no finished run of Toto (summary.json is missing); finish it first")
        found, config = read_json(run / "summary.json"), read_config(run / "pretrained_model", "toto")
        if "division" not in found:
            raise ValueError(f"equal_to={run} was trained before runs noted what they hold out; train it again")
        config.pop("model_type")
        return cls(run, TotoConfig(**config), int(found["tokens_seen"]), found["settings"], str(found["division"]))

    def steps(self, mae: MAEConfig, images_per_step: int, equal: str) -> int:
        """Return the steps after which `mae` has had the same; `equal` is "tokens" or "compute"."""
        if equal == "tokens":
            images = self.tokens / mae.tokens_per_frame
        else:
            images = toto_training_flops(self.sizes, self.tokens) / mae_training_flops(mae, 1)
        return max(1, round(images / images_per_step))

    def frames(self, image_px: int) -> dict[str, Any]:
        """Return the settings that give its frames at that size: its frame store, or what that was made from."""
        weights = self.settings.get("weights")
        mixed: dict[str, Any] = {"weights": None if weights is None else tuple(weights)}
        store = Path(self.settings["frames"] or self.run / "frames")
        if store.is_dir() and self.sizes.image_px == image_px:
            return {"frames": str(store), **mixed}
        data = tuple(self.settings["data"] or (str(self.run / "video"),))
        if gone := [name for name in data if not recipe_of(name)[1].exists()]:
            raise ValueError(
                f"{self.run} has frames of {self.sizes.image_px} px, {image_px} px are needed, and its videos are not "
                f"at {', '.join(gone)}; give data=<the same videos>"
            )
        limits = self.settings.get("limit_files")
        limits = {
            "limit_files": None if limits is None else tuple(limits),
            "limit_frames": self.settings["limit_frames"],
        }
        return {"data": data, **limits, **mixed}


def shortest_clip(config: PretrainConfig) -> int:
    """Return how many frames a clip needs to be taken: a window of the Toto trained or of `equal_to`, or one image."""
    sizes = FinishedToto.read(Path(config.equal_to)).sizes if config.equal_to else config.sizes()
    return sizes.frames if isinstance(sizes, TotoConfig) else 1


def equalled(config: PretrainConfig) -> PretrainConfig:
    """Return `config` with the steps, and the data where none are given, that `equal_to` asks for."""
    if config.equal_to is None:
        return config
    if config.steps is not None:
        raise ValueError(f"give steps or equal_to, not both: equal_to={config.equal_to} decides the steps")
    toto, sizes = FinishedToto.read(Path(config.equal_to)), config.sizes()
    assert isinstance(sizes, MAEConfig)
    data = {} if config.data or config.frames else toto.frames(sizes.image_px)
    return replace(config, steps=toto.steps(sizes, config.recipe().batch_size, config.equal), **data)


def division_of(
    config: PretrainConfig, clip_ends: Any, records: Sequence[Mapping[str, Any]], min_frames: int
) -> Division:
    """Return which clips train and which are held out: the configured share, or the Toto's of `equal_to`.

    ValueError where these are not the clips that the Toto had.
    """
    if config.equal_to is None:
        return divide(clip_ends, records, config.val_fraction, config.seed, min_frames)
    toto = FinishedToto.read(Path(config.equal_to))
    settings = toto.settings
    division = divide(clip_ends, records, settings["val_fraction"], settings["seed"], toto.sizes.frames)
    if fingerprint(division, clip_ends, records) != toto.division:
        raise ValueError(
            f"these are not the clips that {config.equal_to} was trained and measured on; give its own data or frames, "
            "or leave both out"
        )
    return division


def fingerprint(division: Division, clip_ends: Any, records: Sequence[Mapping[str, Any]]) -> str:
    """Return the hex SHA-256 of the pieces of the clips that train and that are held out; their order is no matter."""
    held_out, starts = set(division.held_out.tolist()), np.concatenate([[0], division.ends[:-1]])
    clips = np.searchsorted(clip_ends, starts, side="right")  # of which clip each piece is a part
    firsts = np.concatenate([[0], np.asarray(clip_ends)[:-1]])[clips]
    pieces = sorted(
        f"{records[clip]['name']} {start - first} {end - first} {'held out' if piece in held_out else 'trains'}"
        for piece, (clip, first, start, end) in enumerate(zip(clips, firsts, starts, division.ends, strict=True))
    )
    return hashlib.sha256("\n".join(pieces).encode()).hexdigest()
