"""How is a robomimic dataset (HDF5) read and written, exactly?

    /data                 attributes `total`, `env_args` (JSON); in our exports `toto_robot` (features, paths, env)
    /data/demo_<i>        attributes `num_samples`, `model_file` where there is one, and the episode's numbers
      obs/<key> (T, ...)  next_obs/<key>: the same one step later, the last one repeated (our stores hold no later one)
      actions  rewards  dones  states (T, ...)  and our other keys under their own names
    /mask/<name>          names of demonstrations, kept here as the truth value `mask.<name>` of every episode

Images are uint8 (h, w, 3), right way up in what is written here. Files do not say which way up they are: robomimic's
own extraction stores them right way up, raw robosuite observations are upside down (OpenGL), hence `flip_images`. They
do not say the rate either, except robosuite's `control_freq` in env_args. robomimic's training takes `actions`: that
is our `action` (the label); what moved the arm is `actions_executed`.

Source: robomimic 0.3.0, `utils/dataset.py`, `envs/env_robosuite.py`; its documentation, "Datasets".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from toto_robot.data.episodes import AUTOMATIC, IMAGE_PREFIX, FeatureSpec
from toto_robot.data.installed_environment import settings_of
from toto_robot.data.recording import (
    Recording,
    automatic_columns,
    is_image,
    spec_from_dict,
    storable,
    task_index,
    tasks_of,
    with_automatic,
)
from toto_robot.data.shards import Array

OURS = "toto_robot"
_FIXED = {
    "action": "actions",
    "action.executed": "actions_executed",
    "next.reward": "rewards",
    "next.done": "dones",
    "next.success": "success",
    "simulator.state": "states",
}
_GYM_TYPE = 2  # robomimic.envs.env_base.EnvType.GYM_TYPE
_OBSERVATION = "observation."
_MASK = "mask."
_GZIP = 4


class RobomimicFile:
    """A robomimic HDF5 file as a Recording."""

    format = "robomimic"

    def __init__(self, path: Path, *, fps: float | None = None, flip_images: bool = False) -> None:
        self.path, self._flip = path, flip_images
        try:
            self._file = h5py.File(path, "r")
            self._data = self._file["data"]
            self._names = sorted(self._data, key=lambda name: int(name.removeprefix("demo_")))
        except (OSError, KeyError, ValueError) as error:
            raise ValueError(f"expected a robomimic file (/data/demo_<i>) at {path}: {error}") from error
        if not self._names:
            raise ValueError(f"{path} holds no demonstration")
        self.left_out: dict[str, str] = {}
        ours = json.loads(self._data.attrs.get(OURS, "null"))
        self.env: dict[str, Any] = ours["env"] if ours else self._foreign_env()
        self.fps = float(fps or (ours["fps"] if ours else self._foreign_fps()))
        self.provenance: dict[str, Any] = ours["provenance"] if ours else {"robomimic": {"name": path.name}}
        self.tasks = tasks_of(self.env)
        if ours:
            self.features = {key: spec_from_dict(spec) for key, spec in ours["features"].items()}
            self._paths: dict[str, str] = ours["paths"]
            self._meta_names: list[str] = ours["meta"]
        else:
            self.features, self._paths = self._foreign_features()
            self._meta_names = self._foreign_meta()

    def __len__(self) -> int:
        return len(self._names)

    @property
    def lengths(self) -> list[int]:
        """Return the steps of every demonstration."""
        return [int(self._data[name].attrs["num_samples"]) for name in self._names]

    @property
    def meta(self) -> dict[str, Array]:
        """Return the numbers of all demonstrations, and which masks name them."""
        numbers = {
            key: np.asarray([self._data[name].attrs[key] for name in self._names])
            for key in self._meta_names
            if not key.startswith(_MASK)
        }
        masks = {_MASK + name: self._in_mask(name) for name in self._file.get("mask", {})}
        return {**numbers, **masks}

    def episode(self, index: int, keys: Sequence[str] | None = None) -> dict[str, Array]:
        """Return arrays (T, ...) of a demonstration; ValueError names a dataset of the wrong length."""
        demo, length = self._data[self._names[index]], self.lengths[index]
        found: dict[str, Array] = {}
        for key in self.features if keys is None else keys:
            if key not in self._paths:
                found[key] = automatic_columns(length, index, self.fps)[key]
                continue
            found[key] = self._read(demo, key, length)
        return found

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    # --- parts --------------------------------------------------------------------------------------------------------

    def _read(self, demo: Any, key: str, length: int) -> Array:
        path, spec = self._paths[key], self.features[key]
        where = f"{self.path}: {demo.name}/{path}"
        if path not in demo:
            raise ValueError(f"{where} is missing; {self._names[0]} has it")
        try:
            array = np.asarray(demo[path][()])
        except OSError as error:
            raise ValueError(f"{where} cannot be read ({error}): the file is damaged, copy it again") from error
        if array.shape != (length, *spec.shape):
            raise ValueError(f"{where}: expected shape {(length, *spec.shape)}, got {array.shape}")
        if is_image(key) and self._flip:
            array = array[:, ::-1]
        return np.ascontiguousarray(array.astype(spec.dtype, copy=False))

    def _in_mask(self, name: str) -> Array:
        members = {member.decode() if isinstance(member, bytes) else str(member) for member in self._file["mask"][name]}
        return np.asarray([demo in members for demo in self._names])

    def _foreign_env(self) -> dict[str, Any]:
        arguments = json.loads(self._data.attrs.get("env_args", "{}"))
        name = arguments.get("env_name") or "unknown"
        env: dict[str, Any] = {"env_id": str(name), "env_args": arguments}
        models = {self._data[demo].attrs.get("model_file") for demo in self._names}
        if len(models) == 1 and None not in models:
            return {**env, "model_file": str(models.pop())}
        if models != {None}:
            self.left_out["model_file"] = f"{len(models)} different scenes; a store of ours has one"
        return env

    def _foreign_fps(self) -> float:
        rate = self.env["env_args"].get("env_kwargs", {}).get("control_freq")
        if not rate:
            raise ValueError(
                f"{self.path} does not say its control rate (env_kwargs.control_freq); give it as fps=<Hz>"
            )
        return float(rate)

    def _foreign_features(self) -> tuple[dict[str, FeatureSpec], dict[str, str]]:
        demo = self._data[self._names[0]]
        length = int(demo.attrs["num_samples"])
        features: dict[str, FeatureSpec] = {}
        paths: dict[str, str] = {}
        if "next_obs" in demo:
            self.left_out["next_obs"] = "the observation after the last step has no place in a Recording"
        for path, dataset in _datasets(demo):
            key, dtype = _key_of(path, dataset), storable(dataset.dtype.name)
            if path == "dones":
                dtype = "bool"
            if dtype is None or dataset.shape[:1] != (length,):
                self.left_out[path] = f"{dataset.dtype} {dataset.shape} for {length} steps"
                continue
            features[key], paths[key] = FeatureSpec(dtype, tuple(dataset.shape[1:])), path
        return with_automatic(features), paths

    def _foreign_meta(self) -> list[str]:
        numbers = [
            {key for key, value in self._data[name].attrs.items() if isinstance(value, bool | int | float | np.number)}
            for name in self._names
        ]
        return sorted(set.intersection(*numbers) - {"num_samples"})


class RobomimicWriter:
    """Writes a new file at `path`, demonstration by demonstration; call `finish` at the end.

    Without `next_obs` the file is half the size, and robomimic has to be told `hdf5_load_next_obs=false`.
    """

    def __init__(self, path: Path, recording: Recording, *, next_obs: bool = True) -> None:
        self._recording, self._next_obs = recording, next_obs
        self._task_index = task_index(recording)
        self._paths = _paths(recording.features)
        self._file = h5py.File(path, "w")
        self._data = self._file.create_group("data")
        self._total = self._count = 0
        self._masks: dict[str, list[str]] = {
            name.removeprefix(_MASK): [] for name in recording.meta if name.startswith(_MASK)
        }

    def add(self, arrays: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
        """Add the next demonstration: arrays (T, ...) of every feature, and its numbers."""
        name, length = f"demo_{self._count}", len(arrays["frame_index"])
        demo = self._data.create_group(name)
        demo.attrs["num_samples"] = length
        demo.attrs["task"] = self._recording.tasks[self._task_index[self._count]]
        if "model_file" in self._recording.env:
            demo.attrs["model_file"] = self._recording.env["model_file"]
        for key, value in meta.items():
            if not key.startswith(_MASK):
                demo.attrs[key] = value
            elif value:
                self._masks[key.removeprefix(_MASK)].append(name)
        for key, path in self._paths.items():
            _write(demo, path, arrays[key])
            if self._next_obs and path.startswith("obs/"):
                _write(demo, f"next_{path}", np.concatenate([arrays[key][1:], arrays[key][-1:]]))
        if "next.done" not in self._paths:
            demo["dones"] = (np.arange(length) == length - 1).astype(np.int64)
        self._total, self._count = self._total + length, self._count + 1

    def finish(self) -> None:
        """Write the attributes and masks, and close the file."""
        recording = self._recording
        self._data.attrs["total"] = self._total
        self._data.attrs["env_args"] = json.dumps(_env_args(recording.env))
        ours = {
            "env": recording.env,
            "fps": recording.fps,
            "provenance": recording.provenance,
            "features": {key: spec.as_dict() for key, spec in recording.features.items()},
            "paths": self._paths,
            "meta": list(recording.meta),
        }
        self._data.attrs[OURS] = json.dumps(ours, default=str)
        for name, members in self._masks.items():
            self._file.create_dataset(f"mask/{name}", data=np.asarray(members, dtype="S"))
        self._file.close()

    def abandon(self) -> None:
        """Close a file that will be thrown away."""
        self._file.close()


def _write(demo: Any, path: str, array: Array) -> None:
    """Write one dataset; images are compressed without loss, a frame a chunk, so that one frame can be read alone."""
    if array.ndim == 4 and array.dtype == np.uint8:
        demo.create_dataset(path, data=array, chunks=(1, *array.shape[1:]), compression="gzip", compression_opts=_GZIP)
    else:
        demo.create_dataset(path, data=array)


def _paths(features: Iterable[str]) -> dict[str, str]:
    """Return where every key lies in a demonstration; ValueError where two would lie in one place."""
    paths = {key: _path_of(key) for key in features if key not in ("frame_index", "episode_index")}
    taken: dict[str, str] = {}
    for key, path in paths.items():
        if path in taken:
            raise ValueError(f"{key} and {taken[path]} would both be {path!r} in a robomimic file; rename one")
        taken[path] = key
    return paths


def _path_of(key: str) -> str:
    if is_image(key):
        return f"obs/{key.removeprefix(IMAGE_PREFIX)}_image"
    if key.startswith(_OBSERVATION):
        return f"obs/{key.removeprefix(_OBSERVATION)}"
    return _FIXED.get(key, key)


def _key_of(path: str, dataset: Any) -> str:
    """Return the key of a dataset in somebody else's file."""
    fixed = {there: ours for ours, there in _FIXED.items()}
    if not path.startswith("obs/"):
        return fixed.get(path, path)
    name = path.removeprefix("obs/")
    picture = dataset.dtype == np.uint8 and dataset.ndim == 4 and dataset.shape[-1] == 3
    return f"{IMAGE_PREFIX}{name.removesuffix('_image')}" if picture else _OBSERVATION + name


def _datasets(demo: Any) -> list[tuple[str, Any]]:
    """Return the datasets of a demonstration and of its `obs`, by path."""
    found = [(name, demo[name]) for name in demo if isinstance(demo[name], h5py.Dataset) and name not in AUTOMATIC]
    found += [(f"obs/{name}", item) for name, item in demo.get("obs", {}).items() if isinstance(item, h5py.Dataset)]
    return found


def _env_args(env: Mapping[str, Any]) -> dict[str, Any]:
    """Return robomimic's description of the environment: its own where it came from there, else a gymnasium one."""
    if "env_args" in env:
        return dict(env["env_args"])
    return {"env_name": env["env_id"], "type": _GYM_TYPE, "env_kwargs": settings_of(env)}
