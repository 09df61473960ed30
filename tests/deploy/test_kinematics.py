"""Are the hand's pose and Jacobian those of the simulated scene?"""

from __future__ import annotations

import gymnasium
import mujoco
import numpy as np
import pytest

from deploy.kinematics import grasp_point, grasp_pose, jacobian, tool_motion


@pytest.fixture(scope="module")
def env():
    made = gymnasium.make("toto_robot/FrankaPick-v0", obs_mode="proprio").unwrapped
    made.reset(seed=0)
    return made


def test_pose_and_jacobian_are_mujocos(env):
    random = np.random.default_rng(0)
    robot, model = env.scene.robot, env.scene.model
    turned = np.kron(np.eye(2), env.scene.base_rotation.T)
    for q in random.uniform(robot.low_rad, robot.high_rad, (20, 7)):
        env.data.qpos[:7] = q
        mujoco.mj_kinematics(model, env.data)
        mujoco.mj_comPos(model, env.data)
        expected = np.zeros((6, model.nv))
        mujoco.mj_jacSite(model, env.data, expected[:3], expected[3:], env.scene.hand_site)
        for ours, theirs in zip(grasp_pose(q), env.hand_pose(), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-7)
        np.testing.assert_allclose(jacobian(q), turned @ expected[:, :7], atol=1e-7)


def test_a_tools_motion_is_what_its_pose_does(env):
    random = np.random.default_rng(2)
    low, high = env.scene.robot.low_rad, env.scene.robot.high_rad
    tool = np.eye(4)
    tool[:3, 3] = 0.01, -0.02, 0.1
    for q, dq in zip(random.uniform(low, high, (10, 7)), random.normal(size=(10, 7)), strict=True):
        pose, speed, turning = tool_motion(q, dq, tool)
        before, after = (tool_motion(q + sign * 1e-6 * dq, dq, tool)[0] for sign in (-1, 1))
        np.testing.assert_allclose(speed, (after - before)[:3, 3] / 2e-6, atol=1e-6)
        spin = (after - before)[:3, :3] @ pose[:3, :3].T / 2e-6
        np.testing.assert_allclose(turning, [spin[2, 1], spin[0, 2], spin[1, 0]], atol=1e-6)
        flange = tool_motion(q, dq, np.eye(4))[0]
        # The vendor's tool centre point is 6.5 mm farther out than the middle of the simulated pads.
        np.testing.assert_allclose(grasp_point(q), (flange @ [0.0, 0.0, 0.0969, 1.0])[:3], atol=1e-9)


def test_leading_axes_are_samples():
    q = np.random.default_rng(1).normal(size=(2, 3, 7))
    assert jacobian(q).shape == (2, 3, 6, 7)
    np.testing.assert_array_equal(grasp_point(q)[1, 2], grasp_point(q[1, 2]))
