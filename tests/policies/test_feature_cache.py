"""Are cached features those of the closed loop, computed once, extended when asked, and safe against a kill?"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from policies.encoder import open_encoder
from policies.features import ROWS, cache_folder, cached_features, stream_episodes
from policies.normalize import Normalizer
from policies.observation import Observer
from toto_robot.run_folder import read_json

pytestmark = pytest.mark.render
CAMERAS = ("front", "wrist")


@pytest.fixture
def encoder(toto):
    return open_encoder(toto)


@pytest.mark.parametrize("options", [{}, {"layer": "0+last", "streaming": "staggered"}])
def test_cached_features_equal_those_of_the_closed_loop(toto, options, store, tmp_path):
    """Frame by frame through the Observer, two episodes one after the other in one row, as an evaluation does."""
    encoder = open_encoder(replace(toto, **options))
    cached = cached_features(tmp_path, encoder, store, CAMERAS, len(store))
    names = tuple(store.env["proprio_names"])
    normalizer = Normalizer.fit(store.read("observation.state", 0, store.steps), names)
    observer = Observer(encoder, CAMERAS, 32, normalizer, batch=1)
    for index in (1, 2):
        start, _ = store.bounds(index)
        episode = store.episode(index)
        for step in range(len(episode["action"])):
            observation = {
                "proprio": episode["observation.state"][step : step + 1],
                "pixels": {camera: episode[f"observation.images.{camera}"][step : step + 1] for camera in CAMERAS},
            }
            inputs = observer.step(observation, reset=np.array([step == 0]))
            for camera in CAMERAS:
                expected = cached[camera][start + step].astype(np.float32)
                np.testing.assert_allclose(inputs.tokens[camera][0].numpy(), expected, atol=2e-3, rtol=2e-3)


def test_the_past_matters_to_the_features(encoder, store, tmp_path):
    """The control of the test above: without the reset at an episode's start the features would be others."""
    cached = cached_features(tmp_path, encoder, store, ("front",), 2)["front"]
    start, _ = store.bounds(1)
    alone = encoder.encode(store.read("observation.images.front", start + 3, start + 4))[0].numpy()
    assert np.abs(cached[start + 3].astype(np.float32) - alone).max() > 0.1


def test_a_cached_set_touches_no_encoder(encoder, store, tmp_path, monkeypatch):
    first = {key: np.array(value) for key, value in cached_features(tmp_path, encoder, store, CAMERAS, 3).items()}
    monkeypatch.setattr(encoder, "stream", None)
    again = cached_features(tmp_path, encoder, store, CAMERAS, 3)
    fewer = cached_features(tmp_path, encoder, store, CAMERAS, 2)
    for camera in CAMERAS:
        np.testing.assert_array_equal(again[camera], first[camera])
        np.testing.assert_array_equal(fewer[camera], first[camera][: store.ends[1]])


def test_more_episodes_extend_the_cache(encoder, store, tmp_path):
    cached_features(tmp_path / "grown", encoder, store, ("front",), 1)
    grown = cached_features(tmp_path / "grown", encoder, store, ("front",), 3)["front"]
    once = cached_features(tmp_path / "once", encoder, store, ("front",), 3)["front"]
    np.testing.assert_array_equal(grown, once)


def test_a_killed_fill_continues(encoder, store, tmp_path, monkeypatch):
    """What a kill leaves: a file with rows of an unfinished group, and progress that does not count them."""
    expected = np.array(cached_features(tmp_path / "straight", encoder, store, ("front",), 3)["front"])
    monkeypatch.setattr("policies.features._GROUP", 1)
    real = stream_episodes

    def dies(encoder, store, camera, episodes, change=None):
        for count, item in enumerate(real(encoder, store, camera, episodes)):
            if episodes.start == 1 and count == 5:
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr("policies.features.stream_episodes", dies)
    with pytest.raises(KeyboardInterrupt):
        cached_features(tmp_path / "killed", encoder, store, ("front",), 3)
    folder = cache_folder(tmp_path / "killed", encoder, store)
    assert read_json(folder / "front.json")["episodes"] == 1
    monkeypatch.setattr("policies.features.stream_episodes", real)
    np.testing.assert_array_equal(
        cached_features(tmp_path / "killed", encoder, store, ("front",), 3)["front"], expected
    )


def test_another_encoder_or_store_has_another_folder(encoder, store, toto, tmp_path):

    last = open_encoder(replace(toto, layer="last"))
    assert cache_folder(tmp_path, encoder, store) != cache_folder(tmp_path, last, store)
    other = SimpleNamespace(content_hash=lambda: "f" * 64)
    assert cache_folder(tmp_path, encoder, store) != cache_folder(tmp_path, encoder, other)


def test_every_frame_comes_once_with_more_episodes_than_rows(encoder, store, monkeypatch):
    monkeypatch.setattr("policies.features.ROWS", 2)
    frames = sorted(item.frame for item in stream_episodes(encoder, store, "front", range(3)))
    assert frames == list(range(store.steps)) and ROWS > 3


def test_what_is_not_in_the_store_is_named(encoder, store, tmp_path):
    with pytest.raises(ValueError, match=r"no camera side; it has front, wrist"):
        cached_features(tmp_path, encoder, store, ("side",), 1)
    with pytest.raises(ValueError, match=r"asked for 4 demonstrations, .* holds 3"):
        cached_features(tmp_path, encoder, store, ("front",), 4)


def test_features_that_float16_cannot_hold_are_refused(encoder, store, tmp_path, monkeypatch):
    def huge(*arguments):
        for item in stream_episodes(*arguments):
            yield SimpleNamespace(frame=item.frame, features=np.full_like(item.features, np.inf))

    monkeypatch.setattr("policies.features.stream_episodes", huge)
    with pytest.raises(ValueError, match="exceed float16"):
        cached_features(tmp_path, encoder, store, ("front",), 1)
