"""Which commands and states does a real arm answer with a reflex? Pure checks of one millisecond against its limits.

The FCI documentation ("robot and interface specifications") makes position, velocity, acceleration and jerk limits
necessary conditions of a motion, and names the error of each. The thresholds within them are not public: small slacks
stand for what rounding does to finite differences (protocol 10 sends the state in single precision).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deploy.drivers.base import ARM_JOINTS, Floats
from deploy.realtime.limits import JointLimits

DT_S = 0.001
# Rounding of a joint position in single precision: 2.4e-7 rad, so up to 2.4e-4 rad/s, 0.5 rad/s2 and 1000 rad/s3 in
# finite differences.
_SLACK = {"velocity": 1e-3, "acceleration": 0.5, "jerk": 1000.0}
_TORQUE_SLACK_NM = 1e-3
_MEASURED_SLACK = 1.05  # a servo overshoots its command; a reflex is for what the command alone does not explain
_POSITION_SLACK_RAD = 1e-3


def check_desired(
    limits: JointLimits, q: Floats, dq: Floats, ddq: Floats, before_ddq: Floats, *, positions: bool
) -> str | None:
    """Return the error of a desired position, velocity and acceleration (7,) after one of `before_ddq`, or None."""
    if positions and ((q < limits.low_rad) | (q > limits.high_rad)).any():
        return "joint_motion_generator_position_limits_violation"
    jump = np.abs(ddq) - limits.acceleration_rad_s2
    if (jump > _SLACK["acceleration"]).any():
        return "joint_motion_generator_velocity_discontinuity"
    if (np.abs(ddq - before_ddq) / DT_S - limits.jerk_rad_s3 > _SLACK["jerk"]).any():
        return "joint_motion_generator_acceleration_discontinuity"
    low, high = limits.velocity_bounds(q)
    if ((dq < low - _SLACK["velocity"]) | (dq > high + _SLACK["velocity"])).any():
        return "joint_motion_generator_velocity_limits_violation"
    return None


def check_torque(limits: JointLimits, tau: Floats, before: Floats) -> str | None:
    """Return the error of a commanded torque (7,) after `before`, or None.

    Only the rate is a necessary condition; the documentation recommends the range, and the motors give no more.
    """
    if (np.abs(tau - before) > limits.torque_rate_nm_s * DT_S + _TORQUE_SLACK_NM).any():
        return "controller_torque_discontinuity"
    return None


def check_measured(limits: JointLimits, q: Floats, dq: Floats) -> str | None:
    """Return the error of a measured state (7,), or None."""
    if ((q < limits.low_rad - _POSITION_SLACK_RAD) | (q > limits.high_rad + _POSITION_SLACK_RAD)).any():
        return "joint_position_limits_violation"
    if (np.abs(dq) > limits.velocity_rad_s * _MEASURED_SLACK).any():
        return "joint_velocity_violation"
    return None


@dataclass
class Collision:
    """Contact and collision thresholds, as SetCollisionBehavior sets them; what is above `upper` stops the arm."""

    # Defaults of the vendor's examples (libfranka examples_common.cpp, setDefaultBehavior).
    torque_lower: Floats
    torque_upper: Floats
    force_lower: Floats
    force_upper: Floats

    @classmethod
    def default(cls) -> Collision:
        """Return the vendor's example values."""
        return cls(*(np.full(size, 20.0) for size in (ARM_JOINTS, ARM_JOINTS, 6, 6)))

    def check(self, torque: Floats, wrench: Floats) -> str | None:
        """Return the reflex of an external torque (7,) and wrench (6,), or None."""
        if (np.abs(torque) > self.torque_upper).any():
            return "joint_reflex"
        if (np.abs(wrench) > self.force_upper).any():
            return "cartesian_reflex"
        return None
