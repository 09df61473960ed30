"""Is what DAgger gathers round by round what reading it at once gives, and what is deleted gone for good?"""

import numpy as np
import pytest

from policies.aggregate import Aggregate, forget_views
from policies.demonstrations import load_demonstrations
from policies.relabel import FEATURE_PREFIX
from toto_robot.data.episodes import ORACLE_KEY, EpisodeStore, FeatureSpec

CAMERAS = ("front", "wrist")


def make_store(path, lengths):
    features = {
        "observation.state": FeatureSpec("float32", (3,)), "action": FeatureSpec("float32", (2,)),
        ORACLE_KEY: FeatureSpec("float32", (4,)), "observation.images.front": FeatureSpec("uint8", (8, 8, 3)),
        **{FEATURE_PREFIX + camera: FeatureSpec("float16", (5, 6)) for camera in CAMERAS},
    }  # fmt: skip
    env = {"env_id": "x", "proprio_names": ["a", "b", "c"], "action_names": ["d", "e"]}
    store = EpisodeStore.create(path, features=features, fps=20.0, env=env)
    random = np.random.default_rng(0)
    for steps in lengths:
        arrays = {key: (100 * random.random((steps, *spec.shape))).astype(spec.dtype) for key, spec in features.items()}
        store.append(arrays, {})
    store.close()
    return EpisodeStore.open(path)


def whole(store, episodes, oracle):
    end = int(store.ends[episodes - 1])
    features = {camera: store.read(FEATURE_PREFIX + camera, 0, end) for camera in CAMERAS}
    return load_demonstrations(store, features, episodes, oracle)


@pytest.mark.parametrize("oracle", [False, True])
@pytest.mark.parametrize("begins", [0, 2])
def test_rounds_one_by_one_are_what_all_at_once_is(tmp_path, begins, oracle):
    store = make_store(tmp_path / "episodes", (4, 3, 5, 2))
    before = whole(make_store(tmp_path / "before", (2, 6)), begins, oracle) if begins else None
    gathered = Aggregate(before, tmp_path / "episodes", cameras=CAMERAS, oracle=oracle, most_steps=20)
    assert gathered.up_to(0) is before
    for episodes in (1, 3, 4):
        found, expected = gathered.up_to(episodes), whole(store, episodes, oracle)
        first = 0 if before is None else len(before.proprio)
        np.testing.assert_array_equal(found.proprio[first:], expected.proprio)
        np.testing.assert_array_equal(found.actions[first:], expected.actions)
        np.testing.assert_array_equal(found.ends[begins:] - first, expected.ends)
        for camera in CAMERAS:
            np.testing.assert_array_equal(found.tokens[camera][first:], expected.tokens[camera])
            if before is not None:
                np.testing.assert_array_equal(found.tokens[camera][:first], before.tokens[camera])
    room = found.tokens["front"].data_ptr()
    assert room == gathered.up_to(4).tokens["front"].data_ptr()


def test_what_can_be_made_again_is_deleted_and_a_kill_in_between_does_no_harm(tmp_path):
    store = make_store(tmp_path / "episodes", (4, 3))
    action = store.read("action", 0, 7)
    forget_views(tmp_path)
    kept = EpisodeStore.open(tmp_path / "episodes")
    assert {"action", "observation.state", ORACLE_KEY} <= set(kept.features) and kept.cameras == () and len(kept) == 2
    np.testing.assert_array_equal(kept.read("action", 0, 7), action)
    assert not list((tmp_path / "episodes" / "data").glob("observation.features*"))
    left = tmp_path / "episodes" / "data" / (FEATURE_PREFIX + "front")  # what a kill has not deleted any more
    left.mkdir()
    (left / "c0").write_bytes(b"x")
    forget_views(tmp_path)
    assert not left.exists() and len(EpisodeStore.open(tmp_path / "episodes")) == 2
    episode = {key: kept.episode(0)[key] for key in kept.features if key not in ("timestamp", "frame_index")}
    del episode["episode_index"]
    with EpisodeStore.open(tmp_path / "episodes") as grown:
        grown.append(episode, {})
    assert len(EpisodeStore.open(tmp_path / "episodes")) == 3
    forget_views(tmp_path / "nothing")
