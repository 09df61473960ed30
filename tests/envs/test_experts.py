"""Does the scripted expert pick, repeat, and act on the present state alone?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from envs import experts
from envs.task import RobotEnv

Make = Callable[..., RobotEnv]


def _episode(env: RobotEnv, seed: int, noise: float) -> tuple[bool, int, list[str]]:
    env.reset(seed=seed)
    expert = env.expert(seed, noise)
    phases = []
    while True:
        action = expert.act()
        phases.append(action.phase)
        *_, terminated, truncated, info = env.step(action.executed)
        if info["success"] or terminated or truncated:
            return info["success"], len(phases), phases


PHASES = {
    "FrankaPick": {"reach", "descend", "close", "lift"},
    "KukaPick": {"reach", "descend", "close", "lift"},
    "FrankaCabinet": {"reach", "approach", "close", "pull"},
    "KukaCabinet": {"reach", "approach", "close", "pull"},
}


@pytest.mark.parametrize("task", PHASES)
@pytest.mark.parametrize(("noise", "fewest", "steps"), [(0.0, 10, 90), (0.1, 9, 166)])
def test_succeeds_on_fresh_seeds(make: Make, task: str, noise: float, fewest: int, steps: int) -> None:
    env = make(task, obs_mode="proprio")
    episodes = [_episode(env, seed, noise) for seed in range(500, 510)]
    assert sum(success for success, _, _ in episodes) >= fewest
    for success, length, phases in episodes:
        if success:
            assert length <= steps
            assert set(phases) <= PHASES[task] and {"lift", "pull"} & set(phases)


@pytest.mark.parametrize("task", PHASES)
def test_succeeds_in_the_pixmc_preset(make: Make, task: str) -> None:
    env = make(task, obs_mode="proprio", preset="pixmc")
    for seed in range(2):
        assert _episode(env, seed, 0.0)[0]


def test_label_is_the_clean_action_and_draws_no_noise(make: Make) -> None:
    """DAgger: a policy acts, the expert says what it would have done."""
    env = make(obs_mode="proprio")
    env.reset(seed=1)
    asked, silent = env.expert(3, 0.3), env.expert(3, 0.3)
    for _ in range(5):
        label, phase = asked.label()
        action = silent.act()
        assert np.array_equal(label, action.clean) and phase == action.phase
        env.step(np.array([0.5, -0.5, 0.2, 0, 0, 0, -1]))
    assert np.array_equal(env.expert(3, 0.3).act().executed, asked.act().executed), "asking used up no randomness"


def test_noise_is_on_the_executed_arm_action_only_and_follows_the_seed(make: Make) -> None:
    env = make(obs_mode="proprio")
    env.reset(seed=0)
    first, again, other = (env.expert(seed, 0.25).act() for seed in (1, 1, 2))
    assert np.array_equal(first.executed, again.executed)
    assert not np.array_equal(first.executed, other.executed)
    assert np.array_equal(first.clean, other.clean)
    assert first.clean[6] == first.executed[6]
    quiet = env.expert(1).act()
    assert np.array_equal(quiet.clean, quiet.executed)


def test_noise_shoves_for_a_while_and_lets_go(make: Make) -> None:
    env = make(obs_mode="proprio")
    env.reset(seed=0)
    expert = env.expert(0, 0.1)
    drawn = np.array([expert.act().executed[:6] for _ in range(4000)])
    assert np.abs(drawn).max() <= 1.0
    inside = np.abs(env.expert(0).act().clean[:6]) < 0.3  # far from the clip
    deviation = (drawn - drawn.mean(axis=0))[:, inside]

    def correlation(lag: int) -> float:
        return float((deviation[lag:] * deviation[:-lag]).mean() / (deviation**2).mean())

    held_steps = round(experts.SHOVE_S * env.preset.control_rate_hz)
    assert correlation(1) > 0.4  # white noise would give 0
    assert abs(correlation(2 * held_steps)) < 0.15
    assert np.median(np.abs(deviation)) < 0.2  # mostly white noise of 0.1, shoves in between
    assert np.abs(deviation).max() > 0.3


def test_label_depends_on_the_state_alone(make: Make) -> None:
    """An expert that has watched the episode and a new one in a new environment give one label."""
    env, other = make(obs_mode="proprio"), make(obs_mode="proprio")
    env.reset(seed=4)
    other.reset(seed=5)
    expert = env.expert(0, 0.2)
    for _ in range(70):
        action = expert.act()
        other.set_simulator_state(env.simulator_state())
        newcomer = other.expert(123).act()
        assert np.array_equal(action.clean, newcomer.clean) and action.phase == newcomer.phase
        env.step(action.executed)


def test_recovers_a_missed_grasp(make: Make) -> None:
    """Closed fingers beside the cube: it opens and tries again."""
    env = make(obs_mode="proprio")
    env.reset(seed=0)
    for _ in range(20):
        env.step(np.array([0, 0, 0, 0, 0, 0, 1.0]))
    assert env.data.qpos[7] < 0.005
    expert = env.expert(0)
    for _ in range(100):
        info = env.step(expert.act().executed)[4]
    assert info["success"]


def test_wrong_use_is_refused(make: Make) -> None:
    with pytest.raises(ValueError, match="ee_delta"):
        make(action_mode="joint_delta").expert(0)
    with pytest.raises(ValueError, match=r"0\.\.1, got -0\.1"):
        make().expert(0, noise=-0.1)
