"""Does the emulated robot's scene stand, move and succeed as the simulated task's does?"""

import gymnasium
import mujoco
import numpy as np
import pytest

from deploy.emulator.arm import Arm
from deploy.emulator.events import EventLog
from deploy.emulator.hand import Hand
from deploy.emulator.motion import Desired
from deploy.emulator.plant import SUCCESS_STEPS, Plant
from deploy.emulator.protocol import GRASP, GRIPPER_MOVE, V10, GripperCommand
from deploy.realtime.limits import FR3

ENV = "toto_robot/FrankaPick-v0"


@pytest.fixture(scope="module")
def plant() -> Plant:
    return Plant(ENV, {}, FR3)


def make_arm(plant: Plant) -> tuple[Arm, Hand]:
    events = EventLog(None, lambda: 0)
    return Arm(V10, plant, FR3, events, b""), Hand(plant, events)


def live(arm: Arm, hand: Hand, milliseconds: int) -> None:
    for _ in range(milliseconds):
        arm.advance(None)
        hand.advance()


@pytest.mark.parametrize("task", ["toto_robot/FrankaPick-v0", "toto_robot/FrankaCabinet-v0"])
def test_reset_is_the_environments(task: str) -> None:
    made = gymnasium.make(task, obs_mode="proprio")
    env, emulated = made.unwrapped, Plant(task, {}, FR3)
    for seed in (0, 7, 123456):
        made.reset(seed=seed)
        emulated.reset(seed)
        assert np.array_equal(emulated.data.qpos, env.data.qpos)
        assert not emulated.data.qvel.any()
        assert np.allclose(emulated.data.xpos, env.data.xpos, atol=1e-12)
    made.close()


def test_a_resting_robot_stays(plant: Plant) -> None:
    plant.reset(2)
    arm, hand = make_arm(plant)
    before = plant.q_rad.copy()
    live(arm, hand, 1000)
    assert np.abs(plant.q_rad - before).max() < 1e-6
    assert not plant.failed


def test_impedance_follows_a_fast_smooth_motion(plant: Plant) -> None:
    plant.reset(2)
    arm, _ = make_arm(plant)
    start, amplitude, worst = plant.q_rad.copy(), 0.2, 0.0
    for tick in range(2000):
        phase = np.pi * tick / 1000
        arm.desired = Desired(start + amplitude * (1 - np.cos(phase)), amplitude * np.pi * np.sin(phase) * np.ones(7))
        arm.desired.ddq = amplitude * np.pi**2 * np.cos(phase) * np.ones(7)
        plant.step(arm._control())
        worst = max(worst, float(np.abs(plant.q_rad - arm.desired.q).max()))
    assert worst < 5e-3


def test_flange_of_the_scene_is_that_of_the_documented_geometry(plant: Plant) -> None:
    from deploy.emulator.robot_model import DH, FLANGE_M

    plant.reset(11)
    pose = np.eye(4)
    for q, (a, d, alpha) in zip(plant.q_rad, DH, strict=True):
        c, s, ca, sa = np.cos(q), np.sin(q), np.cos(alpha), np.sin(alpha)
        link = [[c, -s, 0, a], [s * ca, c * ca, -sa, -sa * d], [s * sa, c * sa, ca, ca * d], [0, 0, 0, 1]]
        pose = pose @ np.array(link)
    pose[:3, 3] += FLANGE_M * pose[:3, 2]
    assert np.allclose(plant.pose(), pose, atol=1e-6)


def test_success_is_ten_control_steps_at_the_goal(plant: Plant) -> None:
    plant.reset(0)
    arm, hand = make_arm(plant)
    cube = plant.scene.joints["cube"]
    period_ms = round(1000 / plant.env.task_spec.control_rate_hz)
    for tick in range((SUCCESS_STEPS + 2) * period_ms):
        plant.data.qpos[cube + 2], plant.data.qvel[9:] = 0.8, 0.0  # held there by an invisible hand
        live(arm, hand, 1)
        if tick == (SUCCESS_STEPS - 1) * period_ms:
            assert plant.goal and plant.success_s is None
    assert plant.success_s == pytest.approx(SUCCESS_STEPS * period_ms / 1000)
    plant.reset(0)
    assert plant.success_s is None


def test_a_cube_off_the_table_is_a_failure(plant: Plant) -> None:
    plant.reset(0)
    arm, hand = make_arm(plant)
    plant.data.qpos[plant.scene.joints["cube"]] += 2.0
    live(arm, hand, 600)
    assert plant.failed


def test_fingers_move_as_the_simulated_ones(plant: Plant) -> None:
    made = gymnasium.make(ENV, obs_mode="proprio")
    env = made.unwrapped
    seed = next(seed for seed in range(20) if _opening(made, seed) > 0.03)
    made.reset(seed=seed)
    plant.reset(seed)
    arm, hand = make_arm(plant)
    request = np.array([(0.0, 0.1)], GRIPPER_MOVE)  # a finger's 0.05 m/s, as in simulation
    hand.request(0, GripperCommand.MOVE, 1, request.tobytes())
    for _ in range(16):
        made.step(np.array([0.0, 0, 0, 0, 0, 0, 1.0]))
        live(arm, hand, 50)
        assert abs(env.data.qpos[7] - plant.data.qpos[7]) < 2e-3
    made.close()


def _opening(made: gymnasium.Env, seed: int) -> float:
    made.reset(seed=seed)
    return float(made.unwrapped.data.qpos[7])  # type: ignore[attr-defined]


@pytest.fixture
def held(plant: Plant) -> tuple[Plant, Arm, Hand]:
    """A cube between open fingers, gravity as usual, the hand at rest."""
    plant.reset(0)
    plant.data.qpos[7:9] = 0.04
    plant.finger_command_m = 0.04
    arm, hand = make_arm(plant)
    live(arm, hand, 1)
    cube = plant.scene.joints["cube"]
    plant.data.qpos[cube : cube + 3] = plant.data.site_xpos[plant.scene.hand_site]
    matrix = plant.data.site_xmat[plant.scene.hand_site]

    mujoco.mju_mat2Quat(plant.data.qpos[cube + 3 : cube + 7], matrix)
    mujoco.mj_step1(plant.model, plant.data)
    return plant, arm, hand


def test_a_grasp_holds_the_cube_and_says_so(held: tuple[Plant, Arm, Hand]) -> None:
    plant, arm, hand = held
    grasp = np.array([(0.045, 0.01, 0.01, 0.1, 20.0)], GRASP)
    hand.request(0, GripperCommand.GRASP, 7, grasp.tobytes())
    gravity = plant.model.opt.gravity.copy()
    plant.model.opt.gravity[:] = 0  # until it is held
    live(arm, hand, 500)
    plant.model.opt.gravity[:] = gravity
    live(arm, hand, 800)
    assert list(hand.replies) == [(0, GripperCommand.GRASP, 7, b"\x00\x00")]
    assert hand.grasped and plant.finger_width_m() == pytest.approx(0.045, abs=0.003)
    distance = plant.data.xpos[plant.scene.bodies["cube"]] - plant.data.site_xpos[plant.scene.hand_site]
    assert np.linalg.norm(distance) < 0.02
    # The weight of the cube is all the arm feels: the squeeze is inside the hand.
    weight = 9.81 * plant.model.body_mass[plant.scene.bodies["cube"]]
    assert abs(arm.wrench[:3]).max() == pytest.approx(weight, abs=0.5)
    assert arm.collision.check(arm.external, arm.wrench) is None


def test_a_grasp_of_nothing_is_unsuccessful(plant: Plant) -> None:
    plant.reset(0)
    arm, hand = make_arm(plant)
    grasp = np.array([(0.045, 0.01, 0.01, 0.1, 20.0)], GRASP)
    hand.request(0, GripperCommand.GRASP, 7, grasp.tobytes())
    live(arm, hand, 2500)
    assert list(hand.replies) == [(0, GripperCommand.GRASP, 7, b"\x02\x00")]
    assert not hand.grasped


def test_a_new_hand_command_aborts_the_old_one(plant: Plant) -> None:
    plant.reset(0)
    arm, hand = make_arm(plant)
    hand.request(0, GripperCommand.MOVE, 1, np.array([(0.04, 0.01)], GRIPPER_MOVE).tobytes())
    live(arm, hand, 20)
    hand.request(0, GripperCommand.STOP, 2, b"")
    assert [(reply[2], reply[3][0]) for reply in hand.replies] == [(1, 3), (2, 0)]


def test_external_torque_is_the_pushs_with_the_vendors_sign(plant: Plant) -> None:
    plant.reset(2)
    arm, hand = make_arm(plant)
    plant.push_n_nm[:3] = (
        0,
        0,
        -15.0,
    )  # the world presses down, so the robot presses up on it: positive is robot on world
    live(arm, hand, 300)
    world = plant.scene.base_rotation @ arm.wrench[:3]
    assert world[2] == pytest.approx(15.0, abs=1.0)
    assert np.abs(world[:2]).max() < 1.5
