"""Does the simulated arm in this process keep time by hand, repeat itself, and draw what the task draws?"""

import numpy as np
import pytest

from deploy.drivers.base import ReflexError
from deploy.drivers.connect import make_driver


@pytest.fixture(scope="module")
def made():
    return make_driver("twin", robot="fer", pace="manual")


@pytest.fixture
def twin(made):
    made.reset(3)
    with made:
        yield made


def test_time_passes_only_when_it_is_told_to(twin):
    twin.start()
    before = twin.state()
    assert twin.state().robot_time_s == before.robot_time_s
    twin.advance(0.25)
    assert twin.state().robot_time_s == pytest.approx(before.robot_time_s + 0.25)


def test_the_same_targets_give_the_same_bits(twin):
    def run():
        twin.reset(5)
        twin.start()
        q = twin.state().q_rad
        for step in range(40):
            twin.set_target(q + 0.002 * step, np.full(7, 0.4))
            twin.advance(0.005)
        end = twin.state().q_rad
        twin.stop()
        return end

    assert np.array_equal(run(), run())


def test_a_target_far_away_ends_in_a_velocity_reflex_as_on_the_arm(twin):
    twin.start()
    twin.set_target(twin.state().q_rad + 0.5, np.zeros(7))
    twin.advance(1.0)
    with pytest.raises(ReflexError) as caught:
        twin.state()
    assert caught.value.errors == ("joint_velocity_violation",)


def test_a_reset_puts_everything_where_the_task_puts_it(twin):
    import gymnasium

    env = gymnasium.make("toto_robot/FrankaPick-v0", obs_mode="proprio").unwrapped
    env.reset(seed=11)
    twin.reset(11)
    assert np.array_equal(twin.state().q_rad, env.data.qpos[:7])
    assert not twin.success


@pytest.mark.render
def test_pictures_are_those_of_the_task(twin):
    import gymnasium

    env = gymnasium.make("toto_robot/FrankaPick-v0", obs_mode="pixels", image_size=32).unwrapped
    expected = env.reset(seed=11)[0]["pixels"]
    twin.reset(11)
    pictures = twin.render(("front", "wrist"), 32)
    for camera in ("front", "wrist"):
        assert np.array_equal(pictures[camera], expected[camera])


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"pace": "fast"}, "pace must be one of clock, manual"),
        ({"stiffness": (1.0,) * 6}, "stiffness must be 7"),
        ({"damping": (0.0,) * 7}, "above zero"),
    ],
)
def test_bad_settings_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        make_driver("twin", robot="fer", **settings)


@pytest.mark.parametrize(
    "name, arguments, words",
    [
        ("frankly", {"robot": "fr3"}, "driver must be one of franky"),
        ("twin", {"robot": "ur5"}, "robot must be one of fr3, fer"),
        ("twin", {"robot": "fr3", "realtime": "maybe"}, "realtime must be one of"),
    ],
)
def test_bad_names_are_refused(name, arguments, words):
    with pytest.raises(ValueError, match=words):
        make_driver(name, **arguments)
