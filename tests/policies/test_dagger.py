"""Does DAgger label where the policy went, keep what it saw, count its steps, and end alike after a kill?"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from policies.curve import read_curve
from policies.dagger import ROLLOUT_SEED, DAggerConfig
from policies.encoder import EncoderConfig
from policies.environment import make_environment
from policies.features import stream_episodes
from policies.relabel import FEATURE_PREFIX, load_expert, make_labelled
from policies.train import open_encoder, train_bundle
from tests.policies.small import make_small
from toto_robot.data.episodes import IMAGE_PREFIX, ORACLE_KEY, EpisodeStore
from toto_robot.pretrain import checkpoint
from toto_robot.run_folder import read_json

pytestmark = pytest.mark.render

DAGGER = DAggerConfig(
    rounds=2, episodes=2, initial_demonstrations=2, expert_share=0.5, steps=4, curve_episodes=1, workers=1,
    envs_per_worker=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def run(demos, toto, tmp_path_factory):
    """A whole run, from pixels."""
    folder = tmp_path_factory.mktemp("dagger")
    config = replace(make_small(demos, toto, folder), policy="dagger", dagger=DAGGER)
    train_bundle(config, folder / "run")
    return config, folder / "run"


def test_rollouts_are_an_episode_store_that_says_who_acted(run, store):
    _, folder = run
    rollouts = EpisodeStore.open(folder / "episodes")
    assert rollouts.env["scene_hash"] == store.env["scene_hash"]
    assert rollouts.meta["round"].tolist() == [1, 1, 2, 2]
    assert rollouts.meta["expert_share"].tolist() == [0.5, 0.5, 0.25, 0.25]
    assert rollouts.meta["seed"].tolist() == [ROLLOUT_SEED + index for index in range(4)]
    episodes = [rollouts.episode(index) for index in range(4)]
    shares = [np.mean((one["action"] == one["action.executed"]).all(axis=1)) for one in episodes]
    assert 0.35 < np.mean(shares[:2]) < 0.65 and 0.12 < np.mean(shares[2:]) < 0.38, shares
    assert episodes[0][IMAGE_PREFIX + "wrist"].std() > 10


def test_labels_are_the_experts_in_the_states_that_were_reached(run):
    """Put the simulator back where the rollout was and ask again."""
    _, folder = run
    episode = EpisodeStore.open(folder / "episodes").episode(3)
    environment = make_environment("franka_pick", obs_mode="state").unwrapped
    environment.reset(seed=ROLLOUT_SEED + 3)
    expert = environment.expert(seed=0)
    for step in range(0, len(episode["action"]), 7):
        environment.set_simulator_state(episode["simulator.state"][step])
        np.testing.assert_allclose(expert.label()[0], episode["action"][step], atol=1e-5)
        np.testing.assert_allclose(environment.observation()["state"], episode[ORACLE_KEY][step], atol=1e-5)


def test_features_of_the_rollout_are_those_of_the_cache(run):
    """What a head is trained on must be what another training would compute from the same pictures."""
    config, folder = run
    rollouts = EpisodeStore.open(folder / "episodes")
    kept = rollouts.read(FEATURE_PREFIX + "front", 0, rollouts.steps)
    encoder = open_encoder(config.encoder)
    again = np.empty_like(kept)
    for row in stream_episodes(encoder, rollouts, "front", range(4)):
        again[row.frame] = row.features
    np.testing.assert_allclose(kept.astype(np.float32), again.astype(np.float32), atol=2e-2)
    assert np.abs(kept[0].astype(np.float32) - kept[rollouts.bounds(1)[0]].astype(np.float32)).max() > 0.1


def test_the_curve_counts_every_step_that_was_learned_from(run, store):
    _, folder = run
    rollouts = EpisodeStore.open(folder / "episodes")
    begin = int(store.ends[1])
    expected = [begin, begin + int(rollouts.ends[1]), begin + int(rollouts.ends[3])]
    points = read_curve(folder)
    assert [point.env_steps for point in points] == expected
    assert all(point.episodes == 1 for point in points)
    assert [point.wall_s for point in points] == sorted(point.wall_s for point in points)
    training = read_json(folder / "bundle" / "policy.json")["training"]
    assert (training["learner"], training["env_steps"], training["rollouts"]) == ("dagger", expected[-1], 4)
    assert training["demonstrated_seeds"][1] == ROLLOUT_SEED + 3
    assert [path.parent.name for path in folder.glob("rounds/*/bundle")] == ["2"]
    assert int(checkpoint.last(folder).name) == 3 * DAGGER.steps  # one training, that went on from round to round


SCRIPT = """
import json, sys
from dataclasses import replace
from pathlib import Path
import torch
from policies.dagger import DAggerConfig
from policies.encoder import EncoderConfig
from policies.train import train_bundle
from tests.policies.small import make_small
if __name__ == "__main__":
    torch.set_num_threads(1)
    demos, folder, dagger = json.loads(sys.argv[1])
    small = make_small(Path(demos), EncoderConfig(name="state"), Path(folder))
    config = replace(small, policy="dagger", dagger=DAggerConfig(**dagger))
    train_bundle(config, Path(folder) / "run")
"""


def _command(demos: Path, folder: Path, dagger: DAggerConfig) -> list[str]:
    folder.mkdir(exist_ok=True)
    script = folder / "learn.py"
    script.write_text(SCRIPT)
    return [sys.executable, str(script), json.dumps([str(demos), str(folder), asdict(dagger)])]


def test_a_killed_run_goes_on_to_the_same_end(demos, tmp_path):
    """The oracle, so that it is quick; killed while it rolls out, it keeps what it has and ends with the same bits."""
    dagger = replace(DAGGER, rounds=2, episodes=3, curve_episodes=0, initial_demonstrations=0, envs_per_worker=1)
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(_command(demos, whole, dagger), check=True, env=environment)
    process = subprocess.Popen(_command(demos, killed, dagger), env=environment, stderr=subprocess.DEVNULL)
    stored = killed / "run" / "episodes"
    while not (stored / "zarr.json").exists() or len(EpisodeStore.open(stored)) < 1:
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = len(EpisodeStore.open(stored))
    assert before < 6
    subprocess.run(_command(demos, killed, dagger), check=True, env=environment)
    one, other = (EpisodeStore.open(folder / "run" / "episodes") for folder in (whole, killed))
    assert one.meta["expert_share"].tolist() == [1.0] * 3 + [0.5] * 3
    assert one.content_hash() == other.content_hash()
    weights = [(folder / "run/bundle/head/model.safetensors").read_bytes() for folder in (whole, killed)]
    assert weights[0] == weights[1]


def test_a_policy_can_be_the_expert_and_one_of_another_task_cannot(demos, small, tmp_path):
    blind = replace(small, encoder=EncoderConfig(name="state"), demonstrations=2)
    expert = train_bundle(blind, tmp_path / "expert")
    dagger = replace(DAGGER, rounds=1, curve_episodes=0, expert=str(expert))
    train_bundle(replace(blind, policy="dagger", dagger=dagger), tmp_path / "run")
    episode = EpisodeStore.open(tmp_path / "run" / "episodes").episode(0)
    assert np.abs(episode["action"]).max() <= 1.0
    assert not np.isin(episode["action"][:, -1], (-1.0, 1.0)).all()  # the script's gripper is always one of these
    description = read_json(expert / "policy.json")
    other = {**description["task"], "env_id": "toto_robot/KukaPick-v0"}
    with pytest.raises(ValueError, match=r"the expert .* and the policy: expected env_id .*FrankaPick.*KukaPick"):
        load_expert(str(expert), other, ())


def test_an_expert_that_plans_is_asked_for_what_it_would_do_now(small, store, tmp_path):
    """Later actions of a chunk suit where the expert would have gone, not where the learner is."""
    head = replace(small.bc.head, name="act", chunk_steps=5)
    planner = replace(small, encoder=EncoderConfig(name="state"), demonstrations=2, bc=replace(small.bc, head=head))
    expert = load_expert(str(train_bundle(planner, tmp_path / "expert")), store.env, ())
    episode, names = store.episode(0), ("proprio", "state")
    parts = (episode["observation.state"], episode[ORACLE_KEY])
    seen = [dict(zip(names, row, strict=True), pixels={}) for row in zip(*parts, strict=True)]
    expert.reset()
    answers = [expert.act(observation) for observation in seen[:8]]
    for observation, answer in zip(seen[:8], answers, strict=True):
        expert.reset()
        np.testing.assert_allclose(expert.act(observation), answer, atol=1e-6)  # whatever came before


def test_the_number_of_processes_may_change_after_a_kill(run):
    config, folder = run
    assert train_bundle(replace(config, dagger=replace(config.dagger, workers=2)), folder) == folder / "bundle"


def test_rollouts_vary_as_the_demonstrations_did(store):
    class Sees:
        task, cameras, oracle = store.env, ("front",), False

    assert DAggerConfig().environment == {}
    looks = DAggerConfig(randomize=("lights", "colors"), randomize_strength=0.5).environment
    assert looks == {"randomize": {"lights": 0.5, "colors": 0.5}}
    plain, varied = (make_labelled(Sees, settings).reset(seed=3)[0]["pixels"]["front"] for settings in ({}, looks))
    assert np.abs(plain.astype(int) - varied.astype(int)).mean() > 1.0


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match=r"dagger.rounds of at least 1, got 0"):
        DAggerConfig(rounds=0)
    with pytest.raises(ValueError, match=r"dagger.expert_share in \[0, 1\], got 1.5"):
        DAggerConfig(expert_share=1.5)
    assert [DAggerConfig(initial_demonstrations=0).share(number) for number in (1, 2, 3)] == [1.0, 0.5, 0.25]
    assert DAggerConfig(initial_demonstrations=5, expert_share=0.0).share(1) == 0.0
