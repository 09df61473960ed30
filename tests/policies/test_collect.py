"""Is a store a function of its settings: on any number of processes, killed and continued, with failures dropped?"""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from policies.collect import CollectConfig, collect, collect_episodes, expert_rate
from policies.environment import environment_id, make_environment
from toto_robot.data.episodes import EpisodeStore

pytestmark = pytest.mark.render
CONFIG = CollectConfig(episodes=3, image_size=32, workers=2)

SCRIPT = """
import sys
from pathlib import Path
from policies.collect import CollectConfig, collect_episodes
collect_episodes(CollectConfig(episodes=40, image_size=32, workers=2), Path(sys.argv[1]))
"""


def test_episodes_hold_what_a_policy_needs(store):
    episode = store.episode(1)
    steps = len(episode["action"])
    assert set(store.cameras) == {"front", "wrist"} and store.env["env_id"] == "toto_robot/FrankaPick-v0"
    assert episode["observation.images.front"].shape == (steps, 32, 32, 3)
    assert episode["observation.state"].shape == (steps, len(store.env["proprio_names"]))
    assert np.ptp(episode["observation.images.wrist"]) > 50
    # The episode ends with the step in which success is latched.
    assert episode["next.success"].tolist() == [False] * (steps - 1) + [True]
    assert list(store.meta["seed"]) == [0, 1, 2] and store.meta["success"].all()


def test_labels_are_clean_and_noise_is_executed(store):
    # Noise levels are cycled over attempts: 0.0, 0.2, 0.2.
    for index, noise in enumerate(store.meta["noise"]):
        episode = store.episode(index)
        difference = np.abs(episode["action.executed"] - episode["action"]).mean()
        assert (difference > 0.05) == (noise > 0)


def test_actions_replayed_from_the_state_give_the_stored_states(store):
    """What is executed is what is stored, and observation t comes before action t."""
    episode = store.episode(1)
    environment = make_environment("franka_pick", obs_mode="proprio")
    environment.reset(seed=0)
    environment.unwrapped.set_simulator_state(episode["simulator.state"][4])
    observation, *_ = environment.step(episode["action.executed"][4])
    np.testing.assert_allclose(observation["proprio"], episode["observation.state"][5], atol=1e-6)


def test_a_killed_collection_continues_to_the_same_bytes(demos, tmp_path):
    """Kill -9 with episodes under way, continue with another number of processes, compare with one straight run."""
    path = tmp_path / "episodes"
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(path)], stderr=subprocess.DEVNULL)
    while not path.exists() or len(EpisodeStore.open(path)) < 2:
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    killed_at = len(EpisodeStore.open(path))
    assert 2 <= killed_at < 40
    wanted = killed_at + 2
    continued = collect_episodes(replace(CONFIG, episodes=wanted, workers=1), path)
    straight = collect_episodes(replace(CONFIG, episodes=wanted), tmp_path / "straight")
    assert len(continued) == wanted and continued.content_hash() == straight.content_hash()
    assert _files(path) == _files(tmp_path / "straight")


def test_a_finished_collection_is_left_alone(demos, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(demos, run / "episodes")
    before = _files(run)
    assert collect(CONFIG, run) == 0
    assert _files(run) == before
    assert "expert 3/3 = 100% [44%, 100%]" in capsys.readouterr().out


def test_failures_are_dropped_and_counted(tmp_path):
    """With noise as large as an action some attempts fail; the seeds of those are missing, the rate counts them."""
    config = replace(CONFIG, episodes=3, noise=(0.0, 1.0), seed=50)
    dropped = collect_episodes(config, tmp_path / "dropped")
    everything = collect_episodes(replace(config, episodes=6, keep_failures=True), tmp_path / "all")
    failed = everything.meta["seed"][~everything.meta["success"]]
    assert len(failed) > 0, "the noise makes no attempt fail: choose other seeds"
    assert dropped.meta["success"].all()
    assert not set(failed) & set(dropped.meta["seed"])
    rate = expert_rate(dropped, config)
    assert (rate.successes, rate.episodes) == (3, int(dropped.meta["attempt"][-1]) + 1) and rate.episodes > 3
    kept = EpisodeStore.open(tmp_path / "dropped").episode(0)
    index = int(np.flatnonzero(everything.meta["success"])[0])
    np.testing.assert_array_equal(kept["action"], everything.episode(index)["action"])


def test_other_settings_do_not_continue_a_store(demos):
    with pytest.raises(ValueError, match=r"collected with other settings .*seed: 0 -> 7"):
        collect_episodes(replace(CONFIG, seed=7, episodes=9), demos)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"episodes": 0}, "expected episodes of at least 1"),
        ({"noise": ()}, "expected noise levels"),
        ({"cameras": ()}, "at least one camera"),
        ({"seed": -1}, "expected a seed"),
    ],
)
def test_bad_settings_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        CollectConfig(**values)


def test_names_of_environments():
    assert environment_id("franka_pick") == "toto_robot/FrankaPick-v0"
    assert environment_id("toto_robot/KukaCabinet-v3") == "toto_robot/KukaCabinet-v3"
    with pytest.raises(ValueError, match=r"env=franka_pik.*did you mean toto_robot/FrankaPick-v0"):
        make_environment("franka_pik")


def _files(folder: Path) -> dict[str, bytes]:
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if ".lock" not in name}


def test_randomised_collection_with_videos_repeats_and_says_what_it_did(tmp_path):
    config = replace(CONFIG, episodes=2, randomize=("lights", "cameras"), videos=True, out=str(tmp_path / "random"))
    assert collect(config, tmp_path / "run") == 0
    store = EpisodeStore.open(tmp_path / "random")
    assert store.env["randomization"] == {"lights": 1.0, "cameras": 1.0}
    assert store.provenance["collect"]["randomize"] == ["lights", "cameras"]
    videos = tmp_path / "random_videos"
    assert len(list((videos / "videos").glob("*.mp4"))) == 4 and (videos / "contact_sheet.png").exists()
    again = collect_episodes(replace(config, workers=1), tmp_path / "again")
    assert again.content_hash() == store.content_hash()
    plain = collect_episodes(replace(CONFIG, episodes=2), tmp_path / "plain")
    assert plain.env["scene_hash"] == store.env["scene_hash"], "policies of one run in the other"
    assert not np.array_equal(
        plain.episode(0)["observation.images.front"], store.episode(0)["observation.images.front"]
    )
    with pytest.raises(ValueError, match=r"other settings .*randomize"):
        collect_episodes(replace(config, randomize=("lights",)), tmp_path / "random")
    with pytest.raises(ValueError, match="did you mean lights"):
        collect_episodes(replace(config, randomize=("light",), workers=1), tmp_path / "misspelt")
