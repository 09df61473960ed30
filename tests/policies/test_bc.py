"""Does cloning learn, resume to the bit after kill -9, and hold out what it says?"""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from policies.bc import BCConfig, Demonstrations, split_episodes, train_head
from policies.heads.config import HeadConfig
from policies.heads.trunk import TrunkConfig
from toto_robot.run_folder import read_metrics

TRUNK = TrunkConfig(queries=2, attention_heads=2, camera_width=8, proprio_width=8, hidden=(16,))
HEAD = HeadConfig(chunk_steps=2, trunk=TRUNK)
CONFIG = BCConfig(
    steps=60, batch_size=16, log_every=10, validate_every=20, checkpoint_every=10, proprio_dropout=0.1,
    token_dropout=0.1, head=HEAD,
)  # fmt: skip

SCRIPT = """
import sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[2])
torch.set_num_threads(1)
from test_bc import CONFIG, made_up
from policies.bc import train_head
train_head(CONFIG, made_up(), seed=3, run_dir=Path(sys.argv[1]))
"""


def made_up(episodes=6, length=20) -> Demonstrations:
    """Episodes in which the action follows from a token's content and the proprioception."""
    generator = np.random.default_rng(0)
    count = episodes * length
    proprio = generator.normal(size=(count, 4)).astype(np.float32)
    tokens = generator.normal(size=(count, 4, 8)).astype(np.float16)
    actions = np.stack([proprio[:, 0] + tokens[:, 2, 1], proprio[:, 1], np.sign(tokens[:, 0, 0])], axis=1)
    return Demonstrations(
        proprio=proprio,
        actions=actions.astype(np.float32),
        tokens={"front": torch.from_numpy(tokens)},
        ends=np.arange(length, count + 1, length),
        proprio_names=tuple("abcd"),
        action_names=("x", "y", "gripper"),
    )


def test_cloning_lowers_the_held_out_error(tmp_path):
    config = replace(
        CONFIG, steps=600, batch_size=64, learning_rate=5e-3, validate_every=100, checkpoint_every=600,
        proprio_dropout=0, token_dropout=0, head=replace(HEAD, chunk_steps=1, feature_dropout=0),
    )  # fmt: skip
    train_head(config, made_up(episodes=60), seed=0, run_dir=tmp_path)
    errors = [line["val/mse"] for line in read_metrics(tmp_path) if "val/mse" in line]
    assert len(errors) == 6 and errors[-1] < 0.4 * errors[0]


def test_a_killed_training_continues_to_the_same_bits(tmp_path):
    killed, straight = tmp_path / "killed", tmp_path / "straight"
    expected = train_head(CONFIG, made_up(), seed=3, run_dir=straight)
    here = os.path.dirname(__file__)
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(killed), here], stderr=subprocess.DEVNULL)
    while not (killed / "checkpoints" / "last").exists():
        assert process.poll() is None
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = int(os.readlink(killed / "checkpoints" / "last"))
    assert 10 <= done < 60, "killed too late to show anything"
    got = train_head(CONFIG, made_up(), seed=3, run_dir=killed)
    for name, tensor in expected.head.state_dict().items():
        assert torch.equal(got.head.state_dict()[name], tensor), name
    assert read_metrics(killed) == read_metrics(straight)
    files = [run / "checkpoints/last/pretrained_model/model.safetensors" for run in (killed, straight)]
    first, second = (load_file(path) for path in files)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_seed_decides_and_the_global_generator_does_not(tmp_path):
    torch.manual_seed(1)
    first = train_head(CONFIG, made_up(), seed=0, run_dir=tmp_path / "1").head.state_dict()
    torch.manual_seed(2)
    same = train_head(CONFIG, made_up(), seed=0, run_dir=tmp_path / "2").head.state_dict()
    other = train_head(CONFIG, made_up(), seed=1, run_dir=tmp_path / "3").head.state_dict()
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["out.weight"], other["out.weight"])


def test_held_out_episodes_change_nothing(tmp_path):
    """Neither the weights nor the statistics see the validation episodes."""
    data = made_up()
    first = train_head(CONFIG, data, seed=0, run_dir=tmp_path / "1")
    _, validation = split_episodes(6, CONFIG.validation_fraction)
    frames = data.frames_of(validation)
    assert list(validation) == [5] and len(frames) == 20
    data.proprio[frames] += 100
    data.actions[frames] -= 100
    second = train_head(CONFIG, data, seed=0, run_dir=tmp_path / "2")
    np.testing.assert_array_equal(first.actions.scale, second.actions.scale)
    assert torch.equal(first.head.out.weight, second.head.out.weight)


def test_chunks_stop_at_the_end_of_an_episode(tmp_path):
    """What follows in memory after an episode's end is the next episode: it must not be a target."""
    from policies.bc import _Table
    from policies.normalize import Normalizer

    data = made_up(episodes=2, length=3)
    identity = [Normalizer.fit(a, n, kind="none") for a, n in ((data.proprio, "abcd"), (data.actions, "xyz"))]
    _, target, inside = _Table(CONFIG, data, *identity).rows(torch.tensor([1, 2, 3]))
    assert inside.tolist() == [[True, True], [True, False], [True, True]]
    np.testing.assert_allclose(target[0, 1], data.actions[2])
    np.testing.assert_allclose(target[2, 1], data.actions[4])


def test_history_stays_inside_the_episode():
    from policies.bc import _Table
    from policies.normalize import Normalizer

    data = made_up(episodes=2, length=3)
    identity = [Normalizer.fit(a, n, kind="none") for a, n in ((data.proprio, "abcd"), (data.actions, "xyz"))]
    config = replace(CONFIG, head=replace(HEAD, history=3))
    inputs, _, _ = _Table(config, data, *identity).rows(torch.tensor([2, 3, 4]))
    frames = [[0, 1, 2], [3, 3, 3], [3, 3, 4]]
    np.testing.assert_allclose(inputs.proprio, data.proprio[frames])
    np.testing.assert_array_equal(inputs.tokens["front"], data.tokens["front"][torch.tensor(frames)].float())


def test_split_keeps_at_least_one_demonstration():
    assert split_episodes(1, 0.5) == (range(1), range(1, 1))
    assert split_episodes(50, 0.1) == (range(45), range(45, 50))
    assert split_episodes(10, 0.0) == (range(10), range(10, 10))
    assert split_episodes(2, 0.99) == (range(1), range(1, 2))


@pytest.mark.parametrize("values", [{"steps": 0}, {"ema": 1.0}, {"action_normalizer": "zscore"}])
def test_bad_settings_are_refused(values):
    with pytest.raises(ValueError, match="expected bc"):
        BCConfig(**values)


def test_a_diverging_training_says_what_to_do(tmp_path):
    data = made_up()
    data.tokens["front"][:] = torch.inf
    with pytest.raises(ValueError, match=r"loss is nan at step 1; lower bc.learning_rate"):
        train_head(CONFIG, data, seed=0, run_dir=tmp_path)
