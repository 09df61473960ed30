"""Advantages against their definition, and against stable-baselines3 where it says the same."""

import numpy as np
import pytest

from policies.gae import advantages

T, B, DISCOUNT, TRACE = 40, 6, 0.97, 0.9


def _episodes(seed):
    """Rewards and values of 6 environments for 40 steps, with a few ends of either kind."""
    random = np.random.default_rng(seed)
    rewards, values, next_values = (random.normal(size=(T, B)).astype(np.float32) for _ in range(3))
    ends = random.random((T, B)) < 0.15
    terminated = ends & (random.random((T, B)) < 0.5)
    truncated = ends & ~terminated
    inner = ~ends[:-1]  # inside an episode the next value is the next observation's
    next_values[:-1][inner] = values[1:][inner]
    return rewards, values, next_values, terminated, truncated


def test_equals_the_sum_of_discounted_errors_of_each_episode():
    rewards, values, next_values, terminated, truncated = _episodes(0)
    expected = np.zeros((T, B))
    for row in range(B):
        for start in range(T):
            weight = 1.0
            for step in range(start, T):
                future = 0.0 if terminated[step, row] else next_values[step, row]
                error = rewards[step, row] + DISCOUNT * future - values[step, row]
                expected[start, row] += weight * error
                weight *= DISCOUNT * TRACE
                if terminated[step, row] or truncated[step, row]:
                    break
    got = advantages(rewards, values, next_values, terminated, truncated, discount=DISCOUNT, trace_decay=TRACE)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_a_time_limit_is_worth_its_last_observation_and_a_failure_nothing():
    one, no = np.ones((1, 1), np.float32), np.zeros((1, 1), bool)
    arguments = {"discount": 0.9, "trace_decay": 1.0}
    failed = advantages(one, 2 * one, 10 * one, ~no, no, **arguments)
    cut = advantages(one, 2 * one, 10 * one, no, ~no, **arguments)
    assert failed.item() == pytest.approx(1 - 2)
    assert cut.item() == pytest.approx(1 + 0.9 * 10 - 2)


def test_equals_stable_baselines3_which_adds_the_last_value_to_the_reward():
    buffers = pytest.importorskip("stable_baselines3.common.buffers")
    import torch
    from gymnasium import spaces

    rewards, values, next_values, terminated, truncated = _episodes(1)
    theirs = buffers.RolloutBuffer(
        T, spaces.Box(-1, 1, (1,)), spaces.Box(-1, 1, (1,)), "cpu", TRACE, DISCOUNT, n_envs=B
    )
    dones = terminated | truncated
    for step in range(T):
        started = dones[step - 1] if step else np.ones(B, bool)
        reward = rewards[step] + DISCOUNT * next_values[step] * truncated[step]  # as in its collect_rollouts
        nothing = np.zeros((B, 1), np.float32)
        value = torch.from_numpy(values[step])
        theirs.add(nothing, nothing, reward, started, value, torch.zeros(B))
    theirs.compute_returns_and_advantage(torch.from_numpy(next_values[-1]), dones[-1])
    got = advantages(rewards, values, next_values, terminated, truncated, discount=DISCOUNT, trace_decay=TRACE)
    np.testing.assert_allclose(got, theirs.advantages, rtol=1e-4, atol=1e-4)
