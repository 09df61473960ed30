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

from policies.bc import BCConfig, train_head
from policies.demonstrations import Demonstrations, split_episodes
from policies.heads.act import ACTConfig
from policies.heads.config import HeadConfig
from policies.heads.diffusion import DiffusionConfig
from policies.heads.trunk import TrunkConfig
from policies.normalize import Normalizer
from policies.samples import Samples
from toto_robot.run_folder import read_metrics

TRUNK = TrunkConfig(queries=2, attention_heads=2, camera_width=8, proprio_width=8, hidden=(16,))
HEAD = HeadConfig(chunk_steps=2, trunk=TRUNK)
CONFIG = BCConfig(
    steps=60, batch_size=16, log_every=10, validate_every=20, checkpoint_every=10, proprio_dropout=0.1,
    token_dropout=0.1, head=HEAD,
)  # fmt: skip

HEADS = {
    "gmm": replace(HEAD, name="gmm"),
    "act": replace(HEAD, name="act", act=ACTConfig(width=16, heads=2, ffn_width=32)),
    "diffusion": replace(
        HEAD, name="diffusion", diffusion=DiffusionConfig(width=16, blocks=1, kernel=3, step_width=8, sample_steps=2)
    ),
}

SCRIPT = """
import sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[2])
torch.set_num_threads(1)
from test_bc import CONFIG, made_up
from policies.bc import train_head
train_head(CONFIG, made_up(), seed=3, run_dir=Path(sys.argv[1]))
"""


def made_up(episodes=6, length=20, variants=0) -> Demonstrations:
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
        variants=tuple({"front": torch.from_numpy(tokens) + number} for number in range(1, variants + 1)),
    )


def test_cloning_lowers_the_held_out_error(tmp_path):
    config = replace(
        CONFIG, steps=600, batch_size=64, learning_rate=5e-3, validate_every=100, checkpoint_every=600,
        proprio_dropout=0, token_dropout=0, head=replace(HEAD, chunk_steps=1, feature_dropout=0),
    )  # fmt: skip
    train_head(config, made_up(episodes=60), seed=0, run_dir=tmp_path)
    errors = [line["val/mse"] for line in read_metrics(tmp_path) if "val/mse" in line]
    assert len(errors) == 6 and errors[-1] < 0.4 * errors[0]


def same_bits(first, second):
    """Assert that two runs hold the same checkpoint and the same metrics."""
    assert read_metrics(first) == read_metrics(second)
    one, two = (load_file(run / "checkpoints/last/pretrained_model/model.safetensors") for run in (first, second))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


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
    same_bits(killed, straight)


@pytest.mark.parametrize("head", ["gmm", "act", "diffusion"])
def test_every_head_continues_to_the_same_bits(tmp_path, monkeypatch, head):
    """Stopped between two checkpoints, with variants of the pictures, which are drawn too."""
    import policies.bc as module

    config = replace(CONFIG, steps=30, head=HEADS[head])
    train_head(config, made_up(variants=1), seed=3, run_dir=tmp_path / "straight")
    real = module._step

    def stop(*arguments):
        if arguments[-1] == 17:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_step", stop)
        with pytest.raises(KeyboardInterrupt):
            train_head(config, made_up(variants=1), seed=3, run_dir=tmp_path / "stopped")
    assert os.readlink(tmp_path / "stopped" / "checkpoints" / "last") == "000010"
    train_head(config, made_up(variants=1), seed=3, run_dir=tmp_path / "stopped")
    same_bits(tmp_path / "stopped", tmp_path / "straight")


def test_best_and_last_are_both_kept_and_one_is_chosen(tmp_path):
    """Labels of noise: what is learned makes the held-out episodes worse, so the best weights are early ones."""
    data = made_up()
    data.actions[:] = np.random.default_rng(1).normal(size=data.actions.shape)
    config = replace(CONFIG, steps=200, learning_rate=1e-2, ema=0.5, head=replace(HEAD, chunk_steps=1))
    last = train_head(config, data, seed=0, run_dir=tmp_path / "last")
    losses = {line["step"]: line["val/loss"] for line in read_metrics(tmp_path / "last") if "val/loss" in line}
    assert min(losses, key=losses.get) < 200, "the last is the best: the test shows nothing"
    best = train_head(replace(config, select="best"), data, seed=0, run_dir=tmp_path / "best")
    for first, second in ((last, best.other), (last.other, best)):
        state = second.head.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in first.head.state_dict().items())
    assert not torch.equal(last.head.out.weight, best.head.out.weight)


def test_without_validation_there_is_one_policy(tmp_path):
    config = replace(CONFIG, steps=20, validation_fraction=0.0, select="best")
    assert train_head(config, made_up(), seed=0, run_dir=tmp_path).other is None


def test_variants_are_drawn_in_training_and_never_in_validation(tmp_path):
    data = made_up(episodes=3, variants=2)
    identity = [Normalizer.fit(a, n, kind="none") for a, n in ((data.proprio, "abcd"), (data.actions, "xyz"))]
    samples = Samples(HEAD, data, *identity)
    frames = torch.arange(60)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([samples.draw(frames, 300, generator)[0].tokens["front"] for _ in range(3)])
    # A variant is the plain one plus its number, so what is drawn tells which it was.
    plain = data.tokens["front"].float()
    counts = [0, 0, 0]
    for row in drawn.float():
        distance = torch.stack([(plain + number - row).abs().amax(dim=(1, 2)).min() for number in range(3)])
        assert distance.min() < 0.01
        counts[int(distance.argmin())] += 1
    assert min(counts) > 200
    torch.testing.assert_close(samples.rows(frames)[0].tokens["front"], data.tokens["front"])


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
    data = made_up(episodes=2, length=3)
    identity = [Normalizer.fit(a, n, kind="none") for a, n in ((data.proprio, "abcd"), (data.actions, "xyz"))]
    _, target, inside = Samples(HEAD, data, *identity).rows(torch.tensor([1, 2, 3]))
    assert inside.tolist() == [[True, True], [True, False], [True, True]]
    np.testing.assert_allclose(target[0, 1], data.actions[2])
    np.testing.assert_allclose(target[2, 1], data.actions[4])


def test_history_stays_inside_the_episode():
    data = made_up(episodes=2, length=3)
    identity = [Normalizer.fit(a, n, kind="none") for a, n in ((data.proprio, "abcd"), (data.actions, "xyz"))]
    inputs, _, _ = Samples(replace(HEAD, history=3), data, *identity).rows(torch.tensor([2, 3, 4]))
    frames = [[0, 1, 2], [3, 3, 3], [3, 3, 4]]
    np.testing.assert_allclose(inputs.proprio, data.proprio[frames])
    np.testing.assert_array_equal(inputs.tokens["front"], data.tokens["front"][torch.tensor(frames)].float())


def test_split_keeps_at_least_one_demonstration():
    assert split_episodes(1, 0.5) == (range(1), range(1, 1))
    assert split_episodes(50, 0.1) == (range(45), range(45, 50))
    assert split_episodes(10, 0.0) == (range(10), range(10, 10))
    assert split_episodes(2, 0.99) == (range(1), range(1, 2))


@pytest.mark.parametrize(
    "values",
    [
        {"steps": 0},
        {"select": "worst"},
        {"finetune": "some"},
        {"shift_px": -1},
        {"ema": 1.0},
        {"action_normalizer": "zscore"},
    ],
)
def test_bad_settings_are_refused(values):
    with pytest.raises(ValueError, match="expected bc"):
        BCConfig(**values)


def test_a_diverging_training_says_what_to_do(tmp_path):
    data = made_up()
    data.tokens["front"][:] = torch.inf
    with pytest.raises(ValueError, match=r"loss is nan at step 1; lower bc.learning_rate"):
        train_head(CONFIG, data, seed=0, run_dir=tmp_path)
