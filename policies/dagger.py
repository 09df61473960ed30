"""How does a policy learn from an expert that corrects it where it goes, instead of where the expert went (DAgger)?

Ross, Gordon, Bagnell (2011), "A reduction of imitation learning and structured prediction to no-regret online
learning": roll the current policy out, ask the expert what it would have done in every state, add that to the data,
train on. Learning rate and weights go on from round to round, and so do the normalisers: those of the first data. All
episodes lie in `<run>/episodes`, an episode store with pictures, labels, what was executed, and features; `round` and
`expert_share` are numbers of each. Killed anywhere, the same command continues.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from policies.aggregate import Aggregate
from policies.bc import BCConfig, Trained, fit_normalizers, train_head
from policies.bundle import BundleContent, save_bundle
from policies.chunks import ExecutionConfig
from policies.collect import create_store
from policies.curve import CurvePoint, read_curve, record_point
from policies.demonstrations import Demonstrations
from policies.environment import randomization
from policies.evaluate import EvaluationConfig, Evaluator
from policies.heads.base import InputSizes
from policies.heads.build import build_head
from policies.normalize import Normalizer
from policies.observation import sees_state
from policies.processes import Processes, usable_cores
from policies.relabel import Labelled, RelabelJob, load_expert, worker
from policies.statistics import Rate
from toto_robot.data.episodes import EpisodeStore
from toto_robot.encoders.base import Encoder

# Apart from demonstrations (0 ...), the demo's video (500 000 ...) and the final evaluation (1 000 000 ...).
ROLLOUT_SEED, CURVE_SEED = 100_000, 900_000


@dataclass(frozen=True, kw_only=True)
class DAggerConfig:
    """Settings of DAgger; head, optimiser and normalisers are those of behaviour cloning."""

    rounds: int = 10  # rounds of rolling out, labelling and training
    episodes: int = 20  # episodes that each round rolls out
    initial_demonstrations: int = 10  # of the expert alone, the first of the store; 0: the expert acts all of round 1
    expert: str | None = None  # bundle of a policy that labels, such as one on encoder=state; null is the script
    expert_share: float = 0.5  # chance of a step that the expert executes, in round 1; in round r its r-th power
    steps: int = 300  # optimizer steps on the demonstrations, and after each round
    curve_episodes: int = 20  # held-out episodes after each round, for curve.jsonl; 0 measures at the end only
    envs_per_worker: int = 8  # environments in lock-step in a process
    workers: int | None = None  # processes; null is one a core
    randomize: tuple[str, ...] = ()  # axes that change every rollout, as the demonstrations' did: lights, ..., or all
    randomize_strength: float = 1.0  # 1 is the whole range of each axis

    def __post_init__(self) -> None:
        for name in ("rounds", "episodes", "steps", "envs_per_worker"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected dagger.{name} of at least 1, got {getattr(self, name)}")
        for name in ("initial_demonstrations", "curve_episodes"):
            if getattr(self, name) < 0:
                raise ValueError(f"expected dagger.{name} of 0 or more, got {getattr(self, name)}")
        if not 0 <= self.expert_share <= 1:
            raise ValueError(f"expected dagger.expert_share in [0, 1], got {self.expert_share}")

    @property
    def environment(self) -> dict[str, Any]:
        """What rollouts are made with, on top of what the policy needs; the curve's episodes are plain."""
        return randomization(self.randomize, self.randomize_strength)

    def share(self, number: int) -> float:
        """Return the expert's share of the steps of a round, 1 for one that has no policy yet."""
        return float(self.expert_share ** (number if self.initial_demonstrations else number - 1))


@dataclass(frozen=True, kw_only=True)
class Start:
    """What DAgger begins with."""

    task: Mapping[str, Any]
    encoder: Encoder
    cameras: tuple[str, ...]  # that the encoder sees
    execution: ExecutionConfig
    demonstrations: Demonstrations | None
    state_entries: int  # numbers of the simulator's state; asked for without demonstrations only
    facts: Mapping[str, Any]  # about the demonstrations and the settings, for the bundle


class DAgger:
    """One run: a folder that says how far it is, and the processes that it needs."""

    def __init__(self, config: DAggerConfig, bc: BCConfig, start: Start, seed: int, run_dir: Path) -> None:
        if bc.finetune != "none" or bc.image_augmentations:
            raise ValueError(
                "policy=dagger learns from the features that the rollouts saw: leave bc.finetune and "
                "bc.image_augmentations out"
            )
        segments = config.rounds + bool(start.demonstrations)
        self._config, self._start, self._seed, self._run_dir = config, start, seed, run_dir
        # The newest rollouts are the most instructive, and success is measured in closed loop: nothing is held out.
        self._bc = replace(bc, steps=config.steps * segments, validation_fraction=0.0)
        self._gathered = Aggregate(
            start.demonstrations,
            run_dir / "episodes",
            cameras=start.cameras,
            oracle=sees_state(start.encoder),
            most_steps=config.rounds * config.episodes * int(start.task["horizon_steps"]),
        )
        self._clock = _Clock(run_dir)
        self._processes: Processes | None = None

    def learn(self) -> BundleContent:
        """Do the rounds that are not done yet; return what the final bundle is made of."""
        if self._config.expert is not None:
            load_expert(self._config.expert, self._start.task, self._start.cameras)
        evaluation = EvaluationConfig(
            episodes=max(1, self._config.curve_episodes),
            first_seed=CURVE_SEED,
            workers=self._config.workers,
            envs_per_worker=self._config.envs_per_worker,
            videos=0,
        )
        with contextlib.ExitStack() as self._running, Evaluator(evaluation) as evaluator:
            for number in range(self._rounds_done(), self._config.rounds + 1):
                if number:
                    self._roll_out(number)
                self._train(number)
                self._measure(number, evaluator)
        return self._content(self._config.rounds)

    # --- rounds ---------------------------------------------------------------------------------------------------

    def _rounds_done(self) -> int:
        """Return the last round that has a policy; 0 when none has."""
        found = [int(path.parents[1].name) for path in (self._run_dir / "rounds").glob("*/bundle/hashes.json")]
        return max(found, default=0)

    def _bundle(self, number: int) -> Path:
        return self._run_dir / "rounds" / str(number) / "bundle"

    def _roll_out(self, number: int) -> None:
        """Add what is missing of a round to the store, in the order of its seeds whoever is faster."""
        config, path = self._config, self._run_dir / "episodes"
        store = EpisodeStore.open(path) if path.exists() else None
        wanted, have = number * config.episodes, len(store) if store is not None else 0
        if have >= wanted:
            return
        seeds = list(range(ROLLOUT_SEED + have, ROLLOUT_SEED + wanted))
        share = config.share(number)
        with tqdm(total=config.episodes, desc=f"round {number} of {config.rounds}", unit="episode") as bar:
            bar.update(config.episodes - len(seeds))
            for episode in self._labelled(number, seeds, share):
                store = store or create_store(path, episode.task, episode.arrays, dagger=self._start.facts["settings"])
                store.append(
                    episode.arrays,
                    {"seed": episode.seed, "round": number, "expert_share": share, "success": episode.success},
                )
                bar.update()
        assert store is not None
        store.close()

    def _labelled(self, number: int, seeds: list[int], share: float) -> Iterator[Labelled]:
        config = self._config
        if self._processes is None:
            count = min(config.workers or usable_cores(), config.episodes)
            self._processes = self._running.enter_context(Processes(count, worker))
        count = len(self._processes)
        for index in range(count):
            if seeds[index::count]:
                job = RelabelJob(
                    bundle=str(self._bundle(number - 1)),
                    seeds=tuple(seeds[index::count]),
                    slots=config.envs_per_worker,
                    expert_share=share,
                    seed=self._seed,
                    expert=config.expert,
                    settings=config.environment,
                )
                self._processes.send(index, job)
        early: dict[int, Labelled] = {}
        for seed in seeds:
            while seed not in early:
                early |= {episode.seed: episode for _, episode in self._processes.results()}
            yield early.pop(seed)

    def _train(self, number: int) -> None:
        """Leave the policy of a round in its folder, and remove those before it."""
        bundle = self._bundle(number)
        if not bundle.exists():
            save_bundle(bundle, self._content(number))
        for path in (self._run_dir / "rounds").glob("*/bundle"):
            if path != bundle:
                shutil.rmtree(path)

    def _measure(self, number: int, evaluator: Evaluator) -> None:
        """Add the success of a round's policy on held-out seeds to the curve, unless it is there."""
        env_steps = self._env_steps(number)
        measured = any(point.env_steps == env_steps for point in read_curve(self._run_dir))
        if not self._config.curve_episodes or not env_steps or measured:
            return
        result = evaluator.evaluate(self._bundle(number), self._bundle(number).parent)
        rate = Rate(successes=result["successes"], episodes=result["episodes"])
        point = CurvePoint(
            env_steps=env_steps, successes=rate.successes, episodes=rate.episodes, wall_s=round(self._clock.read(), 1)
        )
        record_point(self._run_dir, point)
        tqdm.write(f"after round {number}, {env_steps:,} environment steps: {rate} (Wilson 95 %)")

    # --- what a round learns from -----------------------------------------------------------------------------------

    def _content(self, number: int) -> BundleContent:
        start, data = self._start, self._data(number)
        trained = self._untrained() if data is None else self._trained(number, data)
        return BundleContent(
            trained=trained,
            encoder=start.encoder,
            execution=start.execution,
            task=start.task,
            cameras=start.cameras,
            training={**start.facts, **self._facts(number)},
        )

    def _trained(self, number: int, data: Demonstrations) -> Trained:
        """Train up to the end of a round; returns at once when the checkpoint is there already."""
        before = self._start.demonstrations
        first = int(data.ends[self._config.episodes - 1] if before is None else before.ends[-1])
        normalizers = fit_normalizers(self._bc, data, np.arange(first))
        until = self._config.steps * (number + bool(before))
        return train_head(self._bc, data, self._seed, self._run_dir, until=until, normalizers=normalizers)

    def _untrained(self) -> Trained:
        """Return a policy of no data; the expert acts for it."""
        start = self._start
        state = [f"state_{index}" for index in range(start.state_entries)] if sees_state(start.encoder) else []
        names = ([*start.task["proprio_names"], *state], start.task["action_names"])
        proprio, actions = (Normalizer.fit(np.zeros((1, len(one))), one, kind="none") for one in names)
        sizes = InputSizes(
            cameras=start.cameras,
            tokens_per_frame=start.encoder.tokens_per_frame if start.cameras else 0,
            token_width=start.encoder.width,
            proprio_dim=len(names[0]),
            history=self._bc.head.frames,
        )
        return Trained(build_head(self._bc.head, sizes, len(names[1]), self._seed).eval(), proprio, actions)

    def _data(self, number: int) -> Demonstrations | None:
        """Return the demonstrations and all episodes up to a round; None when there are none."""
        return self._gathered.up_to(number * self._config.episodes)

    def _env_steps(self, number: int) -> int:
        """Return the control steps that the policy of a round has learned from."""
        before = self._start.demonstrations
        steps = 0 if before is None else int(before.ends[-1])
        if number:
            store = EpisodeStore.open(self._run_dir / "episodes")
            steps += int(store.ends[number * self._config.episodes - 1])
        return steps

    def _facts(self, number: int) -> dict[str, Any]:
        rollouts, steps = number * self._config.episodes, self._env_steps(number)
        facts: dict[str, Any] = {
            "learner": "dagger",
            "env_steps": steps,
            "frames": steps,
            "rounds": number,
            "rollouts": rollouts,
        }
        if rollouts:
            seeds = [*self._start.facts.get("demonstrated_seeds", []), ROLLOUT_SEED, ROLLOUT_SEED + rollouts - 1]
            facts["demonstrated_seeds"] = [min(seeds), max(seeds)]
        return facts


class _Clock:
    """Seconds spent in a run over all its starts, as far as its curve tells."""

    def __init__(self, run_dir: Path) -> None:
        points = read_curve(run_dir)
        self._before = points[-1].wall_s if points else 0.0
        self._began = time.monotonic()

    def read(self) -> float:
        return self._before + time.monotonic() - self._began
