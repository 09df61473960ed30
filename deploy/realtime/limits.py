"""Which limits does each arm have, where does each number come from, and how far from them do we stay?

Joint values in the order of the arm. The robot aborts a motion that breaks one of them; the safety filter works with
limits that a margin has tightened (`JointLimits.tightened`).

Velocity limits of the FR3 fall towards the ends of the joints: upward at most
`min(v_max, max(0, -offset + sqrt(2 d (end - q))))`, downward its mirror image, with `offset`, `d` and `end` of each
joint (libfranka include/franka/rate_limiting.h, joint_velocity_limits.h; URDF element position_based_velocity_limits).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deploy.drivers.base import ARM_JOINTS

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Margins:
    """How much of the robot's limits is used."""

    position_rad: float = 0.05  # distance kept from both ends of each joint
    velocity: float = 0.8  # share of the robot's limit
    acceleration: float = 0.8  # share of the robot's limit
    # At 200 Hz the robot's own jerk limit lets the acceleration jump from one limit to the other within one tick.
    jerk: float = 0.2  # share of the robot's limit

    def __post_init__(self) -> None:
        """Refuse margins that leave nothing or more than the robot has."""
        if not 0.0 <= self.position_rad < 1.0:
            raise ValueError(
                f"position_rad is the distance kept from a joint's ends, 0 to 1 rad, got {self.position_rad}"
            )
        for name in ("velocity", "acceleration", "jerk"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is a share of the robot's limit, above 0 to 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, eq=False)
class JointLimits:
    """Limits of one arm, (7,) each. ValueError for a limit that is missing, zero, not finite or empty."""

    name: str
    source: str
    low_rad: Floats
    high_rad: Floats
    velocity_rad_s: Floats
    acceleration_rad_s2: Floats
    jerk_rad_s3: Floats
    torque_nm: Floats
    torque_rate_nm_s: Floats
    # Of the velocity limit that falls towards the ends; None where it does not.
    velocity_offset_rad_s: Floats | None = None
    end_deceleration_rad_s2: Floats | None = None
    low_end_rad: Floats | None = None
    high_end_rad: Floats | None = None

    def __post_init__(self) -> None:
        """Check every number."""
        positive = ["velocity_rad_s", "acceleration_rad_s2", "jerk_rad_s3", "torque_nm", "torque_rate_nm_s"]
        falling = ["velocity_offset_rad_s", "end_deceleration_rad_s2"]
        ends = ["low_end_rad", "high_end_rad"]
        given = [name for name in falling + ends if getattr(self, name) is not None]
        if given and len(given) < len(falling + ends):
            raise ValueError(f"limits {self.name}: a falling velocity limit needs {falling + ends}, got only {given}")
        for name in [*positive, "low_rad", "high_rad", *given]:
            values = np.asarray(getattr(self, name), float)
            if values.shape != (ARM_JOINTS,) or not np.isfinite(values).all():
                raise ValueError(f"limits {self.name}: {name} must be {ARM_JOINTS} finite numbers, got {values}")
            if name in positive + falling and not (values > 0).all():
                raise ValueError(f"limits {self.name}: {name} must be above zero, got {values}")
            object.__setattr__(self, name, values)
        if not (self.low_rad < self.high_rad).all():
            raise ValueError(f"limits {self.name}: no range between {self.low_rad} and {self.high_rad}")

    def velocity_bounds(self, q_rad: Floats) -> tuple[Floats, Floats]:
        """Return the lowest and highest velocity that the robot takes at a position (..., 7)."""
        low, high = -self.velocity_rad_s, self.velocity_rad_s
        if self.velocity_offset_rad_s is None:
            return np.broadcast_to(low, q_rad.shape), np.broadcast_to(high, q_rad.shape)
        assert self.end_deceleration_rad_s2 is not None
        assert self.low_end_rad is not None and self.high_end_rad is not None
        twice = 2.0 * self.end_deceleration_rad_s2
        upward = np.sqrt(np.maximum(twice * (self.high_end_rad - q_rad), 0.0)) - self.velocity_offset_rad_s
        downward = np.sqrt(np.maximum(twice * (q_rad - self.low_end_rad), 0.0)) - self.velocity_offset_rad_s
        return -np.minimum(-low, np.maximum(downward, 0.0)), np.minimum(high, np.maximum(upward, 0.0))

    def tightened(self, margins: Margins) -> JointLimits:
        """Return the limits that a controller with these margins keeps."""
        changes: dict[str, Floats | str] = {
            "name": f"{self.name} with margins",
            "low_rad": self.low_rad + margins.position_rad,
            "high_rad": self.high_rad - margins.position_rad,
            "velocity_rad_s": self.velocity_rad_s * margins.velocity,
            "acceleration_rad_s2": self.acceleration_rad_s2 * margins.acceleration,
            "jerk_rad_s3": self.jerk_rad_s3 * margins.jerk,
        }
        if self.velocity_offset_rad_s is not None:
            assert self.end_deceleration_rad_s2 is not None
            # f * (sqrt(2 d x) - offset) is a curve of the same kind: offset f and d f^2.
            changes["velocity_offset_rad_s"] = self.velocity_offset_rad_s * margins.velocity
            changes["end_deceleration_rad_s2"] = self.end_deceleration_rad_s2 * margins.velocity**2
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]


def _same(value: float) -> Floats:
    return np.full(ARM_JOINTS, value)


_TORQUE_NM = np.array([87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0])
_FR3_VELOCITY_RAD_S = np.array([2.62, 2.62, 2.62, 2.62, 5.26, 4.18, 5.26])
_FR3_DECELERATION_RAD_S2 = np.array([6.0, 2.585, 3.5, 4.0, 17.0, 5.5, 17.0])
_FR3_SPEC = "FCI documentation, robot and interface specifications, limits for Franka Research 3"

FER = JointLimits(
    name="fer",
    source="FCI documentation, robot and interface specifications, limits for Panda; any system version",
    low_rad=np.array([-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973]),
    high_rad=np.array([2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973]),
    velocity_rad_s=np.array([2.1750, 2.1750, 2.1750, 2.1750, 2.6100, 2.6100, 2.6100]),
    acceleration_rad_s2=np.array([15.0, 7.5, 10.0, 12.5, 15.0, 20.0, 20.0]),
    jerk_rad_s3=np.array([7500.0, 3750.0, 5000.0, 6250.0, 7500.0, 10000.0, 10000.0]),
    torque_nm=_TORQUE_NM,
    torque_rate_nm_s=_same(1000.0),
)

FR3_BEFORE_5_9 = JointLimits(
    name="fr3_before_5_9",
    source=f"{_FR3_SPEC}; falling velocity: libfranka 0.10 to 0.17 rate_limiting.h; system version below 5.9",
    low_rad=np.array([-2.7437, -1.7837, -2.9007, -3.0421, -2.8065, 0.5445, -3.0159]),
    high_rad=np.array([2.7437, 1.7837, 2.9007, -0.1518, 2.8065, 4.5169, 3.0159]),
    velocity_rad_s=_FR3_VELOCITY_RAD_S,
    acceleration_rad_s2=_same(10.0),
    jerk_rad_s3=_same(5000.0),
    torque_nm=_TORQUE_NM,
    torque_rate_nm_s=_same(1000.0),
    velocity_offset_rad_s=np.array([0.30, 0.20, 0.20, 0.30, 0.35, 0.35, 0.35]),
    end_deceleration_rad_s2=_FR3_DECELERATION_RAD_S2,
    low_end_rad=np.array([-2.7501, -1.7918, -2.9065, -3.0481, -2.8101, 0.54092, -3.0196]),
    high_end_rad=np.array([2.7501, 1.7918, 2.9065, -0.1458, 2.8101, 4.5205, 3.0196]),
)

# The joints' own ends are the ends of the velocity curve here.
_FR3_LOW_RAD = np.array([-2.90074, -1.83609, -2.90074, -3.07702, -2.876303, 0.439823, -3.050833])
_FR3_HIGH_RAD = np.array([2.90074, 1.83609, 2.90074, -0.116938, 2.876303, 4.621633, 3.050833])

FR3 = JointLimits(
    name="fr3",
    source=f"{_FR3_SPEC}, system version 5.9 and later (server version 10); range and falling velocity: "
    "franka_description robots/fr3v2/joint_limits.yaml, which the robot hands out as URDF",
    low_rad=_FR3_LOW_RAD,
    high_rad=_FR3_HIGH_RAD,
    velocity_rad_s=_FR3_VELOCITY_RAD_S,
    acceleration_rad_s2=_same(10.0),
    jerk_rad_s3=_same(5000.0),
    torque_nm=_TORQUE_NM,
    torque_rate_nm_s=_same(1000.0),
    velocity_offset_rad_s=np.array([0.652001, 0.249969, 0.200531, 0.354219, 0.573833, 0.488465, 0.459196]),
    end_deceleration_rad_s2=_FR3_DECELERATION_RAD_S2,
    low_end_rad=_FR3_LOW_RAD,
    high_end_rad=_FR3_HIGH_RAD,
)

LIMITS = {limits.name: limits for limits in (FER, FR3, FR3_BEFORE_5_9)}


def limits_of(name: str) -> JointLimits:
    """Return the limits of a robot by name; ValueError lists the names."""
    if name not in LIMITS:
        raise ValueError(f"no limits for robot {name!r}; known: {', '.join(LIMITS)}")
    return LIMITS[name]


_FR3_SINCE, _FR3_WIDE_SINCE, _NEWEST = 6, 10, 10  # interface versions: the first FR3, system 5.9, the newest known


def limits_for(robot: str, server_version: int) -> JointLimits:
    """Return the limits of an arm by name and by the interface version that it answers with.

    An FR3 has others before system 5.9 (version 10). ValueError for a version that this arm does not speak: it is
    another arm, or one whose limits nobody has entered here.
    """
    if robot == "fr3" and not _FR3_SINCE <= server_version <= _NEWEST:
        raise ValueError(
            f"robot=fr3 speaks versions {_FR3_SINCE} to {_NEWEST}, the robot answers {server_version}: "
            f"{'that is a Panda, robot=fer' if server_version < _FR3_SINCE else 'its limits are not known here'}"
        )
    if robot == "fer" and server_version >= _FR3_SINCE:
        raise ValueError(f"robot=fer speaks versions below {_FR3_SINCE}, the robot answers {server_version}: robot=fr3")
    return FR3_BEFORE_5_9 if robot == "fr3" and server_version < _FR3_WIDE_SINCE else limits_of(robot)
