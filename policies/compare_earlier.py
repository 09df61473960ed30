"""What does a published comparison give to one that is run here, and when must it not?

A comparison.json has every held-out start of every policy, so its policies are counted here as if they had been
trained here: where all that policies share, the encoders, the scenes and the held-out starts are the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policies.compare_layers import encoder_on
from policies.compare_plan import PLAIN, Cell, CompareConfig, cells, condition, design
from policies.compare_record import Run, from_record
from policies.environment import plain
from policies.settings import flat, idle_sections, told_change
from toto_robot.data.episodes import EpisodeStore
from toto_robot.run_folder import read_json

# What may differ: it changes no policy and no start. How many starts count is looked at for each policy.
_FREE = (
    "shared.evaluate_other", "shared.ppo.workers", "shared.ppo.threads", "shared.ppo.checkpoint_every",
    "shared.dagger.workers", "shared.dagger.initial_demonstrations",
    *(f"shared.evaluation.{key}" for key in ("episodes", "workers", "envs_per_worker", "videos")),
)  # fmt: skip
_SHARED = ("policy", "demonstration_looks", "demonstration_strength", "shared")


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """What the files of `earlier` hold of the grid."""

    runs: Mapping[tuple[Any, ...], Run]  # by Run.key
    encoders: Mapping[str, Mapping[str, Any]]  # what a frame costs, by label
    stores: Mapping[str, Any]  # how demonstrations came about, by task
    sources: tuple[Mapping[str, Any], ...]  # file, commit, date, machine; those that it had itself follow it

    def has(self, cell: Cell, config: CompareConfig) -> bool:
        """Say whether a policy was tested under every condition, on the starts that are asked for or more."""
        return all(cell.key(test) in self.runs for test in config.tests)

    def whole(self, config: CompareConfig) -> dict[str, Mapping[str, Any]]:
        """Return what a frame costs under the encoders of which no policy is missing."""
        missing = {cell.entry.label for cell in cells(config) if not self.has(cell, config)}
        return {label: facts for label, facts in self.encoders.items() if label not in missing}

    def check_encoders(self, costs: Mapping[str, Mapping[str, Any]], tasks: Iterable[str]) -> None:
        """Raise ValueError where an encoder of the same label is another one on some task."""
        for label, env in itertools.product(sorted({run.encoder for run in self.runs.values()} & {*costs}), tasks):
            theirs, ours = (encoder_on(of, label, env).get("fingerprint") for of in (self.encoders, costs))
            if theirs != ours and ours is not None:
                raise ValueError(
                    f"earlier comparison: encoders.{label}.fingerprint differs ({str(theirs)[:16]} -> {ours[:16]}, "
                    f"{env}); give the encoder another label, as in encoders=[mine:{label}]"
                )

    def check_stores(self, stores: Mapping[str, Any]) -> None:
        """Raise ValueError where demonstrations of a task came about otherwise; what a file does not tell passes."""
        for env in self.stores.keys() & stores.keys():
            if self.stores[env] != stores[env]:
                changed = told_change(flat(self.stores[env]), now := flat(stores[env]), now)
                raise ValueError(
                    f"earlier comparison: the demonstrations of {env} were made otherwise ({'; '.join(changed)}): its "
                    "policies cannot be counted beside those of this store"
                )

    def check_scenes(self, scenes: Iterable[tuple[str, str | None]]) -> None:
        """Raise ValueError where a task, given with its scene's hash, is not the one that was tested in."""
        known = {run.env: run.scene for run in self.runs.values() if run.scene is not None}
        for env, scene in scenes:
            if scene is not None and known.get(env, scene) != scene:
                raise ValueError(
                    f"earlier comparison: the scene of {env} differs ({known[env][:16]} -> {scene[:16]}); the starts "
                    "are not the same: use the version of toto_robot that made it, or leave it out"
                )


def read_earlier(config: CompareConfig) -> Earlier:
    """Read the files of `earlier`; ValueError names the key that differs. The first file that has a policy gives it."""
    asked = {test: len(condition(config, test).seeds) for test in config.tests}
    wanted = {cell.key(test) for cell in cells(config) for test in config.tests}
    runs: dict[tuple[Any, ...], Run] = {}
    encoders: dict[str, Mapping[str, Any]] = {}
    stores: dict[str, Any] = {}
    sources: list[Mapping[str, Any]] = []
    for path in map(Path, config.earlier):
        result = _read(path)
        _check(path, result, config)
        given = [from_record(record) for record in result["runs"]]
        found = {run.key: cut for run in given if run.key in wanted and (cut := run.on_first(asked[run.test]))}
        for key, run in found.items():
            runs.setdefault(key, run)
        used = {key[1] for key in found}
        costs = {label: result["encoders"].get(label, {}) for label in used}
        costs |= {
            row: of for row, of in result["encoders"].items() if any(row.startswith(f"{label} on ") for label in used)
        }
        _check_twice(path, encoders, costs)
        encoders |= costs
        stores |= {env: of for env, of in result.get("stores", {}).items() if env in {key[0] for key in found}}
        told = {key: result[key] for key in ("commit", "date", "machine")}
        sources += [{"file": path.name, **told, "policies": len({key[:-1] for key in found})}]
        sources += [{**source, "file": f"{path.name}: {source['file']}"} for source in result.get("sources", ())]
    return Earlier(runs=runs, encoders=encoders, stores=stores, sources=tuple(sources))


def told_store(path: Path) -> dict[str, Any]:
    """Return how a store came about: the settings that it was collected with, or its content where people made it.

    The same expert and seeds need not give the same bits on another machine, hence not the content of the former.
    """
    store = EpisodeStore.open(path)
    collected = store.provenance.get("collect")
    return {"collect": plain(collected)} if collected is not None else {"content": store.content_hash()}


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"no file {path}: expected earlier=[<comparison.json>,...], what `toto_robot compare` leaves")
    result: dict[str, Any] = read_json(path)
    if not isinstance(result, dict) or not {"design", "runs", "encoders"} <= set(result):
        raise ValueError(f"{path} is no comparison.json of `toto_robot compare`")
    if any("starts" not in record for record in result["runs"]):
        raise ValueError(
            f"{path} has rates without their starts: it was written before they were kept. Where its run folder still "
            "is, the same command writes it anew"
        )
    return result


def _check(path: Path, result: Mapping[str, Any], config: CompareConfig) -> None:
    """Raise ValueError naming what all policies share and the file has otherwise; keys that it lacks are defaults."""
    theirs, ours = _shared(result["design"]), _shared(design(config))
    before = {**_shared(design(CompareConfig(policy=config.policy))), **theirs}
    varied = [test for test in config.tests if test != PLAIN and test in result["design"]["tests"]]
    if varied:
        before["test_strength"], ours["test_strength"] = result["design"]["test_strength"], config.test_strength
    skipped = tuple(f"shared.{section}." for section in idle_sections(config.policy))
    keys = [key for key in {**before, **ours} if key not in _FREE and not key.startswith(skipped)]
    changed = told_change(before, ours, keys)
    if changed:
        raise ValueError(f"{path} was made under other settings ({'; '.join(changed)}): it cannot be counted here")


def _shared(of: Mapping[str, Any]) -> dict[str, Any]:
    return flat(plain({key: of[key] for key in _SHARED if key in of}))


def _check_twice(path: Path, known: Mapping[str, Mapping[str, Any]], new: Mapping[str, Mapping[str, Any]]) -> None:
    for label in known.keys() & new.keys():
        if known[label].get("fingerprint") != new[label].get("fingerprint"):
            raise ValueError(f"{path}: encoders.{label}.fingerprint differs from that of another file of earlier")
