"""Are the limits the robots' own, and is a limit that is missing or zero refused?"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from deploy.realtime.limits import FER, FR3, FR3_BEFORE_5_9, LIMITS, Margins, limits_for, limits_of


@pytest.mark.parametrize("name", ["velocity_rad_s", "acceleration_rad_s2", "jerk_rad_s3", "torque_nm"])
@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_a_limit_of_nothing_is_refused(name: str, value: float) -> None:
    values = getattr(FER, name).copy()
    values[3] = value
    with pytest.raises(ValueError, match=name):
        dataclasses.replace(FER, **{name: values})


def test_missing_limits_are_refused() -> None:
    with pytest.raises(TypeError):
        type(FER)(name="x", source="", low_rad=FER.low_rad, high_rad=FER.high_rad)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="7 finite numbers"):
        dataclasses.replace(FER, jerk_rad_s3=np.ones(6))
    with pytest.raises(ValueError, match="got only"):
        dataclasses.replace(FER, velocity_offset_rad_s=np.ones(7))
    with pytest.raises(ValueError, match="no range"):
        FER.tightened(Margins(position_rad=0.99)).tightened(Margins(position_rad=0.99))
    with pytest.raises(ValueError, match="known: fer"):
        limits_of("ur5")
    with pytest.raises(ValueError, match="share"):
        Margins(jerk=0.0)


def test_the_velocity_limit_of_fr3_falls_to_zero_at_the_ends() -> None:
    # libfranka's test of computeUpperLimitsJointVelocity uses the same curve; joint 1 at 2 rad by hand:
    expected = -0.30 + np.sqrt(12.0 * (2.7501 - 2.0))
    low, high = FR3_BEFORE_5_9.velocity_bounds(np.full(7, 2.0))
    assert high[0] == pytest.approx(min(2.62, expected))
    for limits in (FR3, FR3_BEFORE_5_9):
        assert (limits.velocity_bounds(limits.high_rad)[1] < 0.005).all()  # the curve ends up to 7 mrad beyond
        assert (limits.velocity_bounds(limits.low_rad)[0] > -0.005).all()
        middle = (limits.low_rad + limits.high_rad) / 2
        low, high = limits.velocity_bounds(middle)
        assert (low < -1).all() and (high > 1).all()
    low, high = FER.velocity_bounds(FER.high_rad)
    assert (high == FER.velocity_rad_s).all() and (low == -FER.velocity_rad_s).all()


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS.keys())
def test_margins_tighten_the_velocity_curve_by_their_share(limits) -> None:  # type: ignore[no-untyped-def]
    tight = limits.tightened(Margins(velocity=0.7))
    q_rad = np.random.default_rng(0).uniform(limits.low_rad, limits.high_rad, (1000, 7))
    for mine, theirs in zip(tight.velocity_bounds(q_rad), limits.velocity_bounds(q_rad), strict=True):
        np.testing.assert_allclose(mine, 0.7 * theirs, atol=1e-12)


def test_limits_go_by_arm_and_interface_version() -> None:
    assert [limits_for("fr3", version) for version in (6, 7, 8, 9)] == [FR3_BEFORE_5_9] * 4
    assert limits_for("fr3", 10) is FR3
    assert [limits_for("fer", version) for version in (3, 5)] == [FER] * 2
    for robot, version, word in (("fr3", 5, "robot=fer"), ("fer", 10, "robot=fr3"), ("fr3", 11, "not known")):
        with pytest.raises(ValueError, match=word):
            limits_for(robot, version)
