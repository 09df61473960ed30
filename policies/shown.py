"""What is a head shown of the demonstrations: features or images, plain and in how many changed variants?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from policies.augment import ImageChange
from policies.bc import BCConfig
from policies.features import cached_features
from policies.finetune import prepare
from policies.observation import check_images
from toto_robot.data.episodes import IMAGE_PREFIX, EpisodeStore
from toto_robot.encoders.base import Encoder

Shown = dict[str, np.ndarray]  # camera -> (frames, ...)


def shown_to_head(
    config: BCConfig, encoder: Encoder, store: EpisodeStore, cameras: tuple[str, ...], episodes: int, cache: Path
) -> list[Shown]:
    """Return what cloning is shown of the first `episodes` episodes: plain, then each variant of the pictures.

    Cached float16 features (frames, P, D) of a frozen encoder; for one that is trained too, what `Eyes` are given.
    """
    changes = [
        None,
        *(image_change(config, number + 1) for number in range(config.image_augmentations if cameras else 0)),
    ]
    if config.finetune == "none":
        return [cached_features(cache, encoder, store, cameras, episodes, change) for change in changes]
    return [_prepared(encoder, store, cameras, episodes, change) for change in changes]


def image_change(config: BCConfig, variant: int) -> ImageChange:
    """Return the change of pictures of one variant, 1 or more."""
    return ImageChange(
        variant=variant, shift_px=config.shift_px, brightness=config.brightness, contrast=config.contrast
    )


def _prepared(
    encoder: Encoder, store: EpisodeStore, cameras: tuple[str, ...], episodes: int, change: ImageChange | None
) -> Shown:
    name = "images" if change is None else f"variant {change.variant}"
    with tqdm(total=len(cameras) * episodes, desc=name, unit="episode", smoothing=0.05) as bar:
        return {camera: _prepare_camera(encoder, store, camera, episodes, change, bar.update) for camera in cameras}


def _prepare_camera(
    encoder: Encoder,
    store: EpisodeStore,
    camera: str,
    episodes: int,
    change: ImageChange | None,
    tell: Callable[[], object],
) -> np.ndarray:
    parts = []
    for episode in range(episodes):
        images = store.read(IMAGE_PREFIX + camera, *store.bounds(episode))
        check_images(images, camera, int(store.env["image_size"]))
        parts.append(prepare(encoder, images if change is None else change(images, camera, episode)))
        tell()
    return np.concatenate(parts)
