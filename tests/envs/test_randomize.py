"""Does randomisation change what it says, by the seed, and nothing else?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from envs.randomize import AXES, LATENCY_S, parse_randomization
from envs.task import RobotEnv

Make = Callable[..., RobotEnv]
pytestmark = pytest.mark.render
_FIELDS = ("light_diffuse", "light_dir", "geom_rgba", "geom_matid", "geom_friction", "cam_pos", "cam_quat", "geom_size")
_CHANGES = {
    "lights": {"light_diffuse", "light_dir"},
    "colors": {"geom_rgba"},
    "textures": {"geom_matid"},
    "cameras": {"cam_pos", "cam_quat"},
    "friction": {"geom_friction"},
}


def _picture(env: RobotEnv) -> np.ndarray:
    return np.concatenate([env.picture("front", 48), env.picture("wrist", 48)])


def _own_geoms(model: Any) -> np.ndarray:
    """Return which geoms belong to the task, not to the clutter."""
    return np.array([not model.geom(i).name.startswith("distractor") for i in range(model.ngeom)])


@pytest.mark.parametrize("axis", _CHANGES)
def test_an_axis_changes_its_own_fields_only(make: Make, axis: str) -> None:
    env = make(obs_mode="proprio", randomize={axis: 1.0})
    env.reset(seed=1)
    plain, model = env._shared_model, env.scene.model
    own = _own_geoms(plain)
    for name in _FIELDS:
        before, after = getattr(plain, name), getattr(model, name)
        if name.startswith("geom"):
            before, after = before[own], after[own]
        assert np.array_equal(before, after) == (name not in _CHANGES[axis]), name


def test_starts_are_those_of_the_plain_task(make: Make) -> None:
    plain, changed = make(obs_mode="state"), make(obs_mode="state", randomize="all")
    for seed in range(5):
        before, after = plain.reset(seed=seed)[0]["state"], changed.reset(seed=seed)[0]["state"]
        assert np.array_equal(before, after)
    assert changed.task_spec.scene_hash == plain.task_spec.scene_hash
    assert plain.task_spec.randomization is None and changed.task_spec.randomization == dict.fromkeys(AXES, 1.0)


@pytest.mark.parametrize("task", ["FrankaPick", "KukaCabinet"])
def test_the_seed_decides_the_draw_and_no_episode_leaks_into_the_next(make: Make, task: str) -> None:
    env, other = (make(task, obs_mode="proprio", randomize="all") for _ in range(2))
    first = env.reset(seed=7)[1]["randomization"]
    picture = _picture(env)
    for seed in (1, 2, 3):
        env.reset(seed=seed)
        assert not np.array_equal(_picture(env), picture)
    assert env.reset(seed=7)[1]["randomization"] == first
    assert np.array_equal(_picture(env), picture)
    other.reset(seed=7)
    assert np.array_equal(_picture(other), picture)


def test_neighbours_keep_their_looks(make: Make) -> None:
    """One GL context, three models of one scene: each environment draws its own."""
    plain, a, b = make(obs_mode="proprio"), *(make(obs_mode="proprio", randomize="all") for _ in range(2))
    for env, seed in ((plain, 0), (a, 1), (b, 2)):
        env.reset(seed=seed)
    before = [_picture(env) for env in (plain, a, b)]
    for env, picture in zip((b, plain, a), (before[2], before[0], before[1]), strict=True):
        assert np.array_equal(_picture(env), picture)


def test_strength_zero_is_the_plain_picture(make: Make) -> None:
    plain, off = make(obs_mode="proprio"), make(obs_mode="proprio", randomize={"lights": 0.0, "cameras": 0.0})
    plain.reset(seed=0), off.reset(seed=0)
    assert np.array_equal(_picture(plain), _picture(off))


def test_latency_delays_the_action(make: Make) -> None:
    late, prompt = make(obs_mode="proprio", randomize={"latency": 1.0}), make(obs_mode="proprio")
    delays = set()
    for seed in range(12):
        latency_s = late.reset(seed=seed)[1]["randomization"]["latency_s"]
        assert 0 <= latency_s <= LATENCY_S
        delay = round(latency_s * late.preset.control_rate_hz)
        delays.add(delay)
        prompt.reset(seed=seed)
        actions = np.random.default_rng(seed).uniform(-1, 1, (8, 7))
        neutral = prompt.controller.neutral_action()
        for index, action in enumerate(actions):
            late.step(action)
            prompt.step(actions[index - delay] if index >= delay else neutral)
            assert late.data.ctrl == pytest.approx(prompt.data.ctrl, abs=1e-12)
    assert len(delays) >= 3


def test_neutral_action_holds_arm_and_fingers(make: Make) -> None:
    for mode in ("ee_delta", "joint_delta"):
        env = make(obs_mode="proprio", action_mode=mode)
        env.reset(seed=2)
        finger = env.controller.finger
        env.step(env.controller.neutral_action())
        assert env.controller.finger == pytest.approx(finger)


def test_distractors_touch_nothing_and_keep_off_the_cube(make: Make) -> None:
    env = make(obs_mode="proprio", randomize={"distractors": 1.0})
    counts = []
    for seed in range(20):
        counts.append(env.reset(seed=seed)[1]["randomization"]["distractors"])
        cube = env.data.xpos[env.scene.bodies["cube"]]
        for index in range(counts[-1]):
            position = env.data.mocap_pos[index]
            assert position[2] > 0, "in sight"
            assert position[2] < 0.3 or np.hypot(*(position - cube)[:2]) > 0.1
    assert min(counts) == 0 and max(counts) == 6
    plain = make(obs_mode="state")
    for one in (env, plain):
        one.reset(seed=3)
        for _ in range(20):
            one.step(np.full(7, 0.3))
    assert np.array_equal(env.data.qpos, plain.data.qpos)


def test_things_stand_on_what_is_below_them(make: Make) -> None:
    """MuJoCo's sizes mean another height for each shape; a mesh of its own says how low each reaches."""
    env = make(obs_mode="proprio", randomize={"distractors": 1.0})
    count = next(n for seed in range(20) if (n := env.reset(seed=seed)[1]["randomization"]["distractors"]) == 6)
    model, below = env.scene.model, []
    for index in range(count):
        geom = int(model.body_geomadr[env.scene.bodies[f"distractor{index}"]])
        size, kind = model.geom_size[geom], mujoco.mjtGeom(model.geom_type[geom]).name
        half = {"mjGEOM_SPHERE": size[0], "mjGEOM_CYLINDER": size[1], "mjGEOM_CAPSULE": size[0] + size[1]}
        below.append(env.data.mocap_pos[index][2] - half.get(kind, size[2]))
    on_floor = np.abs(below) < 1e-9
    assert len({round(float(height), 9) for height in np.array(below)[~on_floor]}) == 1  # the table's top


def test_the_expert_still_succeeds(make: Make) -> None:
    env = make(obs_mode="proprio", randomize={"friction": 1.0, "latency": 0.5, "distractors": 1.0, "cameras": 1.0})
    succeeded = 0
    for seed in range(8):
        env.reset(seed=seed)
        expert = env.expert(seed)
        for _ in range(env.preset.horizon_steps):
            info = env.step(expert.act().executed)[4]
            if info["success"]:
                break
        succeeded += info["success"]
    assert succeeded >= 7


def test_gymnasium_checker_passes(make: Make) -> None:
    with pytest.warns(UserWarning, match="Box observation space"):
        check_env(make(obs_mode="all", image_size=32, randomize="all", render_mode="rgb_array"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("light", "did you mean lights"),
        ({"fog": 1.0}, "no axis 'fog'.*lights, colors"),
        ({"lights": -1}, r"0\.\.3.*-1"),
    ],
)
def test_bad_axes_are_refused(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_randomization(value)
