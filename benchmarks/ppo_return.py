"""Does PPO reach the return that stable-baselines3's PPO reaches, with the same settings on the same problem?

    python benchmarks/ppo_return.py [--seeds 10] [--env-steps 100000]

Needs the extra `benchmark` (stable-baselines3). Pendulum-v1: about -1200 for doing nothing, about -150 when solved.
Each seed is trained by both and then measured without noise on the same 20 episodes. The interval is that of the
difference of the means over seeds (ours minus theirs, Welch, 95 %): equal learners have 0 in it.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import torch

from policies.encoder import EncoderConfig, open_encoder
from policies.environment import make_environment, task_spec
from policies.heads.trunk import TrunkConfig
from policies.observation import Inputs, proprio_input
from policies.ppo import Setting, Trainer
from policies.ppo_config import PPOConfig
from toto_robot.run_folder import git_commit, machine

EPISODES, FIRST_SEED = 20, 10_000
MAKE = partial(make_environment, "gymnasium/Pendulum-v1")


def config(env_steps: int) -> PPOConfig:
    return PPOConfig(
        env_steps=env_steps,
        num_envs=8,
        rollout_steps=250,
        workers=0,
        groups=1,
        minibatches=8,
        clip=0.2,
        threads=1,
        learning_rate=1e-3,
        discount=0.9,
        normalize_rewards=True,
        trunk=TrunkConfig(activation="selu", proprio_width=64, hidden=(64, 64)),
    )


def ours(env_steps: int, seed: int) -> float:
    """Train; return the mean return of the policy's mean."""
    settings = config(env_steps)
    encoder = open_encoder(EncoderConfig(name="none"))
    setting = Setting(make=MAKE, task=task_spec(MAKE()), state_entries=0, encoder=encoder, cameras=())
    trainer = Trainer(settings, setting, seed)
    with trainer.open(0):
        for index in range(settings.updates):
            trainer.turn(index)
    trained = trainer.learner.trained()

    def act(observation: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            mean = trained.head(Inputs(proprio_input(observation[None].astype(np.float32), trained.proprio), {}))
        return mean[0, 0].numpy()

    return evaluate(act)


def stable_baselines3(env_steps: int, seed: int) -> float:
    """The same with the same settings."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    same = config(env_steps)
    vector: Any = DummyVecEnv([lambda: gymnasium.make("Pendulum-v1")] * same.num_envs)
    vector.seed(seed)
    normal = VecNormalize(vector, gamma=same.discount)
    updates, peak = same.updates, float(same.learning_rate or 0)
    model = PPO(
        "MlpPolicy",
        normal,
        learning_rate=lambda left: peak * 0.5 * (1 - np.cos(np.pi * left)),  # cosine to 0, as ours
        n_steps=same.rollout_steps,
        batch_size=same.batch_steps // same.minibatches,
        n_epochs=same.epochs,
        gamma=same.discount,
        gae_lambda=same.trace_decay,
        clip_range=same.clip,
        vf_coef=same.value_weight,
        max_grad_norm=same.clip_norm,
        policy_kwargs={"net_arch": {"pi": [64, 64, 64], "vf": [64, 64, 64]}, "activation_fn": torch.nn.SELU},
        device="cpu",
        seed=seed,
    )
    model.learn(updates * same.batch_steps)
    return evaluate(lambda observation: model.predict(normal.normalize_obs(observation), deterministic=True)[0])


def evaluate(act: Any) -> float:
    """Return the mean return over the same episodes for everybody."""
    problem, returns = gymnasium.make("Pendulum-v1"), []
    for seed in range(FIRST_SEED, FIRST_SEED + EPISODES):
        observation, _ = problem.reset(seed=seed)
        total, over = 0.0, False
        while not over:
            observation, reward, terminated, truncated, _ = problem.step(np.clip(act(observation), -2, 2))
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    return float(np.mean(returns))


def main() -> None:
    from scipy import stats

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--env-steps", type=int, default=100_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, list[float]] = {"ours": [], "peer": []}
    for seed in range(options.seeds):
        rows["ours"].append(ours(options.env_steps, seed))
        rows["peer"].append(stable_baselines3(options.env_steps, seed))
    interval = stats.ttest_ind(rows["ours"], rows["peer"], equal_var=False).confidence_interval()
    print(
        json.dumps(
            {
                "name": "pendulum_return",
                "ours": round(float(np.mean(rows["ours"])), 1),
                "peer": round(float(np.mean(rows["peer"])), 1),
                "peer_name": "stable-baselines3 PPO",
                "unit": "return",
                "difference95": [round(float(interval.low), 1), round(float(interval.high), 1)],
                "seeds": {kind: [round(value, 1) for value in each] for kind, each in rows.items()},
                "env_steps": options.env_steps,
                "episodes": EPISODES,
                "commit": git_commit(),
                "machine": machine(),
                "date": time.strftime("%Y-%m-%d"),
            }
        )
    )


if __name__ == "__main__":
    main()
