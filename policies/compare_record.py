"""How does a policy's result stand in comparison.json, so that it can be counted again without its weights?

A record has the rate for readers, and every held-out start behind it: its seed by place, success as a string of 0 and
1, steps and reward as lists. What learns while it acts has its curve too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from policies.statistics import rate_summary
from toto_robot.run_folder import write_text

_OPTIONAL = ("layer", "parent", "env_steps", "scene", "head_parameters", "failed", "demonstrations_hash")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One policy under one condition."""

    env: str
    encoder: str  # label
    demonstrations: int  # that it learned from or began with; 0 where a learner needs none
    seed: int
    test: str  # plain, or the axes that varied
    records: Sequence[Mapping[str, Any]]  # one a held-out start, in the order of the starts
    first_seed: int = 0  # of the held-out starts, which follow each other
    curve: tuple[tuple[int, float], ...] = ()  # (environment steps, success rate) while it learned
    layer: str | None = None  # of the layer curve
    parent: str | None = None  # the encoder that this is a layer of
    env_steps: int | None = None  # that it learned from, of a learner that acts
    scene: str | None = None  # hash of the scene that it was tested in
    head_parameters: int | None = None  # weights that were trained
    failed: str | None = None  # why there is no policy: every start counts as a failure
    demonstrations_hash: str | None = None  # of those that it learned from
    commits: tuple[str | None, ...] = ()  # of the code that trained it

    @property
    def outcomes(self) -> list[bool]:
        """Success by held-out start."""
        return [bool(record["success"]) for record in self.records]

    @property
    def rate(self) -> float:
        """Share of successful episodes."""
        return float(np.mean(self.outcomes))

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells it from the other runs of a comparison."""
        return self.env, self.encoder, self.demonstrations, self.seed, self.test

    def on_first(self, episodes: int) -> Run | None:
        """Return its result on the first starts alone; None where it has been tested on fewer."""
        return replace(self, records=self.records[:episodes]) if len(self.records) >= episodes else None


def failed_records(episodes: int) -> list[dict[str, Any]]:
    """Return what stands for the starts of a policy that could not be trained."""
    return [{"success": False, "steps": 0, "reward": 0.0}] * episodes


def as_record(run: Run) -> dict[str, Any]:
    """Return the entry of a run in comparison.json."""
    found = {
        "env": run.env, "encoder": run.encoder, "demonstrations": run.demonstrations, "seed": run.seed,
        "test": run.test, **rate_summary(sum(run.outcomes), len(run.records)),
    }  # fmt: skip
    found |= {key: value for key in _OPTIONAL if (value := getattr(run, key)) is not None}
    found["starts"] = {
        "seeds": [run.first_seed, run.first_seed + len(run.records) - 1],
        "success": "".join(str(int(outcome)) for outcome in run.outcomes),
        "steps": [int(record["steps"]) for record in run.records],
        "reward": [float(record["reward"]) for record in run.records],
    }
    if run.commits:
        found["commits"] = list(run.commits)
    if run.curve:
        found["curve"] = {"env_steps": [x for x, _ in run.curve], "rate": [y for _, y in run.curve]}
    return found


def from_record(record: Mapping[str, Any]) -> Run:
    """Return the run that `as_record` wrote."""
    starts, curve = record["starts"], record.get("curve", {"env_steps": [], "rate": []})
    each = zip(starts["success"], starts["steps"], starts["reward"], strict=True)
    named: dict[str, Any] = {key: record[key] for key in ("env", "encoder", "demonstrations", "seed", "test")}
    return Run(
        **named,
        **{key: record[key] for key in _OPTIONAL if key in record},
        records=[{"success": won == "1", "steps": steps, "reward": reward} for won, steps, reward in each],
        first_seed=starts["seeds"][0],
        curve=tuple(zip(curve["env_steps"], curve["rate"], strict=True)),
        commits=tuple(record.get("commits", ())),
    )


def check_same_demonstrations(runs: Iterable[Run]) -> None:
    """Raise ValueError where two policies of one task and number of demonstrations learned from different ones."""
    known: dict[tuple[str, int], Run] = {}
    for run in runs:
        if run.demonstrations_hash is not None:
            first = known.setdefault((run.env, run.demonstrations), run)
            if first.demonstrations_hash != run.demonstrations_hash:
                raise ValueError(
                    f"policies of {run.env} learned from different {run.demonstrations} demonstrations: "
                    f"{first.encoder}, seed {first.seed}: {str(first.demonstrations_hash)[:12]}; {run.encoder}, seed "
                    f"{run.seed}: {run.demonstrations_hash[:12]}. The store has changed since; delete the cells of one"
                )


def write_compact(path: Path, value: Any) -> None:
    """Write JSON as `write_json` does, but a list of numbers on one line."""
    text = json.dumps(value, indent=2, default=str)
    write_text(path, re.sub(r"\[\n([^\[\]{}\"]+)\]", lambda found: f"[{' '.join(found[1].split())}]", text) + "\n")
