"""How well did a learner do after how many environment steps? One line a measurement in `<run>/curve.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from policies.page import plot
from policies.statistics import wilson_interval
from toto_robot.run_folder import write_text

FILE = "curve.jsonl"


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """One measurement of a policy while it is learning."""

    env_steps: int  # control steps that the learner has learned from, demonstrations included
    successes: int
    episodes: int
    wall_s: float  # spent in the run so far, over all its starts


def record_point(run_dir: Path, point: CurvePoint) -> None:
    """Add a measurement; one at the same or a later step, of a run that was killed and went back, is replaced."""
    points = [earlier for earlier in read_curve(run_dir) if earlier.env_steps < point.env_steps]
    write_text(run_dir / FILE, "".join(json.dumps(asdict(one)) + "\n" for one in [*points, point]))


def read_curve(run_dir: Path) -> list[CurvePoint]:
    """Return the measurements in order; a line that a kill cut off is left out."""
    path = run_dir / FILE
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [CurvePoint(**json.loads(line)) for line in lines if line.endswith("}")]


def measured_on(learner: str) -> str:
    """Say what the success of a learner's curve is of: PPO counts the episodes that it learns from."""
    return "training episodes, exploring" if learner == "ppo" else "held-out starts"


def curve_png(points: Sequence[CurvePoint], learner: str) -> bytes:
    """Draw success over environment steps with the Wilson 95 % interval of each measurement; return PNG bytes."""
    steps = [point.env_steps for point in points]
    rates = [100 * point.successes / point.episodes for point in points]
    intervals = [wilson_interval(point.successes, point.episodes) for point in points]
    with plot(7.5, 4.2) as drawn:
        axes = drawn.axes[0, 0]
        lows, highs = ([100 * bound for bound in bounds] for bounds in zip(*intervals, strict=True))
        axes.fill_between(steps, lows, highs, alpha=0.2)
        axes.plot(steps, rates, "o-", markersize=4)
        axes.set_ylim(-2, 102)
        axes.set_xlabel("environment steps")
        axes.set_ylabel(f"success on {measured_on(learner)}, %")
        axes.grid(alpha=0.3)
    return drawn.png
