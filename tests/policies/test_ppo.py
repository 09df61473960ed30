"""PPO's parts against their definitions, and that it learns, continues and leaves a policy that deployment can load."""

import json
import math
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from policies import ppo, ppo_loop
from policies.bundle import _hash_files, bundle_hash, load_policy
from policies.encoder import EncoderConfig, open_encoder
from policies.environment import make_environment, task_spec
from policies.evaluate import EvaluationConfig
from policies.heads.base import InputSizes
from policies.heads.trunk import TrunkConfig
from policies.normalize import Normalizer
from policies.observation import Inputs
from policies.ppo_actor import ActorCritic, ReturnScale, RunningNormalizer
from policies.ppo_config import PPOConfig
from policies.ppo_envs import EnvironmentPool
from policies.ppo_loop import Window, restore, train_ppo
from policies.ppo_rollout import Collector
from policies.ppo_train import learn_by_trial, learning_setting
from policies.ppo_update import update
from policies.train import TrainPolicyConfig, train_bundle
from toto_robot.cli import main
from toto_robot.run_folder import read_json, read_metrics, write_json

SMALL = TrunkConfig(activation="selu", camera_width=8, proprio_width=32, hidden=(32, 32), queries=1, attention_heads=1)
TINY = PPOConfig(
    env_steps=6 * 64, num_envs=4, rollout_steps=16, workers=0, groups=2, epochs=2, minibatches=2, threads=1,
    image_size=32, window_episodes=2, checkpoint_every=2, trunk=SMALL,
)  # fmt: skip
PENDULUM = "gymnasium/Pendulum-v1"  # 200 steps, then truncation


def _sizes(proprio_dim, **more):
    return InputSizes(**{"cameras": (), "tokens_per_frame": 0, "token_width": 0, "proprio_dim": proprio_dim, **more})


def _collector(pool, make, encoder, cameras=(), image_size=32):
    task = task_spec(make())
    names = ppo.Setting(make=make, task=task, state_entries=34, encoder=encoder, cameras=cameras).told_names
    low, high = (np.asarray(task[key], np.float32) for key in ("action_low", "action_high"))
    collector = Collector(
        pool, encoder, cameras=cameras, image_size=image_size, normalizer=RunningNormalizer(names, "none").normalizer(),
        action_low=low, action_high=high, device=torch.device("cpu"),
    )  # fmt: skip
    return collector, len(names), len(low)


# --- rollouts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "encoder", "workers", "ends"),
    [
        (PENDULUM, {}, "none", 0, "truncated"),
        (
            "franka_pick",
            {"obs_mode": "state", "preset": "pixmc", "action_mode": "joint_delta"},
            "state",
            1,
            "terminated",
        ),
    ],
)
def test_a_rollout_is_what_environments_do_alone(name, settings, encoder, workers, ends):
    make = partial(make_environment, name, **settings)
    steps, envs = 210, 4
    with EnvironmentPool(make, num_envs=envs, workers=workers, groups=2, seed=(3, 0)) as pool:
        collector, told, actions = _collector(pool, make, open_encoder(EncoderConfig(name=encoder)))
        model = ActorCritic(PPOConfig(trunk=SMALL), _sizes(told), actions, seed=0)
        rollout = collector.collect(model, steps, torch.Generator().manual_seed(0))
        seeds = pool.seeds
    ended = 0
    for row in range(envs):
        alone, over = make(), False
        seen, _ = alone.reset(seed=int(seeds[row]))
        for step in range(steps):
            expected = np.concatenate([seen[key] for key in ("proprio", "state") if key in seen])
            np.testing.assert_array_equal(rollout.told[step, row], expected)
            assert bool(rollout.counts[step, row]) != over
            if over:  # the action that answers a last observation goes nowhere
                seen, over = alone.reset()[0], False
                assert rollout.rewards[step, row] == 0
                assert not (rollout.terminated[step, row] or rollout.truncated[step, row])
                continue
            action = np.clip(rollout.actions[step, row].numpy(), alone.action_space.low, alone.action_space.high)
            seen, reward, terminated, truncated, _ = alone.step(action)
            assert rollout.rewards[step, row] == pytest.approx(reward, rel=1e-6)
            assert (rollout.terminated[step, row], rollout.truncated[step, row]) == (terminated, truncated)
            over = terminated or truncated
            ended += int({"terminated": terminated, "truncated": truncated}[ends])
    assert ended >= 1
    with torch.no_grad():  # the value that follows a step is that of the observation it led to, last ones included
        _, values = model(Inputs(rollout.proprio.flatten(0, 1), {}))
    np.testing.assert_allclose(rollout.values[:-1].ravel(), values.numpy(), atol=1e-4)


class _Counting:
    """An encoder whose streams count the frames that they are given."""

    def __init__(self, encoder):
        self._encoder, self.frames = encoder, 0

    def __getattr__(self, name):
        return getattr(self._encoder, name)

    def stream(self, batch):
        stream, counted = self._encoder.stream(batch), self

        class Stream:
            def step(self, frames, reset=None):
                counted.frames += len(frames)
                return stream.step(frames, reset)

        return Stream()


@pytest.mark.render
def test_each_frame_is_encoded_once_and_kept_as_the_encoder_gave_it(toto):
    cameras, steps, envs = ("front", "wrist"), 5, 4
    settings = {"obs_mode": "pixels", "cameras": cameras, "image_size": 32}
    make = partial(make_environment, "franka_pick", **settings)
    plain = open_encoder(toto)
    encoder = _Counting(plain)
    config = replace(TINY, rollout_steps=steps)
    with EnvironmentPool(make, num_envs=envs, workers=0, groups=2, seed=(0, 0)) as pool:
        collector, told, actions = _collector(pool, make, encoder, cameras)
        sizes = _sizes(told, cameras=cameras, tokens_per_frame=16, token_width=plain.width)
        model = ActorCritic(config, sizes, actions, seed=0)
        rollout = collector.collect(model, steps, torch.Generator().manual_seed(0))
        assert encoder.frames == (steps + 1) * envs * len(cameras)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        update(config, model, optimizer, rollout, torch.Generator().manual_seed(0))
        assert encoder.frames == (steps + 1) * envs * len(cameras)
        assert rollout.token_bytes == steps * envs * len(cameras) * 16 * plain.width * 2
        kept = {camera: tokens.clone() for camera, tokens in rollout.tokens.items()}
        drawn, seeds = rollout.actions.numpy().copy(), pool.seeds
        collector.collect(model, steps, torch.Generator().manual_seed(1))
        assert encoder.frames == (2 * steps + 1) * envs * len(cameras)  # it goes on from the last frame
    row = 3
    alone = make()
    seen, _ = alone.reset(seed=int(seeds[row]))
    films = {camera: [] for camera in cameras}
    for step in range(steps):
        for camera in cameras:
            films[camera].append(seen["pixels"][camera])
        seen, *_ = alone.step(np.clip(drawn[step, row], -1, 1))
    for camera in cameras:
        expected = plain.encode_clip(np.stack(films[camera])[None])[0]
        np.testing.assert_allclose(kept[camera][:, row].float(), expected, atol=5e-3)


@pytest.mark.render
@pytest.mark.parametrize("pixels", [False, True])
def test_processes_that_act_by_themselves_do_what_this_one_does(toto, pixels):
    """Each process's part is what a collector here makes of the same environments, weights and noise."""
    cameras, encoder = (("front",), toto) if pixels else ((), EncoderConfig(name="none"))
    settings = {"obs_mode": "pixels", "cameras": cameras, "image_size": 32} if pixels else {}
    make = partial(make_environment, "franka_pick" if pixels else PENDULUM, **settings)
    task, opened = task_spec(make()), open_encoder(encoder)
    setting = ppo.Setting(
        make=make, task=task, state_entries=0, encoder=opened, cameras=cameras,
        open_encoder=partial(open_encoder, encoder),
    )  # fmt: skip
    trainer = ppo.Trainer(replace(TINY, workers=2, rollout_steps=7), setting, seed=5)
    model, normal = trainer.learner.actor_critic, RunningNormalizer(setting.told_names, "none").normalizer()
    with trainer.open(3) as acting:
        both = [acting.collect(model, 7, torch.Generator().manual_seed(turn)) for turn in range(2)]
    assert both[0].actions.shape == (7, 4, len(task["action_names"]))
    for number in range(2):
        with EnvironmentPool(make, num_envs=2, workers=0, groups=1, seed=(5, 3, number)) as pool:
            collector, *_ = _collector(pool, make, opened, cameras)
            collector.set_normalizer(normal)
            for turn, rollout in enumerate(both):
                seeds = torch.randint(2**62, (2,), generator=torch.Generator().manual_seed(turn)).tolist()
                alone = collector.collect(model, 7, torch.Generator().manual_seed(seeds[number]))
                for name in ("proprio", "actions", "log_probability", "told", "values", "rewards", "counts"):
                    part = np.asarray(getattr(rollout, name))[:, 2 * number : 2 * number + 2]
                    np.testing.assert_allclose(part, np.asarray(getattr(alone, name)), rtol=1e-4, atol=1e-5)
                for camera in cameras:
                    part = rollout.tokens[camera][:, 2 * number : 2 * number + 2].float()
                    torch.testing.assert_close(part, alone.tokens[camera].float(), rtol=1e-2, atol=1e-2)
    with pytest.raises(ValueError, match="3 processes share evenly, got 4"):
        ppo.Trainer(replace(TINY, workers=3), setting, seed=0).open(0)


def test_environments_must_share_out_evenly():
    with pytest.raises(ValueError, match=r"a multiple of 4, got 6"):
        EnvironmentPool(partial(make_environment, PENDULUM), num_envs=6, workers=2, groups=2, seed=(0,))


# --- actor and statistics -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cores", "workers"), [(1, 1), (2, 2), (6, 4), (12, 8), (20, 16), (24, 16), (64, 32)])
def test_all_cores_work_that_share_the_environments_evenly(cores, workers):
    assert ppo.most_workers(cores, PPOConfig().num_envs, PPOConfig().groups) == workers
    assert ppo.most_workers(cores, 7, 2) == 1  # no number does: the pool says so


def test_only_what_learns_is_moved_to_another_device():
    """The statistics take numbers of the environments, which are on the CPU, and give numpy arrays."""
    make = partial(make_environment, PENDULUM, obs_mode="proprio")
    setting = ppo.Setting(
        make=make, task=task_spec(make()), state_entries=0, encoder=open_encoder(EncoderConfig(name="none")), cameras=()
    )
    learner = ppo.Learner(TINY, setting, seed=0)
    learner.place(torch.device("meta"))
    assert {parameter.device.type for parameter in learner.actor_critic.parameters()} == {"meta"}
    learner.told.update(np.ones((3, len(setting.told_names))))
    learner.returns.update(np.ones((4, 2), np.float32), np.zeros((4, 2), bool), np.ones((4, 2), bool))
    assert learner.told.normalizer().offset.tolist() == [1.0] * len(setting.told_names)
    assert learner.returns.deviation > 0


@pytest.mark.render
def test_axes_of_randomisation_vary_the_trials():
    encoder = open_encoder(EncoderConfig(name="random_vit"))
    shown = []
    for axes in ((), ("lights", "colors")):
        setting = learning_setting(
            replace(TINY, randomize=axes), env="franka_pick", preset="real", cameras=("front",), filmed=("front",),
            encoder=encoder,
        )  # fmt: skip
        shown.append(setting.make().reset(seed=3)[0]["pixels"]["front"].astype(int))
    assert np.abs(shown[0] - shown[1]).mean() > 1.0


def test_density_and_entropy_are_those_of_a_normal_distribution():
    model = ActorCritic(PPOConfig(trunk=SMALL), _sizes(5), 3, seed=0)
    with torch.no_grad():
        model.log_std.copy_(torch.tensor([-1.0, 0.3, 0.0]))
    mean, actions = torch.randn(2, 7, 3, generator=torch.Generator().manual_seed(0))
    normal = torch.distributions.Normal(mean, model.log_std.exp())
    torch.testing.assert_close(model.log_probability(mean, actions), normal.log_prob(actions).sum(-1))
    torch.testing.assert_close(model.entropy(), normal.entropy()[0].sum())


def test_running_statistics_are_those_of_all_values_together():
    parts = [np.random.default_rng(seed).normal(3 * seed, 1 + seed, (20 + seed, 2)) for seed in range(4)]
    running = RunningNormalizer(("a", "b"), "mean_std")
    for part in parts:
        running.update(part)
    together, got = np.concatenate(parts), running.normalizer()
    np.testing.assert_allclose(got.offset, together.mean(0), rtol=1e-5)
    np.testing.assert_allclose(got.scale, together.std(0), rtol=1e-5)


def test_the_scale_of_returns_begins_anew_with_each_episode():
    rewards = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
    ended = np.random.default_rng(1).random((30, 3)) < 0.2
    counts = np.concatenate([np.ones((1, 3), bool), ~ended[:-1]])  # the step after an end only resets
    rewards[~counts] = 0
    sums, carried = [], np.zeros(3)
    for step in range(30):
        carried = 0.9 * carried + rewards[step]
        sums += carried[counts[step]].tolist()
        carried[ended[step]] = 0
    scale = ReturnScale(0.9)
    for part in (slice(11), slice(11, None)):
        scale.update(rewards[part], ended[part], counts[part])
    assert scale.deviation == pytest.approx(np.std(sums), rel=1e-4)


@pytest.mark.parametrize("threads", [1, 3])
def test_an_update_follows_the_clipped_objective(threads):
    """One epoch of one minibatch is one Adam step along the gradient of the published loss, written out again."""
    config = replace(
        TINY, epochs=1, minibatches=1, num_envs=4, rollout_steps=32, learning_rate=1e-3, clip_norm=1e9,
        entropy_weight=0.01,
    )  # fmt: skip
    make = partial(make_environment, PENDULUM)
    with EnvironmentPool(make, num_envs=4, workers=0, groups=1, seed=(0,)) as pool:
        collector, told, actions = _collector(pool, make, open_encoder(EncoderConfig(name="none")))
        model = ActorCritic(config, _sizes(told), actions, seed=0)
        rollout = collector.collect(model, 32, torch.Generator().manual_seed(0))
    # Pendulum does not end within 32 steps: as if environment 0 had terminated and 1 been cut; then a step only resets.
    rollout.terminated[9, 0] = rollout.truncated[14, 1] = True
    rollout.counts[10, 0] = rollout.counts[15, 1] = False
    rollout.rewards[10, 0] = rollout.rewards[15, 1] = 1e3  # whatever stands there
    twin = ActorCritic(config, _sizes(told), actions, seed=0)
    with torch.no_grad():  # away from the policy that acted, so that ratios differ from 1 and some are clipped
        for each in (model, twin):
            each.head.out.bias.add_(0.2)
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    told = update(config, model, sgd, rollout, torch.Generator(), reward_scale=0.5, threads=threads)

    values = torch.from_numpy(rollout.values)
    gains = torch.zeros(32, 4)
    carried = torch.zeros(4)
    for step in reversed(range(32)):
        to_come, goes_on = torch.ones(4), torch.ones(4)
        if step == 9:
            to_come[0] = goes_on[0] = 0.0
        if step == 14:
            goes_on[1] = 0.0
        error = 0.5 * torch.from_numpy(rollout.rewards[step]) + 0.99 * to_come * values[step + 1] - values[step]
        carried = error + 0.99 * 0.95 * goes_on * carried
        gains[step] = carried
    counts = torch.from_numpy(rollout.counts).flatten()
    assert counts.sum() == 126
    mean, predicted = twin(Inputs(rollout.proprio.flatten(0, 1), {}))
    normal = torch.distributions.Normal(mean, twin.log_std.exp())
    ratio = (normal.log_prob(rollout.actions.flatten(0, 1)).sum(-1) - rollout.log_probability.flatten()).exp()
    assert ((ratio - 1).abs() > config.clip).any() and ((ratio - 1).abs() < config.clip).any()
    ratio, gain, returns = ratio[counts], gains.flatten()[counts], (gains + values[:-1]).flatten()[counts]
    normed = (gain - gain.mean()) / gain.std()
    objective = torch.minimum(ratio * normed, ratio.clamp(0.9, 1.1) * normed).mean()
    value_loss = (returns - predicted[counts]).square().mean()
    loss = -objective + 2.0 * value_loss - 0.01 * normal.entropy().sum(-1).mean()
    loss.backward()
    expected = {
        "policy_loss": -objective,
        "value_loss": value_loss,
        "clip_fraction": ((ratio - 1).abs() > config.clip).float().mean(),
        "entropy": normal.entropy().sum(-1).mean(),
        "gradient_norm": torch.cat([each.grad.flatten() for each in twin.parameters()]).norm(),
        "explained_variance": 1 - (returns - values[:-1].flatten()[counts]).var() / returns.var(),
    }
    for name, value in expected.items():
        assert told[f"train/{name}"] == pytest.approx(value.item(), rel=1e-4, abs=1e-6), name
    for (name, moved), still in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(moved, still - still.grad, rtol=1e-3, atol=1e-5, msg=name)


# --- training -------------------------------------------------------------------------------------------------------


def _learn(config, run_dir, *, env=PENDULUM, encoder="none", seed=0):
    learn_by_trial(
        config, env=env, preset="pixmc", cameras=("front",), encoder=EncoderConfig(name=encoder), seed=seed,
        settings={}, run_dir=run_dir,
    )  # fmt: skip


def test_it_swings_the_pendulum_up(tmp_path):
    """From about -1200 (a policy that does nothing) to above -400 in 40 000 steps; solved is about -150."""
    config = PPOConfig(
        env_steps=40_000, num_envs=8, rollout_steps=250, workers=0, groups=1, minibatches=8, clip=0.2, threads=1,
        learning_rate=2e-3, discount=0.9, normalize_rewards=True, window_episodes=16,
        trunk=TrunkConfig(activation="selu", proprio_width=64, hidden=(64, 64)),
    )  # fmt: skip
    _learn(config, tmp_path)
    returns = [line["episode/return"] for line in read_metrics(tmp_path) if "episode/return" in line]
    assert returns[0] < -800
    assert max(returns[-3:]) > -400, returns


def test_a_killed_training_continues_from_its_last_checkpoint(tmp_path, monkeypatch):
    config = replace(TINY, env_steps=30 * 64, checkpoint_every=5)
    calls = []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 18:  # updates 16 and 17 are lost
            raise KeyboardInterrupt
        return update(*arguments)

    monkeypatch.setattr(ppo, "update", killed)
    with pytest.raises(KeyboardInterrupt):
        _learn(config, tmp_path)
    assert not (tmp_path / "bundle").exists()
    with open(tmp_path / "curve.jsonl", "a") as file:
        file.write('{"env_steps": 9')  # cut off
    monkeypatch.setattr(ppo, "update", update)
    assert (tmp_path / "checkpoints" / "last").resolve().name == f"{15 * 64:06d}"
    _learn(config, tmp_path)
    steps = [line["step"] for line in read_metrics(tmp_path)]
    assert steps == [64 * (index + 1) for index in range(30)]
    curve = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    measured = [line["env_steps"] for line in curve]
    assert measured == sorted(set(measured)) and measured[-1] == 30 * 64
    assert all(line.keys() == {"env_steps", "successes", "episodes", "wall_s"} for line in curve)
    rates = [line["train/learning_rate"] for line in read_metrics(tmp_path)]
    assert rates == pytest.approx([5e-4 * (1 + math.cos(math.pi * index / 31)) for index in range(1, 31)], abs=1e-9)


def test_a_checkpoint_holds_weights_moments_and_statistics(tmp_path):
    make = partial(make_environment, PENDULUM)
    setting = ppo.Setting(
        make=make, task=task_spec(make()), state_entries=0, encoder=open_encoder(EncoderConfig(name="none")), cameras=()
    )
    train_ppo(TINY, setting, 0, tmp_path, lambda trained, score: None)
    trainers = []
    for _ in range(2):
        trainers.append(ppo.Trainer(TINY, setting, seed=1))
        assert restore(tmp_path, trainers[-1], Window(2))[0] == 6
    one, other = (trainer.learner for trainer in trainers)
    assert float(one.told.count) == 6 * 64 and one.told.variance.min() > 0
    # The first turn only measures.
    assert float(trainers[0].optimizer.state[one.actor_critic.log_std]["step"]) == 5 * 2 * 2
    fresh = ppo.Learner(TINY, setting, seed=1)
    assert not torch.equal(one.actor_critic.log_std, fresh.actor_critic.log_std)
    for left, right in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(left, right)


def test_a_bundle_does_what_the_trained_mean_does(tmp_path):
    config = TrainPolicyConfig(
        policy="ppo", preset="pixmc", encoder=EncoderConfig(name="state"), ppo=replace(TINY, select="last"),
        evaluation=EvaluationConfig(episodes=1, videos=0),
    )  # fmt: skip
    bundle = train_bundle(config, tmp_path)
    policy = load_policy(bundle)
    assert (policy.task["preset"], policy.task["action_mode"], policy.oracle) == ("pixmc", config.ppo.action_mode, True)
    environment = make_environment("franka_pick", obs_mode="state", preset="pixmc", action_mode=config.ppo.action_mode)
    seen, _ = environment.reset(seed=5)
    setting = ppo.Setting(
        make=make_environment, task=policy.task, state_entries=34,
        encoder=open_encoder(EncoderConfig(name="state")), cameras=(),
    )  # fmt: skip
    trainer = ppo.Trainer(config.ppo, setting, seed=9)
    restore(tmp_path, trainer, Window(2))
    learner = trainer.learner
    told = np.concatenate([seen["proprio"], seen["state"]]).astype(np.float64)
    scale = np.maximum(learner.told.variance.sqrt().numpy(), 1e-2)
    normal = torch.from_numpy(np.clip((told - learner.told.mean.numpy()) / scale, -10, 10)).float()
    mean, _ = learner.actor_critic(Inputs(normal[None], {}))
    np.testing.assert_allclose(policy.act(seen), mean[0].detach().clamp(-1, 1).numpy(), atol=1e-5)
    assert "PPO in 384 environment steps" in (bundle / "MODEL_CARD.md").read_text()
    with pytest.raises(ValueError, match=r"other settings.*ppo"):
        train_bundle(replace(config, ppo=replace(config.ppo, clip=0.3)), tmp_path)


def test_the_better_of_best_and_last_is_chosen_by_option(tmp_path):
    _learn(replace(TINY, env_steps=30 * 64, select="best"), tmp_path / "a")
    assert sorted(path.name for path in (tmp_path / "a").glob("bundle*")) == ["bundle", "bundle_last"]
    _learn(replace(TINY, env_steps=30 * 64, select="last"), tmp_path / "b")
    assert sorted(path.name for path in (tmp_path / "b").glob("bundle*")) == ["bundle", "bundle_best"]


@pytest.mark.parametrize("newer", [True, False])
def test_a_kill_beside_a_checkpoint_does_not_lose_the_best_policy(tmp_path, monkeypatch, newer):
    """The best policy is written before the checkpoint: after a kill between, it may be better than that knows of."""
    config = replace(TINY, env_steps=30 * 64, checkpoint_every=5)
    save, kept = ppo_loop._save, []

    def killed(run_dir, done, trainer, notes):
        if done == 15 * 64:
            raise KeyboardInterrupt
        save(run_dir, done, trainer, notes)

    monkeypatch.setattr(ppo_loop, "_save", killed)
    with pytest.raises(KeyboardInterrupt):
        _learn(config, tmp_path)
    best = tmp_path / "bundle_best"
    if newer:  # nothing that follows is as good
        description = read_json(best / "policy.json")
        description["training"]["window_score"] = [1.0, 1e9]
        write_json(best / "policy.json", description)
        write_json(best / "hashes.json", _hash_files(best))
        hashed = bundle_hash(best)
    else:  # gone: whatever comes next is the best there is
        shutil.rmtree(best)
    monkeypatch.setattr(ppo_loop, "_save", lambda run_dir, done, trainer, notes: kept.append(notes["best"]))
    _learn(config, tmp_path)
    if newer:
        assert bundle_hash(tmp_path / "bundle") == hashed and kept[-1] == [1.0, 1e9]
    else:
        found = read_json(tmp_path / "bundle" / "policy.json")["training"]
        assert found["checkpoint"] == "best" and found["window_score"] == kept[-1]


def test_a_run_is_not_made_shorter_than_it_is(tmp_path):
    _learn(replace(TINY, env_steps=10 * 64), tmp_path)
    with pytest.raises(ValueError, match=r"640 environment steps already, more than ppo.env_steps=384; give 640"):
        _learn(TINY, tmp_path)


def test_what_a_rollout_begins_with_has_the_statistics_of_its_time():
    make = partial(make_environment, PENDULUM)
    encoder = open_encoder(EncoderConfig(name="none"))
    with EnvironmentPool(make, num_envs=4, workers=0, groups=2, seed=(0,)) as pool:
        collector, told, actions = _collector(pool, make, encoder)
        model = ActorCritic(TINY, _sizes(told), actions, seed=0)
        collector.collect(model, 3, torch.Generator().manual_seed(0))
        names = tuple(str(index) for index in range(told))
        normalizer = Normalizer.fit(np.random.default_rng(0).normal(3.0, 2.0, (50, told)), names)
        collector.set_normalizer(normalizer)
        rollout = collector.collect(model, 3, torch.Generator().manual_seed(1))
    for step in range(3):
        np.testing.assert_array_equal(rollout.proprio[step].numpy(), normalizer.normalize(rollout.told[step]))


def test_settings_that_cannot_be_are_named():
    for changed, message in (
        ({"env_steps": 8192}, r"ppo.env_steps above 8192 .*the first rollout is for the statistics"),
        ({"select": "first"}, "ppo.select best or last, got 'first'"),
        ({"discount": 1.5}, r"ppo.discount in \[0, 1\], got 1.5"),
        ({"num_envs": 1, "rollout_steps": 2, "minibatches": 4}, "at most 2 minibatches"),
    ):
        with pytest.raises(ValueError, match=message):
            PPOConfig(**changed)
    with pytest.raises(ValueError, match=r"expected policy bc .* got 'sac'"):
        TrainPolicyConfig(policy="sac")
    with pytest.raises(ValueError, match="encoder=none"):
        make_environment(PENDULUM, obs_mode="pixels")


def _exit_code(*arguments):
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return ended.value.code


def test_the_command_continues_a_run_with_other_processes_and_more_steps(tmp_path, capsys):
    command = [
        "train-policy", "policy=ppo", f"env={PENDULUM}", "encoder=none", f"run={tmp_path}", "ppo.num_envs=2",
        "ppo.rollout_steps=100", "ppo.groups=1", "ppo.workers=0", "ppo.epochs=1", "ppo.trunk.hidden=[16]",
        "ppo.window_episodes=2", "evaluation.episodes=1", "evaluation.videos=0", "evaluation.workers=1",
        "evaluation.envs_per_worker=1",
    ]  # fmt: skip
    assert _exit_code(*command, "ppo.env_steps=400") == 0
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    assert (evaluation["policy"]["env_steps"], evaluation["episodes"]) == (400, 1)
    assert "400 environment steps" in capsys.readouterr().out
    (tmp_path / "evaluation.json").unlink()
    (tmp_path / "episodes.jsonl").unlink()
    for made in (*tmp_path.glob("bundle*"), tmp_path / "last"):  # as if it had been killed before the end
        shutil.rmtree(made)
    assert _exit_code(*command, "ppo.env_steps=600", "ppo.threads=1") == 0
    assert [line["step"] for line in read_metrics(tmp_path)] == [200, 400, 600]
    assert _exit_code(*command, "ppo.env_steps=600", "ppo.threads=1", "ppo.clip=0.2") == 1
    assert "ppo.clip: 0.1 -> 0.2" in capsys.readouterr().err
