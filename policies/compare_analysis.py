"""What do the runs of a comparison say, and what can nobody conclude from them?

A score is the success rate of one policy (one task, encoder, number of demonstrations and policy seed) on held-out
starts. Tasks are strata. Curves: interquartile mean over policy seeds and tasks, stratified bootstrap. Differences: the
mean over tasks, Student's interval over policy seeds, which are paired: seed i of both encoders starts its head alike,
sees its samples in one order and is tested on the same starts. A difference counts as shown when that interval and the
exact McNemar test over the paired episodes both say so: the first knows the noise of training again, the second that
of few episodes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from policies.compare_record import Run, as_record
from policies.compare_words import words
from policies.curve import read_curve
from policies.seed_statistics import (
    Estimate,
    bootstrap_interval,
    dead_seeds,
    interquartile_mean,
    median_interval,
    needed_seeds,
    paired_difference,
    probability_of_improvement,
    steps_to,
)
from policies.statistics import Paired, needed_pairs, needed_rollouts, paired, rate_summary

STEPS, DEMONSTRATIONS = "environment steps", "demonstrations"
_CURVE_POINTS = 25  # of a learning curve over environment steps
_LIKELY_WRONG = 0.05
_Points = dict[tuple[str, int], tuple[tuple[int, float], ...]]  # (task, seed) -> (steps or demonstrations, rate)


def success_curve(folder: Path) -> tuple[tuple[int, float], ...]:
    """Return (environment steps, success rate) of a learner that acts; () where it has measured nothing."""
    return tuple((point.env_steps, point.successes / point.episodes) for point in read_curve(folder))


def analyse(
    runs: Sequence[Run], *, encoders: Sequence[str], reference: str, targets: Sequence[float]
) -> dict[str, Any]:
    """Return every number of a comparison as plain JSON values; `encoders` are the labels in their order."""
    main, layered = [run for run in runs if run.layer is None], [run for run in runs if run.layer is not None]
    tests = list(dict.fromkeys(run.test for run in runs))
    counts = sorted({run.demonstrations for run in main})
    present = [label for label in encoders if any(run.encoder == label for run in main)]
    cells = [
        _cell([run for run in main if (run.test, run.encoder, run.demonstrations) == (test, label, count)])
        for test in tests
        for count in counts
        for label in present
    ]
    pairs = [
        pair
        for test in tests
        for count in counts
        for label in present
        if label != reference and (pair := _pair(_at(main, test, count), reference, label))
    ]
    curves = [curve for test in tests for label in present for curve in _curves(main, test, label, targets)]
    largest = max(counts, default=0)
    return {
        "cells": [cell for cell in cells if cell],
        "pairs": [{**pair, "words": words(pair)} for pair in pairs],
        "curves": curves,
        "layers": _layer_curves([*layered, *main], largest),
        "runs": [as_record(run) for run in runs],
    }


# ---------------------------------------------------------------------------------------------------------------- parts


def _cell(runs: Sequence[Run]) -> dict[str, Any]:
    """Sum up one encoder at one number of demonstrations under one test."""
    if not runs:
        return {}
    groups = _scores(runs)
    episodes = [outcome for run in runs for outcome in run.outcomes]
    rewards = [float(record["reward"]) for run in runs if run.failed is None for record in run.records]
    steps = [int(record["steps"]) for run in runs for record in run.records if record["success"]]
    return {
        "test": runs[0].test,
        "encoder": runs[0].encoder,
        "demonstrations": runs[0].demonstrations,
        **_env_steps(runs),
        "policies": len(runs),
        "tasks": len(groups),
        "iqm": bootstrap_interval(groups, interquartile_mean).as_list(),
        "mean": bootstrap_interval(groups).as_list(),
        "pooled": rate_summary(sum(episodes), len(episodes)),
        "by_task": {env: [round(run.rate, 4) for run in _of(runs, env)] for env in _tasks(runs)},
        "dead": dead_seeds([run.rate for run in runs]),
        "failed": sum(run.failed is not None for run in runs),
        "return": _quartiles(rewards),
        "steps_to_success": _quartiles(steps),
    }


def _pair(runs: Sequence[Run], first: str, second: str) -> dict[str, Any] | None:
    """Compare two encoders on the policy seeds and tasks that both have."""
    both = {(run.env, run.seed) for run in runs if run.encoder == first}
    both &= {(run.env, run.seed) for run in runs if run.encoder == second}
    if not both:
        return None
    one, two = (
        sorted((r for r in runs if r.encoder == label and (r.env, r.seed) in both), key=lambda r: (r.env, r.seed))
        for label in (first, second)
    )
    groups = _scores(one), _scores(two)
    difference = paired_difference(*groups)
    episodes = paired([o for run in one for o in run.outcomes], [o for run in two for o in run.outcomes])
    seeds = min(len(group) for group in groups[0])
    return {
        "test": one[0].test,
        "demonstrations": one[0].demonstrations,
        **_env_steps([*one, *two]),
        "first": first,
        "second": second,
        "tasks": len(groups[0]),
        "seeds": seeds,
        "difference": difference.as_list(),
        "episodes": {
            "both": episodes.both, "only_first": episodes.only_first, "only_second": episodes.only_second,
            "neither": episodes.neither, "mcnemar_p": episodes.p_value,
        },
        "probability_of_improvement": probability_of_improvement(*groups).as_list(),
        "shown": _shown(difference, episodes, seeds),
        **_needed(difference, episodes, groups, one, two, seeds),
    }  # fmt: skip


def _shown(difference: Estimate, episodes: Paired, seeds: int) -> bool:
    apart = difference.low > 0 or difference.high < 0
    return seeds > 1 and apart and episodes.p_value < _LIKELY_WRONG


def _needed(
    difference: Estimate, episodes: Paired, groups: tuple[list[list[float]], list[list[float]]], one: Sequence[Run],
    two: Sequence[Run], seeds: int,
) -> dict[str, int | None]:  # fmt: skip
    """Return the policy seeds a task, and the episodes of two fixed policies, that would show this difference.

    Seeds have to satisfy both halves of `_shown`; where it is not shown, more than there are.
    """
    rates = [float(np.mean([o for run in runs for o in run.outcomes])) for runs in (one, two)]
    apart = abs(difference.value) > 1e-9
    by_seeds = needed_seeds(*groups, difference.value) if apart and seeds > 1 else None
    a_seed = episodes.episodes / seeds  # pairs of episodes that a policy seed of every task brings
    by_episodes = math.ceil(needed_pairs(episodes) / a_seed) if episodes.difference else None
    enough = None if by_seeds is None or by_episodes is None else max(by_seeds, by_episodes)
    if enough is not None and not _shown(difference, episodes, seeds):
        enough = max(enough, seeds + 1)
    return {
        "needed_seeds": enough,
        "needed_rollouts": needed_rollouts(*rates) if abs(rates[0] - rates[1]) > 1e-9 else None,
    }


def _curves(runs: Sequence[Run], test: str, label: str, targets: Sequence[float]) -> list[dict[str, Any]]:
    """Return the learning curves: over environment steps where the learner acts, one a count, else over the counts."""
    mine = [run for run in runs if run.encoder == label and run.test == test]
    acting = [run for run in mine if len(run.curve) > 1] if test == "plain" else []
    found: list[tuple[str, int | None, _Points]] = [
        (STEPS, count, _over_steps([run for run in mine if run.demonstrations == count]))
        for count in sorted({run.demonstrations for run in acting})
    ]
    return [
        {"test": test, "encoder": label, "unit": unit, "demonstrations": count, **_curve(points, unit, targets)}
        for unit, count, points in found or [(DEMONSTRATIONS, None, _over_demonstrations(mine))]
        if points
    ]


def _curve(points: _Points, unit: str, targets: Sequence[float]) -> dict[str, Any]:
    """Sum up the measurements of one encoder by task and seed."""
    grid = _grid(list(points.values()), unit)
    on_grid = {
        key: np.interp(grid, [x for x, _ in curve], [y for _, y in curve]) for key, curve in sorted(points.items())
    }
    estimates = [
        bootstrap_interval([[y[i] for (env, _), y in on_grid.items() if env == task] for task in _envs(on_grid)],
                           interquartile_mean).as_list()
        for i in range(len(grid))
    ]  # fmt: skip
    return {
        "x": [float(x) for x in grid], "iqm": estimates,
        "by_task": {task: [[round(float(v), 4) for v in y] for (env, _), y in on_grid.items() if env == task]
                    for task in _envs(on_grid)},
        "task_means": {task: [bootstrap_interval([[y[i] for (env, _), y in on_grid.items() if env == task]]).as_list()
                              for i in range(len(grid))] for task in _envs(on_grid)},
        "steps_to": {str(target): _reached(points, target) for target in targets},
    }  # fmt: skip


def _over_steps(runs: Sequence[Run]) -> _Points:
    """Return success over environment steps by task and seed; a policy that could not be trained never succeeds."""
    curves = {(run.env, run.seed): run.curve for run in runs if len(run.curve) > 1}
    first, last = max(curve[0][0] for curve in curves.values()), min(curve[-1][0] for curve in curves.values())
    never = ((first, 0.0), (max(first, last), 0.0))
    return {**curves, **{(run.env, run.seed): never for run in runs if run.failed is not None}}


def _over_demonstrations(runs: Sequence[Run]) -> _Points:
    """Return success over demonstrations by task and seed, of the seeds that have every count; {} for one count."""
    counts = {run.demonstrations for run in runs}
    found = {
        key: tuple(sorted((run.demonstrations, run.rate) for run in runs if (run.env, run.seed) == key))
        for key in {(run.env, run.seed) for run in runs}
    }
    return {key: curve for key, curve in found.items() if len(curve) == len(counts) > 1}


def _grid(curves: Sequence[Sequence[tuple[int, float]]], unit: str) -> np.ndarray:
    """Return where the curves are compared: their own points, or even steps where all have been measured."""
    if unit == DEMONSTRATIONS:
        return np.array([x for x, _ in curves[0]], dtype=np.float64)
    first, last = max(curve[0][0] for curve in curves), min(curve[-1][0] for curve in curves)
    return np.linspace(first, max(first, last), _CURVE_POINTS)


def _reached(points: _Points, target: float) -> dict[str, Any]:
    """Return how many runs reach a target, and the median of where; a run that never does counts as infinite.

    None stands for infinity: a median, or an end of its interval, that lies beyond what was measured.
    """
    where = {key: steps_to([x for x, _ in curve], [y for _, y in curve], target) for key, curve in points.items()}
    groups = [[x for (env, _), x in where.items() if env == task] for task in _envs(points)]
    found = [x for group in groups for x in group]
    middle = median_interval([[np.inf if x is None else x for x in group] for group in groups])
    value, low, high = (round(x, 4) if np.isfinite(x) else None for x in (middle.value, middle.low, middle.high))
    there = sorted(x for x in found if x is not None)
    return {"reached": len(there), "of": len(found), "median": value, "interval95": [low, high], "values": there}


def _layer_curves(runs: Sequence[Run], count: int) -> list[dict[str, Any]]:
    labels = list(dict.fromkeys(run.parent for run in runs if run.parent))
    found = []
    for label in labels:
        mine = [run for run in runs if run.parent == label and run.demonstrations == count]
        for test in dict.fromkeys(run.test for run in mine):
            layers = list(dict.fromkeys(run.layer for run in mine))
            rows = [_cell([r for r in mine if r.layer == layer and r.test == test]) for layer in layers]
            points = [{"layer": layer, **row} for layer, row in zip(layers, rows, strict=True) if row]
            found.append({"encoder": label, "test": test, "demonstrations": count, "points": points})
    return found


# -------------------------------------------------------------------------------------------------------------- sorting


def _at(runs: Iterable[Run], test: str, count: int) -> list[Run]:
    return [run for run in runs if run.test == test and run.demonstrations == count]


def _tasks(runs: Iterable[Run]) -> list[str]:
    return sorted({run.env for run in runs})


def _envs(keys: Iterable[tuple[str, int]]) -> list[str]:
    return sorted({env for env, _ in keys})


def _of(runs: Iterable[Run], env: str) -> list[Run]:
    return sorted((run for run in runs if run.env == env), key=lambda run: run.seed)


def _scores(runs: Sequence[Run]) -> list[list[float]]:
    """Return success rates by task, each in the order of policy seeds."""
    return [[run.rate for run in _of(runs, env)] for env in _tasks(runs)]


def _env_steps(runs: Sequence[Run]) -> dict[str, int]:
    """Return the median of the environment steps that runs learned from; {} where they only saw demonstrations."""
    steps = [run.env_steps for run in runs if run.env_steps is not None]
    return {"env_steps": int(np.median(steps))} if steps else {}


def _quartiles(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    low, middle, high = np.percentile(values, [25, 50, 75])
    return {"mean": round(float(np.mean(values)), 4), "q25": float(low), "median": float(middle), "q75": float(high)}
