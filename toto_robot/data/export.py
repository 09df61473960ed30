"""What do the episodes of a store look like: one mp4 per episode and camera, and all of them on one sheet?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from tqdm import tqdm

from toto_robot.data.episodes import IMAGE_PREFIX, EpisodeStore
from toto_robot.data.sources import find_stores
from toto_robot.data.video import Frame, write_mp4
from toto_robot.run_folder import atomic_path

_LABEL_PX = 14  # height of the line of text above a row of the sheet


@dataclass(frozen=True, kw_only=True)
class ExportVideoConfig:
    """Which episodes to show, and how large."""

    data: str  # episode store, or a folder that holds one
    episodes: int | None = None  # how many, from the first on; default all
    cameras: tuple[str, ...] = ()  # default all of the store
    min_side_px: int = 256  # smaller frames are enlarged by a whole factor to at least this, for the eye
    sheet_episodes: int = 12  # rows of the contact sheet: episodes spread evenly over those exported
    sheet_moments: int = 8  # columns: moments spread evenly over an episode, first and last included

    def __post_init__(self) -> None:
        if self.episodes is not None and self.episodes < 1:
            raise ValueError(f"episodes must be at least 1, got {self.episodes}")
        if min(self.min_side_px, self.sheet_episodes, self.sheet_moments) < 1:
            raise ValueError(f"sizes and counts must be at least 1, got {self}")


def export_video(config: ExportVideoConfig, run_dir: Path) -> int:
    """Write `videos/episode_<i>_<camera>.mp4` and `contact_sheet.png` into the run folder; existing videos are kept."""
    store = _open(Path(config.data))
    cameras = config.cameras or store.cameras
    unknown = [camera for camera in cameras if camera not in store.cameras]
    if unknown or not cameras:
        raise ValueError(f"{store.path} has no camera {unknown}; it has {', '.join(store.cameras) or 'none'}")
    count = min(len(store), config.episodes or len(store))
    if not count:
        raise ValueError(f"{store.path} holds no episodes yet")
    for episode in tqdm(range(count), desc="videos", unit="episode"):
        for camera in cameras:
            path = run_dir / "videos" / f"episode_{episode:06d}_{camera}.mp4"
            if not path.exists():
                write_mp4(path, _enlarged(_images(store, episode, camera), config.min_side_px), store.fps)
    sheet = contact_sheet(store, cameras, count, config.sheet_episodes, config.sheet_moments)
    with atomic_path(run_dir / "contact_sheet.png") as temporary:
        sheet.save(temporary, format="PNG")
    print(f"{run_dir}: {count} episodes, {len(cameras)} cameras; contact_sheet.png")
    return 0


def contact_sheet(store: EpisodeStore, cameras: tuple[str, ...], count: int, rows: int, moments: int) -> Image.Image:
    """Return a picture with up to `rows` of the first `count` episodes, each a line of text and a strip per camera."""
    chosen = np.unique(np.linspace(0, count - 1, min(rows, count)).round().astype(int))
    strips = [(_label(store, episode), _strip(store, episode, cameras, moments)) for episode in chosen.tolist()]
    height = sum(_LABEL_PX + strip.shape[0] for _, strip in strips)
    sheet = Image.new("RGB", (max(strip.shape[1] for _, strip in strips), height), "white")
    top = 0
    for label, strip in strips:
        ImageDraw.Draw(sheet).text((2, top + 1), label, fill="black")
        sheet.paste(Image.fromarray(strip), (0, top + _LABEL_PX))
        top += _LABEL_PX + strip.shape[0]
    return sheet


def _open(path: Path) -> EpisodeStore:
    stores = find_stores(path)
    if len(stores) > 1:
        raise ValueError(f"{path} holds {len(stores)} episode stores; name one of {', '.join(map(str, stores))}")
    if stores:
        return EpisodeStore.open(stores[0])
    return EpisodeStore.open(path)  # says what is wrong with it


def _images(store: EpisodeStore, episode: int, camera: str) -> npt.NDArray[np.uint8]:
    return store.read(IMAGE_PREFIX + camera, *store.bounds(episode))


def _enlarged(frames: npt.NDArray[np.uint8], min_side_px: int) -> Iterator[Frame]:
    factor = -(-min_side_px // min(frames.shape[1:3]))
    for frame in frames:
        yield frame.repeat(factor, axis=0).repeat(factor, axis=1)


def _label(store: EpisodeStore, episode: int) -> str:
    numbers = {key: values[episode] for key, values in store.meta.items()}
    return f"episode {episode}  " + "  ".join(f"{key} {value}" for key, value in numbers.items())


def _strip(store: EpisodeStore, episode: int, cameras: tuple[str, ...], moments: int) -> npt.NDArray[np.uint8]:
    """Return (cameras * h, moments * w, 3): one line of pictures per camera."""
    start, stop = store.bounds(episode)
    at = np.linspace(0, stop - start - 1, moments).round().astype(int)
    lines = [np.concatenate(list(_images(store, episode, camera)[at]), axis=1) for camera in cameras]
    widest = max(line.shape[1] for line in lines)
    padded = [np.pad(line, ((0, 0), (0, widest - line.shape[1]), (0, 0)), constant_values=255) for line in lines]
    return np.concatenate(padded, axis=0)
