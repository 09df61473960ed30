"""What is wrong with a data set: numbers, lengths, times, units, pictures, or the scene it was made in?

Everything is a `Finding`. What cannot be told from the data alone (units of small angles, pictures that are upside down
or have red and blue exchanged) is told by the environment that made it, where gymnasium has it: it is put into stored
simulator states and asked what it observes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from toto_robot.data.check_environment import check_environment
from toto_robot.data.check_tokens import check_tokens
from toto_robot.data.finding import ERROR, WARNING, Finding, first
from toto_robot.data.flat_store import store_kind
from toto_robot.data.frames import FrameStore
from toto_robot.data.recording import Recording, is_image, open_recording
from toto_robot.data.shards import Array
from toto_robot.data.units import check_units

_TIME_TOLERANCE_S = 1e-4  # lerobot's own, for a frame and its time
_DARK = 8  # a picture whose brightest value is below this shows nothing
_BLOCK_ROWS = 4096


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to look at."""

    environment: bool = True  # ask the environment that made the data
    images: bool = True  # read the pictures
    fps: float | None = None  # of a robomimic file that does not say
    flip_images: bool = False  # of a robomimic file whose pictures are upside down
    progress: bool = True  # show a bar


def check(path: Path, options: Options) -> Iterator[Finding]:
    """Yield what is wrong with the data set at `path`, as it is found."""
    try:
        kind = store_kind(path)
        if kind in ("frames", "tokens"):
            yield from _check_clips(path) if kind == "frames" else check_tokens(path)
            return
        recording = open_recording(path, fps=options.fps, flip_images=options.flip_images)
    except (ValueError, OSError) as error:
        yield Finding(ERROR, None, None, "store", str(error))
        return
    for key, reason in recording.left_out.items():
        yield Finding(WARNING, None, None, key, f"is left out: {reason}")
    yield from _check_numbers(recording)
    for index in tqdm(range(len(recording)), desc="check", unit="episode", disable=not options.progress):
        yield from check_episode(recording, index, options)
    if options.environment:
        yield from check_environment(recording, images=options.images)


def check_episode(recording: Recording, index: int, options: Options) -> Iterator[Finding]:
    """Yield what is wrong with one episode."""
    arrays: dict[str, Array] = {}
    for key in recording.features:
        if is_image(key) and not options.images:
            continue
        try:
            arrays[key] = recording.episode(index, [key])[key]
        except (ValueError, IndexError, OSError) as error:
            yield Finding(ERROR, index, None, key, f"expected a readable array, got: {error}")
    length = recording.lengths[index]
    for key, array in arrays.items():
        expected = (length, *recording.features[key].shape)
        if array.shape != expected:
            yield Finding(ERROR, index, None, key, f"expected shape {expected}, got {array.shape}")
        elif is_image(key):
            yield from _check_images(index, key, array)
        else:
            yield from _check_values(index, key, array)
    yield from _check_times(recording, index, arrays)
    yield from check_units(recording, index, arrays)
    yield from _check_success(recording, index, arrays)


def _check_numbers(recording: Recording) -> Iterator[Finding]:
    """Check what belongs to all episodes."""
    if not len(recording):
        yield Finding(ERROR, None, None, "store", "expected at least one episode, got none")
    for index in np.flatnonzero(np.asarray(recording.lengths) < 1).tolist():
        yield Finding(ERROR, index, None, "length", f"expected at least one step, got {recording.lengths[index]}")
    for key, spec in recording.features.items():
        if is_image(key) and (spec.dtype != "uint8" or len(spec.shape) != 3 or spec.shape[-1] != 3):
            yield Finding(ERROR, None, None, key, f"expected uint8 (h, w, 3), got {spec.dtype} {spec.shape}")
    for key, values in recording.meta.items():
        for index in first(~np.isfinite(values.astype(np.float64))):
            yield Finding(ERROR, index, None, key, f"expected a finite number, got {values[index]}")
    if hasattr(recording, "store") and "length" in recording.store.meta:
        for index, (said, is_) in enumerate(zip(recording.store.meta["length"], recording.lengths, strict=True)):
            if said != is_:
                yield Finding(ERROR, index, None, "length", f"expected the {said} steps that meta says, got {is_}")
    seeds = recording.meta.get("seed")
    if seeds is not None and len(np.unique(seeds)) < len(seeds):
        values, counts = np.unique(seeds, return_counts=True)
        twice = values[counts > 1]
        index = int(np.flatnonzero(seeds == twice[0])[1])
        yield Finding(
            WARNING, index, None, "seed", f"expected every seed once, got {twice[0]} again: the same episode?"
        )


def _check_values(index: int, key: str, array: Array) -> Iterator[Finding]:
    if array.dtype.kind != "f":
        return
    finite = np.isfinite(array).reshape(len(array), -1)
    for step in first(~finite.all(axis=1)):
        at = int(np.argmin(finite[step]))
        count = int((~finite).sum())
        value = array.reshape(len(array), -1)[step, at]
        yield Finding(ERROR, index, step, key, f"expected finite numbers, got {value} in element {at} ({count} in all)")
    if (
        finite.all()
        and key in ("action", "observation.state", "simulator.state")
        and len(array) > 2
        and not np.ptp(array, axis=0).any()
    ):
        yield Finding(WARNING, index, 0, key, f"expected values that change, got the same in all {len(array)} steps")


def _check_times(recording: Recording, index: int, arrays: dict[str, Array]) -> Iterator[Finding]:
    expected: dict[str, Callable[[int], Array]] = {
        "frame_index": np.arange,
        "episode_index": lambda length: np.full(length, index),
    }
    for key, make in expected.items():
        if key in arrays:
            counted = make(len(arrays[key]))
            for step in first(arrays[key] != counted):
                yield Finding(ERROR, index, step, key, f"expected {counted[step]}, got {arrays[key][step]}: a gap")
    if "timestamp" in arrays:
        seconds = arrays["timestamp"].astype(np.float64)
        # float32 seconds: the last digit of a long episode is worth more than the tolerance
        tolerance_s = np.maximum(_TIME_TOLERANCE_S, np.spacing(np.abs(arrays["timestamp"]).astype(np.float32)) * 2)
        regular = np.arange(len(seconds)) / recording.fps
        for step in first(~(np.abs(seconds - regular) <= tolerance_s)):
            what = f"expected {regular[step]:.4f} s at {recording.fps:g} Hz, got {seconds[step]:.4f} s"
            yield Finding(ERROR, index, step, "timestamp", what)


def _check_images(index: int, key: str, images: Array) -> Iterator[Finding]:
    if images.dtype != np.uint8:
        yield Finding(ERROR, index, 0, key, f"expected uint8 0..255, got {images.dtype}")
        return
    if images.max(initial=0) == 1:
        yield Finding(ERROR, index, 0, key, "expected values 0..255, got 0..1: floats cast to uint8?")
        return
    low = images.min(axis=(1, 2, 3))
    high = images.max(axis=(1, 2, 3))
    for step in first(high < _DARK):
        count = int((high < _DARK).sum())
        yield Finding(ERROR, index, step, key, f"expected a picture, got a black frame ({count} of {len(images)})")
    flat = (low == high) & (high >= _DARK)
    for step in first(flat):
        what = f"expected a picture, got one colour everywhere ({int(flat.sum())} of {len(images)} frames)"
        yield Finding(ERROR, index, step, key, what)
    if len(images) > 2 and not flat.any() and (high >= _DARK).all():
        still = (images[1:] == images[0]).all(axis=(1, 2, 3))
        if still.all():
            what = f"expected frames that change, got the same picture {len(images)} times"
            yield Finding(WARNING, index, 1, key, what)


def _check_success(recording: Recording, index: int, arrays: dict[str, Array]) -> Iterator[Finding]:
    said = recording.meta.get("success")
    steps = arrays.get("next.success")
    if said is None or steps is None or steps.ndim != 1:
        return
    if bool(said[index]) != bool(steps.any()):
        what = f"expected next.success to be {bool(said[index])} as meta says, got {bool(steps.any())}"
        yield Finding(ERROR, index, len(steps) - 1, "next.success", what)


def _check_clips(path: Path) -> Iterator[Finding]:
    """Check a store of frames."""
    store = FrameStore.open(path)
    ends = store.clip_ends
    if len(ends) and (np.diff(ends, prepend=0) < 1).any():
        clip = int(np.argmin(np.diff(ends, prepend=0)))
        yield Finding(ERROR, clip, None, "clip_ends", "expected every clip to have frames, got an empty one")
    for clip, record in enumerate(store.records):
        start, stop = store.bounds(clip)
        if record.get("frames", stop - start) != stop - start:
            what = f"expected the {record['frames']} frames of its record, got {stop - start}"
            yield Finding(ERROR, clip, None, "frames", what)
    if len(store.records) != len(store):
        yield Finding(ERROR, None, None, "records", f"expected {len(store)} records, got {len(store.records)}")
    for clip in range(len(store)):
        try:
            yield from _check_clip(store, clip)
        except (ValueError, OSError, IndexError) as error:
            yield Finding(ERROR, clip, None, "frames", f"expected a readable clip, got: {error}")


def _check_clip(store: FrameStore, clip: int) -> Iterator[Finding]:
    start, stop = store.bounds(clip)
    for at in range(start, stop, _BLOCK_ROWS):
        for finding in _check_images(clip, "frames", store.frames.read(at, min(at + _BLOCK_ROWS, stop))):
            moved = None if finding.step is None else finding.step + at - start
            # Videos may fade to black: that is no damage.
            yield Finding(WARNING, clip, moved, "frames", finding.what)
