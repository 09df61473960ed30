"""What is there to train on: which videos, pictures, or episodes and cameras of a data set lie behind a path?"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from toto_robot.data import images
from toto_robot.data.clip_sources import ClosedFolder, EpisodeSource, ImageSource, VideoSource
from toto_robot.data.episodes import KIND, EpisodeStore
from toto_robot.data.flat_store import store_kind
from toto_robot.data.folders import walk
from toto_robot.data.recipes import RECIPES, recipe_files, recipe_of
from toto_robot.data.sampling import Kind
from toto_robot.data.video import EXTENSIONS, Frame


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


def find_sources(*data: str | Path, limits: Sequence[int] = ()) -> list[Source]:
    """Return the sources behind one or more paths, in an order that only depends on their names.

    A path is a video, an episode store, a LeRobot data set, a folder to be searched for one kind of these or of
    pictures, or `<recipe>:<folder>` (recipes.py). Where a folder holds several kinds, the first of stores, LeRobot data
    sets, videos and pictures is used and a line is printed about the others: they mostly are views of the same moments
    (previews, exports, thumbnails), which would end up in training and validation at once.

    `limits`: use at most so many videos, episodes or pictures of each path (one number: of every path), always the same
    ones, from all over it. ValueError where nothing is found or two sources would have the same name.
    """
    if len(limits) not in (0, 1, len(data)) or min(limits, default=1) < 1:
        raise ValueError(f"expected one limit of at least 1, or one for each of {len(data)} paths, got {list(limits)}")
    sources: list[Source] = []
    for place, (path, name) in enumerate(zip(data, source_names(data), strict=True)):
        found = _sources_of(path, name)
        sources += _chosen(found, limits[min(place, len(limits) - 1)]) if limits else found
    seen: set[str] = set()
    for source in sources:
        if source.id in seen:
            raise ValueError(f"two sources would both be called {source.id!r}; give folders of different names")
        seen.add(source.id)
    return sources


def source_names(data: Sequence[str | Path]) -> list[str]:
    """Return the name of each path as part of a mixture: its recipe, or its last part, more where two are equal."""
    parts = [(recipe,) if recipe else path.resolve().parts for recipe, path in map(recipe_of, data)]
    names, length = [part[-1] for part in parts], 1
    while len(set(names)) < len(set(parts)) and length < max(map(len, parts)):
        length += 1
        twice = {name for name in names if names.count(name) > 1}
        names = ["/".join(part[-length:]) if name in twice else name for part, name in zip(parts, names, strict=True)]
    return names


def source_of(record: Mapping[str, Any]) -> str:
    """Return which source the clip of a store came from; stores from before clips said so are one source."""
    return str(record.get("source", "data"))


def kind_of(record: Mapping[str, Any]) -> Kind:
    """Return whether the clip of a store is a video or a single picture."""
    return "images" if record.get("kind") == "images" else "video"


def _chosen(sources: Sequence[Source], limit: int) -> list[Source]:
    """Return `limit` groups, those whose names have the smallest hashes: spread, and always the same."""
    groups = sorted({source.group for source in sources}, key=lambda name: hashlib.sha256(name.encode()).digest())
    kept = set(groups[:limit])
    return [source for source in sources if source.group in kept]


@dataclass
class _Found:
    """What lies below a folder, by kind."""

    stores: list[Path] = field(default_factory=list)
    lerobot: list[Path] = field(default_factory=list)
    videos: list[Path] = field(default_factory=list)
    pictures: list[Path] = field(default_factory=list)
    closed: list[tuple[Path, str]] = field(default_factory=list)


def _sources_of(data: str | Path, name: str) -> list[Source]:
    recipe, path = recipe_of(data)
    if not path.exists():
        raise ValueError(f"{path} does not exist; expected a folder of videos or pictures, a video or an episode store")
    path = path.resolve()
    if recipe:
        return _files(recipe_files(recipe, path), RECIPES[recipe].kind, path, name)
    if path.is_file():
        if path.suffix.lower() in images.EXTENSIONS:
            raise ValueError(f"{path} is a single picture; give a folder of pictures")
        return [VideoSource(path.name, path, name)]
    found = _scan(path)
    closed = [ClosedFolder(_below(path, name, folder), folder, name, reason) for folder, reason in found.closed]
    kinds = {
        "episode stores": found.stores, "LeRobot data sets": found.lerobot, "videos": found.videos,
        "pictures": found.pictures,
    }  # fmt: skip
    there = [kind for kind, paths in kinds.items() if paths]
    if not there:
        reasons = "".join(f"; {folder} cannot be read ({reason})" for folder, reason in found.closed)
        known = " ".join((*EXTENSIONS, *images.EXTENSIONS))
        raise ValueError(
            f"{path} holds no episode store, no LeRobot data set, no video and no picture ({known}){reasons}"
        )
    for kind in there[1:]:
        print(f"{path} holds {there[0]}: its {len(kinds[kind])} {kind} are left out")
    if found.stores:
        return [*closed, *(source for store in found.stores for source in _episodes_of(store, path, name))]
    if found.lerobot:
        return [*closed, *_lerobot_clips(found.lerobot, path, name)]
    return [*closed, *_files(found.videos or found.pictures, "video" if found.videos else "images", path, name)]


def _scan(folder: Path) -> _Found:
    found = _Found()
    for parent, folders, files in walk(folder, lambda path, error: found.closed.append((path, str(error.strerror)))):
        if "zarr.json" in files:
            folders.clear()  # a store's own folders are many
            if store_kind(parent) == KIND:
                found.stores.append(parent)
        elif (parent / "meta" / "info.json").is_file():
            folders.clear()
            found.lerobot.append(parent)
        else:
            found.videos += [parent / name for name in files if Path(name).suffix.lower() in EXTENSIONS]
            found.pictures += [parent / name for name in files if Path(name).suffix.lower() in images.EXTENSIONS]
    for paths in (found.stores, found.lerobot, found.videos, found.pictures):
        paths.sort()
    return found


def find_stores(folder: Path) -> list[Path]:
    """Return the episode stores at or below `folder`, sorted."""
    return _scan(folder).stores


def _files(files: Iterable[Path], kind: Kind, searched: Path, name: str) -> list[Source]:
    made = VideoSource if kind == "video" else ImageSource
    return [made(_below(searched, name, file), file, name) for file in files]


def _below(searched: Path, name: str, path: Path) -> str:
    return str(Path(name) / path.relative_to(searched))


def _episodes_of(path: Path, searched: Path, name: str) -> list[Source]:
    store = EpisodeStore.open(path)
    if not store.cameras:
        raise ValueError(f"{path} holds no images: its keys are {', '.join(store.features)}")
    return [
        EpisodeSource(store, _below(searched, name, path), index, camera, name)
        for index in range(len(store))
        for camera in store.cameras
    ]


def _lerobot_clips(paths: Sequence[Path], searched: Path, name: str) -> list[Source]:
    try:
        from toto_robot.data.lerobot_clips import clips_of
    except ModuleNotFoundError as error:
        raise ImportError(f"LeRobot data sets need {error.name}: pip install 'toto-robot[data]'") from error
    return [clip for path in paths for clip in clips_of(path, _below(searched, name, path), name)]
