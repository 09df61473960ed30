"""How does a joint come to rest as fast as its limits allow, and does it stay inside all of them on the way?

The stop of a joint that moves with velocity v and acceleration a is the fastest one: full jerk against the motion,
full deceleration, full jerk back to rest. It has a closed form, and the rest of a stop is the stop of the state that it
reached, so a stop that was once proved inside the limits stays proved.

The proof holds for every instant, not only for ticks. On a piece of constant jerk position is a cubic and velocity a
quadratic in time, and a polynomial never leaves the hull of its Bernstein coefficients (Farouki, "The Bernstein
polynomial basis: a centennial retrospective", 2012, section 5). Bounds on pieces of a piece are no looser, so they keep
the proof.

Shapes: (..., 7) for any leading axes; times s (...) broadcast against them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from deploy.realtime.limits import Floats, JointLimits

# Stands between what is proved and what a checker with its own rounding finds.
_SLACK = 1e-9
_BOTH_SIDES = np.array([1.0, -1.0])


class Motion(NamedTuple):
    """Where the command is and how it moves."""

    q_rad: Floats
    dq_rad_s: Floats
    ddq_rad_s2: Floats


class StopPhases(NamedTuple):
    """A stop: jerk -sign * J for the first time, none for the second, sign * J for the third."""

    sign: Floats
    times_s: tuple[Floats, Floats, Floats]


class BrakingLimits:
    """The numbers of `JointLimits` in the form that the proof needs."""

    def __init__(self, limits: JointLimits) -> None:
        self.velocity, self.acceleration = (
            limits.velocity_rad_s * (1 - _SLACK),
            limits.acceleration_rad_s2 * (1 - _SLACK),
        )
        self.jerk = limits.jerk_rad_s3 * (1 - _SLACK)
        self.low, self.high = limits.low_rad + _SLACK, limits.high_rad - _SLACK
        # v <= sqrt(2 d (end - q)) - offset  is  q + (v + offset)^2 / (2 d) <= end, a convex set.
        self.falls = limits.velocity_offset_rad_s is not None
        self.offset, self.curvature = np.zeros_like(self.low), np.zeros_like(self.low)
        self.ends = np.array([self.high, -self.low])
        if limits.velocity_offset_rad_s is not None:
            assert limits.end_deceleration_rad_s2 is not None
            assert limits.low_end_rad is not None and limits.high_end_rad is not None
            self.offset = limits.velocity_offset_rad_s
            self.curvature = 0.5 / limits.end_deceleration_rad_s2
            self.ends = np.array([limits.high_end_rad, -limits.low_end_rad]) - _SLACK
            # At rest the velocity limit itself keeps this distance from its end.
            rest = self.ends - self.offset**2 * self.curvature
            self.high, self.low = np.minimum(self.high, rest[0]), np.maximum(self.low, -rest[1])
        self.sides = np.array([self.high, -self.low])

    def containing(self, q_rad: Floats) -> BrakingLimits:
        """Return limits that also hold at rest at `q_rad` (7,): an arm that starts outside may only move inwards."""
        sides = np.maximum(self.sides, np.array([q_rad, -q_rad]) + _SLACK)
        # No farther than rest there needs: a velocity limit that ends farther out would be above the robot's own.
        return self._with(sides, np.maximum(self.ends, sides + self.offset**2 * self.curvature))

    def narrowed(self, motion: Motion, configured: BrakingLimits) -> BrakingLimits:
        """Return limits between these and `configured`, as narrow as the stop of `motion` (7,) allows.

        What was widened for the start of a motion is given back joint by joint as the arm comes in.
        """
        rest = resting_point(motion, self)
        reached = [np.maximum(motion.q_rad, rest), np.minimum(motion.q_rad, rest)]
        out = configured.containing(reached[0]).containing(reached[1])
        fits = stop_fits(motion, out)
        return self._with(
            np.where(fits, np.minimum(self.sides, out.sides), self.sides),
            np.where(fits, np.minimum(self.ends, out.ends), self.ends),
        )

    def _with(self, sides: Floats, ends: Floats) -> BrakingLimits:
        other = object.__new__(BrakingLimits)
        other.__dict__.update(self.__dict__)
        other.ends, other.sides, other.high, other.low = ends, sides, sides[0], -sides[1]
        return other


def advance(motion: Motion, jerk: Floats, time_s: Floats | float) -> Motion:
    """Return the motion after a time of constant jerk."""
    q, v, a = motion
    step = jerk * time_s
    half = time_s * 0.5
    return Motion(q + time_s * (v + half * (a + step / 3)), v + time_s * (a + step * 0.5), a + step)


def stop_phases(motion: Motion, limits: BrakingLimits) -> StopPhases:
    """Return the fastest stop."""
    _, v, a = motion
    jerk = limits.jerk
    sign = np.where(v + a * np.abs(a) / (2 * jerk) >= 0, 1.0, -1.0)
    ahead, rising = sign * v, sign * a
    room = jerk * ahead + 0.5 * rising * rising
    peak = np.minimum(np.sqrt(np.maximum(room, 0.0)), limits.acceleration)
    third = peak / jerk
    first = np.maximum(rising / jerk + third, 0.0)
    second = np.maximum(room / jerk - peak * third, 0.0) / np.maximum(peak, 1e-12)
    return StopPhases(sign, (first, second, third))


def stopping(motion: Motion, limits: BrakingLimits, time_s: Floats | float) -> Motion:
    """Return the motion after a time of the fastest stop."""
    sign, (first, second, third) = stop_phases(motion, limits)
    jerk = sign * limits.jerk
    spent = np.minimum(first, time_s)
    motion = advance(motion, -jerk, spent)
    left = time_s - spent
    spent = np.minimum(second, left)
    motion = advance(motion, np.zeros_like(jerk), spent)
    left = left - spent
    q, v, a = advance(motion, jerk, np.minimum(third, left))
    rest = time_s >= first + second + third
    return Motion(q, np.where(rest, 0.0, v), np.where(rest, 0.0, a))


def resting_point(motion: Motion, limits: BrakingLimits) -> Floats:
    """Return where the fastest stop ends."""
    return stopping(motion, limits, np.inf).q_rad


def stop_fits(motion: Motion, limits: BrakingLimits) -> np.ndarray:
    """Say for each joint whether the fastest stop stays inside all limits at every instant. (..., 7)"""
    sign, times = stop_phases(motion, limits)
    push = sign * limits.jerk
    second = advance(motion, -push, times[0])
    third = advance(second, np.zeros_like(push), times[1])
    starts = [np.stack(parts) for parts in zip(motion, second, third, strict=True)]
    jerks = np.stack([-push, np.zeros_like(push), push])
    return piece_fits(Motion(*starts), jerks, np.stack(times), limits).all(axis=0)


def piece_fits(motion: Motion, jerk: Floats, time_s: Floats | float, limits: BrakingLimits) -> np.ndarray:
    """Say for each joint whether a piece of constant jerk stays inside position and velocity limits at every instant.

    Acceleration is linear on a piece: its ends are the caller's to check.
    """
    shape = (2,) + (1,) * motion.q_rad.ndim
    side = _BOTH_SIDES.reshape(shape)
    bound = (2,) + (1,) * (motion.q_rad.ndim - 1) + (-1,)
    q, v, a = motion
    third = time_s / 3
    # The coefficients of the velocity give those of the position: 3 (q[i + 1] - q[i]) / time = v[i].
    q0, v0 = side * q, side * v
    v1 = side * (v + 1.5 * third * a)
    v2 = side * (v + time_s * (a + 1.5 * third * jerk))
    q1 = q0 + third * v0
    q2 = q1 + third * v1
    q3 = q2 + third * v2
    highest = np.maximum(np.maximum(q1, q2), np.maximum(q0, q3))
    fastest = np.maximum(np.maximum(v0, v1), v2)
    inside = (highest <= limits.sides.reshape(bound)) & (fastest <= limits.velocity)
    if limits.falls:
        w0, w1, w2 = (np.maximum(w + limits.offset, 0.0) for w in (v0, v1, v2))
        k = limits.curvature
        worst = q0 + k * w0 * w0
        worst = np.maximum(worst, 0.25 * q0 + 0.75 * q1 + k * w0 * w1)
        worst = np.maximum(worst, 0.5 * (q1 + q2) + (k / 3) * (w0 * w2 + 2 * w1 * w1))
        worst = np.maximum(worst, 0.75 * q2 + 0.25 * q3 + k * w1 * w2)
        worst = np.maximum(worst, q3 + k * w2 * w2)
        inside &= worst <= limits.ends.reshape(bound)
    return inside.all(axis=0)
