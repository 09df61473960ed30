"""How is one encoder compared with another so that nobody can dispute it: same data, seeds, head, budget, starts?

Every policy of the grid is a run folder of its own (`<run>/cells/<task>/<encoder>/<demonstrations>-<seed>`), trained
and tested exactly as `train-policy` does. A kill loses at most the policy in work; several processes given the same
command share the grid, each taking policies that nobody has. What the numbers mean stands in compare_analysis.py.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from policies.aggregate import forget_views
from policies.bundle import bundle_hash
from policies.compare_analysis import Run, analyse, success_curve
from policies.compare_plan import (
    PLAIN,
    Cell,
    CompareConfig,
    Entry,
    cells,
    condition,
    demonstrations,
    shared_settings,
)
from policies.compare_report import write_comparison
from policies.compare_words import sentences
from policies.encoder import open_encoder
from policies.encoder_cost import encoder_cost
from policies.evaluate import Evaluator, attach_evaluation, read_outcomes
from policies.statistics import Rate
from policies.train import BUNDLE, train_bundle
from toto_robot.run_folder import git_commit, lock_folder, machine, read_json, wait_for_folder, write_json

_POLL_S = 5.0  # between looks at policies that other processes have
_REPORT_S = 120.0  # between reports while policies are trained


def compare(config: CompareConfig, run_dir: Path) -> int:
    """Train and test every encoder on the same demonstrations, seeds, head and budget; write one report.

    Writes report.html (self-contained) and comparison.json (every number). Encoders are `[label:]name[=path]
    [@key=value]...`: toto, mae=outputs/pretrain/mae/pretrained_model, short:toto@context_frames=1. The same command
    continues; start it several times with one run=<folder> to share the work; more seeds, encoders or demonstrations
    extend it. Stopped early, the report holds what is done.
    """
    result = compare_encoders(config, run_dir)
    print("\n".join(sentences(result)))
    print(f"open {run_dir / 'report.html'}; every number is in {run_dir / 'comparison.json'}")
    return 0


def compare_encoders(config: CompareConfig, run_dir: Path) -> dict[str, Any]:
    """Do what is left of a comparison and return what `comparison.json` holds."""
    stores = {env: demonstrations(config, env) for env in config.tasks}
    costs = encoder_costs([*config.entries, *config.layer_entries], run_dir)
    with Evaluator(config.train.evaluation) as evaluator:
        _run_all(config, run_dir, cells(config), stores, evaluator, costs)
    return report(config, run_dir, costs)


def report(config: CompareConfig, run_dir: Path, costs: dict[str, Any]) -> dict[str, Any]:
    """Analyse the policies that are done, write comparison.json and report.html, return the former."""
    runs = read_runs(config, run_dir)
    result = {
        "design": {
            **{key: getattr(config, key) for key in ("policy", "seeds", "tests", "test_strength", "targets")},
            "tasks": config.tasks,
            "encoders": [entry.label for entry in config.entries],
            "reference": config.against,
            "demonstrations": sorted(config.demonstrations),
            "demonstration_looks": list(config.randomize),
            "planned_runs": len(cells(config)),
            "shared": shared_settings(config),
        },
        "machine": machine(),
        "commit": git_commit(),
        "date": time.strftime("%Y-%m-%d"),
        "encoders": costs,
        **analyse(
            runs, encoders=[entry.label for entry in config.entries], reference=config.against, targets=config.targets
        ),
    }
    write_json(run_dir / "comparison.json", result)
    write_comparison(run_dir, result, _pictures(config, run_dir), _next(config, run_dir))
    return result


def encoder_costs(entries: Sequence[Entry], run_dir: Path) -> dict[str, Any]:
    """Return what a frame costs under each encoder, measured once a comparison."""
    path = run_dir / "encoders.json"
    with wait_for_folder(run_dir / ".locks" / "costs"):
        known: dict[str, Any] = read_json(path) if path.exists() else {}
        for entry in entries:
            encoder = open_encoder(entry.config)
            if known.get(entry.label, {}).get("fingerprint") != encoder.fingerprint:
                known[entry.label] = {"path": entry.config.path, **encoder_cost(encoder)}
                write_json(path, known)
    return {entry.label: known[entry.label] for entry in entries}


def read_runs(config: CompareConfig, run_dir: Path) -> list[Run]:
    """Return what every finished policy did under every condition; the unfinished are left out."""
    found = []
    for cell in cells(config):
        for test in config.tests:
            folder = run_dir / "cells" / cell.name
            seeds = condition(config, test).seeds
            bundle = folder / BUNDLE
            made = (bundle / "hashes.json").exists()
            outcomes = read_outcomes(folder_of_test(folder, test), bundle_hash(bundle)) if made else {}
            if all(seed in outcomes for seed in seeds):
                records = [outcomes[seed] for seed in seeds]
                entry = cell.entry
                run = Run(
                    env=cell.env, encoder=entry.label, demonstrations=cell.demonstrations, seed=cell.seed, test=test,
                    records=records, curve=success_curve(folder), layer=entry.layer, parent=entry.parent,
                )  # fmt: skip
                found.append(run)
    return found


# ---------------------------------------------------------------------------------------------------------------- cells


def _run_all(
    config: CompareConfig, run_dir: Path, wanted: Sequence[Cell], stores: dict[str, Path | None], evaluator: Evaluator,
    costs: dict[str, Any],
) -> None:  # fmt: skip
    waiting, spent_s, reported = list(wanted), [], time.monotonic()
    while waiting:
        taken: list[Cell] = []
        for index, cell in enumerate(waiting):
            lock = _take(run_dir / ".locks" / cell.name)
            if lock is None:
                taken.append(cell)
                continue
            began = time.monotonic()
            with contextlib.closing(lock):
                told = _run_cell(config, run_dir / "cells" / cell.name, cell, stores[cell.env], evaluator)
            if time.monotonic() - began > 1:  # less: it was done before
                spent_s.append(time.monotonic() - began)
            left = len(waiting) - index - 1 + len(taken)
            minutes = left * sum(spent_s) / max(1, len(spent_s)) / 60
            print(f"[{len(wanted) - left}/{len(wanted)}] {cell.name}: {told}, {minutes:.0f} min left", flush=True)
            if time.monotonic() - reported > _REPORT_S:
                report(config, run_dir, costs)  # a look at what there is, while the rest runs
                reported = time.monotonic()
        if len(taken) == len(waiting):
            time.sleep(_POLL_S)
        elif taken:
            print(f"waiting for {len(taken)} policies that other processes work on", flush=True)
        waiting = taken


def _take(folder: Path) -> io.TextIOWrapper | None:
    """Return the lock of a policy, or None while another process has it."""
    try:
        return lock_folder(folder)
    except ValueError:
        return None


def _run_cell(config: CompareConfig, folder: Path, cell: Cell, store: Path | None, evaluator: Evaluator) -> str:
    """Train and test one policy, or find it done; return its rates as a line."""
    bundle = train_bundle(cell.train_config(config, store), folder)
    told = []
    for test in config.tests:
        found = evaluator.evaluate(bundle, folder_of_test(folder, test), condition(config, test))
        told.append(f"{test} {Rate(successes=found['successes'], episodes=found['episodes'])}")
        if test == PLAIN:
            attach_evaluation(bundle, found)
    forget_views(folder)
    return ", ".join(told)


def folder_of_test(cell_folder: Path, test: str) -> Path:
    """Return where the results of one condition lie."""
    return cell_folder if test == PLAIN else cell_folder / "tests" / test


def _pictures(config: CompareConfig, run_dir: Path) -> list[tuple[str, Path]]:
    """Return what the first policy of the reference does on each task, where it is done."""
    first = [cell for cell in cells(config) if cell.entry.label == config.against and cell.seed == 0]
    found = {cell.env: (f"{cell.name}: a success, a failure", run_dir / "cells" / cell.name / "rollouts.png")
             for cell in reversed(first)}  # fmt: skip
    return [(caption, path) for caption, path in found.values() if path.exists()]


def _next(config: CompareConfig, run_dir: Path) -> list[str]:
    cell = cells(config)[0]
    return [
        f"toto_robot compare ... seeds={2 * config.seeds} run={run_dir}   # the same command, more policy seeds",
        f"toto_robot evaluate policy={run_dir / 'cells' / cell.name / BUNDLE} episodes=400",
    ]
