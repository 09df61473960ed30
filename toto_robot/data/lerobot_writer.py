"""How does a recording become a LeRobot dataset (format v3.0), written without lerobot?

Numbers are exact. Camera images are H.264 video (a few grey levels off, much smaller) or, `lossless`, PNG in the
parquet files (LeRobot's dtype `image`). What LeRobot has no place for (task specification, provenance, seed, success
and other numbers of an episode) lies under `toto_robot` in info.json and in columns `toto_robot/<name>` of
meta/episodes, which lerobot passes over. The layout is described in lerobot.py.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from toto_robot.data.episodes import AUTOMATIC, FeatureSpec
from toto_robot.data.lerobot import OURS, VERSION
from toto_robot.data.recording import Recording, is_image, task_index
from toto_robot.data.shards import Array

CHUNK_FILES = 1000  # files in a chunk folder; this and the sizes are LeRobot's defaults
DATA_FILE_MB = 100
VIDEO_FILE_MB = 200
CRF = 18  # x264's "visually lossless"; lerobot's own default is AV1 at 30
_KEYFRAME_EVERY = 2  # as lerobot's: a random frame costs two decoded ones
_QUANTILES = (0.01, 0.10, 0.50, 0.90, 0.99)
_SAMPLED_IMAGES = 32  # of an episode, for the statistics of images
_DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"

Statistics = dict[str, Array]  # min, max, mean, std, count, q01..q99, each (n,) or, for images, (3, 1, 1)


class LeRobotWriter:
    """Writes a new dataset into the empty folder `path`, episode by episode; call `finish` at the end."""

    def __init__(self, path: Path, recording: Recording, *, lossless: bool = False, crf: int = CRF) -> None:
        bad = [key for key in recording.features if "/" in key]
        if bad:
            raise ValueError(f"LeRobot's feature names hold no '/': rename {', '.join(bad)}")
        self.path, self._recording, self._lossless = path, recording, lossless
        self._features = recording.features
        self._task_index = task_index(recording)
        self._rows: list[dict[str, Any]] = []
        self._statistics: dict[str, Statistics] = {}
        self._data = _DataFiles(path, _schema(self._features, lossless))
        self._videos = {
            key: _VideoFiles(path, key, recording.fps, crf) for key in self._features if is_image(key) and not lossless
        }
        self._frames = 0

    def add(self, arrays: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
        """Add the next episode: arrays (T, ...) of every feature, and its numbers."""
        number, length = len(self._rows), len(arrays["frame_index"])
        columns = {key: arrays[key] for key in self._features if key not in self._videos}
        columns["index"] = np.arange(self._frames, self._frames + length, dtype=np.int64)
        columns["task_index"] = np.full(length, self._task_index[number], np.int64)
        chunk, file = self._data.write(columns)
        row: dict[str, Any] = {
            "episode_index": number,
            "tasks": [self._recording.tasks[self._task_index[number]]],
            "length": length,
            "data/chunk_index": chunk,
            "data/file_index": file,
            "dataset_from_index": self._frames,
            "dataset_to_index": self._frames + length,
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
            **{f"{OURS}/{key}": value for key, value in meta.items()},
        }
        for key, video in self._videos.items():
            place = video.write(arrays[key])
            row |= {f"videos/{key}/{name}": value for name, value in place.items()}
        statistics = {key: _statistics(key, array) for key, array in {**arrays, **columns}.items()}
        row |= {f"stats/{key}/{name}": value.tolist() for key, one in statistics.items() for name, value in one.items()}
        self._statistics = {key: _merge(self._statistics.get(key), one) for key, one in statistics.items()}
        self._rows.append(row)
        self._frames += length

    def finish(self) -> None:
        """Close the files and write the metadata."""
        self._data.close()
        for video in self._videos.values():
            video.close()
        episodes = self.path / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
        episodes.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(self._rows), episodes, compression="snappy")
        pq.write_table(_tasks_table(self._recording.tasks), self.path / "meta" / "tasks.parquet")
        _write_json(self.path / "meta" / "info.json", self._info())
        stats = {key: {name: value.tolist() for name, value in one.items()} for key, one in self._statistics.items()}
        _write_json(self.path / "meta" / "stats.json", stats)

    def abandon(self) -> None:
        """Close the files of a dataset that will be thrown away."""
        self._data.close()
        for video in self._videos.values():
            video.discard()

    def _info(self) -> dict[str, Any]:
        recording = self._recording
        features = {key: self._info_feature(key, spec) for key, spec in self._features.items()}
        number = {"dtype": "int64", "shape": [1], "names": None}
        return {
            "codebase_version": VERSION,
            "robot_type": recording.env.get("robot"),
            "total_episodes": len(self._rows),
            "total_frames": self._frames,
            "total_tasks": len(recording.tasks),
            "chunks_size": CHUNK_FILES,
            "data_files_size_in_mb": DATA_FILE_MB,
            "video_files_size_in_mb": VIDEO_FILE_MB,
            "fps": int(recording.fps) if float(recording.fps).is_integer() else recording.fps,
            "splits": {"train": f"0:{len(self._rows)}"},
            "data_path": _DATA_PATH,
            "video_path": _VIDEO_PATH if self._videos else None,
            "features": {**features, "index": number, "task_index": number},
            OURS: {
                "env": recording.env,
                "provenance": recording.provenance,
                "meta": list(recording.meta),
                "features": {key: spec.as_dict() for key, spec in self._features.items()},
            },
        }

    def _info_feature(self, key: str, spec: FeatureSpec) -> dict[str, Any]:
        if not is_image(key):
            return {**spec.as_dict(), "shape": list(spec.shape) or [1]}
        entry = {"shape": list(spec.shape), "names": ["height", "width", "channels"]}
        if self._lossless:
            return {"dtype": "image", **entry}
        return {"dtype": "video", **entry, "info": self._videos[key].info(spec)}


class _DataFiles:
    """The parquet files of the steps, one row group an episode, a new file where LeRobot would start one."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path, self._schema = path, schema
        self._writer: Any = None
        self._file = -1
        self._bytes = 0

    def write(self, columns: Mapping[str, Array]) -> tuple[int, int]:
        """Write the rows of an episode; return the chunk and the file they are in."""
        cells = [_arrow(columns[field.name], field.type) for field in self._schema]
        table = pa.Table.from_arrays(cells, schema=self._schema)
        if self._writer is None or self._bytes + table.nbytes > DATA_FILE_MB * 2**20:
            self.close()
            self._file, self._bytes = self._file + 1, 0
            chunk, file = divmod(self._file, CHUNK_FILES)
            target = self._path / _DATA_PATH.format(chunk_index=chunk, file_index=file)
            target.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(target, self._schema, compression="snappy")
        self._writer.write_table(table, row_group_size=len(table))
        self._bytes += table.nbytes
        return divmod(self._file, CHUNK_FILES)

    def close(self) -> None:
        """End the file that is open."""
        if self._writer is not None:
            self._writer.close()
        self._writer = None


class _VideoFiles:
    """The mp4 files of one camera: episodes one after the other, a new file where LeRobot would start one."""

    def __init__(self, path: Path, key: str, fps: float, crf: int) -> None:
        self._path, self._key, self._crf = path, key, crf
        self._rate = Fraction(fps).limit_denominator(1001)
        self._container: Any = None
        self._stream: Any = None
        self._file, self._frames, self._bytes = -1, 0, 0

    def write(self, frames: Array) -> dict[str, int | float]:
        """Append an episode (T, h, w, 3); return where it is, as LeRobot names it."""
        if self._container is None or self._bytes > VIDEO_FILE_MB * 2**20:
            self._next_file(frames.shape[1], frames.shape[2])
        first = self._frames
        for at, pixels in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            picture.pts = self._frames
            if at == 0:
                picture.pict_type = av.video.frame.PictureType.I
            self._mux(self._stream.encode(picture))
            self._frames += 1
        chunk, file = divmod(self._file, CHUNK_FILES)
        times = {"from_timestamp": float(first / self._rate), "to_timestamp": float(self._frames / self._rate)}
        return {"chunk_index": chunk, "file_index": file, **times}

    def close(self) -> None:
        """End the file that is open."""
        if self._container is not None:
            self._mux(self._stream.encode(None))
            self._container.close()
        self._container = None

    def discard(self) -> None:
        """Let go of the file that is open, whatever is in it."""
        if self._container is not None:
            self._container.close()
        self._container = None

    def info(self, spec: FeatureSpec) -> dict[str, Any]:
        """Return what LeRobot notes about a video."""
        height, width = spec.shape[:2]
        return {
            "video.height": height,
            "video.width": width,
            "video.codec": "h264",
            "video.pix_fmt": _pixel_format(height, width),
            "video.is_depth_map": False,
            "video.fps": int(self._rate),
            "video.channels": 3,
            "has_audio": False,
        }

    def _next_file(self, height: int, width: int) -> None:
        self.close()
        self._file, self._frames, self._bytes = self._file + 1, 0, 0
        chunk, file = divmod(self._file, CHUNK_FILES)
        target = self._path / _VIDEO_PATH.format(video_key=self._key, chunk_index=chunk, file_index=file)
        target.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(target), "w", format="mp4")
        # No B-frames: with them the first picture is not at 0 s in every decoder, and lerobot's tolerance is 0.1 ms.
        options = {"crf": str(self._crf), "g": str(_KEYFRAME_EVERY), "bf": "0", "preset": "veryfast"}
        self._stream = self._container.add_stream("libx264", rate=self._rate, options=options)
        self._stream.height, self._stream.width = height, width
        self._stream.pix_fmt = _pixel_format(height, width)
        self._stream.codec_context.time_base = 1 / self._rate

    def _mux(self, packets: Sequence[Any]) -> None:
        for packet in packets:
            self._bytes += packet.size
            self._container.mux(packet)


def _pixel_format(height: int, width: int) -> str:
    """Return 4:2:0, which every player shows, where the sides are even; 4:4:4 takes any."""
    return "yuv444p" if height % 2 or width % 2 else "yuv420p"


def _schema(features: Mapping[str, FeatureSpec], lossless: bool) -> pa.Schema:
    fields = [(key, _arrow_type(key, spec)) for key, spec in features.items() if lossless or not is_image(key)]
    return pa.schema([*fields, ("index", pa.int64()), ("task_index", pa.int64())])


def _arrow_type(key: str, spec: FeatureSpec) -> pa.DataType:
    if is_image(key):
        return pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    kind = pa.from_numpy_dtype(np.dtype(spec.dtype))
    if len(spec.shape) == 1 and spec.shape != (1,):
        return pa.list_(kind, spec.shape[0])
    for _ in spec.shape[1:] and spec.shape:
        kind = pa.list_(kind)
    return kind


def _arrow(array: Array, kind: pa.DataType) -> pa.Array:
    """Return an array (T, ...) as T cells."""
    if pa.types.is_struct(kind):
        return pa.array([{"bytes": _png(picture), "path": None} for picture in array], kind)
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(pa.array(array.ravel(), kind.value_type), kind.list_size)
    if pa.types.is_list(kind):
        return pa.array(array.tolist(), kind)
    return pa.array(array.reshape(len(array)), kind)


def _png(picture: Array) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="PNG")
    return file.getvalue()


def _tasks_table(tasks: Sequence[str]) -> pa.Table:
    """Return the table that pandas reads back as a frame with the texts as its index, which lerobot looks up."""
    index = "__index_level_0__"
    column = {"metadata": None, "field_name": index, "name": None, "pandas_type": "unicode", "numpy_type": "object"}
    number = {"metadata": None, "field_name": "task_index", "name": "task_index"}
    pandas = {
        "index_columns": [index],
        "column_indexes": [{**column, "field_name": None, "metadata": {"encoding": "UTF-8"}}],
        "columns": [{**number, "pandas_type": "int64", "numpy_type": "int64"}, column],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.2.0",
    }
    table = pa.table({"task_index": np.arange(len(tasks), dtype=np.int64), index: list(tasks)})
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


def _statistics(key: str, array: Array) -> Statistics:
    """Return LeRobot's statistics of an episode; images over a sample of frames, per channel, in 0..1."""
    if is_image(key):
        at = np.unique(np.linspace(0, len(array) - 1, _SAMPLED_IMAGES).round().astype(int))
        values = array[at].reshape(-1, array.shape[-1]).astype(np.float64) / 255.0
        shaped = {name: value.reshape(-1, 1, 1) for name, value in _moments(values).items()}
        return {**shaped, "count": np.asarray([len(at)])}
    flat = array.reshape(len(array), -1).astype(np.float64)
    shape = array.shape[1:] or (1,)
    return {**{name: value.reshape(shape) for name, value in _moments(flat).items()}, "count": np.asarray([len(array)])}


def _moments(values: Array) -> Statistics:
    """Return the statistics of columns: (n, k) -> name to (k,)."""
    quantiles = np.quantile(values, _QUANTILES, axis=0)
    named = {f"q{round(100 * at):02d}": value for at, value in zip(_QUANTILES, quantiles, strict=True)}
    whole = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    return {**whole, **named}


def _merge(one: Statistics | None, other: Statistics) -> Statistics:
    """Return the statistics of two sets of steps; quantiles are weighted means, as lerobot's own."""
    if one is None:
        return other
    count = one["count"] + other["count"]
    share = other["count"][0] / count[0]
    between = {name: (1 - share) * one[name] + share * other[name] for name in one if name.startswith(("q", "mean"))}
    variance = (1 - share) * (one["std"] ** 2 + (one["mean"] - between["mean"]) ** 2)
    variance = variance + share * (other["std"] ** 2 + (other["mean"] - between["mean"]) ** 2)
    extremes = {"min": np.minimum(one["min"], other["min"]), "max": np.maximum(one["max"], other["max"])}
    return {**extremes, **between, "std": np.sqrt(variance), "count": count}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=4, ensure_ascii=False, default=str) + "\n", encoding="utf-8")


assert set(AUTOMATIC) == {"timestamp", "frame_index", "episode_index"}, "LeRobot's own columns, written with the rest"
