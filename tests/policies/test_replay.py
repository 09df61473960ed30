"""Does a replay lead where the recording led, and does it say how far off it is where it does not?"""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import zarr

from policies.collect import CollectConfig, collect_episodes
from policies.environment import make_environment
from policies.replay import ReplayConfig, replay, replay_episode
from toto_robot.data.check import Options, check
from toto_robot.data.convert import Options as ConvertOptions
from toto_robot.data.convert import convert
from toto_robot.data.recording import open_recording
from toto_robot.run_folder import read_json

pytestmark = pytest.mark.render


@pytest.fixture
def copy(demos: Path, tmp_path: Path) -> Path:
    """A copy of the demonstrations, to be changed."""
    subprocess.run(["cp", "-r", "--sparse=always", str(demos), str(tmp_path / "episodes")], check=True)
    return tmp_path / "episodes"


def test_stored_actions_give_the_stored_states_to_the_last_bit(demos, tmp_path, capsys):
    assert replay(ReplayConfig(path=str(demos), tolerance=0.0), tmp_path) == 0
    report = read_json(tmp_path / "replay.json")
    recording = open_recording(demos)
    assert [episode["max_drift"] for episode in report["episodes"]] == [0.0] * 3
    assert [len(episode["drift"]) for episode in report["episodes"]] == [length - 1 for length in recording.lengths]
    assert all(episode["success"] and episode["stored_success"] for episode in report["episodes"])
    assert max(episode["reward_difference"] for episode in report["episodes"]) < 1e-5  # stored as float32
    assert "3 of 3 episodes within 0, largest drift 0; success agrees in 3 of 3" in capsys.readouterr().out


@pytest.mark.parametrize(("format", "name"), [("lerobot", "folder"), ("robomimic", "a.hdf5")])
def test_so_do_exports(demos, tmp_path, format, name):
    """Simulator states and actions survive both formats, to the last bit."""
    convert(open_recording(demos), tmp_path / name, format, ConvertOptions(), progress=False)
    assert replay(ReplayConfig(path=str(tmp_path / name), episodes=1, tolerance=0.0), tmp_path / "run") == 0


def test_a_changed_action_shows_from_its_step_on(copy, tmp_path, capsys):
    recording = open_recording(copy)
    row = recording.lengths[0] + 6  # episode 1, step 6
    actions = zarr.open_array(copy / "data" / "action.executed", mode="r+")
    changed = np.array(actions[row])
    changed[0] = np.clip(changed[0] - 0.5, -1, 1)
    actions[row] = changed
    assert replay(ReplayConfig(path=str(copy)), tmp_path) == 1
    first, second, third = read_json(tmp_path / "replay.json")["episodes"]
    assert first["max_drift"] == third["max_drift"] == 0
    assert second["first_beyond"] == 6 and second["drift"][:6] == [0] * 6 and second["max_drift"] > 1e-3
    assert "beyond 1e-06 from step 6 on" in capsys.readouterr().out


def test_what_is_randomised_by_the_seed_is_the_same_again(tmp_path):
    """Friction and latency are no part of a simulator state; looks are what `data check` compares pictures with."""
    axes = ("friction", "latency", "colors", "cameras")
    config = CollectConfig(episodes=2, image_size=32, workers=1, randomize=axes, seed=5, keep_failures=True)
    collect_episodes(config, tmp_path / "episodes")
    assert set(open_recording(tmp_path / "episodes").env["randomization"]) == set(axes)
    assert replay(ReplayConfig(path=str(tmp_path / "episodes"), tolerance=0.0), tmp_path / "run") == 0
    assert list(check(tmp_path / "episodes", Options(progress=False))) == []


def test_an_outcome_that_differs_is_told(copy, tmp_path, capsys):
    """The arm never closes its hand: the states drift and the stored success does not come about."""
    actions = zarr.open_array(copy / "data" / "action.executed", mode="r+")
    values = np.array(actions[:])
    values[:, 6] = -1.0
    actions[:] = values
    assert replay(ReplayConfig(path=str(copy), episodes=2), tmp_path) == 1
    shown = capsys.readouterr().out
    assert "failure, stored was success" in shown and "success agrees in 0 of 2" in shown


def test_the_executed_action_is_what_is_replayed(demos):
    """Clean labels would lead elsewhere where noise was executed."""
    recording = open_recording(demos)
    noisy = int(np.argmax(recording.meta["noise"]))
    assert recording.meta["noise"][noisy] > 0
    environment = make_environment("franka_pick", obs_mode="proprio")
    arrays = recording.episode(noisy, ["simulator.state", "action", "action.executed"])
    assert replay_episode(environment, arrays, True).max_drift == 0
    del arrays["action.executed"]
    assert replay_episode(environment, arrays, True).max_drift > 1e-3
    environment.close()


def test_what_cannot_be_replayed_is_refused(demos, tmp_path):
    recording = open_recording(demos)
    recording.features = {key: spec for key, spec in recording.features.items() if key != "simulator.state"}
    convert(recording, tmp_path / "stateless", "toto", ConvertOptions(), progress=False)
    with pytest.raises(ValueError, match=r"has no simulator.state, from which an episode is simulated again"):
        replay(ReplayConfig(path=str(tmp_path / "stateless")), tmp_path)
    with pytest.raises(ValueError, match="episodes of at least 1"):
        ReplayConfig(path="x", episodes=0)
