"""How does `toto_robot evaluate` measure policies: one, several on the same starts, one under every kind of change?"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from policies.bundle import check_bundle
from policies.evaluate import FIRST_SEED, EvaluationConfig, Evaluator, summary_line
from policies.robustness import outcomes, sweep
from policies.statistics import needed_rollouts, paired
from toto_robot.run_folder import lock_folder, write_json

_OWN = ("policy", "sweep", "sweep_strengths")
_SAME = ("env_id", "preset", "horizon_steps", "scene_hash")  # of a task, for seeds to mean the same starts


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Settings of `toto_robot evaluate`."""

    # More episodes continue, a sweep is added; the processes change nothing.
    MAY_CHANGE = ("episodes", "workers", "videos", "sweep", "sweep_strengths")

    policy: tuple[str, ...]  # bundle folder of a trained policy; several (a,b) run on the same starts and are compared
    episodes: int = 100  # held-out seeds
    first_seed: int = FIRST_SEED  # seeds first_seed, first_seed + 1, ...; the default is never demonstrated
    workers: int | None = None  # processes; null is one a core
    envs_per_worker: int = 8  # environments in lock-step in a process
    videos: int = 2  # videos of successes, and of failures
    randomize: tuple[str, ...] = ()  # axes that change every episode: lights, colors, textures, cameras, ..., or all
    randomize_strength: float = 1.0  # 1 is the whole range of each axis
    latency_s: str | None = None  # delay of every action: seconds, or a JSON file of measured ones (p50_s, p99_s)
    sweep: tuple[str, ...] = ()  # axes to vary one by one, such as [lights,cameras,latency]: robustness.png
    sweep_strengths: tuple[float, ...] = (0.5, 1.0)  # of the axes in sweep

    def __post_init__(self) -> None:
        assert self.evaluation  # checks the values
        if not self.policy:
            raise ValueError("expected at least one policy bundle, such as policy=outputs/train-policy/default/bundle")
        if self.sweep and (self.randomize or not self.sweep_strengths):
            raise ValueError("a sweep varies one axis at a time: leave randomize out, and give sweep_strengths")

    @property
    def evaluation(self) -> EvaluationConfig:
        """The same without the policies and the sweep."""
        return EvaluationConfig(**{key: value for key, value in asdict(self).items() if key not in _OWN})


def evaluate(config: EvaluateConfig, run_dir: Path) -> int:
    """Measure the closed-loop success of policy bundles on held-out seeds, with its 95 % Wilson interval.

    Seeds that are done are not run again: the same command continues, and episodes=<more> extends. Writes
    evaluation.json, episodes.jsonl and videos; of several policies each in a folder of its own, and paired.json; with
    sweep=[...] robustness.png and robustness.json.
    """
    bundles = [Path(policy) for policy in config.policy]
    _check_one_task(bundles)
    folders = [run_dir if len(bundles) == 1 else run_dir / f"{i}-{_name(b)}" for i, b in enumerate(bundles)]
    with contextlib.closing(lock_folder(run_dir)), Evaluator(config.evaluation) as evaluator:
        for bundle, folder in zip(bundles, folders, strict=True):
            print(summary_line(evaluator.evaluate(bundle, folder)), flush=True)
            if config.sweep:
                sweep(evaluator, bundle, folder, config.evaluation, config.sweep, config.sweep_strengths)
                print(f"wrote {folder / 'robustness.png'}")
    if len(bundles) > 1:
        found = compare_bundles(bundles, folders, config.evaluation)
        write_json(run_dir / "paired.json", found)
        print("\n".join(pair["words"] for pair in found))
    print(f"wrote {run_dir / ('evaluation.json' if len(bundles) == 1 else 'paired.json')}")
    return 0


def compare_bundles(bundles: Sequence[Path], folders: Sequence[Path], config: EvaluationConfig) -> list[dict[str, Any]]:
    """Compare every two policies on the starts that both ran; these policies only, not the methods that made them."""
    ran = [outcomes(bundle, folder, config) for bundle, folder in zip(bundles, folders, strict=True)]
    found = []
    for first, second in itertools.combinations(range(len(bundles)), 2):
        pair = paired(ran[first], ran[second])
        rates = [sum(ran[i]) / len(ran[i]) for i in (first, second)]
        settle = ""
        if pair.p_value >= 0.05 and rates[0] != rates[1]:
            settle = f"; were this the true difference, {needed_rollouts(*rates)} episodes each would show it"
        verdict = "no difference is shown" if pair.p_value >= 0.05 else "they differ"
        found.append(
            {
                "first": str(bundles[first]),
                "second": str(bundles[second]),
                **asdict(pair),
                "difference": [pair.difference, *(round(bound, 4) for bound in pair.interval)],
                "mcnemar_p": pair.p_value,
                "words": f"{bundles[first]} against {bundles[second]}: {pair}: {verdict}{settle}",
            }
        )
    return found


def _check_one_task(bundles: Sequence[Path]) -> None:
    """Raise ValueError where policies that are to be compared start from other scenes under the same seeds."""
    tasks = [check_bundle(bundle)["task"] for bundle in bundles]
    for bundle, task in zip(bundles[1:], tasks[1:], strict=True):
        for key in _SAME:
            if task.get(key) != tasks[0].get(key):
                raise ValueError(
                    f"policies on the same starts need one task: {bundles[0]} has {key} {tasks[0].get(key)!r}, "
                    f"{bundle} {task.get(key)!r}; evaluate them one by one"
                )


def _name(bundle: Path) -> str:
    return bundle.parent.name if bundle.name == "bundle" else bundle.name
