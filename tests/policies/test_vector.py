"""Do vector environments give the bits of single ones, keep the last observation, and choose their processes openly?"""

import numpy as np
import pytest

from policies.environment import make_environment
from policies.vector import describe, make_vector

pytestmark = pytest.mark.render
SETTINGS = {"obs_mode": "pixels", "image_size": 32, "cameras": ("front",)}


@pytest.fixture(params=[0, 2], ids=["here", "processes"])
def vector(request):
    made = make_vector("franka_pick", num_envs=2, workers=request.param, **SETTINGS)
    yield made
    made.close()


def test_equals_single_environments(vector):
    actions = np.random.default_rng(0).uniform(-1, 1, (6, 2, 7)).astype(np.float32)
    batch, _ = vector.reset(seed=[4, 5])
    seen = [batch["pixels"]["front"].copy()]
    rewards = []
    for action in actions:
        batch, reward, *_ = vector.step(action)
        seen.append(batch["pixels"]["front"].copy())
        rewards.append(reward)
    single = make_environment("franka_pick", **SETTINGS)
    for row, seed in enumerate((4, 5)):
        pictures = [single.reset(seed=seed)[0]["pixels"]["front"]]
        for step, action in enumerate(actions[:, row]):
            observation, reward, *_ = single.step(action)
            pictures.append(observation["pixels"]["front"])
            assert reward == rewards[step][row]
        assert all(np.array_equal(mine, batch[row]) for mine, batch in zip(pictures, seen, strict=True))


def test_the_last_observation_of_an_episode_is_kept_and_time_is_truncation(vector):
    vector.reset(seed=[0, 1])
    hold = np.zeros((2, 7), np.float32)
    for step in range(166):
        batch, _, terminated, truncated, info = vector.step(hold)
        assert not terminated.any()
        assert truncated.all() == (step == 165)
    final = info["final_obs"]
    for row in range(2):
        assert final[row]["pixels"]["front"].shape == (32, 32, 3)
        assert not np.array_equal(final[row]["proprio"], batch["proprio"][row]), "the batch shows the next episode"
    assert "success" in info["final_info"]


def test_processes_are_chosen_and_told(monkeypatch):
    monkeypatch.setattr("policies.vector.usable_cores", lambda: 1)
    single = make_vector("franka_pick", num_envs=4, obs_mode="proprio")
    assert describe(single) == "4 environments in this process; 1 usable cores"
    single.close()
    with pytest.raises(ValueError, match=r"workers of 0 .* or 3"):
        make_vector("franka_pick", num_envs=3, workers=2)
    with pytest.raises(ValueError, match="num_envs"):
        make_vector("franka_pick", num_envs=0)
