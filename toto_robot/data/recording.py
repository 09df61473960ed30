"""What do a store of ours, a LeRobot folder and a robomimic file have in common, and which of them lies at a path?

All three are read as a `Recording`: episodes of arrays (T, ...) under LeRobot's key names, and numbers per episode.
`data info | check | view | replay | convert` know nothing else.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from toto_robot.data.episodes import AUTOMATIC, IMAGE_PREFIX, KIND, EpisodeStore, FeatureSpec
from toto_robot.data.flat_store import store_kind
from toto_robot.data.shards import DTYPES, Array
from toto_robot.data.sources import find_stores

FORMATS = ("toto", "lerobot", "robomimic")
_WIDER = {"int8": "int32", "int16": "int32", "uint32": "int64"}  # exact in a dtype that our stores have


class Recording(Protocol):
    """Episodes in some format, read one at a time."""

    path: Path
    format: str  # one of FORMATS
    fps: float  # Hz
    env: dict[str, Any]  # the task's specification as far as it is known; always `env_id`
    provenance: dict[str, Any]
    features: dict[str, FeatureSpec]  # with the automatic ones; images are uint8 (h, w, 3)
    tasks: tuple[str, ...]  # in words; the number `task_index` of an episode says which, the first where there is none
    left_out: dict[str, str]  # what the format holds and a Recording does not, with the reason

    def __len__(self) -> int:
        """Return the number of episodes."""

    @property
    def lengths(self) -> list[int]:
        """Return the steps of every episode."""

    @property
    def meta(self) -> dict[str, Array]:
        """Return the numbers of all episodes: name to (E,), without `length`."""

    def episode(self, index: int, keys: Sequence[str] | None = None) -> dict[str, Array]:
        """Return arrays (T, ...) of an episode, of all features or of `keys`; ValueError where they are damaged."""


class StoreRecording:
    """An episode store of ours as a Recording."""

    format = "toto"

    def __init__(self, store: EpisodeStore) -> None:
        self.store, self.path, self.fps = store, store.path, store.fps
        self.env, self.provenance, self.features = store.env, store.provenance, store.features
        self.tasks = tasks_of(store.env)
        self.left_out: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.store)

    @property
    def lengths(self) -> list[int]:
        """Return the steps of every episode."""
        return np.diff(self.store.ends, prepend=0).tolist()

    @property
    def meta(self) -> dict[str, Array]:
        """Return the numbers of all episodes: name to (E,), without `length`."""
        return {key: values for key, values in self.store.meta.items() if key != "length"}

    def episode(self, index: int, keys: Sequence[str] | None = None) -> dict[str, Array]:
        """Return arrays (T, ...) of an episode."""
        start, stop = self.store.bounds(index)
        return {key: self.store.read(key, start, stop) for key in (self.features if keys is None else keys)}


def format_of(path: Path) -> str | None:
    """Return which of FORMATS lies at `path`, None where none does."""
    if store_kind(path) == KIND:
        return "toto"
    if (path / "meta" / "info.json").is_file():
        return "lerobot"
    if path.is_file() and path.suffix.lower() in (".hdf5", ".h5"):
        return "robomimic"
    return None


def open_recording(path: Path, *, fps: float | None = None, flip_images: bool = False) -> Recording:
    """Open what lies at `path`: an episode store (or a folder with one in it), a LeRobot folder, a robomimic file.

    `fps` and `flip_images` are for robomimic files, which do not say either (robomimic.py). ValueError where nothing of
    the kind is there.
    """
    kind = format_of(path)
    if kind == "lerobot":
        with needs_extra():
            from toto_robot.data.lerobot import LeRobotFolder
        return LeRobotFolder(path)
    if kind == "robomimic":
        with needs_extra():
            from toto_robot.data.robomimic import RobomimicFile
        return RobomimicFile(path, fps=fps, flip_images=flip_images)
    return StoreRecording(EpisodeStore.open(path if kind else _only_store(path)))


def _only_store(path: Path) -> Path:
    if not path.exists():
        raise ValueError(
            f"{path} does not exist; expected an episode store, a LeRobot folder or a robomimic .hdf5 file"
        )
    stores = find_stores(path) if path.is_dir() else []
    if len(stores) > 1:
        raise ValueError(f"{path} holds {len(stores)} episode stores; name one of {', '.join(map(str, stores))}")
    if not stores:
        kind = store_kind(path)
        what = f"a store of {kind}" if kind else "none of them"
        raise ValueError(f"expected an episode store, a LeRobot folder or a robomimic file; {path} is {what}")
    return stores[0]


def tasks_of(env: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the tasks in words: what the specification says, else the words of the environment's name."""
    if env.get("tasks"):
        return tuple(str(task) for task in env["tasks"])
    return (task_words(str(env["env_id"])),)


def task_words(env_id: str) -> str:
    """Return the words of an environment id: `toto_robot/FrankaPick-v0` -> `franka pick`."""
    name = re.sub(r"-v\d+$", "", env_id.rsplit("/", 1)[-1])
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[_\s]+", " ", name).lower().strip() or env_id


def task_index(recording: Recording) -> Array:
    """Return which of its tasks every episode is (E,) int64."""
    given = recording.meta.get("task_index")
    return np.zeros(len(recording), np.int64) if given is None else np.asarray(given, np.int64)


def is_image(key: str) -> bool:
    """Tell whether a key holds camera images."""
    return key.startswith(IMAGE_PREFIX)


def storable(dtype: str) -> str | None:
    """Return the dtype of ours that holds every value of `dtype`, None where there is none."""
    return dtype if dtype in DTYPES else _WIDER.get(dtype)


def spec_from_dict(spec: Mapping[str, Any]) -> FeatureSpec:
    """Return a feature from the entry of LeRobot's info.json that `FeatureSpec.as_dict` makes."""
    names = spec.get("names")
    return FeatureSpec(spec["dtype"], tuple(spec["shape"]), tuple(names) if names else None)


def with_automatic(features: Mapping[str, FeatureSpec]) -> dict[str, FeatureSpec]:
    """Return the features and those that every recording has."""
    return {**{key: spec for key, spec in features.items() if key not in AUTOMATIC}, **AUTOMATIC}


def automatic_columns(length: int, episode: int, fps: float) -> dict[str, Array]:
    """Return `timestamp`, `frame_index` and `episode_index` of an episode that was stored without them."""
    index = np.arange(length, dtype=np.int64)
    return {
        "timestamp": (index / fps).astype(np.float32),
        "frame_index": index,
        "episode_index": np.full(length, episode, np.int64),
    }


@contextlib.contextmanager
def needs_extra() -> Iterator[None]:
    """Say what to install where the block imports an optional package that is not there."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ImportError(f"this format needs {error.name}: pip install 'toto-robot[data]'") from error
