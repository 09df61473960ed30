"""Does any sequence of targets, stamps, measurements and time steps bring the safety filter outside its limits?

    python tests/deploy/adversary.py 1000000 [first seed]

prints one JSON line. The adversaries write targets; the judge sees only the positions that came out and their times. It
takes divided differences (the mean of a derivative over the samples, so no larger than its bound) and knows nothing of
how the filter works. The largest share of each limit that was used says how sharp the test is.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
from tqdm import tqdm

from deploy.realtime.braking import Motion
from deploy.realtime.limits import FER, FR3, FR3_BEFORE_5_9, JointLimits, Margins
from deploy.realtime.safety import SafetyLimits, filter_target

Target = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | float]  # position, velocity, measured, age
Adversary = Callable[[int, Motion, float], Target]

BATCH, TICKS = 400, 48  # arrays of this size stay in the cache
ROBOTS = (FER, FR3, FR3_BEFORE_5_9)
MARGINS = (
    Margins(),
    Margins(position_rad=0.0, velocity=1.0, acceleration=1.0, jerk=1.0),
    Margins(position_rad=0.1, velocity=0.3, acceleration=0.5, jerk=0.02),
    Margins(position_rad=0.02, velocity=1.0, acceleration=0.15, jerk=1.0),
)


def adversaries(limits: SafetyLimits, start: np.ndarray, rng: np.random.Generator) -> dict[str, Adversary]:
    """Return every adversary for a batch that starts at rest at `start` (B, 7)."""
    shape = start.shape
    low, high = limits.robot.low_rad, limits.robot.high_rad
    speed = limits.robot.velocity_rad_s
    column = (shape[0], 1)
    period = rng.integers(2, 40, column)  # ticks: from Nyquist down
    phase = rng.integers(0, 40, column)
    height = rng.uniform(0, 1, shape) ** 3 * (high - low)
    corner = rng.integers(0, 2, shape)
    heading = rng.choice([-1.0, 1.0], shape)

    def jumps(tick: int, now: Motion, dt: float) -> Target:
        return rng.uniform(low - 3, high + 3, shape), rng.uniform(-2, 2, shape) * speed, now.q_rad, 0.0

    def squares(tick: int, now: Motion, dt: float) -> Target:
        side = np.where((tick + phase) % period < period / 2, 1.0, -1.0)
        return start + side * height, side * speed * rng.integers(0, 2), now.q_rad, 0.0

    def sines(tick: int, now: Motion, dt: float) -> Target:
        angle = 2 * np.pi * (tick + phase) / period
        return start + height * np.sin(angle), 2 * np.pi / (period * dt) * height * np.cos(angle), now.q_rad, 0.0

    def rubbish(tick: int, now: Motion, dt: float) -> Target:
        values = np.array([np.nan, np.inf, -np.inf, 1e308, -1e308, 5e-324, 0.0])
        q, dq, _, age = jumps(tick, now, dt)
        q = np.where(rng.random(shape) < 0.1, rng.choice(values, shape), q)
        dq = np.where(rng.random(shape) < 0.1, rng.choice(values, shape), dq)
        return q, dq, np.where(rng.random(shape) < 0.02, rng.choice(values, shape), now.q_rad), age

    def corners(tick: int, now: Motion, dt: float) -> Target:
        side = (corner + (tick + phase) // np.maximum(period, 20)) % 2
        return np.where(side == 1, high, low), np.where(side == 1, speed, -speed), now.q_rad, 0.0

    def stale(tick: int, now: Motion, dt: float) -> Target:
        q, dq, measured, _ = squares(tick, now, dt)
        ages = np.array([0.0, 0.05, 0.1, 0.1001, 3.0, -0.05, -3.0, np.nan, np.inf, -np.inf])
        return q, dq, measured, rng.choice(ages, shape[0])

    def elsewhere(tick: int, now: Motion, dt: float) -> Target:
        q, dq, _, age = corners(tick, now, dt)
        return q, dq, now.q_rad + rng.normal(0, 0.5, shape), age

    def pushes(tick: int, now: Motion, dt: float) -> Target:
        # Runs at full speed, and turns when speed or acceleration are at their limit: what a resonance would do.
        full = np.abs(now.dq_rad_s) > rng.uniform(0.5, 1.0, shape) * limits.joint.velocity_rad_s
        heading[:] = np.where(full, -np.sign(now.dq_rad_s), heading)
        return now.q_rad + heading * 10, heading * speed * 10, now.q_rad, 0.0

    def dives(tick: int, now: Motion, dt: float) -> Target:
        # Full speed at the nearer end of the joint's range, up to the last tick.
        end = np.where(start > (low + high) / 2, high, low)
        return end + np.sign(end - start), np.sign(end - start) * speed, now.q_rad, 0.0

    everyone = (jumps, squares, sines, rubbish, corners, stale, elsewhere, pushes, dives)
    return {one.__name__: one for one in everyone}


class Judge:
    """Holds the largest share of every limit that the outputs used. Above 1 + 1e-6: outside."""

    def __init__(self) -> None:
        self.worst: dict[str, float] = {}

    def see(self, q_rad: np.ndarray, times_s: np.ndarray, limits: JointLimits) -> None:
        """Look at positions (T, B, 7) at times (T,); they must begin with three samples of rest."""
        middle, half = (limits.low_rad + limits.high_rad) / 2, (limits.high_rad - limits.low_rad) / 2
        self._note("position", np.abs(q_rad - middle) / half)
        first = np.diff(q_rad, axis=0) / np.diff(times_s)[:, None, None]
        second = 2 * np.diff(first, axis=0) / (times_s[2:] - times_s[:-2])[:, None, None]
        third = 3 * np.diff(second, axis=0) / (times_s[3:] - times_s[:-3])[:, None, None]
        # The falling velocity limit is loosest where the joint is farthest from the end that it moves to.
        below, above = np.minimum(q_rad[1:], q_rad[:-1]), np.maximum(q_rad[1:], q_rad[:-1])
        fastest, slowest = limits.velocity_bounds(below)[1], limits.velocity_bounds(above)[0]
        tiny = 1e-7 / np.diff(times_s)[:, None, None]  # rounding of positions, where the limit falls to nothing
        self._note("velocity", np.maximum(first / (fastest + tiny), first / (slowest - tiny)))
        self._note("acceleration", np.abs(second) / limits.acceleration_rad_s2)
        self._note("jerk", np.abs(third) / limits.jerk_rad_s3)

    def _note(self, name: str, shares: np.ndarray) -> None:
        largest = float(shares.max())
        assert np.isfinite(largest), name
        self.worst[name] = max(self.worst.get(name, 0.0), largest)

    def outside(self) -> list[str]:
        """Return the limits that were broken."""
        return [name for name, share in self.worst.items() if share > 1 + 1e-6]


def time_steps(rng: np.random.Generator, ticks: int) -> np.ndarray:
    """Return a run's time steps: 200 Hz, 100 Hz, or as irregular as a loaded machine's."""
    kind = rng.integers(3)
    if kind < 2:
        return np.full(ticks, (0.005, 0.01)[kind])
    return rng.choice([0.001, 0.004, 0.005, 0.006, 0.012, 0.03], ticks)


def starts(limits: SafetyLimits, rng: np.random.Generator, batch: int) -> np.ndarray:
    """Return positions to start from at rest: a third of them near an end of the joints' range."""
    low, high = limits.braking.low, limits.braking.high
    anywhere = rng.uniform(low, high, (batch, 7))
    distance = rng.exponential(0.05, (batch, 7))
    near = np.where(rng.random((batch, 7)) < 0.5, low + distance, high - distance)
    return np.clip(np.where(rng.random((batch, 1)) < 0.33, near, anywhere), low, high)


def run(name: str, limits: SafetyLimits, rng: np.random.Generator, judge: Judge, batch: int, ticks: int) -> int:
    """Run one batch of one adversary past the judge; return how many commands the filter gave."""
    start = starts(limits, rng, batch)
    adversary = adversaries(limits, start, rng)[name]
    now = Motion(start, np.zeros_like(start), np.zeros_like(start))
    steps = time_steps(rng, ticks)
    rest_s = steps[0] * np.arange(-3, 0)
    positions, times = [start] * 3, [*rest_s]
    time_s = 0.0
    positions.append(start)
    times.append(time_s)
    with np.errstate(all="ignore"):
        for tick, dt in enumerate(steps):
            q, dq, measured, age = adversary(tick, now, float(dt))
            now, _ = filter_target(now, (q, dq), measured, age, limits, float(dt))
            time_s += dt
            positions.append(now.q_rad)
            times.append(time_s)
    judge.see(np.stack(positions), np.array(times), limits.joint)
    return batch * ticks


NAMES = tuple(adversaries(SafetyLimits(robot=FER), np.zeros((1, 7)), np.random.default_rng(0)))


def campaign(sequences: int, seed: int = 0, batch: int = BATCH) -> Iterator[tuple[str, JointLimits, Margins, int]]:
    """Yield the batches of a campaign: every adversary against every robot with every margin in turn."""
    everything = [(name, robot, margins) for name in NAMES for robot in ROBOTS for margins in MARGINS]
    for number in range(-(-sequences // batch)):
        name, robot, margins = everything[(seed + number) % len(everything)]
        yield name, robot, margins, seed + number


def main() -> int:
    """Run a campaign; 1 if anything was outside."""
    sequences, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    judge, commands, begun, total = Judge(), 0, time.monotonic(), 0
    for name, robot, margins, number in tqdm(list(campaign(sequences, seed)), unit="batch"):
        limits = SafetyLimits(robot=robot, margins=margins)
        commands += run(name, limits, np.random.default_rng(number), judge, BATCH, TICKS)
        total += BATCH
        if judge.outside():
            print(json.dumps({"outside": judge.outside(), "by": name, "robot": robot.name, "seed": number}))
            return 1
    shares = {name: round(share, 9) for name, share in judge.worst.items()}
    seconds = round(time.monotonic() - begun)
    print(json.dumps({"sequences": total, "commands": commands, "largest_share": shares, "seconds": seconds}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
