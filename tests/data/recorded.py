"""What do the tests of formats convert: a store with every kind of feature and number, and how are two compared?"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from toto_robot.data.episodes import EpisodeStore, FeatureSpec
from toto_robot.data.recording import Recording

FEATURES = {
    "observation.state": FeatureSpec("float32", (3,), ("q_rad", "x_m", "y_m")),
    "observation.images.front": FeatureSpec("uint8", (32, 48, 3)),
    "observation.images.wrist": FeatureSpec("uint8", (16, 16, 3)),
    "action": FeatureSpec("float32", (2,), ("dx", "gripper")),
    "action.executed": FeatureSpec("float32", (2,)),
    "next.reward": FeatureSpec("float32", ()),
    "next.success": FeatureSpec("bool", ()),
    "simulator.state": FeatureSpec("float64", (5,)),
    "contact.force": FeatureSpec("float64", (2, 3)),  # two axes
    "gripper.code": FeatureSpec("int32", (1,)),  # one element that is no number of its own
    "robot.mode": FeatureSpec("uint16", ()),
    "half": FeatureSpec("float16", (2,)),
}
ENV = {
    "env_id": "nowhere/BlockPush-v3",
    "robot": "arm",
    "control_rate_hz": 20.0,
    "action_low": [-1.0, -1.0],
    "action_high": [1.0, 1.0],
    "scene_hash": "0123456789abcdef",
}


def make_store(path: Path, episodes: int = 4, fps: float = 20.0, env: dict | None = None) -> EpisodeStore:
    """Make a store whose pictures are smooth (as a camera's are) and whose other numbers are random."""
    store = EpisodeStore.create(
        path,
        features=FEATURES,
        fps=fps,
        env=env or ENV,
        provenance={"commit": "abc", "settings": {"noise": [0.0, 0.2]}},
    )
    for number in range(episodes):
        store.append(make_episode(number), make_meta(number))
    store.close()
    return store


def make_episode(number: int) -> dict[str, np.ndarray]:
    """Make episode `number`, of 5 to 11 steps."""
    random, steps = np.random.default_rng(number), 5 + 3 * number % 7
    arrays = {
        key: (random.standard_normal((steps, *spec.shape)) * 3).astype(spec.dtype)
        for key, spec in FEATURES.items()
        if spec.dtype.startswith("float")
    }
    arrays["action"] = np.tanh(arrays["action"])
    arrays["action.executed"] = np.tanh(arrays["action.executed"])
    for camera in ("front", "wrist"):
        arrays[f"observation.images.{camera}"] = _pictures(
            steps, number, *FEATURES[f"observation.images.{camera}"].shape
        )
    arrays["next.success"] = np.arange(steps) == (steps - 1 if number % 2 == 0 else -1)
    arrays["gripper.code"] = random.integers(-9, 9, (steps, 1)).astype(np.int32)
    arrays["robot.mode"] = random.integers(0, 60000, steps).astype(np.uint16)
    return arrays


def make_meta(number: int) -> dict[str, bool | int | float]:
    return {"seed": 1000 + number, "success": number % 2 == 0, "noise": 0.1 * number}


def _pictures(steps: int, number: int, height: int, width: int, _: int) -> np.ndarray:
    """A bright blob that moves over a gradient: (T, h, w, 3); every frame differs from every other."""
    y, x = np.mgrid[:height, :width]
    frames = []
    for step in range(steps):
        ground = np.stack([x * 120 / width, y * 120 / height, np.full_like(x, 40 + 20 * number)], axis=-1)
        blob = 110 * np.exp(-((x - width * step / steps) ** 2 + (y - height / 2) ** 2) / (height / 4) ** 2)
        frames.append(ground + blob[..., None])
    return np.stack(frames).clip(0, 255).astype(np.uint8)


def assert_equal(one: Recording, other: Recording, *, video_levels: float = 0.0) -> None:
    """Assert that two recordings hold the same; pictures may differ by a mean of `video_levels` grey levels."""
    assert len(one) == len(other) and one.lengths == other.lengths
    assert (one.fps, one.env, one.tasks, one.provenance) == (other.fps, other.env, other.tasks, other.provenance)
    assert one.features == other.features
    assert list(one.meta) == list(other.meta)
    for key, values in one.meta.items():
        assert values.dtype == other.meta[key].dtype, key
        np.testing.assert_array_equal(values, other.meta[key])
    for index in range(len(one)):
        mine, theirs = one.episode(index), other.episode(index)
        assert list(mine) == list(theirs)
        for key, array in mine.items():
            assert array.dtype == theirs[key].dtype and array.shape == theirs[key].shape, key
            if key.startswith("observation.images.") and video_levels:
                difference = np.abs(array.astype(int) - theirs[key].astype(int)).mean(axis=(1, 2, 3))
                assert 0 < difference.max() < video_levels, f"{key}: {difference}"
            else:
                np.testing.assert_array_equal(array, theirs[key], err_msg=f"{key} of episode {index}")
