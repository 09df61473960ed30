"""What is there to train on: which video files, or which episodes and cameras of a store, lie behind a path?"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from toto_robot.data.episodes import IMAGE_PREFIX, KIND, EpisodeStore
from toto_robot.data.flat_store import store_kind
from toto_robot.data.sampling import Kind
from toto_robot.data.video import EXTENSIONS, Frame, decode, find_videos, probe, resize_square

_BLOCK_FRAMES = 64  # read from an episode store at once
_SAMPLE_BYTES = 2**20  # of the head and of the tail of a video that its fingerprint covers


class Source(Protocol):
    """One clip to be: a video, what one camera saw in one episode, or a single picture."""

    @property
    def source(self) -> str:
        """Name the part of a mixture that the clip belongs to: the folder or recipe that was asked for."""

    @property
    def kind(self) -> Kind:
        """Say whether the frames follow each other in time ("video") or each is a picture alone ("images")."""

    @property
    def id(self) -> str:
        """Name the clip: its place below the folder that was asked for."""

    @property
    def group(self) -> str:
        """Name what is not divided between training and validation: the video, or the episode with all its cameras."""

    def fingerprint(self) -> str:
        """Return a hash that changes when the content does; cheap against decoding the frames."""

    def header(self) -> tuple[int, float]:
        """Return (number of frames, frames per second) as far as known, else 0; BadVideo where it is no video."""

    def frames(self, size_px: int) -> Iterator[Frame]:
        """Yield square uint8 RGB frames of `size_px`; BadVideo with the reason where they do not all come."""


@dataclass(frozen=True)
class VideoSource:
    """A video file."""

    id: str
    path: Path
    source: str
    kind: Kind = "video"

    @property
    def group(self) -> str:
        """Return the video itself."""
        return self.id

    def fingerprint(self) -> str:
        """Hash the size and the first and last MiB of the file; a file that cannot be read says so."""
        try:
            size = self.path.stat().st_size
            digest = hashlib.sha256(str(size).encode())
            with open(self.path, "rb") as file:
                digest.update(file.read(_SAMPLE_BYTES))
                file.seek(max(0, size - _SAMPLE_BYTES))
                digest.update(file.read(_SAMPLE_BYTES))
        except OSError as error:  # decoding will fail too, with a reason that is kept
            return f"unreadable ({error.strerror})"
        return digest.hexdigest()

    def header(self) -> tuple[int, float]:
        """Read the number of frames and the rate from the header."""
        info = probe(self.path)
        return info.frames, info.fps

    def frames(self, size_px: int) -> Iterator[Frame]:
        """Decode the file from start to end."""
        return decode(self.path, size_px)


@dataclass(frozen=True)
class EpisodeSource:
    """What one camera saw in one episode of a store."""

    store: EpisodeStore
    store_id: str
    index: int
    camera: str
    source: str
    kind: Kind = "video"

    @property
    def id(self) -> str:
        """Return store/episode/camera."""
        return f"{self.group}/{self.camera}"

    @property
    def group(self) -> str:
        """Return store/episode: its cameras show the same moments."""
        return f"{self.store_id}/episode_{self.index:06d}"

    def fingerprint(self) -> str:
        """Hash the stored frames."""
        start, stop = self.store.bounds(self.index)
        return hashlib.sha256(self.store.read(IMAGE_PREFIX + self.camera, start, stop).data).hexdigest()

    def header(self) -> tuple[int, float]:
        """Return the length of the episode and the control rate."""
        start, stop = self.store.bounds(self.index)
        return stop - start, self.store.fps

    def frames(self, size_px: int) -> Iterator[Frame]:
        """Read the frames; those of the wanted size already are yielded as they were stored."""
        start, stop = self.store.bounds(self.index)
        for first in range(start, stop, _BLOCK_FRAMES):
            for frame in self.store.read(IMAGE_PREFIX + self.camera, first, min(first + _BLOCK_FRAMES, stop)):
                yield frame if frame.shape == (size_px, size_px, 3) else resize_square(frame, size_px)


def find_sources(*data: str | Path) -> list[Source]:
    """Return the sources behind one or more paths, in an order that only depends on their names.

    A path is a video file, an episode store, or a folder to be searched for both. Where a folder holds stores its loose
    videos are left out with a printed line: they are pictures of the same episodes (previews, exports), which would end
    up in training and validation at once. ValueError where nothing is found or two sources would have the same name.
    """
    sources = [source for path in data for source in _sources_of(Path(path))]
    names = [source.id for source in sources]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise ValueError(f"two sources would both be called {twice[0]!r}; give folders of different names")
    return sources


def _sources_of(path: Path) -> list[Source]:
    if not path.exists():
        raise ValueError(f"{path} does not exist; expected a folder of videos, a video or an episode store")
    path = path.resolve()
    if path.is_file():
        return [VideoSource(path.name, path, path.name)]
    stores = find_stores(path)
    videos = find_videos(path)
    if stores:
        if videos:
            print(f"{path} holds episode stores: its {len(videos)} loose videos are not used")
        return [source for store in stores for source in _episodes_of(store, path)]
    if not videos:
        raise ValueError(f"{path} holds no episode store and no video ({' '.join(EXTENSIONS)})")
    return [VideoSource(f"{path.name}/{video.relative_to(path)}", video, path.name) for video in videos]


def find_stores(folder: Path) -> list[Path]:
    """Return the episode stores at or below `folder`, sorted."""
    found = []
    for parent, folders, files in os.walk(folder):
        if "zarr.json" in files:
            folders.clear()  # a store's own folders are many
            if store_kind(Path(parent)) == KIND:
                found.append(Path(parent))
        folders[:] = [name for name in folders if not name.startswith(".")]
    return sorted(found)


def _episodes_of(path: Path, searched: Path) -> list[Source]:
    store = EpisodeStore.open(path)
    if not store.cameras:
        raise ValueError(f"{path} holds no images: its keys are {', '.join(store.features)}")
    name = str(Path(searched.name) / path.relative_to(searched))
    return [
        EpisodeSource(store, name, index, camera, searched.name)
        for index in range(len(store))
        for camera in store.cameras
    ]
