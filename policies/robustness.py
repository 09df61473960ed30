"""What does a policy do in other looks, with other friction, with actions that come late?

Every axis of randomisation at every strength is an evaluation of its own on the same starts, in
`<run>/sweep/<axis>-<strength>`, so each is compared with the plain one start by start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from policies.bundle import bundle_hash
from policies.evaluate import EvaluationConfig, Evaluator, read_outcomes
from policies.page import plot
from policies.statistics import Paired, Rate, paired
from toto_robot.run_folder import atomic_path, write_json


def sweep(
    evaluator: Evaluator,
    bundle: Path,
    run_dir: Path,
    plain: EvaluationConfig,
    axes: Sequence[str],
    strengths: Sequence[float],
) -> list[dict[str, Any]]:
    """Evaluate every axis at every strength; write robustness.json and robustness.png and return the rows.

    `plain` is the evaluation that `run_dir` holds already. A row has the rate, its Wilson interval, and the difference
    to plain on the same starts.
    """
    before = outcomes(bundle, run_dir, plain)
    rows = [_row("plain", 0.0, before, before)]
    for axis in axes:
        for strength in strengths:
            settings = replace(plain, randomize=(axis,), randomize_strength=strength, videos=0)
            folder = run_dir / "sweep" / f"{axis}-{strength:g}"
            evaluator.evaluate(bundle, folder, settings)
            rows.append(_row(axis, strength, before, outcomes(bundle, folder, settings)))
            print(told(rows[-1]), flush=True)
    write_json(run_dir / "robustness.json", rows)
    with atomic_path(run_dir / "robustness.png") as temporary:
        temporary.write_bytes(draw(rows))
    return rows


def outcomes(bundle: Path, run_dir: Path, config: EvaluationConfig) -> list[bool]:
    """Return success by held-out start, in the order of the starts."""
    found = read_outcomes(run_dir, bundle_hash(bundle), config)
    return [bool(found[seed]["success"]) for seed in config.seeds]


def told(row: dict[str, Any]) -> str:
    """Return one row as people read it."""
    rate = Rate(successes=row["successes"], episodes=row["episodes"])
    name = row["axis"] if row["axis"] == "plain" else f"{row['axis']} {row['strength']:g}"
    return f"{name:<18}{rate}" + ("" if row["axis"] == "plain" else f", against plain {row['against_plain']}")


def draw(rows: Sequence[dict[str, Any]]) -> bytes:
    """Draw every row as its rate and Wilson interval under that of the plain task; return PNG bytes."""
    with plot(7.5, 1.2 + 0.32 * len(rows)) as drawn:
        axes = drawn.axes[0, 0]
        low, high = (100 * bound for bound in rows[0]["wilson95"])
        axes.axvspan(low, high, color="#1f6feb", alpha=0.08, linewidth=0)
        labels = []
        for place, row in enumerate(rows):
            bounds = [100 * bound for bound in row["wilson95"]]
            ink = "#1f6feb" if row["axis"] == "plain" else "#d1701c"
            axes.plot(bounds, [-place] * 2, color=ink, linewidth=6, alpha=0.4, solid_capstyle="butt")
            axes.plot([100 * row["rate"]], [-place], "|", color=ink, markersize=14, markeredgewidth=2.5)
            labels.append(row["axis"] if row["axis"] == "plain" else f"{row['axis']}, {row['strength']:g}")
        axes.set_yticks([-place for place in range(len(rows))], labels)
        axes.set_xlim(-2, 102)
        axes.set_xlabel(f"success of {rows[0]['episodes']} episodes, %, and Wilson 95 % interval")
        axes.grid(axis="x", alpha=0.3)
    return drawn.png


def _row(axis: str, strength: float, plain: Sequence[bool], now: Sequence[bool]) -> dict[str, Any]:
    found: Paired = paired(now, plain)
    rate = Rate(successes=sum(now), episodes=len(now))
    return {
        "axis": axis,
        "strength": strength,
        "successes": rate.successes,
        "episodes": rate.episodes,
        "rate": rate.value,
        "wilson95": [round(bound, 4) for bound in rate.interval],
        "difference": [found.difference, *(round(bound, 4) for bound in found.interval)],
        "mcnemar_p": found.p_value,
        "against_plain": str(found),
    }
