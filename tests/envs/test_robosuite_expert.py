"""Does the scripted expert put the can where it belongs, come back from what noise did, and label without acting?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest


@pytest.fixture(scope="module")
def can() -> Iterator[Any]:
    environment = gymnasium.make("robosuite/Can", obs_mode="state").unwrapped
    yield environment
    environment.close()


def run(environment: Any, seed: int, noise: float) -> list[str]:
    """Let the expert try; return the phases up to success, or fail."""
    environment.reset(seed=seed)
    expert = environment.expert(seed=seed, noise=noise)
    phases = []
    for _ in range(200):
        action = expert.act()
        phases.append(action.phase)
        if environment.step(action.executed)[4]["success"]:
            return phases
    pytest.fail(f"no success in 200 steps with seed {seed}, noise {noise}; phases {sorted(set(phases))}")


@pytest.mark.parametrize(("seed", "noise"), [(0, 0.0), (1, 0.0), (4, 0.1)])
def test_the_can_is_carried_over_the_wall_and_dropped_in_its_place(can: Any, seed: int, noise: float) -> None:
    phases = run(can, seed, noise)
    assert [name for name in dict.fromkeys(phases) if name != "reach"] == ["descend", "close", "lift", "carry", "drop"]
    robosuite = can.robosuite
    position = robosuite.sim.data._data.xpos[robosuite.obj_body_id["Can"]]
    assert not robosuite.not_in_bin(position, robosuite.object_id)


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_a_disturbed_hand_closes_late_and_the_label_says_to_close(can: Any, noise: float) -> None:
    late = []
    for seed in range(4):
        can.reset(seed=seed)
        expert, late_steps = can.expert(seed=seed, noise=noise), 0
        for _ in range(60):
            action = expert.act()
            late_steps += action.executed[-1] != action.clean[-1]
            if action.executed[-1] != action.clean[-1]:
                assert (action.phase, action.clean[-1], action.executed[-1]) == ("close", 1.0, -1.0)
            can.step(action.executed)
        late.append(late_steps)
    assert (max(late) > 2 and len(set(late)) > 1) if noise else max(late) == 0


def test_a_label_is_the_clean_action_and_draws_no_noise(can: Any) -> None:
    """DAgger asks for labels between the steps of a policy: they may not change what comes after."""
    can.reset(seed=0)
    asked, silent = can.expert(seed=3, noise=0.2), can.expert(seed=3, noise=0.2)
    label, phase = asked.label()
    asked.label()
    first, second = asked.act(), silent.act()
    np.testing.assert_array_equal(label, first.clean)
    assert phase == first.phase == "reach"
    np.testing.assert_array_equal(first.executed, second.executed)
    assert np.abs(first.executed - first.clean).max() > 0.01


def test_a_can_that_lies_is_grasped_across(can: Any) -> None:
    from envs.experts import pointing
    from envs.robosuite_expert import _can_yaw

    for angle in np.linspace(0.0, 2 * np.pi, 9):
        axis = np.array([np.cos(angle), np.sin(angle), 0.0])
        lying = np.column_stack([np.array([0.0, 0.0, 1.0]), np.cross(axis, [0.0, 0.0, 1.0]), axis])
        yaw = _can_yaw(lying)
        assert abs(pointing(yaw, 0.0)[:, 1] @ axis) < 1e-9  # the fingers close along the hand's y
        assert abs(yaw - np.pi / 2) <= np.pi / 2 + 1e-9  # no turn beyond what the wrist has
