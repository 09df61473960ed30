"""How is a LeRobot dataset (formats v3.0 and v2.1: parquet, mp4, JSON) read without lerobot?

Version 3.0, which `lerobot_writer.py` writes:

    meta/info.json                      features, fps, totals, path patterns; `toto_robot`: what our export adds
    meta/tasks.parquet                  task text to task_index (written by pandas with the text as its index)
    meta/episodes/chunk-*/file-*.parquet  one row an episode: its rows, its files, its place in every video, statistics
    data/chunk-*/file-*.parquet         one row a step; images as PNG where a feature is `image`
    videos/<key>/chunk-*/file-*.mp4     the frames of several episodes, one after the other, where it is `video`

Version 2.1 has a file per episode, and lists of JSON lines:

    meta/tasks.jsonl, meta/episodes.jsonl
    data/chunk-*/episode_*.parquet
    videos/chunk-*/<key>/episode_*.mp4

Source: lerobot 0.4.4, `datasets/lerobot_dataset.py` and `datasets/utils.py`; 0.3.3 for version 2.1.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from toto_robot.data.episodes import AUTOMATIC, FeatureSpec
from toto_robot.data.recording import is_image, spec_from_dict, storable, tasks_of, with_automatic
from toto_robot.data.shards import Array
from toto_robot.data.video import BadVideo

VERSION = "v3.0"
OURS = "toto_robot"  # the key of info.json, and the prefix of episode columns, that hold what LeRobot has no place for
AUTOMATIC_ONLY_THERE = ("index", "task_index")  # made again by the writer
PICTURES = ("image", "video")


class LeRobotFolder:
    """A LeRobot dataset as a Recording."""

    format = "lerobot"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.info = _info(path)
        self.fps = float(self.info["fps"])
        ours: dict[str, Any] = self.info.get(OURS, {})
        self._tasks, rows = _tables_v2(path, self.info) if _is_v2(self.info) else _tables_v3(path)
        self._rows = sorted(rows, key=lambda row: int(row["episode_index"]))
        self.left_out: dict[str, str] = {}
        self.features = self._features(ours.get("features"))
        robot = self.info.get("robot_type") or "unknown"
        self.env: dict[str, Any] = ours.get("env") or {"env_id": f"lerobot/{robot}", "robot": robot}
        if self._tasks and tasks_of(self.env) != self._tasks:
            self.env = {**self.env, "tasks": list(self._tasks)}
        self.tasks = tasks_of(self.env)
        self.provenance: dict[str, Any] = ours.get("provenance", {"lerobot": {"name": path.name}})
        self._meta_names: list[str] | None = ours.get("meta")
        self._table: tuple[Path, pa.Table] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def lengths(self) -> list[int]:
        """Return the steps of every episode."""
        return [int(row["length"]) for row in self._rows]

    @property
    def meta(self) -> dict[str, Array]:
        """Return what our export kept per episode, or which task it is where somebody else's names several."""
        if self._meta_names is not None:
            return {key: np.asarray([row[f"{OURS}/{key}"] for row in self._rows]) for key in self._meta_names}
        if len(self.tasks) < 2:
            return {}
        index = [self.tasks.index(row["tasks"][0]) if row.get("tasks") else 0 for row in self._rows]
        return {"task_index": np.asarray(index, np.int64)}

    def episode(self, index: int, keys: Sequence[str] | None = None) -> dict[str, Array]:
        """Return arrays (T, ...) of an episode; ValueError names a file that does not hold what the metadata says."""
        wanted = list(self.features if keys is None else keys)
        table = self._steps(index)
        found: dict[str, Array] = {}
        for key in wanted:
            found[key] = np.stack(list(self.pictures(index, key))) if is_image(key) else self._column(table, key, index)
        return found

    def pictures(self, index: int, key: str) -> Iterator[Array]:
        """Yield the pictures (h, w, 3) of a camera in an episode, one by one; ValueError where one is missing."""
        table = self._steps(index)
        if self.info["features"][key]["dtype"] != "video":
            yield from (self._picture(cell, index, key) for cell in self._cells(table, key, index).to_pylist())
            return
        start_s = float(self._rows[index][f"videos/{key}/from_timestamp"])
        seconds = np.asarray(table.column("timestamp").to_numpy(), np.float64) + start_s
        try:
            yield from frames_at(self.file_of(index, key), seconds, 0.5 / self.fps)
        except BadVideo as error:
            raise ValueError(f"{self.file_of(index, key)}: episode {index}: {error}") from error

    def file_of(self, index: int, key: str) -> Path:
        """Return the file that holds the values of `key` in an episode."""
        row, video = self._rows[index], self.info["features"].get(key, {}).get("dtype") == "video"
        place = f"videos/{key}" if video else "data"
        chunk, file = row[f"{place}/chunk_index"], row[f"{place}/file_index"]
        names = {"chunk_index": chunk, "file_index": file, "episode_chunk": chunk, "episode_index": file}
        return self.path / self.info["video_path" if video else "data_path"].format(video_key=key, **names)

    def place_of(self, index: int) -> dict[str, Any]:
        """Return which part of the files is an episode: what the metadata say of it, statistics left out."""
        return {key: value for key, value in self._rows[index].items() if not key.startswith("stats/")}

    def statistics(self) -> dict[str, Any]:
        """Return `meta/stats.json`: feature to min, max, mean, std, count and quantiles; empty where there is none."""
        file = self.path / "meta" / "stats.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}

    # --- parts --------------------------------------------------------------------------------------------------------

    def _features(self, ours: Mapping[str, Any] | None) -> dict[str, FeatureSpec]:
        if ours is not None:
            return {key: spec_from_dict(spec) for key, spec in ours.items()}
        found: dict[str, FeatureSpec] = {}
        for key, spec in self.info["features"].items():
            if key in AUTOMATIC or key in AUTOMATIC_ONLY_THERE:
                continue
            feature = _foreign_feature(key, spec)
            if isinstance(feature, str):
                self.left_out[key] = feature
            else:
                found[key] = feature
        return with_automatic(found)

    def _steps(self, index: int) -> pa.Table:
        """Return the rows of an episode; the file read last is kept, as episodes are asked for in order."""
        row, file = self._rows[index], self.file_of(index, "timestamp")
        if self._table is None or self._table[0] != file:
            self._table = (file, _read_parquet(file))
        table = self._table[1].filter(pc.field("episode_index") == int(row["episode_index"]))
        if len(table) != int(row["length"]):
            raise ValueError(
                f"{file} holds {len(table)} steps of episode {index}, meta/episodes says {row['length']}: "
                "an incomplete copy, download it again"
            )
        return table

    def _column(self, table: pa.Table, key: str, index: int) -> Array:
        spec, column = self.features[key], self._cells(table, key, index)
        if spec.shape and pa.types.is_nested(column.type):
            while pa.types.is_nested(column.type):
                column = pc.list_flatten(column)
        if column.null_count:
            raise ValueError(f"{self.path}: {key} of episode {index} has {column.null_count} empty cells")
        try:
            flat = column.to_numpy().astype(spec.dtype)
            return flat.reshape(len(table), *spec.shape)
        except ValueError as error:
            raise ValueError(
                f"{self.path}: {key} of episode {index} is not {spec.dtype} {spec.shape}: {error}"
            ) from error

    def _cells(self, table: pa.Table, key: str, index: int) -> pa.ChunkedArray:
        if key not in table.column_names:
            raise ValueError(f"{self.path}: episode {index} has no column {key!r}, which meta/info.json promises")
        return table.column(key)

    def _picture(self, cell: Mapping[str, Any] | None, index: int, key: str) -> Array:
        if not cell or not (cell.get("bytes") or cell.get("path")):
            raise ValueError(f"{self.path}: episode {index} has a step without a picture in {key}")
        source = io.BytesIO(cell["bytes"]) if cell.get("bytes") else self.path / cell["path"]
        with Image.open(source) as picture:
            return np.asarray(picture.convert("RGB"))


def frames_at(path: Path, seconds: Array, tolerance_s: float) -> Iterator[Array]:
    """Yield the frames (h, w, 3) of a video that are shown at `seconds` (T,), which must not decrease.

    BadVideo where the nearest frame is further away than `tolerance_s`.
    """
    found = 0
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            start = max(0.0, float(seconds[0]) - tolerance_s)
            container.seek(int(start / float(stream.time_base)), stream=stream, backward=True)
            for frame in container.decode(stream):
                while found < len(seconds) and abs(frame.time - seconds[found]) <= tolerance_s:
                    found += 1
                    yield frame.to_ndarray(format="rgb24")
                if found == len(seconds):
                    return
    except (av.FFmpegError, OSError, IndexError) as error:
        raise BadVideo(f"cannot be read ({getattr(error, 'strerror', None) or error})") from error
    raise BadVideo(f"has no frame at {seconds[found]:.4f} s, {found} of {len(seconds)} were found")


def _foreign_feature(key: str, spec: Mapping[str, Any]) -> FeatureSpec | str:
    """Return the feature of an entry that we did not write, or why it is left out."""
    shape, names = tuple(spec["shape"]), spec.get("names")
    if spec["dtype"] in PICTURES:
        if not is_image(key):
            return "a picture that is not called observation.images.<camera>"
        if shape[0] in (1, 3) and shape[-1] not in (1, 3):  # some converters write channels first
            shape = (*shape[1:], shape[0])
        return FeatureSpec("uint8", shape) if shape[-1] == 3 else f"pictures of {shape[-1]} channels"
    dtype = storable(spec["dtype"])
    if dtype is None:
        return f"dtype {spec['dtype']}"
    if shape == (1,) and (key.startswith("next.") or not names):
        return FeatureSpec(dtype, ())
    flat = tuple(names) if isinstance(names, list) and shape and len(names) == shape[0] else None
    return FeatureSpec(dtype, shape, flat)


def _info(path: Path) -> dict[str, Any]:
    try:
        info: dict[str, Any] = json.loads((path / "meta" / "info.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"expected a LeRobot dataset at {path}: meta/info.json cannot be read ({error})") from error
    version = str(info.get("codebase_version", "without a version"))
    if not version.startswith(("v2.", "v3.")):
        raise ValueError(
            f"{path} is LeRobot {version}, this program reads v2 and v3: convert it with the scripts of the lerobot "
            "that is as old"
        )
    return info


def _read_parquet(file: Path) -> pa.Table:
    try:
        return pq.read_table(file)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{file} cannot be read ({error}): the dataset is damaged or an incomplete copy") from error


def _is_v2(info: Mapping[str, Any]) -> bool:
    return str(info["codebase_version"]).startswith("v2.")


def _tables_v2(path: Path, info: Mapping[str, Any]) -> tuple[tuple[str, ...], list[dict[str, Any]]]:
    """Return the task names, and the episodes with the columns that v3 has."""
    tasks = sorted(_json_lines(path / "meta" / "tasks.jsonl"), key=lambda row: int(row["task_index"]))
    rows = _json_lines(path / "meta" / "episodes.jsonl")
    cameras = [key for key, spec in info["features"].items() if spec["dtype"] == "video"]
    for row in rows:
        index = int(row["episode_index"])
        for place in ("data", *(f"videos/{camera}" for camera in cameras)):
            row |= {f"{place}/chunk_index": index // int(info.get("chunks_size", 1000)), f"{place}/file_index": index}
        row |= {f"videos/{camera}/from_timestamp": 0.0 for camera in cameras}
    return tuple(str(row["task"]) for row in tasks), rows


def _json_lines(file: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} cannot be read ({error}): the dataset is damaged or an incomplete copy") from error


def _tables_v3(path: Path) -> tuple[tuple[str, ...], list[dict[str, Any]]]:
    """Return the task names, and the rows of all episode files without their statistics."""
    table = _read_parquet(path / "meta" / "tasks.parquet")
    texts = [name for name in table.column_names if name != "task_index"]
    if len(texts) != 1:
        raise ValueError(f"{path}/meta/tasks.parquet: expected task_index and the text; got {table.column_names}")
    order = np.argsort(table.column("task_index").to_numpy())
    names = table.column(texts[0]).to_pylist()
    files = sorted((path / "meta" / "episodes").glob("*/*.parquet"))
    if not files:
        raise ValueError(f"{path}/meta/episodes holds no parquet file: an incomplete copy, download it again")
    rows: list[dict[str, Any]] = []
    for file in files:
        table = _read_parquet(file)
        rows += table.select([name for name in table.column_names if not name.startswith("stats/")]).to_pylist()
    return tuple(str(names[at]) for at in order), rows
