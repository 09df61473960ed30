"""What is one turn of PPO on the features of a frozen encoder: collect, update, learn the statistics?"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from policies.bc import Trained
from policies.heads.base import InputSizes
from policies.normalize import Normalizer
from policies.observation import sees_state
from policies.ppo_actor import ActorCritic, ReturnScale, RunningNormalizer
from policies.ppo_actors import Acting, ActingProcesses
from policies.ppo_config import PPOConfig
from policies.ppo_envs import EnvironmentPool
from policies.ppo_rollout import Collector, Rollout
from policies.ppo_update import update
from policies.processes import usable_cores
from toto_robot.encoders.base import Encoder
from toto_robot.pretrain.optim import learning_rate, set_learning_rate

# The common choice of PPO codes (baselines, stable-baselines3): with 1e-8 steps stay large where gradients vanish.
_ADAM_EPS = 1e-5


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What PPO learns in."""

    make: Callable[[], Any]  # makes an environment; picklable
    task: Mapping[str, Any]  # its specification
    state_entries: int  # of the simulator's state; only the oracle is told
    encoder: Encoder
    cameras: tuple[str, ...]  # that the encoder sees; none for a blind one
    open_encoder: Callable[[], Encoder] | None = None  # opens it in another process; None: it sees for all in this one

    @property
    def told_names(self) -> tuple[str, ...]:
        """Names of the numbers that the policy is told."""
        state = range(self.state_entries if sees_state(self.encoder) else 0)
        return (*self.task["proprio_names"], *(f"state_{index}" for index in state))

    @property
    def sizes(self) -> InputSizes:
        """Sizes of what the policy sees and is told."""
        return InputSizes(
            cameras=self.cameras,
            tokens_per_frame=self.encoder.tokens_per_frame,
            token_width=self.encoder.width,
            proprio_dim=len(self.told_names),
        )


class Learner(nn.Module):
    """All that a checkpoint must hold besides the optimizer: actor, critic and running statistics."""

    def __init__(self, config: PPOConfig, setting: Setting, seed: int) -> None:
        super().__init__()
        names = setting.told_names
        self.actor_critic = ActorCritic(config, setting.sizes, len(setting.task["action_names"]), seed)
        self.told = RunningNormalizer(names, config.proprio_normalizer)
        self.returns = ReturnScale(config.discount)
        self._action_names = tuple(setting.task["action_names"])

    def place(self, device: torch.device) -> None:
        """Move what a gradient reaches; the statistics stay where the environments' numbers are."""
        self.actor_critic.to(device)

    def trained(self) -> Trained:
        """Return a copy of the deterministic policy as it is now: the mean of the distribution."""
        head = self.actor_critic.head
        copied = type(head)(head.config, head.sizes, head.action_dim)
        copied.load_state_dict({name: tensor.cpu().clone() for name, tensor in head.state_dict().items()})
        count = len(self._action_names)
        identity = Normalizer(
            kind="none",
            names=self._action_names,
            offset=np.zeros(count, np.float32),
            scale=np.ones(count, np.float32),
        )
        return Trained(copied.eval(), self.told.normalizer(), identity)


class Trainer:
    """A learner, its optimizer and the environments it learns in.

    Turn `index` draws its noise and its minibatches from a generator seeded by (seed, index). Environments are not part
    of the state that can be saved: a trainer that begins at turn `start` begins new episodes.
    """

    def __init__(self, config: PPOConfig, setting: Setting, seed: int) -> None:
        self.config, self._setting, self._seed = config, setting, seed
        self._device = torch.device(config.device)
        self.learner = Learner(config, setting, seed)
        self.learner.place(self._device)
        self._peak = _peak_learning_rate(config, setting)
        parameters = self.learner.actor_critic.parameters()
        self.optimizer = torch.optim.Adam(parameters, lr=self._peak, eps=_ADAM_EPS, fused=True)
        self._apart = setting.open_encoder is not None and config.workers != 0  # every process acts by itself
        most = most_workers(usable_cores(), config.num_envs, 1 if self._apart else config.groups)
        self._workers = most if config.workers is None else config.workers

    def open(self, start: int) -> contextlib.AbstractContextManager[Any]:
        """Return the environments, to be entered, for turns from `start` on."""
        config, setting, seed = self.config, self._setting, (self._seed, start)
        normalizer = self.learner.told.normalizer()
        low, high = (np.asarray(setting.task[key], np.float32) for key in ("action_low", "action_high"))
        self._collector: Collector | ActingProcesses
        if self._apart:
            assert setting.open_encoder is not None
            acting = Acting(
                make=setting.make,
                open_encoder=setting.open_encoder,
                config=config,
                sizes=setting.sizes,
                cameras=setting.cameras,
                action_low=low,
                action_high=high,
                seed=seed,
            )
            self._collector = ActingProcesses(
                acting, num_envs=config.num_envs, workers=self._workers, normalizer=normalizer
            )
            return self._collector
        pool = EnvironmentPool(
            setting.make, num_envs=config.num_envs, workers=self._workers, groups=config.groups, seed=seed
        )
        self._collector = Collector(
            pool,
            setting.encoder,
            cameras=setting.cameras,
            image_size=config.image_size,
            normalizer=normalizer,
            action_low=low,
            action_high=high,
            device=self._device,
        )
        return pool

    def turn(self, index: int) -> tuple[Rollout, dict[str, float]]:
        """Collect, update, and take the rollout into the statistics; return it and what there is to tell."""
        config, learner = self.config, self.learner
        began = time.perf_counter()
        # The cosine would end at 0 one turn later: at 0 the last rollout were collected for nothing.
        rate = learning_rate(index, peak=self._peak, warmup_steps=0, steps=config.updates + 1, final_ratio=0.0)
        set_learning_rate(self.optimizer, rate)
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + index)
        with _threads(1 if self._workers else config.threads or usable_cores()):  # other cores step environments
            rollout = self._collector.collect(learner.actor_critic, config.rollout_steps, generator)
        collected = time.perf_counter()
        first, scale, values = int(learner.told.count) == 0, 1.0, {}
        if config.normalize_rewards:
            learner.returns.update(rollout.rewards, rollout.terminated | rollout.truncated, rollout.counts)
            scale = 1.0 / learner.returns.deviation
        if not first:  # what was not normalised yet would be learnt wrongly: the first rollout is for the statistics
            with _threads(1):
                threads = config.threads or usable_cores()
                values = update(config, learner.actor_critic, self.optimizer, rollout, generator, scale, threads)
        learner.told.update(rollout.told[rollout.counts])
        self._collector.set_normalizer(learner.told.normalizer())
        now = time.perf_counter()
        return rollout, {
            **values,
            **_rollout_figures(rollout),
            "train/learning_rate": rate,
            "time/steps_a_second": config.batch_steps / (now - began),
            "time/update_s": now - collected,
        }


def most_workers(cores: int, num_envs: int, groups: int) -> int:
    """Return the most processes, one a core at the most, that share the environments of every group evenly."""
    return max((count for count in range(1, cores + 1) if num_envs % (groups * count) == 0), default=1)


def _peak_learning_rate(config: PPOConfig, setting: Setting) -> float:
    if config.learning_rate is not None:
        return config.learning_rate
    slow = "kuka" in setting.task["env_id"].lower() and setting.cameras
    return 5e-4 if slow else 1e-3


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let torch compute with so many threads in the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _rollout_figures(rollout: Rollout) -> dict[str, float]:
    steps = float(rollout.counts.sum())
    return {
        **{f"reward/{name}": total / steps for name, total in rollout.reward_terms.items()},
        "rollout/terminated": float(rollout.terminated.sum()),
        "rollout/truncated": float(rollout.truncated.sum()),
        "time/encode_s": rollout.encode_s,
        "time/policy_s": rollout.policy_s,
        "time/wait_s": rollout.wait_s,
    }
