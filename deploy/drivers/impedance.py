"""How stiff is the arm, and how does a driver bring its target to rest?"""

from __future__ import annotations

import math

import numpy as np

from deploy.drivers.base import ARM_JOINTS, Floats
from deploy.realtime.limits import JointLimits

# The vendor's joint impedance example (libfranka examples/joint_impedance_control.cpp), N m/rad and N m s/rad.
STIFFNESS = (600.0, 600.0, 600.0, 600.0, 250.0, 150.0, 50.0)
DAMPING = (50.0, 50.0, 50.0, 50.0, 30.0, 25.0, 15.0)

CONTROLS = ("joint_impedance", "cartesian_impedance")  # what franky's trackers can be: deploy/drivers/franky.py

RAMP_HZ = 200.0
_SHARE = 0.4  # of the limits of acceleration and jerk


def gains(stiffness: object, damping: object) -> tuple[Floats, Floats]:
    """Return both as (7,). ValueError unless they are seven numbers above zero."""
    found = []
    for name, values in (("stiffness", stiffness), ("damping", damping)):
        array = np.asarray(values, float)
        if array.shape != (ARM_JOINTS,) or not np.isfinite(array).all() or not (array > 0).all():
            raise ValueError(f"{name} must be {ARM_JOINTS} finite numbers above zero, got {values!r}")
        found.append(array)
    return found[0], found[1]


def ramp(q_rad: Floats, dq_rad_s: Floats, limits: JointLimits) -> list[tuple[Floats, Floats]]:
    """Return targets at RAMP_HZ that bring a moving target to rest within limits of acceleration and jerk.

    The speed falls as 1 - 3x^2 + 2x^3 over the time: greatest acceleration 1.5 v/T, greatest jerk 6 v/T^2.
    """
    speed = np.abs(dq_rad_s)
    acceleration = np.max(1.5 * speed / (_SHARE * limits.acceleration_rad_s2))
    jerk = math.sqrt(float(np.max(6.0 * speed / (_SHARE * limits.jerk_rad_s3))))
    steps = math.ceil(max(float(acceleration), jerk) * RAMP_HZ)
    targets = []
    for step in range(1, steps + 1):
        x = step / steps
        travelled = (x - x**3 + 0.5 * x**4) * steps / RAMP_HZ
        q = np.clip(q_rad + travelled * dq_rad_s, limits.low_rad, limits.high_rad)
        targets.append((q, (1.0 - 3.0 * x**2 + 2.0 * x**3) * dq_rad_s))
    return targets
