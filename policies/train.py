"""How does a frozen encoder become an evaluated policy: demonstrations or trial, bundle, held-out seeds?

Every stage is resumable and skipped when it is done, so the same command continues, and repeats its result at no
cost. Policies on one store share its feature cache (the first n episodes).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from policies.bc import BCConfig, train_head
from policies.bundle import BundleContent, check_bundle, save_bundle
from policies.chunks import ExecutionConfig
from policies.collect import CollectConfig, collect_episodes, collected_task
from policies.dagger import DAgger, DAggerConfig, Start
from policies.demonstrations import Demonstrations, load_demonstrations, split_episodes
from policies.encoder import EncoderConfig, open_encoder
from policies.environment import environment_id, plain
from policies.evaluate import EvaluationConfig, Evaluator, attach_evaluation, summary_line
from policies.features import cached_features
from policies.observation import seen_cameras, sees_state
from policies.origin import (
    MADE_OF,
    check_made_of,
    demonstrations_there,
    encoder_there,
    made_of,
    read_made_of,
    with_commit,
)
from policies.policy_card import demonstrated_by
from policies.policy_report import next_commands, write_policy_report
from policies.ppo_config import PPOConfig
from policies.ppo_train import learn_by_trial
from policies.probe import choose_layer, without_auto
from policies.settings import LEARNERS, flat, idle_sections, told_change
from policies.shown import shown_to_head
from toto_robot.data.episodes import EpisodeStore, require_env
from toto_robot.encoders.base import Encoder
from toto_robot.encoders.load import BLIND
from toto_robot.pretrain.pictures import draw_loss
from toto_robot.run_folder import lock_folder, read_json, write_json

BUNDLE = "bundle"
SETTINGS = "settings.json"  # of a training that has begun
# Settings of a learner that do not decide what the policy is.
_IDLE = (("ppo", "workers"), ("ppo", "threads"), ("ppo", "checkpoint_every"), ("dagger", "workers"))
OTHER = {"last": "best", "best": "last"}  # the weights that were not chosen lie in bundle_best or bundle_last


def check_chosen(encoder: EncoderConfig, learner: str) -> None:
    """Raise ValueError where the layer is to be chosen from demonstrations, and the learner has none."""
    if encoder.layer == "auto" and learner == "ppo":
        raise ValueError(
            "encoder.layer=auto is chosen from demonstrations, of which policy=ppo has none: ask `toto_robot probe "
            f"encoders=[{encoder.name}]`, and give encoder.layer the number that it finds"
        )


@dataclass(frozen=True, kw_only=True)
class TrainPolicyConfig:
    """Settings of `toto_robot train-policy`."""

    # None of these changes the policy, but for a longer training: what is left of its schedule is stretched.
    MAY_CHANGE = (
        "evaluation",
        "evaluate_other",
        "cache",
        "ppo.env_steps",
        *(f"{section}.{name}" for section, name in _IDLE),
    )

    policy: str = "bc"  # learner: bc (cloning), dagger (an expert corrects the policy) or ppo (trial in the simulator)
    env: str = "franka_pick"  # short name or gymnasium id
    preset: str = "real"  # real (20 Hz) or pixmc (60 Hz, PixMC's); demonstrations must have the same
    demos: str | None = None  # episode store; null is outputs/collect/<env>/episodes, collected when short of episodes
    demonstrations: int = 50  # episodes to clone: the first ones of the store; for dagger see its own key
    cameras: tuple[str, ...] = ("front", "wrist")  # cameras that the policy looks through
    seed: int = 0  # of the head's first weights and of the order of samples
    cache: str = "outputs/features"  # folder of cached features
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    bc: BCConfig = field(default_factory=BCConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    dagger: DAggerConfig = field(default_factory=DAggerConfig)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    evaluate_other: bool = True  # also the weights that were not chosen, of the last step or the best validation loss

    def __post_init__(self) -> None:
        if self.policy not in LEARNERS:
            raise ValueError(f"expected policy {' or '.join(LEARNERS)}, got {self.policy!r}")
        check_chosen(self.encoder, self.policy)
        if self.demonstrations < 1:
            raise ValueError(f"expected at least one demonstration, got {self.demonstrations}")
        if self.seed < 0:
            raise ValueError(f"expected a seed of 0 or more, got {self.seed}")
        if not self.cameras:
            raise ValueError("expected at least one camera, such as cameras=[front,wrist]; encoder=none looks at none")


def train_policy(config: TrainPolicyConfig, run_dir: Path) -> int:
    """Train a policy on frozen features, from demonstrations or by trial, then measure it on held-out seeds.

    Demonstrations are collected when demos is null and there are too few; policy=ppo needs none. The result is
    <run>/bundle (self-contained), evaluation.json, report.html, and videos of successes and failures.
    """
    with contextlib.closing(lock_folder(run_dir)):  # two trainings in one folder would mix their logs and checkpoints
        result = train_and_evaluate(config, run_dir)
    bundle = run_dir / BUNDLE
    report = write_policy_report(run_dir, bundle, result)
    print(summary_line(result))
    for name in OTHER:
        if (run_dir / f"evaluation_{name}.json").exists():
            print(f"weights of the {name} step instead: {summary_line(read_json(run_dir / f'evaluation_{name}.json'))}")
    print(f"look at: {report}" + (f", {run_dir / 'videos'}" if (run_dir / "videos").exists() else ""))
    for line in next_commands(bundle, read_json(bundle / "policy.json")):
        print(f"next: {line}")
    return 0


def train_and_evaluate(config: TrainPolicyConfig, run_dir: Path) -> dict[str, Any]:
    """Train one policy and return its evaluation.json; what is done already is not done again.

    Evaluates the chosen weights and, unless `evaluate_other` is off, those that were not, on the same seeds.
    """
    train_bundle(config, run_dir)
    with Evaluator(config.evaluation) as evaluator:
        result = evaluator.evaluate(run_dir / BUNDLE, run_dir)
        attach_evaluation(run_dir / BUNDLE, result)
        for name in OTHER:
            bundle = run_dir / f"{BUNDLE}_{name}"
            if config.evaluate_other and bundle.exists():
                other = evaluator.evaluate(bundle, run_dir / name)
                attach_evaluation(bundle, other)
                write_json(run_dir / f"evaluation_{name}.json", other)
    return result


def train_bundle(config: TrainPolicyConfig, run_dir: Path) -> Path:
    """Train a policy and return its bundle, which is left as it is when it is there already.

    ValueError for demonstrations of another environment, a missing camera, NaN in the data, a missing encoder, or a
    folder that holds a policy of other settings, weights or demonstrations.
    """
    bundle = run_dir / BUNDLE
    if bundle.exists():
        description = check_bundle(bundle)
        check_settings(description["training"]["settings"], config, run_dir)
        _check_still_there(config, description, run_dir)
        return bundle
    check_begun(config, run_dir)
    if config.policy == "ppo":
        _learn_by_trial(config, run_dir)
    elif config.policy == "dagger":
        _correct(config, bundle, run_dir)
    else:
        _clone(config, bundle, run_dir)
    attach_evaluation(bundle, None)
    return bundle


def check_begun(config: TrainPolicyConfig, run_dir: Path) -> None:
    """Raise ValueError where a training of other settings has begun in a folder; one may be made longer (PPO)."""
    if (run_dir / SETTINGS).exists():
        check_settings(read_json(run_dir / SETTINGS), config, run_dir, free=("ppo.env_steps",))


def _check_still_there(config: TrainPolicyConfig, description: Mapping[str, Any], run_dir: Path) -> None:
    """Raise ValueError where the encoder or the demonstrations are others by now than those of a finished policy."""
    before, now = read_made_of(run_dir / SETTINGS), {}
    if not before and description["training"].get("finetune", "none") == "none":  # from before that was recorded
        before = {"encoder": description["encoder"]["fingerprint"]}
    fingerprint = encoder_there(config.encoder, description["encoder"]["settings"])
    if fingerprint is not None:
        now["encoder"] = fingerprint
    count = config.dagger.initial_demonstrations if config.policy == "dagger" else config.demonstrations
    shown = demonstrations_there(_store_path(config), count) if "demonstrations" in before else None
    if shown is not None:
        now["demonstrations"] = shown
    check_made_of(before, now, run_dir)


def _learn_by_trial(config: TrainPolicyConfig, run_dir: Path) -> None:
    _begin(config, run_dir, made_of(open_encoder(config.encoder)))
    learn_by_trial(
        config.ppo,
        env=config.env,
        preset=config.preset,
        cameras=config.cameras,
        encoder=config.encoder,
        seed=config.seed,
        settings=_settings(config),
        run_dir=run_dir,
    )


def _clone(config: TrainPolicyConfig, bundle: Path, run_dir: Path) -> None:
    encoder = open_encoder(without_auto(config.encoder))  # before demonstrations: a missing encoder is told at once
    store = open_demonstrations(config)
    if config.encoder.layer == "auto":
        encoder = open_encoder(choose_layer(config.encoder, store, config.cameras, config.demonstrations, run_dir))
    cameras = seen_cameras(encoder, config.cameras)
    shown = shown_to_head(config.bc, encoder, store, cameras, config.demonstrations, Path(config.cache))
    data = load_demonstrations(store, shown[0], config.demonstrations, sees_state(encoder), shown[1:])
    _begin(config, run_dir, made_of(encoder, store, config.demonstrations))
    trained = train_head(config.bc, data, config.seed, run_dir, encoder)
    draw_loss(run_dir, unit=trained.head.loss_unit)
    training = _training_facts(config, store)
    content = BundleContent(
        trained=trained,
        encoder=trained.encoder or encoder,
        execution=config.execution,
        task=store.env,
        cameras=cameras,
        training={**training, "checkpoint": config.bc.select, "finetune": config.bc.finetune},
    )
    if trained.other is not None:
        name = OTHER[config.bc.select]
        unchosen = replace(
            content,
            trained=trained.other,
            encoder=trained.other.encoder or encoder,
            training={**content.training, "checkpoint": name},
        )
        save_bundle(run_dir / f"{BUNDLE}_{name}", unchosen)
        attach_evaluation(run_dir / f"{BUNDLE}_{name}", None)
    save_bundle(bundle, content)  # last, because a run that has it is done


def _correct(config: TrainPolicyConfig, bundle: Path, run_dir: Path) -> None:
    encoder = open_encoder(without_auto(config.encoder))
    count, data, state_entries = config.dagger.initial_demonstrations, None, 0
    store: EpisodeStore | None = None
    facts: dict[str, Any] = {"demonstrations": 0, "seed": config.seed}
    if config.encoder.layer == "auto" and not count:
        raise ValueError(
            "encoder.layer=auto is chosen from dagger.initial_demonstrations, of which there are none: give it a number"
        )
    if count:
        begin = replace(config, demonstrations=count)
        if config.encoder.layer == "auto":
            asked = open_demonstrations(begin)
            encoder = open_encoder(choose_layer(config.encoder, asked, config.cameras, count, run_dir))
        store, data = _demonstrations(begin, encoder)
        task, facts = store.env, _training_facts(begin, store)
    else:
        task, state_entries = collected_task(
            CollectConfig(env=config.env, preset=config.preset, cameras=config.cameras)
        )
    start = Start(
        task=task,
        encoder=encoder,
        cameras=seen_cameras(encoder, config.cameras),
        execution=config.execution,
        demonstrations=data,
        state_entries=state_entries,
        facts={**facts, "validation_demonstrations": 0, "settings": _settings(config)},
    )
    learner = DAgger(config.dagger, config.bc, start, config.seed, run_dir)
    _begin(config, run_dir, made_of(encoder, store, count))
    content = learner.learn()
    draw_loss(run_dir, unit=content.trained.head.loss_unit)
    save_bundle(bundle, content)


def _demonstrations(config: TrainPolicyConfig, encoder: Encoder) -> tuple[EpisodeStore, Demonstrations]:
    """Open the demonstrations, collecting them where there are none, and read them with their cached features."""
    store = open_demonstrations(config)
    cameras = seen_cameras(encoder, config.cameras)
    features = cached_features(Path(config.cache), encoder, store, cameras, config.demonstrations)
    return store, load_demonstrations(store, features, config.demonstrations, sees_state(encoder))


def open_demonstrations(config: TrainPolicyConfig) -> EpisodeStore:
    """Open the store to clone; ValueError when it is of another environment, lacks a camera, or holds too few."""
    path = _store_path(config)
    if config.demos is not None:
        store = EpisodeStore.open(path)
    else:
        wanted = CollectConfig(
            env=config.env, preset=config.preset, episodes=config.demonstrations, cameras=config.cameras
        )
        store = collect_episodes(wanted, path)
    require_env(store, environment_id(config.env))
    if store.env.get("preset", config.preset) != config.preset:  # others' stores need not say
        raise ValueError(
            f"{store.path} was collected with preset {store.env['preset']}; set preset={store.env['preset']}, or "
            "demos=<another store>"
        )
    if len(store) < config.demonstrations:
        raise ValueError(
            f"asked for {config.demonstrations} demonstrations, {store.path} holds {len(store)}; "
            f"use demonstrations={len(store)}, or collect more"
        )
    missing = [camera for camera in config.cameras if camera not in store.cameras]
    if missing and config.encoder.name not in BLIND:
        raise ValueError(
            f"{store.path} has no camera {', '.join(missing)}; it has {', '.join(store.cameras) or 'none'}"
        )
    return store


def _store_path(config: TrainPolicyConfig) -> Path:
    if config.demos is not None:
        return Path(config.demos)
    return Path("outputs/collect") / config.env.replace("/", "-") / "episodes"


def _training_facts(config: TrainPolicyConfig, store: EpisodeStore) -> dict[str, Any]:
    """Return what the bundle tells about its training."""
    training, validation = split_episodes(config.demonstrations, config.bc.validation_fraction)
    facts: dict[str, Any] = {
        "demonstrations": config.demonstrations,
        "validation_demonstrations": len(validation),
        "frames": int(store.ends[len(training) - 1]),
        "seed": config.seed,
        "demonstrations_hash": store.content_hash(),
        "demonstrated_by": demonstrated_by(store.provenance),
        "settings": _settings(config),
    }
    if "seed" in store.meta:
        seeds = store.meta["seed"][: config.demonstrations]
        facts["demonstrated_seeds"] = [int(seeds.min()), int(seeds.max())]
    return facts


def _settings(config: TrainPolicyConfig) -> dict[str, Any]:
    """Return the settings that decide what the policy is."""
    kept: dict[str, Any] = plain(asdict(config))
    for name in ("evaluation", "evaluate_other", "cache", "demos", *idle_sections(config.policy)):
        del kept[name]
    for section, name in _IDLE:
        kept.get(section, {}).pop(name, None)
    return kept


def _begin(config: TrainPolicyConfig, run_dir: Path, found: Mapping[str, str]) -> None:
    """Write down what is trained in a folder, and from what, so that the training does not go on as another one."""
    before = read_made_of(run_dir / SETTINGS)
    check_made_of(before, found, run_dir)
    write_json(run_dir / SETTINGS, {**_settings(config), MADE_OF: with_commit(found, before)})


def check_settings(
    recorded: Mapping[str, Any], config: TrainPolicyConfig, run_dir: Path, free: tuple[str, ...] = ()
) -> None:
    """Raise ValueError for other settings; what was not recorded yet had its default."""
    defaults, now = (flat(_settings(each)) for each in (TrainPolicyConfig(policy=config.policy), config))
    changed = told_change({**defaults, **flat(recorded)}, now, [key for key in now if key not in free])
    if changed:
        raise ValueError(
            f"{run_dir} holds a policy of other settings ({'; '.join(changed)}); choose another folder with "
            "run=<folder>, or delete it"
        )
