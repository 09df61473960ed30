"""Does a probe see a thing where pictures show it, choose the layer that shows it best, and hold out what it asks?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from policies import probe, probe_command
from policies.encoder import EncoderConfig, open_encoder
from policies.probe import ReadoutConfig, choose_layer, probe_encoder, split_demonstrations
from policies.probe_command import ProbeConfig
from policies.probe_frames import CLOSING, frame_tokens, probe_frames, state_names
from policies.probe_scores import PROPRIO, best_layer, table
from toto_robot.data.episodes import IMAGE_PREFIX, ORACLE_KEY, EpisodeStore, FeatureSpec
from toto_robot.run_folder import read_json

SIZE, EPISODES, STEPS = 64, 30, 10
PROPRIO_NAMES = ("hand_x", "hand_y", "hand_z")
ASKED = ReadoutConfig(labels=(22,), splits=2, steps=150, frames_per_episode=3)


def make_store(path: Path, with_state: bool = True) -> EpisodeStore:
    """Pictures in which a red square stands where the cube is; the hand stays in one place, then takes it."""
    features = {
        "observation.state": FeatureSpec("float32", (3,)), "action": FeatureSpec("float32", (1,)),
        **({ORACLE_KEY: FeatureSpec("float32", (34,))} if with_state else {}),
        **{IMAGE_PREFIX + camera: FeatureSpec("uint8", (SIZE, SIZE, 3)) for camera in ("front", "wrist")},
    }  # fmt: skip
    env = {
        "env_id": "toto_robot/FrankaPick-v0", "image_size": SIZE, "proprio_names": list(PROPRIO_NAMES),
        "action_names": ["gripper"],
    }  # fmt: skip
    store = EpisodeStore.create(path, features=features, fps=20.0, env=env)
    random = np.random.default_rng(0)
    for _ in range(EPISODES):
        place = random.uniform(0, 0.4, 2)  # m; a picture shows 0.5 m
        store.append(make_episode(place, random, with_state), {})
    store.close()
    return EpisodeStore.open(path)


def make_episode(place: np.ndarray, random: np.random.Generator, with_state: bool) -> dict[str, np.ndarray]:
    front = random.integers(0, 60, (STEPS, SIZE, SIZE, 3), dtype=np.uint8)
    row, column = (place / 0.5 * SIZE).astype(int)
    front[:, row : row + 8, column : column + 8] = (220, 20, 20)
    hand = random.normal(0, 0.01, (STEPS, 3)).astype(np.float32)
    cube = np.tile([*place, 0.0], (STEPS, 1)).astype(np.float32)
    cube[-3:] += 0.1  # taken
    hand[-4:] = cube[0]
    state = np.zeros((STEPS, 34), np.float32)
    state[:, 18:21], state[:, 21:24], state[:, 24:27] = hand, hand, cube
    state[:, 27:30], state[:, 30:33] = cube - hand, cube - hand
    grip = np.where(np.arange(STEPS) < STEPS - 3, -1.0, 1.0).astype(np.float32)[:, None]
    wrist = np.zeros_like(front)
    arrays = {
        "observation.state": hand, "action": grip,
        IMAGE_PREFIX + "front": front, IMAGE_PREFIX + "wrist": wrist,
    }  # fmt: skip
    return {**arrays, ORACLE_KEY: state} if with_state else arrays


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    return make_store(tmp_path_factory.mktemp("probe") / "episodes")


def test_frames_end_where_the_thing_moves_and_ask_for_it_seen_from_the_hand(shown: EpisodeStore) -> None:
    frames = probe_frames(shown, EPISODES, 3)
    assert frames.thing == "cube" and frames.count == EPISODES
    assert (frames.rows[:3] == [0, 3, STEPS - 4]).all() and frames.rows.max() == EPISODES * STEPS - 4
    state = shown.read(ORACLE_KEY, 0, shown.steps)
    np.testing.assert_allclose(frames.target_cm, 100 * (state[:, 24:27] - state[:, 18:21])[frames.rows], atol=1e-3)
    with pytest.raises(ValueError, match="<thing>_from_"):
        probe_frames(shown, EPISODES, 3, "drawer")
    with pytest.raises(ValueError, match=f"holds {EPISODES}"):
        probe_frames(shown, EPISODES + 1, 3)


def test_real_tasks_name_their_state(store: EpisodeStore) -> None:
    """The names stand where the task writes the numbers."""
    names = state_names(store)
    frames = probe_frames(store, len(store), 4)
    state = store.read(ORACLE_KEY, 0, store.steps)[frames.rows]
    cube, left, right = (
        state[:, [names.index(f"{point}_{axis}") for axis in "xyz"]] for point in ("cube", "left", "right")
    )
    np.testing.assert_allclose(frames.target_cm, 100 * (cube - (left + right) / 2), atol=0.01)
    assert np.ptp(cube[:4], axis=0).max() < 0.02  # of the first episode: it lay still


def test_without_a_state_the_closing_hand_stands_for_the_thing(tmp_path: Path) -> None:
    silent = make_store(tmp_path / "episodes", with_state=False)
    frames = probe_frames(silent, EPISODES, 3)
    hand = silent.read("observation.state", 0, silent.steps)
    assert frames.thing == CLOSING
    expected = hand[STEPS - 4] - hand[0]  # the last step before the gripper is told to close
    np.testing.assert_allclose(frames.target_cm[0], 100 * expected, atol=1e-3)
    with pytest.raises(ValueError, match="leave thing unset"):
        probe_frames(silent, EPISODES, 3, "cube")


def test_what_pictures_show_is_found_and_what_they_do_not_is_not(shown: EpisodeStore) -> None:
    frames = probe_frames(shown, EPISODES, 3)
    views = [("front",), ("wrist",), ("front", "wrist")]
    scores = probe_encoder(EncoderConfig(name="random_vit", layer="0+1"), shown, views, frames, ASKED)
    error = {(score.layer, score.camera): score.mean_cm for score in scores}
    blind = error[None, PROPRIO]
    assert blind > 8.0
    best = best_layer(scores)
    assert error[best, "front"] < 0.9 * blind and error[best, "front"] < 0.9 * error[best, "wrist"]
    assert error[best, "wrist"] > 0.85 * blind  # black
    assert {score.layer for score in scores} == {None, 0, 1}
    assert best == min((0, 1), key=lambda layer: error[layer, "front+wrist"])
    told = table({"random_vit": scores}, frames.thing)
    assert f"{error[best, 'front']:.2f} +- " in told and len(told.splitlines()) == 2 + 1 + 2


def test_held_out_demonstrations_are_never_labelled(shown: EpisodeStore) -> None:
    frames = probe_frames(shown, EPISODES, 3)
    for may_be_labelled, held_out in split_demonstrations(frames, ASKED):
        assert not set(may_be_labelled) & set(held_out)
        assert set(may_be_labelled) | set(held_out) == set(range(EPISODES))
    with pytest.raises(ValueError, match="leave 24 to label"):
        list(split_demonstrations(frames, ReadoutConfig(labels=(25,))))


def test_a_layer_is_chosen_once_and_recorded(
    shown: EpisodeStore, toto: EncoderConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auto = replace(toto, layer="auto", context_frames=1)
    chosen = choose_layer(auto, shown, ("front", "wrist"), EPISODES, tmp_path)
    told = read_json(tmp_path / "layers.json")
    assert chosen.layer == str(told["chosen"]) and len(told["scores"]) == 1 + 3
    assert (tmp_path / "layers.png").stat().st_size > 5000
    assert open_encoder(chosen).layers == (told["chosen"],)
    monkeypatch.setattr(probe, "probe_encoder", None)
    assert choose_layer(auto, shown, ("front", "wrist"), EPISODES, tmp_path) == chosen
    fixed = EncoderConfig(name="random_vit", layer="2")
    assert choose_layer(fixed, shown, ("front",), EPISODES, tmp_path) is fixed
    assert choose_layer(EncoderConfig(name="none", layer="auto"), shown, (), EPISODES, tmp_path).layer is None
    with pytest.raises(
        ValueError, match=r"needs 4 demonstrations, .* got 3: collect more, or give encoder.layer a number"
    ):
        choose_layer(auto, shown, ("front",), 3, tmp_path)
    with pytest.raises(ValueError, match="chosen by train-policy"):
        open_encoder(auto)


def test_frames_of_a_stream_are_those_of_its_episode(store: EpisodeStore, toto: EncoderConfig) -> None:
    """With memory, a frame's features are what the closed loop would have at that step."""
    encoder, frames = open_encoder(toto), probe_frames(store, len(store), 3)
    tokens = frame_tokens(encoder, store, "front", frames).float()
    start, _ = store.bounds(1)
    row = int(frames.rows[frames.episodes == 1][1])
    clip = store.read("observation.images.front", start, row + 1)[None]
    expected = encoder.encode_clip(clip)[0, -1]
    found = tokens[int(np.flatnonzero(frames.rows == row)[0])]
    np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=2e-3, rtol=2e-3)


def test_the_command_tabulates_encoders_and_does_none_of_them_twice(
    shown: EpisodeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ReadoutConfig(labels=(22,), splits=2, steps=10, frames_per_episode=2)
    config = ProbeConfig(
        demos=str(shown.path), demonstrations=EPISODES, encoders=("random_vit@layer=0", "none"), readout=asked
    )
    assert probe_command.probe(config, tmp_path) == 0
    told = read_json(tmp_path / "probe.json")["encoders"]
    assert [score["camera"] for score in told["random_vit layer=0"]] == [PROPRIO, "front", "wrist", "front+wrist"]
    assert [score["camera"] for score in told["none"]] == [PROPRIO]
    first = capsys.readouterr().out
    monkeypatch.setattr(probe_command, "probe_encoder", None)
    assert probe_command.probe(config, tmp_path) == 0
    assert capsys.readouterr().out == first and "random_vit layer=0" in first
    assert (tmp_path / "layers.png").stat().st_size > 5000
