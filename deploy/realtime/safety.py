"""What may the arm be told next, whatever the policy asks for?

`filter_target` is a pure function: the last command, what is asked for, the measured position, limits and a time step
give the next command and which guards acted. For any sequence of inputs every output stays inside the position,
velocity, acceleration and jerk limits, at every instant between two outputs too. Why: each output is a state from
which a stop inside all limits exists (braking.py). A step towards the target is taken only if that is so again after
it; else the next step of the stop that was proved before is mixed in, in the end alone. The limits are convex sets, so
a mixture of two admissible steps is admissible.

Guards in order: finite, fresh, range, workspace box, joint soft limits, step from the measured position, velocity,
acceleration, jerk, stop. Leading axes are samples: one call serves one arm at 200 Hz or a million sequences in a test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from deploy.realtime.braking import BrakingLimits, Motion, advance, piece_fits, resting_point, stop_fits, stopping
from deploy.realtime.limits import Floats, JointLimits, Margins
from deploy.realtime.records import Guard

# Poles of the linear law that follows the target, 1/s: it lags a constant velocity by nothing, and forgets a jump of
# the target in about 5 / rate. Slower where a tick is long, or the law would outrun its own sampling.
FOLLOW_RATE_S = 40.0
_FOLLOW_PER_TICK = 0.4
# Of the acceleration, planned for braking towards the target: the rest is reserve for the jerk-limited onset.
_BRAKING_SHARE = 0.6
_MIXTURES = np.array([0.75, 0.5, 0.25])
_REACH = np.linspace(0.875, 0.0, 8)  # shares of the way to a target outside the box
MAX_DT_S = 0.1
_ROUNDING = 1 + 1e-12  # far below the slack of BrakingLimits

GraspPoint = Callable[[Floats], Floats]


@dataclass(frozen=True, kw_only=True)
class Box:
    """Where the grasp point may be, m, in the frame of the arm's base."""

    low_m: tuple[float, float, float]
    high_m: tuple[float, float, float]

    def __post_init__(self) -> None:
        """Refuse an empty box."""
        low, high = np.array(self.low_m), np.array(self.high_m)
        if low.shape != (3,) or high.shape != (3,) or not (np.isfinite([low, high]).all() and (low < high).all()):
            raise ValueError(
                f"a workspace box needs low_m < high_m, 3 numbers each, got {self.low_m} and {self.high_m}"
            )

    def excess_m(self, point_m: Floats) -> Floats:
        """Return how far a point (..., 3) is outside, 0 inside. (...)"""
        outside = np.maximum(np.asarray(self.low_m) - point_m, point_m - np.asarray(self.high_m))
        return np.maximum(outside, 0.0).max(axis=-1)


@dataclass(frozen=True, kw_only=True, eq=False)
class SafetyLimits:
    """Everything the filter keeps: the robot's limits, what margins leave of them, and the guards' own numbers."""

    robot: JointLimits
    margins: Margins = field(default_factory=Margins)
    step_rad: float = 0.3  # largest distance of a target from the measured position
    max_age_s: float = 0.1  # of the chunk that a target comes from
    box: Box | None = None
    grasp_point: GraspPoint | None = None  # (..., 7) -> (..., 3), m, base frame
    joint: JointLimits = field(init=False)
    braking: BrakingLimits = field(init=False)

    def __post_init__(self) -> None:
        """Prepare the limits; ValueError for a guard without a number."""
        for name in ("step_rad", "max_age_s"):
            if not 0.0 < getattr(self, name) < np.inf:
                raise ValueError(f"{name} must be above zero and finite, got {getattr(self, name)}")
        if (self.box is None) != (self.grasp_point is None):
            raise ValueError("a workspace box needs grasp_point, the arm's forward kinematics, and the other way round")
        object.__setattr__(self, "joint", self.robot.tightened(self.margins))
        object.__setattr__(self, "braking", BrakingLimits(self.joint))

    def starting_at(self, q_rad: Floats) -> SafetyLimits:
        """Return the limits for a motion that starts at rest at `q_rad` (7,), also when a margin is already used up.

        ValueError outside the robot's own range: such an arm must be moved by hand.
        """
        outside = np.flatnonzero((q_rad < self.robot.low_rad) | (q_rad > self.robot.high_rad) | ~np.isfinite(q_rad))
        if outside.size:
            joint = int(outside[0])
            raise ValueError(
                f"joint {joint + 1} is at {q_rad[joint]:.4f} rad, outside the range of {self.robot.name}, "
                f"{self.robot.low_rad[joint]:.4f} to {self.robot.high_rad[joint]:.4f}: move the arm by hand first"
            )
        copy = object.__new__(SafetyLimits)
        copy.__dict__.update(self.__dict__)
        copy.__dict__["braking"] = self.braking.containing(q_rad)
        return copy

    def narrowed(self, motion: Motion, configured: SafetyLimits) -> SafetyLimits:
        """Return these limits of `starting_at` without what `motion` (7,) needs no more; `configured` in the end."""
        braking = self.braking.narrowed(motion, configured.braking)
        if (braking.sides == configured.braking.sides).all() and (braking.ends == configured.braking.ends).all():
            return configured
        copy = object.__new__(SafetyLimits)
        copy.__dict__.update(self.__dict__)
        copy.__dict__["braking"] = braking
        return copy


def filter_target(
    command: Motion,
    target: tuple[Floats, Floats],
    measured_rad: Floats,
    age_s: Floats | float,
    limits: SafetyLimits,
    dt_s: float,
) -> tuple[Motion, np.ndarray]:
    """Return the command after `dt_s` and the guards that acted, `Guard` flags as uint32 (...).

    `command` is what the last call returned, or a state at rest; `target` is position and velocity asked for, (..., 7);
    `age_s` (...) the age of the chunk that they come from: infinity asks for a stop. ValueError for a time step that
    is not above 0 and at most 0.1 s.
    """
    if not 0.0 < dt_s <= MAX_DT_S:
        raise ValueError(f"expected a time step above 0 and at most {MAX_DT_S} s, got {dt_s}")
    wanted, speed, halt, guards = _admissible_target(command, target, measured_rad, age_s, limits)
    jerk, acted = _follow(command, wanted, speed, limits.braking, dt_s)
    guards |= np.where(halt, 0, acted).astype(np.uint32)
    halted, mixed = _provable_step(command, jerk, halt[..., None], limits.braking, dt_s)
    guards |= _flag(mixed, Guard.STOP)
    if limits.box is not None:
        assert limits.grasp_point is not None
        ends = np.stack([resting_point(motion, limits.braking) for motion in (command, halted)])
        before, after = limits.box.excess_m(limits.grasp_point(ends))
        leaves = after > before + 1e-9
        guards |= _flag(leaves, Guard.WORKSPACE)
        if np.any(leaves):
            stop = stopping(command, limits.braking, dt_s)
            parts = zip(stop, halted, strict=True)
            halted = Motion(*(np.where(leaves[..., None], a, b) for a, b in parts))
    return halted, guards


def _flag(where: np.ndarray, guard: Guard) -> np.ndarray:
    return np.where(where, np.uint32(guard), np.uint32(0))


def _admissible_target(
    command: Motion, target: tuple[Floats, Floats], measured_rad: Floats, age_s: Floats | float, limits: SafetyLimits
) -> tuple[Floats, Floats, np.ndarray, np.ndarray]:
    """Clip what is asked for; return position, velocity, whether to stop instead (...), guards (...)."""
    q, dq = target
    finite = (np.isfinite(q) & np.isfinite(dq) & np.isfinite(measured_rad)).all(axis=-1)
    age = np.asarray(age_s)
    fresh = (age <= limits.max_age_s) & (age >= -limits.max_age_s)  # a NaN is not fresh; nor is a stamp of the future
    halt = ~(finite & fresh)
    guards = _flag(~finite, Guard.FINITE) | _flag(~fresh, Guard.FRESH)
    if halt.any():
        q = np.where(halt[..., None], command.q_rad, q)
        dq = np.where(halt[..., None], 0.0, dq)
        measured_rad = np.where(finite[..., None], measured_rad, command.q_rad)
    robot, braking = limits.robot, limits.braking

    clipped = np.minimum(np.maximum(q, robot.low_rad), robot.high_rad)
    slower = np.minimum(np.maximum(dq, -robot.velocity_rad_s), robot.velocity_rad_s)
    guards |= _flag(((clipped != q) | (slower != dq)).any(axis=-1), Guard.RANGE)
    q, dq = clipped, slower

    if limits.box is not None:
        q, left = _inside_box(command.q_rad, q, limits)
        dq = np.where(left[..., None], 0.0, dq)
        guards |= _flag(left, Guard.WORKSPACE)

    clipped = np.minimum(np.maximum(q, braking.low), braking.high)
    beyond = clipped != q
    guards |= _flag(beyond.any(axis=-1), Guard.POSITION)
    q = np.minimum(np.maximum(clipped, measured_rad - limits.step_rad), measured_rad + limits.step_rad)
    far = q != clipped
    q = np.minimum(np.maximum(q, braking.low), braking.high)  # a measurement may be anywhere
    guards |= _flag(far.any(axis=-1) & ~halt, Guard.STEP)
    dq = np.where(beyond | far, 0.0, dq)
    return q, dq, halt, guards.astype(np.uint32)


def _inside_box(start_rad: Floats, q_rad: Floats, limits: SafetyLimits) -> tuple[Floats, np.ndarray]:
    """Shorten the way from the command to a target whose grasp point is outside; return it and where that was."""
    assert limits.box is not None and limits.grasp_point is not None
    excess = limits.box.excess_m(limits.grasp_point(q_rad))
    outside = excess > 0
    if not np.any(outside):
        return q_rad, outside
    share = _REACH.reshape((-1,) + (1,) * q_rad.ndim)
    way = start_rad + share * (q_rad - start_rad)
    good = limits.box.excess_m(limits.grasp_point(way)) <= 0
    first = np.where(good.any(axis=0), good.argmax(axis=0), len(_REACH) - 1)
    nearer = np.take_along_axis(way, first[None, ..., None], axis=0)[0]
    # An arm that starts outside has no point of its way inside: it may follow what brings it nearer to the box.
    helps = outside & ~good.any(axis=0) & (excess < limits.box.excess_m(limits.grasp_point(start_rad)))
    return np.where((outside & ~helps)[..., None], nearer, q_rad), outside


def _follow(
    command: Motion, q_rad: Floats, dq_rad_s: Floats, limits: BrakingLimits, dt_s: float
) -> tuple[Floats, np.ndarray]:
    """Return the jerk (..., 7) that leads to the target without overshoot, and the guards that limited it (...)."""
    q, v, a = command
    rate = min(FOLLOW_RATE_S, _FOLLOW_PER_TICK / dt_s)
    distances = np.stack([q_rad - q, limits.high - q, limits.low - q])
    approach = _approach_velocity(distances, rate / 3, _BRAKING_SHARE * limits.acceleration)
    wanted = dq_rad_s + approach[0]
    velocity = np.minimum(
        np.maximum(wanted, np.maximum(approach[2], -limits.velocity)), np.minimum(approach[1], limits.velocity)
    )
    pull = rate * (velocity - v)
    acceleration = np.minimum(np.maximum(pull, -limits.acceleration), limits.acceleration)
    push = min(3 * rate, 1 / dt_s) * (acceleration - a)
    jerk = np.minimum(np.maximum(push, -limits.jerk), limits.jerk)
    acted = _flag((np.abs(wanted) > limits.velocity).any(axis=-1), Guard.VELOCITY)
    acted |= _flag((acceleration != pull).any(axis=-1), Guard.ACCELERATION)
    return jerk, acted | _flag((jerk != push).any(axis=-1), Guard.JERK)


def _approach_velocity(distance_rad: Floats, rate: float, deceleration: Floats) -> Floats:
    """Return the velocity from which braking ends at a distance: linear near the end, a square root farther away."""
    near = deceleration / rate**2
    size = np.abs(distance_rad)
    far = np.sqrt((deceleration / rate) ** 2 + 2 * deceleration * np.maximum(size - near, 0.0))
    return np.where(size <= near, rate * distance_rad, np.copysign(far, distance_rad))


def _provable_step(
    command: Motion, jerk: Floats, halt: np.ndarray, limits: BrakingLimits, dt_s: float
) -> tuple[Motion, np.ndarray]:
    """Take the largest share of a step that keeps a stop inside the limits; return it and where (...) it was cut."""
    asked = advance(command, jerk, dt_s)
    inside = (
        ~halt & (np.abs(asked.ddq_rad_s2) <= limits.acceleration * _ROUNDING) & piece_fits(command, jerk, dt_s, limits)
    )
    good = inside & stop_fits(asked, limits)
    if good.all():
        return asked, np.zeros(good.shape[:-1], bool)
    stop = stopping(command, limits, dt_s)
    share = np.where(good, 1.0, 0.0)
    if (inside & ~good).any():
        shares = _MIXTURES.reshape((-1,) + (1,) * share.ndim)
        mixtures = Motion(*(shares * a + (1 - shares) * b for a, b in zip(asked, stop, strict=True)))
        fits = inside & stop_fits(mixtures, limits)
        share = np.where(good, 1.0, np.where(inside, (fits * shares).max(axis=0), 0.0))
    step = Motion(*(np.where(share == 0, b, share * a + (1 - share) * b) for a, b in zip(asked, stop, strict=True)))
    return step, (~halt[..., 0]) & (share < 1).any(axis=-1)
