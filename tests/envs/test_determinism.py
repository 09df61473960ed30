"""Does a seed, or a saved simulator state, decide every bit that follows?"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from envs.task import RobotEnv

Make = Callable[..., RobotEnv]
STEPS = 12
ACTIONS = np.random.default_rng(7).uniform(-1, 1, (STEPS, 7)).astype(np.float32)


def _digest(env: RobotEnv, seed: int) -> str:
    """Hash observations, images and rewards of an episode of fixed actions."""
    digest = hashlib.sha256()

    def take(observation: dict[str, Any]) -> None:
        for key in ("proprio", "state"):
            digest.update(observation[key].tobytes())
        for name in ("front", "wrist"):
            digest.update(observation["pixels"][name].tobytes())

    take(env.reset(seed=seed)[0])
    for action in ACTIONS:
        observation, reward, *_ = env.step(action)
        take(observation)
        digest.update(np.float64(reward).tobytes())
    return digest.hexdigest()


def print_digest(task: str, seed: int) -> None:
    """Print the digest of a new environment: what the other process runs."""
    env = gymnasium.make(f"toto_robot/{task}-v0", obs_mode="all", image_size=32).unwrapped
    assert isinstance(env, RobotEnv)
    print(_digest(env, seed))


@pytest.mark.render
@pytest.mark.parametrize("task", ["FrankaPick", "FrankaCabinet", "KukaPick", "KukaCabinet"])
def test_same_seed_same_bits_here_and_in_another_process(make: Make, task: str) -> None:
    env = make(task, obs_mode="all", image_size=32)
    first, other = _digest(env, 5), _digest(env, 6)
    assert first != other
    assert _digest(env, 5) == first, "an episode depends on the ones before it"
    code = f"import test_determinism; test_determinism.print_digest({task!r}, 5)"
    here = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == first


@pytest.mark.render
def test_forkserver_vector_equals_single(make: Make) -> None:
    env = make(obs_mode="all", image_size=32)  # this process renders first: a plain fork would hang
    env.reset(seed=0)
    options = {"obs_mode": "all", "image_size": 32}
    vector = gymnasium.make_vec(
        "envs.registration:toto_robot/FrankaPick-v0",
        num_envs=2,
        vectorization_mode="async",
        vector_kwargs={"context": "forkserver"},
        **options,
    )
    try:
        batches = [vector.reset(seed=[11, 12])[0]]
        rewards = []
        for action in ACTIONS:
            batch, reward, *_ = vector.step(np.stack([action, -action]))
            batches.append(batch)
            rewards.append(reward)
        for index, (seed, sign) in enumerate(((11, 1), (12, -1))):
            _same_episode(env, seed, sign * ACTIONS, batches, [reward[index] for reward in rewards], index)
    finally:
        vector.close()


def _same_episode(
    env: RobotEnv, seed: int, actions: np.ndarray, batches: list[Any], rewards: list[float], index: int
) -> None:
    observations = [env.reset(seed=seed)[0]]
    for action, expected in zip(actions, rewards, strict=True):
        observation, reward, *_ = env.step(action)
        observations.append(observation)
        assert reward == expected
    for observation, batch in zip(observations, batches, strict=True):
        for key in ("proprio", "state"):
            assert np.array_equal(observation[key], batch[key][index])
        for name in ("front", "wrist"):
            assert np.array_equal(observation["pixels"][name], batch["pixels"][name][index])


@pytest.mark.parametrize("task", ["FrankaPick", "KukaCabinet"])
@pytest.mark.parametrize("mode", ["ee_delta", "joint_delta"])
def test_simulator_state_replays_exactly(make: Make, task: str, mode: str) -> None:
    env, other = (make(task, obs_mode="state", action_mode=mode) for _ in range(2))
    actions = np.random.default_rng(0).uniform(-1, 1, (40, *(env.action_space.shape or ())))
    env.reset(seed=1)
    for action in actions[:15]:
        env.step(action)
    saved = env.simulator_state()
    assert saved.dtype == np.float64
    expected = [env.step(action) for action in actions[15:]]
    other.reset(seed=99)
    other.set_simulator_state(saved)
    assert np.array_equal(other.simulator_state(), saved)
    for action, (observation, reward, *ends, info) in zip(actions[15:], expected, strict=True):
        observation2, reward2, *ends2, info2 = other.step(action)
        assert np.array_equal(observation["state"], observation2["state"])
        assert (reward, ends, info) == (reward2, ends2, info2)


def test_simulator_state_of_another_size_is_refused(make: Make) -> None:
    env = make(obs_mode="proprio")
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"simulator state .* got \(3,\)"):
        env.set_simulator_state(np.zeros(3))
