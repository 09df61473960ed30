"""Do the tasks' own motions fit into their boxes, with room to spare?"""

import gymnasium
import numpy as np
import pytest

from deploy.kinematics import grasp_point
from deploy.workspaces import WORKSPACES, box_of


@pytest.mark.parametrize("env_id", WORKSPACES)
def test_an_experts_hand_stays_inside_its_tasks_box(env_id):
    env = gymnasium.make(env_id, obs_mode="proprio").unwrapped
    reached = []
    for seed in (1_000_000, 1_000_001, 1_000_002):
        env.reset(seed=seed)
        expert = env.expert(seed=seed, noise=0.25)
        for _ in range(120):
            _, _, terminated, truncated, _ = env.step(expert.act().executed)
            reached.append(grasp_point(env.data.qpos[:7]))
            if terminated or truncated:
                break
    assert WORKSPACES[env_id].excess_m(np.array(reached)).max() == 0.0
    for axis in (0, 1):  # a box that is larger than the arm guards nothing
        assert WORKSPACES[env_id].high_m[axis] - WORKSPACES[env_id].low_m[axis] < 1.0


def test_six_numbers_the_tasks_own_or_none():
    assert box_of((0.1, -0.4, 0.4, 0.7, 0.4, 0.9), "any").high_m == (0.7, 0.4, 0.9)
    assert box_of((), "toto_robot/FrankaPick-v0") is WORKSPACES["toto_robot/FrankaPick-v0"]
    assert box_of((), "robosuite/Lift") is None and box_of(None, "toto_robot/FrankaPick-v0") is None
    with pytest.raises(ValueError, match="six numbers in metres"):
        box_of((0.1, 0.2, 0.3), "any")
