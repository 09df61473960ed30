"""Does the environment that made a recording, as it is installed here, agree with it?

The scene's hash first. Then the environment is put into stored simulator states and observes: units, camera
orientation and colour order of what was stored are compared with that, where numbers alone cannot tell.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from toto_robot.data.episodes import IMAGE_PREFIX
from toto_robot.data.finding import ERROR, WARNING, Finding
from toto_robot.data.installed_environment import NotInstalled, installed, seed_of, specification
from toto_robot.data.recording import Recording, is_image
from toto_robot.data.shards import Array
from toto_robot.data.units import element_names

_EPISODES, _STEPS = 3, 3  # that are compared, spread evenly
_CLOSE = 1e-3  # of observations: the same state gives the same numbers, float32 and versions of libraries aside
_LEVELS = 8.0  # mean difference of pictures in grey levels: more than video makes, also of small pictures
_RATIOS = {180 / np.pi: "degrees for radians", np.pi / 180: "radians for degrees", 1e3: "millimetres for metres",
           1e-3: "metres for millimetres", 1e2: "centimetres for metres"}  # fmt: skip
_VIEWS = {
    "upside down": lambda picture: picture[::-1],
    "mirrored": lambda picture: picture[:, ::-1],
    "turned by 180 degrees": lambda picture: picture[::-1, ::-1],
    "red and blue exchanged": lambda picture: picture[..., ::-1],
}


def check_environment(recording: Recording, *, images: bool) -> Iterator[Finding]:
    """Yield how the recording differs from the installed environment; a warning where that cannot be asked."""
    if not len(recording):
        return
    try:
        with installed(recording.env) as environment:
            spec = specification(environment)
            yield from _check_specification(recording, spec)
            if spec.get("scene_hash") != recording.env.get("scene_hash"):
                return  # another scene observes something else
            yield from _check_observations(recording, environment, images)
    except NotInstalled as error:
        what = f"expected {recording.env['env_id']!r} in gymnasium to compare the scene, got: {error}"
        yield Finding(WARNING, None, None, "env", what)


def _check_specification(recording: Recording, spec: Mapping[str, Any]) -> Iterator[Finding]:
    said, here = recording.env.get("scene_hash"), spec.get("scene_hash")
    if said is None or here is None:
        side = "recording" if said is None else "environment"
        yield Finding(WARNING, None, None, "scene_hash", f"expected one on both sides, got none from the {side}")
    elif said != here:
        what = f"expected {said}, in which the data was made, got {here} from the installed environment"
        yield Finding(
            ERROR, None, None, "scene_hash", f"{what}: actions replayed and policies trained here will differ"
        )
    rate = spec.get("control_rate_hz")
    if rate is not None and abs(float(rate) - recording.fps) > 1e-6:
        yield Finding(ERROR, None, None, "fps", f"expected the control rate of {rate} Hz, got {recording.fps:g}")


def _check_observations(recording: Recording, environment: Any, images: bool) -> Iterator[Finding]:
    if "simulator.state" not in recording.features or not hasattr(environment, "set_simulator_state"):
        yield Finding(
            WARNING, None, None, "simulator.state", "expected stored states to compare units and cameras with"
        )
        return
    meta = recording.meta
    keys = [key for key in recording.features if key == "observation.state" or (images and is_image(key))]
    for index in np.unique(np.linspace(0, len(recording) - 1, _EPISODES).round().astype(int)).tolist():
        try:
            arrays = recording.episode(index, ["simulator.state", *keys])
        except (ValueError, IndexError, OSError):
            continue  # reported by the episode's own check
        environment.reset(seed=seed_of(meta, index))
        steps = np.unique(np.linspace(0, len(arrays["simulator.state"]) - 1, _STEPS).round().astype(int))
        reported: set[str] = set()
        for step in steps.tolist():
            for finding in _check_step(recording, environment, index, step, arrays):
                if finding.key not in reported:
                    yield finding
                reported.add(finding.key)


def _check_step(
    recording: Recording, environment: Any, index: int, step: int, arrays: Mapping[str, Array]
) -> Iterator[Finding]:
    try:
        environment.set_simulator_state(arrays["simulator.state"][step])
    except ValueError as error:
        yield Finding(ERROR, index, step, "simulator.state", f"expected a state of the environment, got: {error}")
        return
    seen = environment.observation()
    if "observation.state" in arrays and "proprio" in seen:
        yield from _compare_state(
            recording, index, step, arrays["observation.state"][step], np.asarray(seen["proprio"])
        )
    for camera, picture in seen.get("pixels", {}).items():
        key = IMAGE_PREFIX + camera
        if key in arrays and arrays[key].shape[1:] == picture.shape and arrays[key].dtype == picture.dtype:
            yield from _compare_picture(index, step, key, arrays[key][step], picture)


def _compare_state(recording: Recording, index: int, step: int, stored: Array, seen: Array) -> Iterator[Finding]:
    if stored.shape != seen.shape:
        yield Finding(ERROR, index, step, "observation.state", f"expected {seen.shape} as observed, got {stored.shape}")
        return
    wrong = ~(np.abs(stored - seen) <= _CLOSE * (1 + np.abs(seen)))
    if not wrong.any():
        return
    at = int(np.argmax(np.where(wrong, np.abs(stored - seen), 0)))
    name = element_names(recording, "observation.state", len(stored))[at]
    ratio = float(stored[at] / seen[at]) if seen[at] else float("inf")
    looks = next((f": {words}?" for size, words in _RATIOS.items() if abs(ratio / size - 1) < 0.02), "")
    what = f"expected {name} {seen[at]:.6g} as the environment observes in this state, got {stored[at]:.6g}"
    yield Finding(ERROR, index, step, "observation.state", f"{what} ({int(wrong.sum())} elements differ){looks}")


def _compare_picture(index: int, step: int, key: str, stored: Array, seen: Array) -> Iterator[Finding]:
    as_is = _difference(stored, seen)
    if as_is <= _LEVELS:
        return
    views = {words: _difference(view(stored), seen) for words, view in _VIEWS.items()}
    words = min(views, key=lambda name: views[name])
    if views[words] < as_is / 2:
        what = f"expected the picture that the environment renders, got it {words} (mean difference {as_is:.1f} levels)"
        yield Finding(ERROR, index, step, key, what)
    else:
        what = (
            f"expected the picture that the environment renders, got one {as_is:.1f} levels off: randomised, or other"
        )
        yield Finding(WARNING, index, step, key, what)


def _difference(one: Array, other: Array) -> float:
    return float(np.abs(one.astype(np.int16) - other.astype(np.int16)).mean())
