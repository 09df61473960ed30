"""What is in a data set: how much, which features with units and ranges, what success, made by what?"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toto_robot.data.episodes import AUTOMATIC
from toto_robot.data.flat_store import store_kind
from toto_robot.data.frames import FrameStore
from toto_robot.data.recording import Recording, is_image
from toto_robot.data.sources import kind_of, source_of
from toto_robot.data.tokens import TokenStore
from toto_robot.data.units import element_names, element_units

_LISTED_ELEMENTS = 40  # of a feature; longer ones (simulator states) are summed up
_KINDS = {"toto": "episode store", "lerobot": "LeRobot dataset", "robomimic": "robomimic file"}


def clip_store_info(path: Path) -> dict[str, Any] | None:
    """Return what is in a store of frames or tokens, None where `path` is neither."""
    kind = store_kind(path)
    if kind not in ("frames", "tokens"):
        return None
    store: Any = FrameStore.open(path) if kind == "frames" else TokenStore.open(path)
    rates = [record["fps"] for record in store.records if record.get("fps")]
    info: dict[str, Any] = {
        "path": str(path),
        "kind": f"{kind} store",
        "clips": len(store),
        "frames": int(store.clip_ends[-1]) if len(store) else 0,
        "sources": _sources(store.records),
        "image_px": store.image_px,
        "size_bytes": size_bytes(path),
        "provenance": store.provenance,
    }
    if rates:
        info["fps"] = {"min": min(rates), "max": max(rates)}
        seconds = sum(record["frames"] / record["fps"] for record in store.records if record.get("fps"))
        info["hours"] = round(seconds / 3600, 4)
    if kind == "tokens":
        own = {"grid": list(store.grid), "vocab": store.vocab, "tokenizer": store.tokenizer}
        info |= {**own, "precision": store.precision, "tokens": info["frames"] * store.tokens_per_frame}
        info |= {"shards": len(store.shards), "left_out": len(store.skipped), "fingerprint": store.fingerprint()}
    return info


def _sources(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the kind, clips and frames of every source that a store was made from."""
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        one = found.setdefault(source_of(record), {"kind": kind_of(record), "clips": 0, "frames": 0})
        one["clips"] += 1
        one["frames"] += record["frames"]
    return found


def recording_info(recording: Recording) -> dict[str, Any]:
    """Return what is in a recording, as JSON values; all numbers are read, images are not."""
    lengths, meta = recording.lengths, recording.meta
    steps = int(sum(lengths))
    ranges = _ranges(recording)
    info: dict[str, Any] = {
        "path": str(recording.path),
        "kind": _KINDS[recording.format],
        "episodes": len(recording),
        "steps": steps,
        "hours": round(steps / recording.fps / 3600, 4),
        "fps": recording.fps,
        "length": {"min": min(lengths, default=0), "max": max(lengths, default=0)},
        "size_bytes": size_bytes(recording.path),
        "env_id": recording.env["env_id"],
        "scene_hash": recording.env.get("scene_hash"),
        "tasks": list(recording.tasks),
        "success": {"successes": int(meta["success"].sum()), "episodes": len(recording)} if "success" in meta else None,
        "numbers": {key: {"min": values.min().item(), "max": values.max().item()} for key, values in meta.items()}
        if len(recording)
        else {},
        "features": {key: _feature(recording, key, ranges.get(key)) for key in recording.features},
        "left_out": recording.left_out,
        "env": dict(recording.env),
        "provenance": recording.provenance,
    }
    return info


def describe(info: Mapping[str, Any]) -> str:
    """Return the lines that a person reads."""
    lines = [f"{info['kind']}  {info['path']}"]
    if "clips" in info:
        lines += [f"  {key:<12}{_short(value)}" for key, value in info.items() if key not in ("path", "kind")]
        return "\n".join(lines)
    success = info["success"]
    length = info["length"]
    about = {
        "episodes": f"{info['episodes']}, {info['steps']} steps ({length['min']} to {length['max']} an episode)",
        "duration": f"{info['hours']:.4g} hours at {info['fps']:g} Hz",
        "size": _bytes(info["size_bytes"]),
        "success": f"{success['successes']} of {success['episodes']} that were kept" if success else "not recorded",
        "environment": f"{info['env_id']}, scene {info['scene_hash'] or 'not recorded'}",
        "tasks": "; ".join(info["tasks"]),
        "numbers": ", ".join(f"{key} {one['min']}..{one['max']}" for key, one in info["numbers"].items()),
        "provenance": _short(info["provenance"]),
    }
    lines += [f"  {key:<13}{value}" for key, value in about.items()]
    lines += ["", f"  {'feature':<28}{'dtype':<9}{'shape':<15}range"]
    for key, feature in info["features"].items():
        lines += _feature_lines(key, feature)
    lines += [f"  left out: {key} ({reason})" for key, reason in info["left_out"].items()]
    return "\n".join(lines)


def size_bytes(path: Path) -> int:
    """Return the bytes that a file or folder takes on disk; our shards are sparse files, their holes take none."""
    files = [path] if path.is_file() else [Path(parent) / name for parent, _, names in os.walk(path) for name in names]
    return sum(file.stat().st_blocks * 512 for file in files)


def _ranges(recording: Recording) -> dict[str, tuple[Any, Any]]:
    """Return the smallest and largest value of every element of every feature that is no image."""
    keys = [key for key in recording.features if not is_image(key)]
    found: dict[str, tuple[Any, Any]] = {}
    for index in range(len(recording)):
        for key, array in recording.episode(index, keys).items():
            low, high = array.min(axis=0), array.max(axis=0)
            if key in found:
                low, high = np.minimum(found[key][0], low), np.maximum(found[key][1], high)
            found[key] = (low, high)
    return found


def _feature(recording: Recording, key: str, extremes: tuple[Any, Any] | None) -> dict[str, Any]:
    spec = recording.features[key]
    feature: dict[str, Any] = {"dtype": spec.dtype, "shape": list(spec.shape)}
    if extremes is None:
        return feature
    low, high = (np.asarray(value) for value in extremes)
    feature |= {"min": low.min().item(), "max": high.max().item()}
    if len(spec.shape) == 1 and spec.shape[0] <= _LISTED_ELEMENTS and (spec.names or key == "observation.state"):
        count = spec.shape[0]
        rows = zip(element_names(recording, key, count), _units(recording, key, count), low, high, strict=True)
        feature["elements"] = [
            {"name": name, "unit": unit, "min": float(a), "max": float(b)} for name, unit, a, b in rows
        ]
    return feature


def _units(recording: Recording, key: str, count: int) -> list[str | None]:
    """Return the units of the elements; an action in its box is a share of `action_scale`."""
    scale, units = recording.env.get("action_scale"), recording.env.get("action_units")
    if key in ("action", "action.executed") and scale and units and len(scale) == len(units) == count:
        return [f"x {size:g} {unit}" for size, unit in zip(scale, units, strict=True)]
    return element_units(recording, key, count)


def _feature_lines(key: str, feature: Mapping[str, Any]) -> list[str]:
    shape = "x".join(map(str, feature["shape"])) or "1"
    whole = f"{feature['min']:.4g}..{feature['max']:.4g}" if "min" in feature and key not in AUTOMATIC else ""
    lines = [f"  {key:<28}{feature['dtype']:<9}{shape:<15}{whole}".rstrip()]
    for one in feature.get("elements", ()):
        unit = f" [{one['unit']}]" if one["unit"] else ""
        lines.append(f"      {one['name'] + unit:<48}{one['min']:.4g}..{one['max']:.4g}")
    return lines


def _bytes(size: int) -> str:
    return f"{size / 2**20:.1f} MiB" if size < 2**30 else f"{size / 2**30:.2f} GiB"


def _short(value: Any) -> str:
    if isinstance(value, int | float | str):
        return str(value)
    text = json.dumps(value, default=str)
    return text if len(text) <= 300 else text[:297] + "..."
