"""Which policies does a comparison train and test, and what do all of them share?"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from policies.collect import CollectConfig, collect_episodes
from policies.encoder import PACKAGED, EncoderConfig
from policies.environment import randomization
from policies.evaluate import EvaluationConfig
from policies.train import TrainPolicyConfig, check_chosen
from toto_robot.run_folder import wait_for_folder

_LIKE = {"random_toto": "toto", "random_vit": "mae"}  # a random encoder has the size of the trained one beside it
PLAIN = "plain"
# What the grid decides; everything else of `train` is the same for all.
_GRID = ("env", "demos", "demonstrations", "seed", "encoder", "policy")


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Settings of `toto_robot compare`."""

    # A comparison may grow; every run of it refuses other settings of its own.
    MAY_CHANGE = (
        "env", "envs", "encoders", "demonstrations", "seeds", "tests", "layers", "reference", "targets", "train",
        "earlier",
    )  # fmt: skip

    env: str = "franka_pick"  # task
    envs: tuple[str, ...] = ()  # several tasks instead: the strata of every interval
    encoders: tuple[str, ...] = ("toto", "mae", "random_vit", "none")  # [label:]name[=path][@key=value], see above
    policy: str = "bc"  # learner, as in train-policy
    demonstrations: tuple[int, ...] = (20, 50)  # first episodes of one store to learn from (dagger: to begin with)
    seeds: int = 5  # policies a cell, with seeds 0, 1, ...
    demos: str | None = None  # episode store, or folder with a store named after each task; null collects
    randomize: tuple[str, ...] = ()  # axes that vary while policies learn: lights, cameras, ..., or all; demos=null
    randomize_strength: float = 1.0  # 1 is the whole range of each axis
    tests: tuple[str, ...] = (PLAIN,)  # plain, an axis, several as lights+cameras, or all: one table each
    test_strength: float = 1.0  # of the axes in tests
    layers: tuple[str, ...] = ()  # also each of these layers of Toto and MAE, at the most demonstrations
    reference: str | None = None  # label of the encoder that the others are compared with; null is the first
    targets: tuple[float, ...] = (0.5, 0.8)  # success rates: how many demonstrations or steps each encoder needs
    earlier: tuple[str, ...] = ()  # comparison.json files: policies of the grid that they have are not trained again
    train: TrainPolicyConfig = field(
        default_factory=lambda: TrainPolicyConfig(evaluation=EvaluationConfig(episodes=50, videos=1))
    )

    def __post_init__(self) -> None:
        if not self.encoders or not self.demonstrations or not self.tests:
            raise ValueError("expected at least one entry in encoders, demonstrations and tests")
        if self.seeds < 1 or min(self.demonstrations) < 1:
            raise ValueError(f"expected seeds and demonstrations of 1 or more, got {self.seeds}, {self.demonstrations}")
        if any(not 0 < target <= 1 for target in self.targets):
            raise ValueError(f"expected targets as success rates in (0, 1], got {list(self.targets)}")
        if self.randomize and self.demos is not None:
            raise ValueError("randomize is for demonstrations that are collected here; leave demos or randomize out")
        plain = TrainPolicyConfig()
        for key in _GRID:
            if getattr(self.train, key) != getattr(plain, key):
                raise ValueError(f"train.{key} is decided by the comparison: set {key} or encoders, not train.{key}")
        initial, given = self.train.dagger.initial_demonstrations, set(self.demonstrations)
        if self.policy == "dagger" and initial != plain.dagger.initial_demonstrations and {initial} != given:
            raise ValueError(
                "train.dagger.initial_demonstrations is decided by the comparison: set demonstrations, got "
                f"{initial} and {list(self.demonstrations)}"
            )
        labels = [entry.label for entry in self.entries]
        if len(set(labels)) < len(labels):
            raise ValueError(f"two encoders have one label ({', '.join(labels)}); write <label>:{self.encoders[-1]}")
        auto = [entry for entry in self.entries if entry.config.layer == "auto"]
        if auto:
            check_chosen(auto[0].config, self.policy)
        if self.reference is not None and self.reference not in labels:
            raise ValueError(f"reference={self.reference} is none of the encoders {', '.join(labels)}")

    @property
    def tasks(self) -> tuple[str, ...]:
        """Short names of the tasks."""
        return self.envs or (self.env,)

    @property
    def from_demonstrations(self) -> bool:
        """Say whether the learner needs demonstrations."""
        return self.policy != "ppo"

    @property
    def entries(self) -> list[Entry]:
        """The encoders that are compared."""
        parsed = [parse_entry(text) for text in self.encoders]
        paths = {entry.config.name: entry.config.path for entry in reversed(parsed) if entry.config.path}
        return [replace(entry, config=_with_path(entry.config, paths)) for entry in parsed]

    @property
    def layer_entries(self) -> list[Entry]:
        """The single layers of the encoders that have some."""
        return [
            Entry(f"{entry.label}@layer={layer}", replace(entry.config, layer=layer), entry.label, layer)
            for entry in self.entries
            if entry.config.name in ("toto", "mae")
            for layer in self.layers
        ]

    @property
    def against(self) -> str:
        """Label of the encoder that the others are compared with."""
        return self.reference or self.entries[0].label


@dataclass(frozen=True)
class Entry:
    """An encoder of the comparison."""

    label: str
    config: EncoderConfig
    parent: str | None = None  # of the layer curve: the encoder that this is a layer of
    layer: str | None = None


@dataclass(frozen=True)
class Cell:
    """One policy: trained once, tested under every condition."""

    env: str
    entry: Entry
    demonstrations: int
    seed: int
    demonstrated: bool = True  # False for a learner that needs no demonstrations, whatever their number

    @property
    def name(self) -> str:
        """Folder below the comparison's, and what people call it."""
        return f"{slug(self.env)}/{slug(self.entry.label)}/{self.demonstrations}-{self.seed}"

    def key(self, test: str) -> tuple[Any, ...]:
        """What a test of it is found by: `Run.key`."""
        return self.env, self.entry.label, self.demonstrations if self.demonstrated else 0, self.seed, test

    def train_config(self, config: CompareConfig, store: Path | None) -> TrainPolicyConfig:
        """Return the settings of `train-policy` that make this policy."""
        train = config.train
        looks: dict[str, Any] = {}
        if config.randomize:  # what learns while it acts sees what the demonstrations show
            looks = {"randomize": config.randomize, "randomize_strength": config.randomize_strength}
        if config.policy == "dagger":
            train = replace(train, dagger=replace(train.dagger, initial_demonstrations=self.demonstrations, **looks))
        elif config.policy == "ppo":
            train = replace(train, ppo=replace(train.ppo, **looks))
        return replace(
            train, env=self.env, demos=None if store is None else str(store),
            demonstrations=self.demonstrations, seed=self.seed, encoder=self.entry.config, policy=config.policy,
        )  # fmt: skip


def cells(config: CompareConfig) -> list[Cell]:
    """Return all policies, seed by seed: a comparison that is stopped early has every encoder at the first seeds."""
    found = []
    counts = sorted(config.demonstrations, reverse=True)  # the largest first: its features hold the others'
    if not config.from_demonstrations:
        counts = [TrainPolicyConfig().demonstrations]  # it uses none, and learns the same whatever their number
    for seed in range(config.seeds):
        for env in config.tasks:
            for entry in config.entries:
                found += [Cell(env, entry, count, seed, config.from_demonstrations) for count in counts]
            found += [Cell(env, entry, counts[0], seed, config.from_demonstrations) for entry in config.layer_entries]
    return found


def parse_entry(text: str) -> Entry:
    """Read `[label:]name[=path][@key=value]...`, keys being those of `encoder.` in train-policy; ValueError else.

    `toto`, `toto=outputs/pretrain/mine/pretrained_model`, `short:toto@context_frames=1`, `mae@layer=3`.
    """
    head, *options = re.split(r"@(?=\w+=)", text)
    front, _, path = head.partition("=")
    label, colon, name = front.rpartition(":")
    hints = typing.get_type_hints(EncoderConfig)
    values: dict[str, Any] = {"name": name, **({"path": path} if path else {})}
    for option in options:
        key, _, value = option.partition("=")
        if key not in hints or key in ("name", "path"):
            keys = ", ".join(key for key in hints if key not in ("name", "path"))
            raise ValueError(
                f"expected <encoder>@key=value with a key of {keys}, got {option!r} in encoders entry {text}"
            )
        values[key] = _typed(value, hints[key], text)
    if not colon:
        label = " ".join([name, *([path] if path else []), *options])
    return Entry(label, EncoderConfig(**values))


def condition(config: CompareConfig, test: str) -> EvaluationConfig:
    """Return how a condition is tested: `plain`, or axes of randomisation joined by +."""
    if test == PLAIN:
        return config.train.evaluation
    axes = tuple(test.split("+"))
    assert randomization(axes, config.test_strength) is not None  # checks the strength
    return replace(config.train.evaluation, randomize=axes, randomize_strength=config.test_strength, videos=0)


def demonstrations(config: CompareConfig, env: str) -> Path | None:
    """Return the store of a task; it is collected when `demos` is null, by the first process that comes.

    None for a learner that needs none.
    """
    if not config.from_demonstrations:
        return None
    if config.demos is not None:
        given = Path(config.demos)
        for path in (given, given / env, given / env / "episodes"):
            if (path / "zarr.json").exists():
                return path
        raise ValueError(f"no episode store at {given} or {given / env}; `toto_robot collect env={env}` makes one")
    looks = f"-{'-'.join(config.randomize)}-{config.randomize_strength:g}" if config.randomize else ""
    path = Path("outputs/collect") / f"{env.replace('/', '-')}{looks}" / "episodes"
    wanted = CollectConfig(
        env=env, episodes=max(config.demonstrations), cameras=config.train.cameras, randomize=config.randomize,
        randomize_strength=config.randomize_strength, preset=config.train.preset,
        workers=config.train.evaluation.workers,
    )  # fmt: skip
    with wait_for_folder(path.with_name(".collecting")):
        collect_episodes(wanted, path)
    return path


def _with_path(config: EncoderConfig, given: Mapping[str, str]) -> EncoderConfig:
    kind = _LIKE.get(config.name, config.name)
    if config.path is not None or kind not in PACKAGED:
        return config
    return replace(config, path=given.get(kind) or PACKAGED[kind])


def _typed(value: str, hint: Any, text: str) -> Any:
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value == "null" and type(None) in kinds:
        return None
    try:
        return int(value) if int in kinds else value
    except ValueError as error:
        raise ValueError(f"expected a whole number, got {value!r} in encoders entry {text}") from error


def slug(text: str) -> str:
    """Return a text as a file name."""
    return re.sub(r"[^A-Za-z0-9.]+", "_", text).strip("_")


def design(config: CompareConfig) -> dict[str, Any]:
    """Return what was compared, for comparison.json and the report."""
    return {
        **{key: getattr(config, key) for key in ("policy", "seeds", "tests", "test_strength", "targets")},
        "tasks": config.tasks,
        "encoders": [entry.label for entry in config.entries],
        "reference": config.against,
        "demonstrations": sorted(config.demonstrations) if config.from_demonstrations else [],
        "demonstration_looks": list(config.randomize),
        "demonstration_strength": config.randomize_strength if config.randomize else 0.0,
        "planned_runs": len(cells(config)),
        "shared": shared_settings(config),
    }


def shared_settings(config: CompareConfig) -> dict[str, Any]:
    """Return what all policies share, for the report."""
    shared = dataclasses.asdict(config.train)
    return {key: value for key, value in shared.items() if key not in (*_GRID, "cache")}
