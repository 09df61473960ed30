"""How is one encoder compared with another so that nobody can dispute it: same data, seeds, head, budget, starts?

Every policy of the grid is a run folder of its own (`<run>/cells/<task>/<encoder>/<demonstrations>-<seed>`), trained
and tested exactly as `train-policy` does. A kill loses at most the policy in work; several processes given the same
command share the grid, each taking policies that nobody has. What the numbers mean stands in compare_analysis.py.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from policies.aggregate import forget_views
from policies.bundle import bundle_hash
from policies.compare_analysis import analyse, success_curve
from policies.compare_earlier import Earlier, read_earlier, told_store
from policies.compare_layers import Chosen, choose_layers, costed, encoder_on
from policies.compare_plan import (
    PLAIN,
    Cell,
    CompareConfig,
    Entry,
    cells,
    condition,
    demonstrations,
    design,
)
from policies.compare_record import Run, check_same_demonstrations, failed_records, write_compact
from policies.compare_report import write_comparison
from policies.compare_words import sentences
from policies.encoder import open_encoder
from policies.encoder_cost import encoder_cost, stored_parameters, total_parameters
from policies.evaluate import Evaluator, attach_evaluation, read_outcomes
from policies.failure import training_failed
from policies.origin import check_made_of, read_made_of
from policies.statistics import Rate
from policies.train import BUNDLE, SETTINGS, TrainPolicyConfig, check_begun, train_bundle
from toto_robot.data.episodes import EpisodeStore
from toto_robot.run_folder import git_commit, lock_folder, machine, read_json, wait_for_folder, write_json

FAILED = "failed.json"  # in the folder of a policy that could not be trained
_POLL_S = 5.0  # between looks at policies that other processes have
_REPORT_S = 120.0  # between reports while policies are trained


def compare(config: CompareConfig, run_dir: Path) -> int:
    """Train and test every encoder on the same demonstrations, seeds, head and budget; write one report.

    Writes report.html (self-contained) and comparison.json (every number). Encoders are `[label:]name[=path]
    [@key=value]...`: toto, mae=outputs/pretrain/mae/pretrained_model, short:toto@context_frames=1. The same command
    continues; start it several times with one run=<folder> to share the work; more seeds, encoders or demonstrations
    extend it, and so do the comparison.json files of earlier=[...]. Stopped early, the report holds what is done.
    """
    result = compare_encoders(config, run_dir)
    print("\n".join(sentences(result)))
    print(f"open {run_dir / 'report.html'}; every number is in {run_dir / 'comparison.json'}")
    return 0


def compare_encoders(config: CompareConfig, run_dir: Path) -> dict[str, Any]:
    """Do what is left of a comparison and return what `comparison.json` holds."""
    earlier = read_earlier(config)
    missing = {cell.env for cell in cells(config) if not earlier.has(cell, config)}
    stores = {env: demonstrations(config, env) if env in missing else None for env in config.tasks}
    earlier.check_scenes((env, _scene(path)) for env, path in stores.items() if path is not None)
    published = earlier.whole(config)
    chosen = choose_layers(config, run_dir, stores, published)
    costs = encoder_costs(costed(config, chosen), run_dir, published)
    earlier.check_encoders(costs, config.tasks)
    told = {**earlier.stores, **{env: told_store(path) for env, path in stores.items() if path is not None}}
    earlier.check_stores(told)
    work = _Work(config, run_dir, earlier, costs, chosen, told)
    with Evaluator(config.train.evaluation) as evaluator:
        _run_all(work, stores, evaluator)
    return report(work)


@dataclass(frozen=True)
class _Work:
    """What all steps of a comparison need."""

    config: CompareConfig
    run_dir: Path
    earlier: Earlier
    costs: Mapping[str, Any]
    chosen: Chosen  # encoders whose layer was left open
    stores: Mapping[str, Any]  # task -> how its demonstrations came about

    def train_config(self, cell: Cell, store: Path | None) -> TrainPolicyConfig:
        """Return the settings of `train-policy` that make a policy."""
        train = cell.train_config(self.config, store)
        return replace(train, encoder=self.chosen.get((cell.env, cell.entry.label), train.encoder))

    def folder(self, cell: Cell) -> Path:
        """Return the run folder of a policy."""
        return self.run_dir / "cells" / cell.name

    def here(self, cell: Cell) -> bool:
        """Say whether a policy was trained here, or failed to be."""
        return any((self.folder(cell) / name).exists() for name in (BUNDLE, FAILED))


def report(work: _Work) -> dict[str, Any]:
    """Analyse the policies that are done, write comparison.json and report.html, return the former."""
    config, run_dir, runs = work.config, work.run_dir, read_runs(work)
    result = {
        "design": design(config),
        "machine": machine(),
        "commit": git_commit(),  # of this report; policies have their own
        "date": time.strftime("%Y-%m-%d"),
        "stores": work.stores,
        "sources": list(work.earlier.sources),
        "encoders": {label: {**facts, **_head(runs, label)} for label, facts in work.costs.items()},
        **analyse(
            runs, encoders=[entry.label for entry in config.entries], reference=config.against, targets=config.targets
        ),
    }
    write_compact(run_dir / "comparison.json", result)
    write_comparison(run_dir, result, _pictures(config, run_dir), _next(config, run_dir))
    return result


def _head(runs: Sequence[Run], label: str) -> dict[str, int]:
    """Return the size of what was trained on an encoder, where a policy is done."""
    sizes = [run.head_parameters for run in runs if run.encoder == label and run.head_parameters is not None]
    return {"head_parameters": sizes[0]} if sizes else {}


def encoder_costs(entries: Sequence[Entry], run_dir: Path, published: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a frame costs under each encoder, measured once a comparison.

    An encoder that is not at hand, and not needed because all its policies are published, costs what was published.
    """
    path = run_dir / "encoders.json"
    with wait_for_folder(run_dir / ".locks" / "costs"):
        known: dict[str, Any] = read_json(path) if path.exists() else {}
        for entry in entries:
            try:
                encoder = open_encoder(entry.config)
            except ValueError:
                if entry.label not in published:
                    raise
                known[entry.label] = published[entry.label]
                continue
            if known.get(entry.label, {}).get("fingerprint") != encoder.fingerprint:
                known[entry.label] = {"path": entry.config.path, **encoder_cost(encoder)}
                write_json(path, known)
            elif "total_parameters" not in known[entry.label]:  # measured by an earlier version
                known[entry.label]["total_parameters"] = total_parameters(encoder)
                write_json(path, known)
    return {entry.label: known[entry.label] for entry in entries}


def read_runs(work: _Work) -> list[Run]:
    """Return what every finished policy did under every condition, run here or earlier; the unfinished are left out."""
    found = []
    for cell in cells(work.config):
        for test in work.config.tests:
            run = _read_run(work, cell, test) or work.earlier.runs.get(cell.key(test))
            found += [run] if run is not None else []
    work.earlier.check_scenes((run.env, run.scene) for run in found)
    check_same_demonstrations([run for run in found if run.key not in work.earlier.runs])
    return found


def _read_run(work: _Work, cell: Cell, test: str) -> Run | None:
    """Return what a policy that was trained here did under a condition; None where it is not done."""
    folder, tested = work.folder(cell), condition(work.config, test)
    seeds = tested.seeds
    env, encoder, demonstrated, seed, _ = cell.key(test)
    begun = Run(
        env=env, encoder=encoder, demonstrations=demonstrated, seed=seed, test=test, records=failed_records(len(seeds)),
        first_seed=seeds[0], layer=cell.entry.layer, parent=cell.entry.parent,
    )  # fmt: skip
    if (folder / FAILED).exists():
        return replace(begun, failed=read_json(folder / FAILED)["reason"])
    bundle = folder / BUNDLE
    if not (bundle / "hashes.json").exists():
        return None
    outcomes = read_outcomes(folder_of_test(folder, test), bundle_hash(bundle), tested)
    if not all(seed in outcomes for seed in seeds):
        return None
    description, made_of = read_json(bundle / "policy.json"), read_made_of(folder / SETTINGS)
    check_made_of(made_of, {"encoder": encoder_on(work.costs, encoder, env)["fingerprint"]}, folder)
    return replace(
        begun,
        records=[outcomes[seed] for seed in seeds],
        curve=success_curve(folder),
        env_steps=description["training"].get("env_steps"),
        scene=description["task"]["scene_hash"],
        head_parameters=stored_parameters(bundle / "head"),
        demonstrations_hash=made_of.get("demonstrations"),
        commits=tuple(made_of.get("commits", ())),
    )


def _scene(store: Path) -> str | None:
    return EpisodeStore.open(store).env.get("scene_hash")


# ---------------------------------------------------------------------------------------------------------------- cells


def _run_all(work: _Work, stores: Mapping[str, Path | None], evaluator: Evaluator) -> None:
    wanted = [cell for cell in cells(work.config) if work.here(cell) or not work.earlier.has(cell, work.config)]
    waiting, spent_s, reported = list(wanted), [], time.monotonic()
    while waiting:
        taken: list[Cell] = []
        for index, cell in enumerate(waiting):
            lock = _take(work.run_dir / ".locks" / cell.name)
            if lock is None:
                taken.append(cell)
                continue
            began = time.monotonic()
            with contextlib.closing(lock):
                told = _run_cell(work, cell, work.train_config(cell, stores[cell.env]), evaluator)
            if time.monotonic() - began > 1:  # less: it was done before
                spent_s.append(time.monotonic() - began)
            left = len(waiting) - index - 1 + len(taken)
            minutes = left * sum(spent_s) / max(1, len(spent_s)) / 60
            print(f"[{len(wanted) - left}/{len(wanted)}] {cell.name}: {told}, {minutes:.0f} min left", flush=True)
            if time.monotonic() - reported > _REPORT_S:
                report(work)  # a look at what there is, while the rest runs
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


def _run_cell(work: _Work, cell: Cell, train: TrainPolicyConfig, evaluator: Evaluator) -> str:
    """Train and test one policy, or find it done or failed; return its rates as a line."""
    folder = work.folder(cell)
    if not (folder / FAILED).exists():
        try:
            return _rates(work.config, folder, train, evaluator)
        except ValueError as error:
            if not training_failed(error):
                raise
            evaluator.restart(error)
            write_json(folder / FAILED, {"reason": str(error), "commit": git_commit(), "date": time.strftime("%F")})
    check_begun(train, folder)
    reason = read_json(folder / FAILED)["reason"]
    return f"failed, counted as no success ({reason}; delete {folder} to try again)"


def _rates(config: CompareConfig, folder: Path, train: TrainPolicyConfig, evaluator: Evaluator) -> str:
    bundle = train_bundle(train, folder)
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
