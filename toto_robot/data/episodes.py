"""How are demonstrations and rollouts kept: one zarr store of episodes, appended one at a time, safe against a kill?

Keys are LeRobot's: `observation.state`, `observation.images.<camera>` (uint8 RGB, origin top-left), `action` and so on,
as arrays `data/<key>` flat in time with `meta/episode_ends` (see flat_store.py for the format and its promises).
`timestamp`, `frame_index` and `episode_index` are filled in by the store. Imports no torch: the robot's computer
records with it too.

    features = {"action": FeatureSpec("float32", (7,)), "observation.images.front": FeatureSpec("uint8", (64, 64, 3))}
    store = EpisodeStore.create(path, features=features, fps=20.0, env={"env_id": "..."})
    for index in range(len(store), wanted):  # len(store) is where a killed collection goes on
        store.append(episode, {"seed": seed, "success": True})
    store.finish()  # where it was created with compression="blosc-lz4": from here on it is read only
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from toto_robot.data.flat_store import FlatStore, Numbers
from toto_robot.data.shards import DTYPES, Array

KIND = "episodes"
IMAGE_PREFIX = "observation.images."
ORACLE_KEY = "observation.environment_state"  # what a simulator knows and no camera tells; LeRobot's name
_MADE_BY = "`toto_robot collect`"


@dataclass(frozen=True)
class FeatureSpec:
    """What one step holds under a key."""

    dtype: str  # one of shards.DTYPES
    shape: tuple[int, ...]  # of one step; () for a number
    names: tuple[str, ...] | None = None  # of the elements along the first axis, with units where they have one

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; got {self.dtype!r}")
        elements = self.shape[0] if self.shape else 1
        if self.names is not None and len(self.names) != elements:
            raise ValueError(f"{len(self.names)} names for {elements} elements: {self.names}")

    def as_dict(self) -> dict[str, Any]:
        """Return the entry of LeRobot's info.json."""
        return {"dtype": self.dtype, "shape": list(self.shape), "names": list(self.names) if self.names else None}


AUTOMATIC = {  # what LeRobot adds to every step
    "timestamp": FeatureSpec("float32", (), ("s",)),
    "frame_index": FeatureSpec("int64", ()),
    "episode_index": FeatureSpec("int64", ()),
}


class EpisodeStore:
    """Episodes on disk: append, read by row or by episode."""

    def __init__(self, flat: FlatStore) -> None:
        self._flat = flat
        self.path = flat.path
        self.fps = float(flat.attributes["fps"])
        self.env: dict[str, Any] = flat.attributes["env"]
        self.provenance: dict[str, Any] = flat.attributes["provenance"]
        self.features = {
            key: FeatureSpec(spec["dtype"], tuple(spec["shape"]), tuple(spec["names"]) if spec["names"] else None)
            for key, spec in flat.attributes["features"].items()
        }

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        features: Mapping[str, FeatureSpec],
        fps: float,
        env: Mapping[str, Any],
        provenance: Mapping[str, Any] | None = None,
        compression: str | None = None,
    ) -> EpisodeStore:
        """Make an empty store at `path`.

        `env` is the JSON of the task's spec (it has to name `env_id`), `fps` the control rate in Hz. `compression` is
        what `finish` compresses the store with, one of codecs.CODECS; it grows uncompressed. ValueError where `path`
        holds something already, or the codec is unknown.
        """
        if "env_id" not in env:
            raise ValueError(f"env must name its 'env_id', which tells policies the task; got the keys {sorted(env)}")
        if not fps > 0:
            raise ValueError(f"fps must be positive (the control rate in Hz); got {fps}")
        for key in AUTOMATIC.keys() & features.keys():
            given, own = features[key], AUTOMATIC[key]
            if (given.dtype, given.shape) != (own.dtype, own.shape):
                raise ValueError(f"{key} is filled in by the store as {own}, got {given}; leave it out")
        every = {**features, **AUTOMATIC}
        attributes = {
            "fps": float(fps),
            "features": {key: spec.as_dict() for key, spec in every.items()},
            "env": dict(env),
            "provenance": dict(provenance or {}),
        }
        arrays = {key: (spec.dtype, spec.shape) for key, spec in every.items()}
        flat = FlatStore.create(
            Path(path),
            kind=KIND,
            ends="episode_ends",
            features=arrays,
            attributes=attributes,
            compression=compression,
        )
        return cls(flat)

    @classmethod
    def open(cls, path: Path) -> EpisodeStore:
        """Open the committed episodes at `path`; ValueError where there is no episode store of this schema version."""
        return cls(FlatStore.open(Path(path), kind=KIND, made_by=_MADE_BY))

    def __len__(self) -> int:
        return self._flat.items

    @property
    def ends(self) -> npt.NDArray[np.int64]:
        """Return the cumulative ends of the episodes (E,)."""
        return self._flat.ends

    @property
    def steps(self) -> int:
        """Return the number of steps of all episodes."""
        return self._flat.rows

    @property
    def meta(self) -> dict[str, Array]:
        """Return the numbers of all episodes, name to (E,): `length` in steps and what `append` was given."""
        return self._flat.meta

    @property
    def compression(self) -> str | None:
        """Return the codec that the store is compressed with, or will be by `finish`; None where it stays as it is."""
        return self._flat.compression

    @property
    def cameras(self) -> tuple[str, ...]:
        """Return the names of the cameras, in the order of the features."""
        return tuple(key.removeprefix(IMAGE_PREFIX) for key in self.features if key.startswith(IMAGE_PREFIX))

    def episode(self, index: int) -> dict[str, Array]:
        """Return all arrays of an episode, key to (T, ...); IndexError outside the store."""
        start, stop = self._flat.bounds(index)
        return {key: array.read(start, stop) for key, array in self._flat.data.items()}

    def bounds(self, index: int) -> tuple[int, int]:
        """Return the rows (start, stop) of an episode; IndexError outside the store."""
        return self._flat.bounds(index)

    def read(self, key: str, start: int, stop: int) -> Array:
        """Return rows [start, stop) of a key, whatever episodes they belong to; IndexError outside the store."""
        if key not in self._flat.data:
            raise ValueError(f"{self.path} has no {key!r}; it has {', '.join(self.features)}")
        return self._flat.data[key].read(start, stop)

    def content_hash(self, episodes: int | None = None) -> str:
        """Return the SHA-256 over all episodes, or the first ones, and their numbers; a kill and resume keeps it.

        That of the first n is what a store of these n alone would have, so that a store may grow. IndexError for more
        than there are.
        """
        return self._flat.content_hash(episodes)

    def append(self, episode: Mapping[str, Array], meta: Numbers) -> None:
        """Add one episode: arrays (T, ...) for every feature, and numbers about it; it is on disk when this returns.

        ValueError names key, episode and step for what does not fit the features or is not finite, and where another
        process is writing. OSError (disk full) leaves the store with the episodes that it had.
        """
        arrays = self._checked(episode)
        length = len(arrays["frame_index"])
        if meta.get("length", length) != length:
            raise ValueError(f"meta says length {meta['length']}, episode {len(self)} has {length} steps")
        self._flat.begin()
        for key, array in arrays.items():
            self._flat.write(key, array)
        self._flat.commit({**meta, "length": length})

    def finish(self) -> None:
        """Say that no episode is missing, and compress the store if it was created so; it is then read only.

        A kill leaves it as it was or finished, and calling this again goes on. OSError (disk full) leaves it as it was.
        """
        self._flat.finish()

    def drop(self, keys: Collection[str]) -> None:
        """Delete some features for good, such as those that can be computed again; the others stay as they are."""
        kept = {key: spec for key, spec in self._flat.attributes["features"].items() if key not in keys}
        self._flat.drop(keys, {**self._flat.attributes, "features": kept})
        self.features = {key: spec for key, spec in self.features.items() if key not in keys}

    def close(self) -> None:
        """Let another process append; reading goes on."""
        self._flat.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _checked(self, episode: Mapping[str, Array]) -> dict[str, Array]:
        """Return the arrays to write, in the dtypes of the features."""
        number = len(self)
        given = [key for key in self.features if key not in AUTOMATIC]
        missing = [key for key in given if key not in episode]
        unknown = [key for key in episode if key not in self.features]
        if missing or unknown:
            raise ValueError(f"episode {number}: missing keys {missing}, unknown keys {unknown}; expected {given}")
        length = len(np.atleast_1d(episode[given[0]])) if given else 0
        if length < 1:
            raise ValueError(f"episode {number} has no steps; an episode needs at least one")
        automatic = self._automatic(number, length)
        for key in ("frame_index", "episode_index"):
            if key in episode and not np.array_equal(episode[key], automatic[key]):
                raise ValueError(f"{key} of episode {number} is counted by the store and differs; leave the key out")
        arrays = {**automatic, **episode}
        return {key: _fitted(np.asarray(arrays[key]), spec, key, number, length) for key, spec in self.features.items()}

    def _automatic(self, number: int, length: int) -> dict[str, Array]:
        index = np.arange(length, dtype=np.int64)
        return {
            "timestamp": (index / self.fps).astype(np.float32),
            "frame_index": index,
            "episode_index": np.full(length, number, dtype=np.int64),
        }


def require_env(store: EpisodeStore, env_id: str) -> None:
    """Raise ValueError where the demonstrations were made in another environment than `env_id`."""
    if store.env.get("env_id") != env_id:
        raise ValueError(
            f"{store.path} holds demonstrations of {store.env.get('env_id')!r}, the policy is for {env_id!r}: "
            f"use env={store.env.get('env_id')} or collect demonstrations of {env_id}"
        )


def _fitted(array: Array, spec: FeatureSpec, key: str, number: int, length: int) -> Array:
    """Return `array` in the dtype of its feature; ValueError where shape, kind or values do not fit."""
    if array.shape != (length, *spec.shape):
        raise ValueError(f"{key} of episode {number}: expected shape {(length, *spec.shape)}, got {array.shape}")
    if array.dtype == spec.dtype:
        fitted = array
    elif array.dtype.kind == np.dtype(spec.dtype).kind and array.dtype.kind in "fi":  # Python's float64 and int64
        with np.errstate(over="ignore"):
            fitted = array.astype(spec.dtype)
        if array.dtype.kind == "i" and not np.array_equal(fitted, array):
            raise ValueError(f"{key} of episode {number} does not fit into {spec.dtype}")
    else:
        raise ValueError(f"{key} of episode {number}: expected {spec.dtype}, got {array.dtype}")
    if fitted.dtype.kind == "f" and not np.isfinite(fitted).all():
        step = int(np.argwhere(~np.isfinite(fitted))[0][0])
        raise ValueError(f"{key} of episode {number} is not finite at step {step}: {array[step]}; nothing was stored")
    return fitted
