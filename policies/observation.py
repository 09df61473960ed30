"""How does an observation become what a head takes? The one path of behaviour cloning, evaluation and the robot.

An observation is `{"proprio": (B, Dp), "pixels": {camera: uint8 (B, h, w, 3)}}`, with `"state"` (B, S) for the oracle.
Images go through the encoder's stream frame by frame, from a reset at the start of an episode; proprioception is
normalised with the statistics of the training demonstrations. Cloning reads the same features from the cache
(`policies/features.py`), made by this stream.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from policies.normalize import Normalizer
from toto_robot.encoders.base import Encoder
from toto_robot.encoders.toto import TotoStream


@dataclass(frozen=True)
class Inputs:
    """What a head takes: normalised proprioception, and the encoder's tokens of each camera.

    A head with a history of Ho > 1 frames takes (B, Ho, Dp) and (B, Ho, P, D), oldest first.
    """

    proprio: Tensor  # (B, Dp) float32
    tokens: dict[str, Tensor]  # camera -> (B, P, D) float32; empty without an encoder


def proprio_input(proprio: np.ndarray, normalizer: Normalizer) -> Tensor:
    """Normalise proprioception (B, Dp); ValueError for another Dp or a NaN, naming the dimension."""
    return torch.from_numpy(normalizer.normalize(proprio))


def sees_state(encoder: Encoder) -> bool:
    """Say whether a policy on this encoder is told the simulator's state (the oracle of a comparison)."""
    return encoder.name == "state"


def told(observation: Mapping[str, Any], oracle: bool) -> np.ndarray:
    """Return the numbers that a policy is told, (B, Dp): proprioception, and the simulator's state for the oracle."""
    proprio = np.asarray(observation["proprio"])
    if not oracle:
        return proprio
    if "state" not in observation:
        raise ValueError("encoder=state needs observation['state']: make the environment with obs_mode=state or all")
    return np.concatenate([proprio, np.asarray(observation["state"])], axis=-1)


def check_images(images: np.ndarray, camera: str, image_size: int) -> None:
    """Raise ValueError unless `images` is uint8 (B, image_size, image_size, 3), as the demonstrations were."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (image_size, image_size, 3):
        raise ValueError(
            f"expected camera {camera!r} as uint8 (B, {image_size}, {image_size}, 3), got {images.dtype} "
            f"{images.shape}; render with image_size={image_size}"
        )


def seen_cameras(encoder: Encoder, cameras: Sequence[str]) -> tuple[str, ...]:
    """Return the cameras that a policy looks through: none when the encoder has no features."""
    return tuple(cameras) if encoder.width else ()


class Observer:
    """Turns the observations of B running episodes into head inputs, one control step at a time.

    All cameras of all episodes are rows of one stream, so one forward serves them. The batch is fixed, which keeps the
    numbers of a row independent of how many other episodes are still running.
    """

    def __init__(
        self,
        encoder: Encoder,
        cameras: Sequence[str],
        image_size: int,
        normalizer: Normalizer,
        batch: int,
        history: int = 1,
    ) -> None:
        self.batch = batch
        self.cameras = seen_cameras(encoder, cameras)
        self.encode_s = 0.0  # time that the last step spent in the encoder
        self.tokens: dict[str, Tensor] = {}  # camera -> (B, P, D) of the newest frame, as the feature cache has them
        self.codes: dict[str, Tensor] = {}  # camera -> (B, P) int64, the same frames in the encoder's codes
        self._image_size = image_size
        self._oracle = sees_state(encoder)
        self.normalizer = normalizer  # may be replaced between steps, by what keeps running statistics
        self._stream = encoder.stream(batch * len(self.cameras)) if self.cameras else None
        self._history = History(history)

    def step(self, observation: Mapping[str, Any], reset: np.ndarray) -> Inputs:
        """Take the observations of one step; rows where `reset` (B,) is true begin an episode with this frame."""
        proprio = proprio_input(told(observation, self._oracle), self.normalizer)
        if len(proprio) != self.batch:
            raise ValueError(f"expected a batch of {self.batch} observations, got {len(proprio)}")
        began = time.perf_counter()
        self.tokens = self._tokens(observation, reset)
        self.encode_s = time.perf_counter() - began
        return self._history.step(Inputs(proprio, self.tokens), reset)

    def _tokens(self, observation: Mapping[str, Any], reset: np.ndarray) -> dict[str, Tensor]:
        if self._stream is None:
            return {}
        pixels = observation.get("pixels", {})
        for camera in self.cameras:
            if camera not in pixels:
                raise ValueError(f"the observation has no camera {camera!r}; it has {', '.join(pixels) or 'none'}")
            check_images(pixels[camera], camera, self._image_size)
        frames = np.concatenate([pixels[camera] for camera in self.cameras])  # (N * B, h, w, 3), camera-major
        features = self._stream.step(frames, np.tile(reset, len(self.cameras))).cpu()  # (N * B, P, D)
        if isinstance(self._stream, TotoStream) and self._stream.codes is not None:
            self.codes = dict(zip(self.cameras, self._stream.codes.cpu().split(self.batch), strict=True))
        # Cached features are float16; rounding here too makes training and deployment see the same numbers.
        features = features.half().float()
        return dict(zip(self.cameras, features.split(self.batch), strict=True))


class History:
    """Remembers the last Ho frames of every row; before the first frame of an episode stands that frame."""

    def __init__(self, frames: int) -> None:
        self._frames = frames
        self._past: Inputs | None = None

    def step(self, inputs: Inputs, reset: np.ndarray) -> Inputs:
        """Take the newest frame, (B, ...); return the last Ho of them, (B, Ho, ...), or the frame itself for Ho = 1."""
        if self._frames == 1:
            return inputs
        fresh = torch.from_numpy(reset)
        past = self._past
        tokens = {
            camera: self._shift(None if past is None else past.tokens[camera], array, fresh)
            for camera, array in inputs.tokens.items()
        }
        self._past = Inputs(self._shift(None if past is None else past.proprio, inputs.proprio, fresh), tokens)
        return self._past

    def _shift(self, past: Tensor | None, newest: Tensor, fresh: Tensor) -> Tensor:
        repeated = newest[:, None].expand(-1, self._frames, *[-1] * (newest.ndim - 1))
        if past is None:
            return repeated.clone()
        shifted = torch.cat([past[:, 1:], newest[:, None]], dim=1)
        return torch.where(fresh.view(-1, *[1] * newest.ndim), repeated, shifted)
