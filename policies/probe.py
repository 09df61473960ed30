"""What do the layers of an encoder know of where things are: a cheap way to judge encoders, and to choose a layer?

A readout (`readout.py`) is fitted on some labelled demonstrations and asked about others, for every layer, camera and
number of labelled demonstrations. It does not replace closed-loop success; it takes seconds where that takes hours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from policies.encoder import EncoderConfig, open_encoder
from policies.probe_frames import ProbeFrames, frame_tokens, probe_frames
from policies.probe_scores import PROPRIO, Score, best_layer, draw_layers, table
from policies.readout import Asked, read_off, reduce_tokens
from toto_robot.data.episodes import EpisodeStore
from toto_robot.encoders.base import Encoder
from toto_robot.encoders.load import BLIND
from toto_robot.run_folder import read_json, write_json

SCHEMA = 1
_FEWEST = 4  # demonstrations that a layer can be chosen from
_HELD_OUT = 0.2  # part of the demonstrations that a split asks about


@dataclass(frozen=True, kw_only=True)
class ReadoutConfig:
    """How features are asked."""

    labels: tuple[int, ...] = (20, 160)  # labelled demonstrations; a fifth of all is held out, so at most four fifths
    splits: int = 3  # random choices of labelled and held-out demonstrations
    steps: int = 300  # of training, a readout
    frames_per_episode: int = 4  # evenly from the steps before the thing moves
    thing: str | None = None  # what is asked for, as cube; null: what the environment tells seen from the hand

    def __post_init__(self) -> None:
        for name in ("steps", "frames_per_episode"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected readout.{name} of at least 1, got {getattr(self, name)}")
        if self.splits < 2:
            raise ValueError(f"expected readout.splits of at least 2, one gives no interval; got {self.splits}")
        if not self.labels or min(self.labels) < 3:
            raise ValueError(f"expected readout.labels of at least 3 demonstrations each, got {self.labels}")


def probe_encoder(
    config: EncoderConfig, store: EpisodeStore, views: Sequence[tuple[str, ...]], frames: ProbeFrames,
    asked: ReadoutConfig,
) -> list[Score]:  # fmt: skip
    """Return the scores of all layers from each view, one or several cameras, and of proprioception alone."""
    splits = list(split_demonstrations(frames, asked))
    scores = [_score(frames, splits, {}, None, PROPRIO, labels, asked.steps) for labels in asked.labels]
    if config.name in BLIND:
        return scores
    encoder = open_layers(config)
    tokens = layer_tokens(encoder, store, list(dict.fromkeys(camera for view in views for camera in view)), frames)
    jobs = [(layer, view, labels) for layer in encoder.layers for view in views for labels in asked.labels]
    for layer, view, labels in tqdm(jobs, desc=f"read off {config.name}", unit="fit", smoothing=0.1):
        parts = {camera: tokens[camera][layer] for camera in view}
        scores.append(_score(frames, splits, parts, layer, "+".join(view), labels, asked.steps))
    return scores


def open_layers(config: EncoderConfig) -> Encoder:
    """Open an encoder with all its layers side by side, or with those that its configuration names."""
    if config.layer not in (None, "auto"):
        return open_encoder(config)
    last = open_encoder(replace(config, layer="last"))
    if last.layers in ((), (0,)):
        return last
    first = 1 if config.name == "timm" else 0  # timm does not hand out the embedding
    every = "+".join(str(layer) for layer in range(first, last.layers[-1] + 1))
    return open_encoder(replace(config, layer=every))


def layer_tokens(
    encoder: Encoder, store: EpisodeStore, cameras: Sequence[str], frames: ProbeFrames
) -> dict[str, dict[int, Tensor]]:
    """Return the reduced tokens (n, P, D) of the frames by camera and layer."""
    found = {}
    for camera in tqdm(cameras, desc=f"encode {encoder.name}", unit="camera"):
        parts = frame_tokens(encoder, store, camera, frames).chunk(len(encoder.layers), dim=-1)
        found[camera] = {layer: reduce_tokens(part) for layer, part in zip(encoder.layers, parts, strict=True)}
    return found


def split_demonstrations(frames: ProbeFrames, asked: ReadoutConfig) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """Yield (order of those that may be labelled, held out) for each split, the same for all encoders."""
    held_out = max(1, round(_HELD_OUT * frames.count))
    if max(asked.labels) > frames.count - held_out:
        raise ValueError(
            f"{frames.count} demonstrations, of which {held_out} are held out, leave {frames.count - held_out} to "
            f"label; readout.labels asks for {max(asked.labels)}"
        )
    for split in range(asked.splits):
        order = np.random.default_rng(split).permutation(frames.count)
        yield order[held_out:], order[:held_out]


def _score(
    frames: ProbeFrames, splits: Sequence[tuple[np.ndarray, np.ndarray]], tokens: Mapping[str, Tensor],
    layer: int | None, camera: str, labels: int, steps: int,
) -> Score:  # fmt: skip
    asked = Asked(torch.from_numpy(frames.proprio), torch.from_numpy(frames.target_cm).float())
    errors, shares = [], []
    for seed, (may_be_labelled, held_out) in enumerate(splits):
        labelled, rest = (_rows(frames, chosen) for chosen in (may_be_labelled[:labels], held_out))
        wrong = read_off(tokens, asked, labelled, rest, steps=steps, seed=seed) - asked.target[rest]
        guess = asked.target[rest] - asked.target[rest].mean(dim=0)
        errors.append(float(wrong.norm(dim=1).mean()))
        shares.append(1 - float(wrong.square().sum() / guess.square().sum()))
    return Score(layer, camera, labels, tuple(errors), tuple(shares))


def _rows(frames: ProbeFrames, episodes: np.ndarray) -> Tensor:
    """Return the indices of the frames of some episodes."""
    return torch.from_numpy(np.flatnonzero(np.isin(frames.episodes, episodes)))


def without_auto(config: EncoderConfig) -> EncoderConfig:
    """Return the encoder at its default layer where its own is yet to be chosen."""
    return replace(config, layer=None) if config.layer == "auto" else config


def choose_layer(
    config: EncoderConfig, store: EpisodeStore, cameras: Sequence[str], episodes: int, run_dir: Path
) -> EncoderConfig:
    """Replace layer=auto by the number of the layer that a probe on the demonstrations chooses.

    Writes layers.json and layers.png to `run_dir`, and reads them when they are of the same encoder and demonstrations.
    Another layer, and an encoder of one layer or none, are returned as they are.
    """
    if config.layer != "auto":
        return config
    if config.name in (*BLIND, "dvae", "vqgan"):
        return replace(config, layer=None)
    if episodes < _FEWEST:
        raise ValueError(
            f"encoder.layer=auto needs {_FEWEST} demonstrations, three to read off and one to ask, got {episodes}: "
            "collect more, or give encoder.layer a number, mid or last"
        )
    held_out = max(1, round(_HELD_OUT * episodes))
    asked = ReadoutConfig(labels=(episodes - held_out,))
    key = {
        "schema": SCHEMA, "encoder": open_layers(config).fingerprint, "demonstrations": store.content_hash(),
        "episodes": episodes, "cameras": list(cameras),
    }  # fmt: skip
    path = run_dir / "layers.json"
    if not path.exists() or read_json(path)["of"] != key:
        frames = probe_frames(store, episodes, asked.frames_per_episode)
        scores = probe_encoder(config, store, [tuple(cameras)], frames, asked)
        told = {"of": key, "thing": frames.thing, "chosen": best_layer(scores), "scores": [s.as_dict() for s in scores]}
        draw_layers({config.name: scores}, frames.thing, path.with_suffix(".png"))
        write_json(path, told)
    told = read_json(path)
    scores = [Score.from_dict(stored) for stored in told["scores"]]
    print(table({config.name: scores}, told["thing"]))
    print(f"encoder.layer=auto: layer {told['chosen']} ({path})")
    return replace(config, layer=str(told["chosen"]))
