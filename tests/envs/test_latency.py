"""Do late actions do later what they would have done, to the bit, and change nothing else?"""

import itertools

import gymnasium
import numpy as np
import pytest

ENV = "toto_robot/FrankaPick-v0"
PERIOD_S = 0.05


def states(latency_s, actions, seed=3):
    env = gymnasium.make(ENV, latency_s=latency_s).unwrapped
    env.reset(seed=seed)
    found = []
    for action in actions:
        env.step(action)
        found.append(env.simulator_state()[:-5])  # without the episode's counters
    return np.array(found), env


def random_actions(count):
    return np.random.default_rng(0).uniform(-1, 1, (count, 7)).astype(np.float32)


def test_two_periods_late_is_two_neutral_actions_first():
    actions = random_actions(8)
    late, _ = states(2 * PERIOD_S, actions)
    fresh = gymnasium.make(ENV).unwrapped
    fresh.reset(seed=3)
    neutral = [fresh.controller.neutral_action()] * 2
    prompt, _ = states(0.0, [*neutral, *actions[:6]])
    assert np.array_equal(late, prompt)


def test_a_part_of_a_period_moves_the_arm_in_between():
    actions = np.tile([1.0, 0, 0, 0, 0, 0, 1.0], (4, 1)).astype(np.float32)
    reached_m = [states(late, actions)[1].hand_pose()[0][0] for late in (0.0, 0.005, 0.02, 0.045)]
    assert all(a > b + 1e-3 for a, b in itertools.pairwise(reached_m))
    speed_m_s = 0.44  # of the hand in the end, which is behind by what it does in the delay
    assert reached_m[0] - reached_m[3] == pytest.approx(speed_m_s * 0.045, rel=0.15)


def test_measured_delays_are_drawn_an_episode_and_leave_the_starts_alone():
    env, plain = gymnasium.make(ENV, latency_s=(0.0, 0.04, 0.2)), gymnasium.make(ENV)
    drawn = set()
    for seed in range(12):
        observation, info = env.reset(seed=seed)
        drawn.add(info["latency_s"])
        assert env.reset(seed=seed)[1]["latency_s"] == info["latency_s"]
        expected, told = plain.reset(seed=seed)
        assert np.array_equal(observation["state"], expected["state"]) and "latency_s" not in told
    assert drawn == {0.0, 0.04, 0.2}


@pytest.mark.parametrize("latency_s", [-0.1, 3.0, float("nan"), ()])
def test_impossible_delays_are_refused(latency_s):
    with pytest.raises(ValueError, match="latency_s must be a delay of 0 to 2 s"):
        gymnasium.make(ENV, latency_s=latency_s)
