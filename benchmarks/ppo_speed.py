"""How many environment steps a second does PPO learn from, against stable-baselines3's PPO?

    python benchmarks/ppo_speed.py [--rounds 3] [--turns 2] [--rows sb3]

Needs the extra `benchmark` (stable-baselines3).
Both learn FrankaPick (preset pixmc) from the simulator's state: 64 environments, 8192 steps a rollout, 10 epochs of 4
minibatches, MLPs 256-128-64 with SELU (ours has a layer of 64 before each: 124 k parameters, theirs 115 k),
observations normalised by running statistics, all cores. A turn is collecting and updating. stable-baselines3 steps its
environments in its own process (DummyVecEnv) and, as `peer_processes`, in one process a core (SubprocVecEnv, which
holds one environment each, so that it collects longer from fewer); the ratio is to the faster. `limit` is stepping the
environments alone, in as many processes as cores, as ours does. Wants a quiet machine: ours gains by using all cores.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import torch
from paired import result, step_rates

from policies.encoder import EncoderConfig, open_encoder
from policies.environment import make_environment, task_spec
from policies.heads.trunk import TrunkConfig
from policies.ppo import Setting, Trainer
from policies.ppo_config import PPOConfig
from policies.ppo_envs import EnvironmentPool
from policies.processes import usable_cores

ENVS, STEPS = 64, 128
WIDTHS = (256, 128, 64)
CONFIG = PPOConfig(
    num_envs=ENVS,
    rollout_steps=STEPS,
    trunk=TrunkConfig(activation="selu", proprio_width=64, hidden=WIDTHS),
)
STATE = EncoderConfig(name="state")
MAKE = partial(make_environment, "franka_pick", obs_mode="state", preset="pixmc", action_mode=CONFIG.action_mode)


class Flat(gymnasium.ObservationWrapper):
    """Proprioception and state as one vector: what both learners are told."""

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        spaces = environment.observation_space.spaces
        width = sum(spaces[key].shape[0] for key in ("proprio", "state"))
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (width,), np.float32)

    def observation(self, observation: Any) -> np.ndarray:
        return np.concatenate([observation["proprio"], observation["state"]])


def _flat() -> Flat:
    return Flat(MAKE())


def ours() -> Callable[[], None]:
    example = MAKE()
    setting = Setting(
        make=MAKE,
        task=task_spec(example),
        state_entries=example.observation_space["state"].shape[0],
        encoder=open_encoder(STATE),
        cameras=(),
        open_encoder=partial(open_encoder, STATE),
    )
    trainer = Trainer(CONFIG, setting, seed=0)
    trainer.open(0).__enter__()  # the processes end with this one
    turns = iter(range(10**9))
    return lambda: trainer.turn(next(turns)) and None


def stable_baselines3(processes: bool) -> Callable[[], None]:
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

    torch.set_num_threads(usable_cores())
    count = usable_cores() if processes else ENVS
    vector: Any = SubprocVecEnv([_flat] * count) if processes else DummyVecEnv([_flat] * count)
    model = PPO(
        "MlpPolicy",
        VecNormalize(vector, norm_reward=False),
        learning_rate=1e-3,
        n_steps=ENVS * STEPS // count,
        batch_size=ENVS * STEPS // CONFIG.minibatches,
        n_epochs=CONFIG.epochs,
        clip_range=CONFIG.clip,
        vf_coef=CONFIG.value_weight,
        max_grad_norm=CONFIG.clip_norm,
        policy_kwargs={
            "net_arch": {"pi": list(WIDTHS), "vf": list(WIDTHS)},
            "activation_fn": torch.nn.SELU,
        },
        device="cpu",
        seed=0,
    )
    _, callback = model._setup_learn(10**9)

    def turn() -> None:
        model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
        model.train()

    return turn


def stepping_alone() -> Callable[[], None]:
    pool = EnvironmentPool(MAKE, num_envs=ENVS, workers=usable_cores(), groups=2, seed=(0,)).__enter__()
    actions = np.zeros((pool.rows, len(task_spec(MAKE())["action_names"])), np.float32)

    def turn() -> None:
        for _ in range(STEPS):
            for group in range(pool.groups):
                pool.receive(group)
                pool.send(group, actions)

    return turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=2, help="rollouts and updates a round")
    parser.add_argument("--rows", nargs="+", choices=["sb3"], default=["sb3"])
    options = parser.parse_args()
    makers = {
        "ours": ours,
        "peer": partial(stable_baselines3, False),
        "peer_processes": partial(stable_baselines3, True),
        "limit": stepping_alone,
    }
    turns = step_rates(makers, rounds=options.rounds, steps=options.turns, warm_up=1, peer_steps=options.turns)
    rates = {kind: [rate * ENVS * STEPS for rate in each] for kind, each in turns.items()}
    processes = rates.pop("peer_processes")
    kinds = {"DummyVecEnv": rates["peer"], f"SubprocVecEnv of {usable_cores()}": processes}
    faster = max(kinds, key=lambda kind: float(np.median(kinds[kind])))
    row = result(
        "sb3",
        {**rates, "peer": kinds[faster]},
        peer_name=f"stable-baselines3 PPO, {faster}",
        unit="env steps/s, learning included",
        limit_name="stepping alone",
        peers={kind: round(float(np.median(each)), 1) for kind, each in kinds.items()},
    )
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
