"""How often does a policy succeed on seeds that no demonstration has used, and how sure is that number?"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from tqdm import tqdm

from policies.bundle import bundle_hash, check_bundle, write_card
from policies.environment import randomization
from policies.latency import read_latency
from policies.policy_card import model_card
from policies.processes import Processes, usable_cores
from policies.rollout import EpisodeResult, Job, worker
from policies.statistics import Rate, rate_summary
from policies.videos import keep_first, write_outcomes, write_overview
from toto_robot.run_folder import read_json, write_json, write_text

FIRST_SEED = 1_000_000  # demonstrations are collected from seed 0 on
_TOLD = ("learner", "env_steps", "demonstrations", "validation_demonstrations", "frames", "seed", "demonstrated_seeds")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How a policy is evaluated."""

    episodes: int = 100  # held-out seeds
    first_seed: int = FIRST_SEED  # seeds first_seed, first_seed + 1, ...
    workers: int | None = None  # processes; null is one a core
    envs_per_worker: int = 8  # environments in lock-step in a process
    videos: int = 2  # videos of successes, and of failures
    randomize: tuple[str, ...] = ()  # axes that change every episode: lights, colors, textures, cameras, ..., or all
    randomize_strength: float = 1.0  # 1 is the whole range of each axis
    latency_s: str | None = None  # delay of every action: seconds, a JSON file of measured ones, or a deployment

    def __post_init__(self) -> None:
        for name in ("episodes", "envs_per_worker"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} of at least 1, got {getattr(self, name)}")
        if self.first_seed < 0 or self.videos < 0:
            raise ValueError(f"expected first_seed and videos of 0 or more, got {self.first_seed} and {self.videos}")

    @property
    def environment(self) -> dict[str, Any]:
        """What the environment is made with, on top of what the policy needs."""
        delay = {} if self.latency_s is None else {"latency_s": read_latency(self.latency_s)}
        return {**randomization(self.randomize, self.randomize_strength), **delay}

    @property
    def conditions(self) -> str:
        """What episodes are run under, in words that two evaluations can be compared by; "" is the plain task."""
        return told_conditions(self.environment)

    @property
    def seeds(self) -> range:
        """All seeds of the evaluation."""
        return range(self.first_seed, self.first_seed + self.episodes)


class Evaluator:
    """Worker processes that evaluate one policy after another; starting them costs seconds, so a table shares them."""

    def __init__(self, config: EvaluationConfig) -> None:
        self.config = config
        self._count = min(config.workers or usable_cores(), config.episodes)
        self._processes: Processes | None = None

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._processes is not None:
            self._processes.__exit__(kind, error, trace)
            self._processes = None

    def restart(self, error: BaseException) -> None:
        """End the processes, one of which an error has ended; the next evaluation starts new ones."""
        self.__exit__(type(error), error, None)

    def evaluate(self, bundle: Path, run_dir: Path, config: EvaluationConfig | None = None) -> dict[str, Any]:
        """Run the seeds that are not done yet, write evaluation.json and return it.

        `config` replaces the evaluator's own, all but the number of processes. ValueError for a damaged bundle, for
        results of another policy or under other conditions in `run_dir`, for demonstrated seeds, or for an environment
        that is not the one of the demonstrations.
        """
        config = config or self.config
        description = check_bundle(bundle)
        _check_held_out(description["training"], config)
        log = _EpisodeLog(run_dir / "episodes.jsonl", bundle_hash(bundle), config.conditions)
        log.repair()
        waiting = [seed for seed in config.seeds if seed not in log.results]
        if waiting:
            self._run(bundle, run_dir, waiting, log, config)
        results = [log.results[seed] for seed in config.seeds]
        evaluation = summarize(results, description, bundle_hash(bundle), config)
        write_json(run_dir / "evaluation.json", evaluation)
        if config.videos:
            strips = keep_first(run_dir / "videos", config.videos)
            shown = [*strips[True][:1], *strips[False][:1]]
            if shown:
                write_overview(run_dir / "rollouts.png", shown)
            if len(shown) == 2:
                write_outcomes(run_dir / "outcomes.mp4", *(strip.with_suffix(".mp4") for strip in shown))
        return evaluation

    def _run(self, bundle: Path, run_dir: Path, seeds: list[int], log: _EpisodeLog, config: EvaluationConfig) -> None:
        if self._processes is None:
            self._processes = Processes(self._count, worker).__enter__()
        for index in range(self._count):
            share = tuple(seeds[index :: self._count])  # fixed by the seed list, not by who is faster
            if share:
                self._processes.send(index, _job(bundle, run_dir, share, index, config))
        successes = sum(result["success"] for result in log.results.values())
        done = len(log.results)
        with tqdm(total=done + len(seeds), initial=done, desc="evaluate", unit="episode", smoothing=0.05) as bar:
            missing = len(seeds)
            while missing:
                for _, result in self._processes.results():
                    log.append(result)
                    missing -= 1
                    successes += result.success
                    bar.update()
                    bar.set_postfix_str(f"{successes}/{len(log.results)} succeeded")


def _job(bundle: Path, run_dir: Path, seeds: tuple[int, ...], index: int, config: EvaluationConfig) -> Job:
    return Job(
        bundle=str(bundle),
        seeds=seeds,
        slots=config.envs_per_worker,
        worker=index,
        videos=str(run_dir / "videos") if config.videos else None,
        videos_each=config.videos,
        settings=config.environment,
    )


def summarize(
    results: Sequence[Mapping[str, Any]], description: Mapping[str, Any], policy_hash: str, config: EvaluationConfig
) -> dict[str, Any]:
    """Return evaluation.json: the rate and its interval, how long it took to succeed, and where failures lie.

    `by_environment` exposes errors that hit some environments of a process only, such as shared GL contexts
    (facts/proto.md 4): a rate that differs between rows by more than chance is a bug, not a policy.
    """
    task, encoder, training = description["task"], description["encoder"], description["training"]
    succeeded = [result["steps"] for result in results if result["success"]]
    steps = sum(result["steps"] for result in results)
    rows: dict[tuple[int, int], list[bool]] = defaultdict(list)
    for result in results:
        rows[result["worker"], result["slot"]].append(bool(result["success"]))
    return {
        "env": task["env_id"],
        "preset": task["preset"],
        **rate_summary(len(succeeded), len(results)),
        "seeds": [config.seeds[0], config.seeds[-1]],
        "policy": {"head": description["head"], **{key: training[key] for key in _TOLD if key in training}},
        "encoder": {key: encoder[key] for key in ("name", "layer", "context_frames", "parameters")},
        "hashes": {
            "policy": policy_hash,
            "encoder": encoder["fingerprint"],
            "demonstrations": training.get("demonstrations_hash"),
            "scene": task["scene_hash"],
        },
        "steps_to_success": _quartiles(succeeded),
        "return": _quartiles([result["reward"] for result in results]),
        "ended": {kind: sum(r["ended"] == kind for r in results) for kind in ("success", "failure", "horizon")},
        "ms_per_step": {
            part: round(1000 * sum(result[f"{part}_s"] for result in results) / max(1, steps), 3)
            for part in ("sim", "encode", "head")
        },
        "conditions": config.conditions,
        "randomization": config.environment.get("randomize"),
        "latency_s": _quartiles(config.environment.get("latency_s", ())),
        "batch": config.envs_per_worker,
        "by_environment": [
            {"worker": key[0], "slot": key[1], "episodes": len(row), "successes": sum(row)}
            for key, row in sorted(rows.items())
        ],
    }


def told_conditions(environment: Mapping[str, Any]) -> str:
    """Return in words what an environment is made with beside what the policy needs, a hash of many delays included."""
    axes, delays = environment.get("randomize", {}), environment.get("latency_s", ())
    told = ["every axis varied"] if axes == "all" else [f"{axis} {strength:g}" for axis, strength in axes.items()]
    if len(delays) == 1:
        told.append(f"actions {delays[0]:g} s late")
    elif delays:
        digest = hashlib.sha256(json.dumps(list(delays)).encode()).hexdigest()
        told.append(f"actions {float(np.median(delays)):.3g} s late (median of {len(delays)}, {digest[:8]})")
    return ", ".join(told)


def summary_line(evaluation: Mapping[str, Any]) -> str:
    """Return one line for people."""
    rate = Rate(successes=evaluation["successes"], episodes=evaluation["episodes"])
    encoder, told = evaluation["encoder"]["name"], evaluation["policy"]
    steps_done = f"{told['env_steps']:,} environment steps" if "env_steps" in told else ""
    learned_from = steps_done or f"{told.get('demonstrations')} demonstrations"
    steps, gained = evaluation["steps_to_success"], evaluation["return"]
    took = (
        f", median {steps['median']:.0f} steps [quartiles {steps['q25']:.0f}, {steps['q75']:.0f}]"
        if steps
        else ", no success, which leaves all rates of the interval possible"
    )
    under = f" under {evaluation['conditions']}" if evaluation.get("conditions") else ""
    return (
        f"{evaluation['env']}, encoder {encoder}, {learned_from}{under}: {rate} (Wilson 95 %){took}; "
        f"return median {gained['median']:.3g} [quartiles {gained['q25']:.3g}, {gained['q75']:.3g}]"
    )


def attach_evaluation(bundle: Path, evaluation: Mapping[str, Any] | None) -> None:
    """Put an evaluation, once there is one, and the model card that tells it into the bundle that earned it."""
    card = model_card(read_json(bundle / "policy.json"), bundle_hash(bundle), evaluation)
    write_card(bundle, card, evaluation)


def read_outcomes(run_dir: Path, policy_hash: str, config: EvaluationConfig) -> dict[int, dict[str, Any]]:
    """Return the results of one policy that an evaluation has left in a folder, by held-out seed.

    Reads only, so that another process may be writing them.
    """
    return _EpisodeLog(run_dir / "episodes.jsonl", policy_hash, config.conditions).results


class _EpisodeLog:
    """Results by seed, one JSON line each; a line that a kill cut off is passed over."""

    def __init__(self, path: Path, policy_hash: str, conditions: str) -> None:
        self._path, self._policy, self._conditions = path, policy_hash, conditions
        self.results: dict[int, dict[str, Any]] = {}
        self._lines = path.read_text().splitlines() if path.exists() else []
        self._whole = [line for line in self._lines if _parses(line)]
        for result in map(json.loads, self._whole):
            if result["policy"] != policy_hash:
                raise ValueError(
                    f"{path} holds results of another policy ({result['policy'][:12]}, not {policy_hash[:12]}); "
                    "choose another folder with run=<folder>, or delete it"
                )
            if result.get("conditions", "") != conditions:
                raise ValueError(
                    f"{path} holds episodes of {result.get('conditions') or 'the plain task'}, asked for was "
                    f"{conditions or 'the plain task'}; choose another folder with run=<folder>, or delete it"
                )
            self.results[result["seed"]] = result

    def repair(self) -> None:
        """Take what a kill has cut off out of the file; only for the process that writes it."""
        if len(self._whole) != len(self._lines):
            write_text(self._path, "".join(line + "\n" for line in self._whole))

    def append(self, result: EpisodeResult) -> None:
        record = {**asdict(result), "policy": self._policy}
        if self._conditions:
            record["conditions"] = self._conditions
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, (json.dumps(record) + "\n").encode())
        finally:
            os.close(descriptor)
        self.results[result.seed] = record


def _parses(line: str) -> bool:
    try:
        json.loads(line)
    except json.JSONDecodeError:
        return False
    return True


def _check_held_out(training: Mapping[str, Any], config: EvaluationConfig) -> None:
    seeds = training.get("demonstrated_seeds")
    if seeds and seeds[0] <= config.seeds[-1] and config.seeds[0] <= seeds[1]:
        raise ValueError(
            f"seeds {config.seeds[0]} to {config.seeds[-1]} overlap the demonstrations' ({seeds[0]} to {seeds[1]}): "
            f"the rate would not be held out; set first_seed={seeds[1] + 1} or more"
        )


def _quartiles(values: Sequence[float]) -> dict[str, float]:
    """Return mean and quartiles; {} of nothing."""
    if not values:
        return {}
    low, middle, high = np.percentile(values, [25, 50, 75])
    return {"mean": float(np.mean(values)), "q25": float(low), "median": float(middle), "q75": float(high)}
