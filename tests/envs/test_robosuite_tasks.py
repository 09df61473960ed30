"""Is a robosuite task through our adapter robosuite's own task, with its wrapper's faults repaired?"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from envs.robosuite_env import RobosuiteEnv
from envs.robosuite_tasks import ALIASES, TASKS, make_robosuite_env

Make = Callable[..., RobosuiteEnv]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[RobosuiteEnv] = []

    def make_one(task: str, **options: Any) -> RobosuiteEnv:
        made.append(make_robosuite_env(task, **options))
        return made[-1]

    yield make_one
    for env in made:
        env.close()


def _actions(count: int, entries: int = 7) -> np.ndarray:
    """Return pushes that each last five steps, so that the arm goes somewhere and meets things."""
    random = np.random.default_rng(1)
    held = random.uniform(-1.0, 1.0, (count // 5 + 1, entries)).repeat(5, axis=0)[:count]
    return np.clip(held + 0.2 * random.standard_normal(held.shape), -1.0, 1.0)


def _hash(env: RobosuiteEnv, seed: int, steps: int) -> str:
    """Hash every bit of an episode: observations, pictures, rewards."""
    digest = hashlib.sha256()

    def add(observation: dict[str, Any]) -> None:
        for key in sorted(observation):
            value = observation[key]
            for array in [value[name] for name in sorted(value)] if isinstance(value, dict) else [value]:
                digest.update(array.tobytes())

    add(env.reset(seed=seed)[0])
    for action in _actions(steps, env.action_space.shape[0]):  # type: ignore[index]
        observation, reward, *_ = env.step(action)
        add(observation)
        digest.update(np.float64(reward).tobytes())
    return digest.hexdigest()


# --- the control law --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("robot", ["Panda", "IIWA"])
@pytest.mark.parametrize("task", ["Lift", "Door"])
def test_fast_control_follows_robosuites_own_step(make: Make, task: str, robot: str) -> None:
    """The peer is robosuite's own `step` on robosuite's own class, started from the same state."""
    ours = make(task, robots=robot, reward_shaping=True)
    peer = make(task, robots=robot, reward_shaping=True, fast_control=False)
    assert ours.fast and not peer.fast
    start = ours.reset(seed=3)[0]["state"]
    assert np.array_equal(peer.reset(seed=3)[0]["state"], start)
    worst_m = moved_m = 0.0
    site = ours.robosuite.robots[0].eef_site_id["right"]
    first = ours.robosuite.sim.data.site_xpos[site].copy()
    for action in _actions(50):
        _, reward, *_ = ours.step(action)
        _, own_reward, *_ = peer.robosuite.step(action)
        hand, own_hand = (env.robosuite.sim.data.site_xpos[site] for env in (ours, peer))
        peer._refresh()
        worst_m = max(worst_m, float(np.abs(hand - own_hand).max()))
        moved_m = max(moved_m, float(np.abs(hand - first).max()))
        assert reward == pytest.approx(own_reward, abs=1e-4)
    assert moved_m > 0.1, "the arm must have gone somewhere for this to mean anything"
    assert worst_m < 1e-5


@pytest.mark.parametrize("robot", ["Panda", "IIWA"])
def test_fast_control_follows_robosuite_in_the_base_frame_too(make: Make, robot: str) -> None:
    from envs.robosuite_scene import controller_configs

    config = controller_configs((robot,), "ee_delta")[0]
    config["body_parts"]["right"]["input_ref_frame"] = "base"
    ours = make("Lift", robots=robot, controller=config)
    peer = make("Lift", robots=robot, controller=config, fast_control=False)
    assert ours.fast
    for env in (ours, peer):
        env.reset(seed=0)
    for action in _actions(25):
        difference = ours.step(action)[0]["proprio"] - peer.step(action)[0]["proprio"]
        # Not the fingers: the Robotiq's linkage bounces on its own stops and amplifies the last bits.
        assert np.abs(difference[:7]).max() < 1e-5, "joint positions, rad"
        assert np.abs(difference[14:17]).max() < 1e-5, "hand position, m"


def test_what_the_fast_law_does_not_cover_goes_through_robosuite(make: Make) -> None:
    joints = make("Lift", action_mode="joint_delta")
    assert not joints.fast and "JOINT_POSITION" in joints.why_not_fast
    assert joints.task_spec.action_names == (*(f"dq{i}" for i in range(1, 8)), "gripper")
    two = make("TwoArmLift")
    assert not two.fast and two.why_not_fast == "more than one arm"
    assert two.task_spec.robot == "Panda+Panda" and two.task_spec.action_names[7] == "robot1_dx"
    for env in (joints, two):
        before = env.reset(seed=0)[0]["proprio"]
        after = env.step(env.action_space.high)[0]["proprio"]
        assert np.abs(after - before).max() > 0.01


def test_actions_are_in_the_world_frame_however_the_arm_is_turned(make: Make) -> None:
    """robosuite's base frame of the IIWA turns with its first joint; half a radian would bend this path by as much."""
    env = make("Lift", robots="IIWA")
    env.reset(seed=0)
    env.step(np.zeros(7))  # robosuite's controllers read their first state at the reset
    data = env.robosuite.sim.data._data
    data.qpos[env.robosuite.robots[0]._ref_joint_pos_indexes[0]] = 0.5
    env._refresh()
    site = env.robosuite.robots[0].eef_site_id["right"]
    start = data.site_xpos[site].copy()
    for _ in range(5):
        env.step(np.array([0.0, 1.0, 0.0, 0.0, 0.0, 0.0, -1.0]))
    x, y, _ = data.site_xpos[site] - start
    assert y > 0.03
    assert abs(x) < 0.2 * y


# --- seeds ------------------------------------------------------------------------------------------------------------

_ELSEWHERE = """
import sys
sys.path.insert(0, {tests!r})
from test_robosuite_tasks import _hash
from envs.robosuite_tasks import make_robosuite_env
for task in sys.argv[1:]:
    env = make_robosuite_env(task, obs_mode="all", image_size=32)
    print(_hash(env, seed=5, steps=8))
"""


@pytest.mark.render
def test_same_seed_same_bits_in_any_process(make: Make) -> None:
    """Also with another hash seed: robosuite draws the object of the -Single tasks from a set of names."""
    tasks = ["Lift", "PickPlaceSingle", "Wipe"]
    code = _ELSEWHERE.format(tests=os.path.dirname(__file__))
    printed = []
    for hash_seed in ("1", "2"):
        environment = dict(os.environ, PYTHONHASHSEED=hash_seed)
        done = subprocess.run([sys.executable, "-c", code, *tasks], env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        printed.append(done.stdout.split())
    assert printed[0] == printed[1]
    for task, digest in zip(tasks, printed[0], strict=True):
        env = make(task, obs_mode="all", image_size=32)
        assert _hash(env, seed=4, steps=3) != digest
        assert _hash(env, seed=5, steps=8) == digest, "whatever happened before"


@pytest.mark.parametrize("task", ["Lift", "Door", "NutAssemblySingle"])
def test_soft_resets_forget_what_happened_before(make: Make, task: str) -> None:
    env, fresh = make(task, hard_reset=False), make(task, hard_reset=False)
    _hash(env, seed=0, steps=30)
    env.reset(seed=9)
    env.step(np.ones(7))
    assert _hash(env, seed=7, steps=10) == _hash(fresh, seed=7, steps=10)
    assert _hash(env, seed=8, steps=10) != _hash(fresh, seed=7, steps=10)


def _cube_side_m(env: RobosuiteEnv) -> float:
    return float(2 * env.robosuite.sim.model.geom_size[env.robosuite.sim.model.geom_name2id("cube_g0")][0])


def test_the_cube_is_drawn_at_hard_resets_only(make: Make) -> None:
    hard, soft = make("Lift"), make("Lift", hard_reset=False)
    sides = []
    for env in (hard, soft):
        sides.append(set())
        for seed in range(4):
            env.reset(seed=seed)
            sides[-1].add(_cube_side_m(env))
    assert len(sides[0]) == 4 and all(0.040 <= side <= 0.044 for side in sides[0])
    assert len(sides[1]) == 1
    assert hard.task_spec.scene_hash == soft.task_spec.scene_hash


@pytest.mark.parametrize("task", ["Door", "PickPlaceCan", "NutAssemblySquare", "TwoArmPegInHole"])
def test_tasks_are_marked_whose_model_is_drawn(make: Make, task: str) -> None:
    """Compare what two seeds build; a task wrongly marked as fixed would keep one size for ever."""
    env = make(task, hard_reset=True)
    models = []
    for seed in range(2):
        env.reset(seed=seed)
        model = env.robosuite.sim.model._model
        models.append((model.geom_size.tobytes(), model.body_mass.tobytes(), model.geom_friction.tobytes()))
    assert (models[0] != models[1]) == TASKS[task].model_is_drawn


def test_seedless_resets_go_on_from_the_seed(make: Make) -> None:
    env = make("Lift", hard_reset=False)
    first = env.reset(seed=1)[0]["state"]
    second = env.reset()[0]["state"]
    assert not np.array_equal(first, second)
    env.reset(seed=1)
    assert np.array_equal(env.reset()[0]["state"], second)


@pytest.mark.parametrize("task", ["Lift", "Door"])
def test_a_simulator_state_replays_to_the_bit(make: Make, task: str) -> None:
    """Also in another environment that is in another episode, with another cube or another place of the door."""
    env, other = make(task), make(task)
    env.reset(seed=0)
    other.reset(seed=1)
    actions = _actions(20)
    begin = env.simulator_state()
    for action in actions[:10]:
        env.step(action)
    state, seen = env.simulator_state(), env.observation()
    then = [env.step(action) for action in actions[10:]]
    other.set_simulator_state(state)
    assert np.array_equal(other.observation()["state"], seen["state"])
    for action, (observation, reward, *_) in zip(actions[10:], then, strict=True):
        again = other.step(action)
        assert np.array_equal(again[0]["state"], observation["state"])
        assert again[1] == reward
    other.set_simulator_state(begin)
    for action in actions[:10]:
        other.step(action)
    assert np.array_equal(other.simulator_state(), state)
    with pytest.raises(ValueError, match=r"simulator state of robosuite/.* is \(\d+,\), got \(3,\)"):
        env.set_simulator_state(np.zeros(3))


# --- gymnasium --------------------------------------------------------------------------------------------------------


@pytest.mark.render
@pytest.mark.filterwarnings("ignore:.*Box observation space (minimum|maximum).*:UserWarning")
@pytest.mark.parametrize(
    ("task", "options"),
    [("Lift", {"obs_mode": "all", "render_mode": "rgb_array", "hard_reset": False}), ("Door", {"obs_mode": "state"})],
)
def test_gymnasium_checker_passes(make: Make, task: str, options: dict[str, Any]) -> None:
    check_env(make(task, **options))


def test_found_without_importing_us() -> None:
    """Every id is registered by the installed entry point, quietly, and MUJOCO_GL stays as it was."""
    code = """
import os, sys, gymnasium
before = os.environ.get("MUJOCO_GL")
assert "robosuite" not in sys.modules
env = gymnasium.make("robosuite/Lift", hard_reset=False)
env.reset(seed=0)
env.step(env.action_space.sample())
assert os.environ.get("MUJOCO_GL") == before
assert not {"torch", "toto_robot", "policies"} & set(sys.modules)
print(*sorted(key for key in gymnasium.registry if key.startswith("robosuite/")))
"""
    environment = {key: value for key, value in os.environ.items() if key != "MUJOCO_GL"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.split() == sorted(f"robosuite/{name}" for name in (*TASKS, *ALIASES))


def test_ids_are_robosuites_own_names() -> None:
    import robosuite

    assert set(TASKS) == set(robosuite.ALL_ENVIRONMENTS)


def test_time_limit_truncates_and_the_alias_is_the_task(make: Make) -> None:
    env = make("Can", horizon_steps=4)
    assert env.task_spec.env_id == "robosuite/PickPlaceCan"
    assert TASKS["PickPlaceCan"].horizon_steps == TASKS["Lift"].horizon_steps == 400
    env.reset(seed=0)
    assert [env.step(np.zeros(7))[2:4] for _ in range(4)] == [(False, False)] * 3 + [(False, True)]


def test_task_spec_names_what_comes_out(make: Make) -> None:
    env = make("Lift")
    observation, info = env.reset(seed=0)
    spec = env.task_spec
    assert (spec.control_rate_hz, spec.horizon_steps, spec.robot) == (20, 400, "Panda")
    assert spec.action_names == ("dx", "dy", "dz", "drx", "dry", "drz", "gripper")
    assert spec.action_scale[:6] == (0.05,) * 3 + (0.5,) * 3
    assert json.loads(json.dumps(spec.as_dict()))["env_id"] == "robosuite/Lift"
    proprio = dict(zip(spec.proprio_names, observation["proprio"], strict=True))
    units = dict(zip(spec.proprio_names, spec.proprio_units, strict=True))
    data = env.robosuite.sim.data
    assert proprio["robot0_joint_pos_3"] == pytest.approx(data.qpos[3], abs=1e-6)
    assert (units["robot0_joint_pos_3"], units["robot0_gripper_qpos_0"], units["robot0_eef_pos_2"]) == ("rad", "m", "m")
    cube = data.body_xpos[env.robosuite.cube_body_id]
    assert observation["state"][len(proprio) : len(proprio) + 3] == pytest.approx(cube, abs=1e-6)
    assert info["success"] is False and info["reward_terms"] == {"task": 0.0}
    other = make("Lift", robots="IIWA").task_spec
    assert other.proprio_units[14 + 7] == "rad", "the Robotiq's joints turn"
    assert other.options == {"robots": "IIWA"} and spec.options is None, "what rollouts and replays make it with"


def test_observations_belong_to_the_state_that_the_step_reached(make: Make) -> None:
    """In robosuite's own, joints are those of now, but the hand is where it was one substep (2 ms) ago."""
    env = make("Lift", fast_control=False)
    env.reset(seed=0)
    for _ in range(4):
        own = env.robosuite.step(np.array([1.0, 0, 0, 0, 0, 0, -1.0]))[0]
    _, data = env._model_and_data()
    env._refresh()
    now = data.site_xpos[env.robosuite.robots[0].eef_site_id["right"]]
    names = env.task_spec.proprio_names
    proprio = env.observation()["proprio"]
    assert proprio[names.index("robot0_eef_pos_0")] == pytest.approx(now[0], abs=1e-6)
    assert proprio[:7] == pytest.approx(own["robot0_joint_pos"], abs=1e-6)
    assert 1e-4 < now[0] - own["robot0_eef_pos"][0] < 1e-3, "the lag that is repaired; if it is gone, docs/robosuite.md"


@pytest.mark.parametrize("task", ["PickPlaceCan", "NutAssemblySquare"])
def test_the_object_as_the_hand_sees_it_is_of_this_state(make: Make, task: str) -> None:
    """In robosuite's own it is of the step before, and zero at first."""
    env = make(task)
    observation, _ = env.reset(seed=0)
    for _ in range(3):
        robosuite, (_, data) = env.robosuite, env._model_and_data()
        names = [name for name, each in robosuite._observables.items() if each.is_active() and each.is_enabled()]
        thing = next(name.removesuffix("_pos") for name in names if name.endswith("_pos") and "robot0" not in name)
        at = env.task_spec.proprio_names.index("robot0_eef_pos_0")
        hand_m, (x, y, z, w) = observation["proprio"][at : at + 3], observation["proprio"][at + 3 : at + 7]
        rotation = np.zeros(9)
        mujoco.mju_quat2Mat(rotation, np.array([w, x, y, z], float))
        seen = rotation.reshape(3, 3).T @ (data.body(f"{thing}_main").xpos - hand_m)
        objects = [name for name in names if robosuite._observables[name].modality == "object"]
        at = len(observation["proprio"])
        for name in objects:
            if name == f"{thing}_to_robot0_eef_pos":
                break
            at += 4 if name.endswith("quat") else 3
        assert np.abs(seen).max() > 0.05
        assert observation["state"][at : at + 3] == pytest.approx(seen, abs=1e-5)
        observation = env.step(np.array([0.5, -0.5, 0.5, 0, 0, 0.5, -1.0]))[0]


def test_success_is_latched_and_the_expert_lifts(make: Make) -> None:
    env = make("Lift", hard_reset=False)
    for seed in range(5):
        env.reset(seed=seed)
        expert = env.expert(seed=seed)
        phases, steps = [], 0
        info: dict[str, Any] = {}
        while not info.get("success") and steps < 100:
            action = expert.act()
            phases.append(action.phase)
            _, reward, _, _, info = env.step(action.executed)
            steps += 1
        assert info["success"] and reward == 1.0, f"seed {seed}: {phases}"
        assert list(dict.fromkeys(phases))[-2:] == ["close", "lift"]
    for _ in range(15):  # let it fall
        _, _, _, _, info = env.step(np.array([0, 0, 0, 0, 0, 0, -1.0]))
    assert info["success"] and info["success_once"] and not info["success_at_end"]


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.zeros(6), r"shape \(7,\).*got \(6,\)"),
        (np.full(7, np.nan), r"\[-1, 1\]"),
        (np.array([0, 0, 0, 0, 0, 0, 1.01]), r"\[-1, 1\]"),
        (np.array([0, -np.inf, 0, 0, 0, 0, 0]), r"\[-1, 1\]"),
    ],
)
def test_bad_actions_are_refused(make: Make, action: np.ndarray, message: str) -> None:
    env = make("Lift", hard_reset=False)
    env.reset(seed=0)
    before = env.simulator_state()
    with pytest.raises(ValueError, match=message):
        env.step(action)
    assert np.array_equal(env.simulator_state(), before)


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("Pour", {}, "task must be one of Lift, .*got 'Pour'"),
        ("Lift", {"obs_mode": "image"}, "obs_mode must be one of state, proprio, pixels, all, got 'image'"),
        ("Lift", {"action_mode": "torque"}, "action_mode must be one of"),
        ("Lift", {"preset": "pixmc"}, "preset must be one of real"),
        ("Lift", {"robots": "Pandaa"}, "robots must be out of .*Panda.*got 'Pandaa'"),
        ("Lift", {"image_size": 4}, "image_size"),
        ("Lift", {"horizon_steps": 0}, "horizon_steps"),
        ("Lift", {"robosuite_options": {"horizon": 3}}, "robosuite_options must not have horizon"),
        ("Lift", {"obs_mode": "pixels", "cameras": ("side",)}, "camera must be one of front, wrist, .*got 'side'"),
        ("Lift", {"obs_mode": "all", "cameras": ("front", "front")}, "each camera once"),
    ],
)
def test_bad_options_are_refused(task: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_robosuite_env(task, **options)


def test_no_expert_says_so(make: Make) -> None:
    with pytest.raises(ValueError, match="robosuite/PickPlaceCan with Panda in ee_delta, not for robosuite/Door"):
        make("Door").expert(seed=0)


# --- pictures ---------------------------------------------------------------------------------------------------------


def _red(picture: np.ndarray) -> tuple[int, float]:
    """Return how many pixels show the red cube, and their mean row."""
    signed = picture.astype(int)
    rows, _ = np.nonzero((signed[..., 0] > 2 * signed[..., 1]) & (signed[..., 0] > 60))
    return len(rows), float(rows.mean()) if len(rows) else np.nan


@pytest.mark.render
def test_pictures_are_the_right_way_up_and_lean_looks_like_full(make: Make) -> None:
    pictures = {}
    for quality in ("lean", "full"):
        env = make("Lift", render_quality=quality, hard_reset=False)
        env.reset(seed=0)
        pictures[quality] = {camera: env.picture(camera, 128) for camera in ("front", "wrist", "sideview")}
    for camera in pictures["lean"]:
        difference = np.abs(pictures["lean"][camera].astype(int) - pictures["full"][camera])
        assert difference.mean() < 8, camera
    count, row = _red(pictures["lean"]["front"])
    assert count > 20
    data = env.robosuite.sim.data._data
    data.qpos[env.robosuite.sim.model.get_joint_qpos_addr("cube_joint0")[0] + 2] += 0.1
    env._refresh()
    assert _red(env.picture("front", 128))[1] < row - 5, "higher in the world is higher in the picture"


@pytest.mark.render
def test_lean_and_full_move_alike(make: Make) -> None:
    lean, full = (make("PickPlaceCan", render_quality=quality) for quality in ("lean", "full"))
    assert _hash(lean, seed=0, steps=20) == _hash(full, seed=0, steps=20)
    triangles = [sum(env.robosuite.sim.model._model.mesh_facenum) for env in (lean, full)]
    assert triangles[0] < 0.15 * triangles[1]
    assert lean.task_spec.scene_hash == full.task_spec.scene_hash


@pytest.mark.render
def test_a_camera_shows_the_same_whatever_is_drawn_before_it(make: Make) -> None:
    """robosuite's scenes have a headlight, which is where the camera is."""
    options = {"obs_mode": "pixels", "image_size": 48}
    both, other, alone = (
        make("Lift", cameras=names, **options) for names in (("front", "wrist"), ("wrist", "front"), ("wrist",))
    )
    seen = [env.reset(seed=3)[0]["pixels"] for env in (both, other, alone)]
    for pixels in seen[1:]:
        assert np.array_equal(pixels["wrist"], seen[0]["wrist"])
    assert np.array_equal(seen[1]["front"], seen[0]["front"])


@pytest.mark.render
def test_the_quality_of_pictures_is_part_of_the_task(make: Make) -> None:
    lean, full = (make("Lift", render_quality=quality).task_spec for quality in ("lean", "full"))
    assert lean.options is None and full.options == {"render_quality": "full"}


@pytest.mark.render
def test_environments_in_one_process_show_their_own_pictures(make: Make) -> None:
    """Other tasks, sizes and cubes, hard resets, closed and collected neighbours: always the solo picture."""
    options: dict[str, Any] = {"obs_mode": "pixels", "image_size": 48}
    tasks = ["Lift", "Door", "Lift", "Stack"]

    def picture(env: RobosuiteEnv) -> np.ndarray:
        return np.stack(list(env.observation()["pixels"].values()))

    def advance(env: RobosuiteEnv, seed: int) -> None:
        env.reset(seed=seed)
        env.step(np.full(7, 0.5))

    solo = []
    for seed, task in enumerate(tasks):
        env = make(task, **options)
        advance(env, seed)
        solo.append(picture(env))
        env.close()
        del env
        gc.collect()
    assert len({array.tobytes() for array in solo}) == len(tasks)
    envs = [make(task, **options) for task in tasks]
    for seed, env in enumerate(envs):
        advance(env, seed + 10)
        picture(env)
    for seed, env in reversed(list(enumerate(envs))):
        advance(env, seed)
    for index in (2, 0, 3, 1):
        assert np.array_equal(picture(envs[index]), solo[index])
    envs[2].close()
    del envs[2]
    gc.collect()
    assert np.array_equal(picture(envs[0]), solo[0])
    assert np.array_equal(picture(envs[2]), solo[3])
