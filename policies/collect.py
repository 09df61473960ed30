"""How does a scripted expert become an episode store, on all cores, so that a kill and a rerun give the same bytes?

Attempt k is a pure function of `seed + k`: reset, expert and noise take nothing else. Processes work ahead, but results
enter the store in the order of their attempts, so the store is the same however many processes there were and however
often the command was killed. What is stored as `action` is the expert's clean action; what moved the arm, noise
included, is `action.executed`: noise takes the arm to states off the expert's path, the label says how to come back.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from policies.environment import environment_id, make_environment, plain, randomization, task_spec
from policies.processes import Processes, usable_cores
from policies.statistics import Rate
from toto_robot.data.episodes import IMAGE_PREFIX, ORACLE_KEY, EpisodeStore, FeatureSpec
from toto_robot.data.export import ExportVideoConfig, export_video
from toto_robot.run_folder import git_commit

# An expert that fails this often is broken; without an end the command would run for ever.
_HOPELESS_ATTEMPTS = 50
_HOPELESS_RATE = 0.05


@dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """Settings of `toto_robot collect`."""

    # More episodes continue the store; processes and videos change nothing in it.
    MAY_CHANGE = ("episodes", "workers", "videos")

    env: str = "franka_pick"  # short name or gymnasium id
    episodes: int = 100  # episodes to keep
    out: str | None = None  # the store; null is <run>/episodes
    seed: int = 0  # seed of the first attempt; attempt k has seed + k
    noise: tuple[float, ...] = (0.1, 0.15, 0.2, 0.25)  # on the executed action, cycled over attempts (action units)
    cameras: tuple[str, ...] = ("front", "wrist")  # cameras to render
    image_size: int = 64  # height and width of a camera image, px
    action_mode: str = "ee_delta"  # ee_delta or joint_delta
    preset: str = "real"  # preset of the environment
    render: str = "lean"  # lean, or full: shadows and fine meshes, ten times slower
    keep_failures: bool = False  # keep attempts in which the expert failed
    randomize: tuple[str, ...] = ()  # axes that change every episode: lights, colors, textures, cameras, ..., or all
    randomize_strength: float = 1.0  # 1 is the whole range of each axis
    videos: bool = False  # also write an mp4 of each episode and camera, and a contact sheet, beside the store
    workers: int | None = None  # processes; null is one a core

    def __post_init__(self) -> None:
        for name in ("episodes", "image_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} of at least 1, got {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"expected a seed of 0 or more, got {self.seed}")
        if not self.noise or min(self.noise) < 0:
            raise ValueError(f"expected noise levels of 0 or more, such as [0.0, 0.2], got {list(self.noise)}")
        if not self.cameras:
            raise ValueError("expected at least one camera, such as cameras=[front,wrist]")

    @property
    def environment_settings(self) -> dict[str, Any]:
        """What `gymnasium.make` is given."""
        return {
            "obs_mode": "all",  # the oracle's state too, a few numbers, for controls that see everything
            "cameras": tuple(self.cameras),
            "image_size": self.image_size,
            "action_mode": self.action_mode,
            "preset": self.preset,
            **({} if self.render == "lean" else {"render_quality": self.render}),
            **randomization(self.randomize, self.randomize_strength),
        }


@dataclass(frozen=True)
class Attempt:
    """What a worker sends back: the task it ran and the episode, or None when it failed and failures are dropped."""

    index: int
    success: bool
    task: dict[str, Any]
    arrays: dict[str, np.ndarray] | None


def collect(config: CollectConfig, run_dir: Path) -> int:
    """Record scripted-expert episodes into a zarr episode store.

    The same command continues a store that was interrupted, and does nothing when it is complete. Prints the expert's
    success rate with its 95 % Wilson interval.
    """
    path = Path(config.out) if config.out else run_dir / "episodes"
    store = collect_episodes(config, path)
    print(f"{path}: {len(store)} episodes, {store.steps} steps; expert {expert_rate(store, config)}")
    if config.videos:
        export_video(ExportVideoConfig(data=str(path)), path.parent / f"{path.name}_videos")
    print(f"next: toto_robot train-policy env={config.env} demos={path}")
    return 0


def collect_episodes(config: CollectConfig, path: Path) -> EpisodeStore:
    """Fill the store at `path` up to `config.episodes` and return it; ValueError when it holds something else."""
    store = _open(config, path)
    kept = 0 if store is None else len(store)
    if store is not None and kept >= config.episodes:
        return store
    attempt = int(store.meta["attempt"][-1]) + 1 if store is not None and kept else 0
    count = min(config.workers or usable_cores(), config.episodes - kept)
    print(f"{count} processes on {usable_cores()} usable cores, one BLAS and one GL thread each")
    with (
        Processes(count, _record_attempts, config) as processes,
        tqdm(total=config.episodes, initial=kept, desc="collect", unit="episode", smoothing=0.05) as bar,
    ):
        for result in _in_order(processes, attempt):
            if result.arrays is not None:
                store = store or create_store(path, result.task, result.arrays, collect=_settings(config))
                store.append(result.arrays, _meta(config, result))
                bar.update()
                kept += 1
                if kept == config.episodes:
                    break
            _check_hope(result.index + 1, kept, config)
    assert store is not None
    store.close()
    return store


def collected_task(config: CollectConfig) -> tuple[dict[str, Any], int]:
    """Return the task that episodes of these settings would have, and the numbers of the simulator's state in it."""
    environment = make_environment(config.env, **config.environment_settings)
    task, state_entries = task_spec(environment), environment.observation_space["state"].shape[0]
    environment.close()
    return task, state_entries


def expert_rate(store: EpisodeStore, config: CollectConfig) -> Rate:
    """Return the expert's successes over all attempts, the dropped ones included, up to the last episode kept."""
    attempts = int(store.meta["attempt"][-1]) + 1
    return Rate(successes=int(np.sum(store.meta["success"])), episodes=attempts)


def record_episode(environment: Any, seed: int, noise: float) -> tuple[dict[str, np.ndarray], bool]:
    """Run the expert once; return the arrays of a store's episode and whether it succeeded.

    Row t holds what was seen before step t and what was done in it. The episode ends when success is latched, when the
    environment ends it, or at the horizon.
    """
    spec = environment.unwrapped.task_spec
    observation, _ = environment.reset(seed=seed)
    expert = environment.unwrapped.expert(seed=seed, noise=noise)
    rows: list[dict[str, Any]] = []
    success = False
    for _ in range(spec.horizon_steps):
        action = expert.act()
        row = before_step(environment, observation, action.clean, action.executed)
        observation, reward, terminated, truncated, info = environment.step(action.executed)
        success = bool(info["success"])
        rows.append({**row, "next.reward": np.float32(reward), "next.success": success})
        if success or terminated or truncated:
            break
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}, success


def before_step(environment: Any, observation: Any, clean: Any, executed: Any) -> dict[str, Any]:
    """Return what a store's row says of the moment before a step: all that was seen, the label, and what is done."""
    images = {IMAGE_PREFIX + name: image for name, image in observation.get("pixels", {}).items()}
    oracle = {ORACLE_KEY: observation["state"]} if "state" in observation else {}
    return {
        "observation.state": observation["proprio"],
        **oracle,
        **images,
        "action": np.asarray(clean, dtype=np.float32),
        "action.executed": np.asarray(executed, dtype=np.float32),
        "simulator.state": environment.unwrapped.simulator_state(),
    }


def _record_attempts(attempts: Iterator[int], config: CollectConfig) -> Iterator[Attempt]:
    """Worker: one environment, one episode for each attempt number that comes."""
    environment = make_environment(config.env, **config.environment_settings)
    task = task_spec(environment)
    for index in attempts:
        noise = config.noise[index % len(config.noise)]
        arrays, success = record_episode(environment, config.seed + index, noise)
        keep = success or config.keep_failures
        yield Attempt(index, success, task, arrays if keep else None)
    environment.close()


def _in_order(processes: Processes, first: int) -> Iterator[Attempt]:
    """Yield attempts first, first + 1, ... in this order while the processes work a few ahead."""
    ahead = 4 * len(processes)
    waiting: dict[int, Attempt] = {}
    idle = list(range(len(processes)))
    handed_out = wanted = first
    while True:
        while idle and handed_out < wanted + ahead:
            processes.send(idle.pop(), handed_out)
            handed_out += 1
        for index, result in processes.results():
            waiting[result.index] = result
            idle.append(index)
        while wanted in waiting:
            yield waiting.pop(wanted)
            wanted += 1


def _open(config: CollectConfig, path: Path) -> EpisodeStore | None:
    """Open the store that is to be continued; ValueError when other settings made it."""
    if not path.exists():
        return None
    store = EpisodeStore.open(path)
    made_by, now = store.provenance.get("collect"), _settings(config)
    changed = [key for key in now if made_by is None or made_by.get(key) != now[key]]
    if changed:
        listed = ", ".join(f"{key}: {(made_by or {}).get(key)} -> {now[key]}" for key in changed)
        raise ValueError(
            f"{path} was collected with other settings ({listed}); choose another out=<folder>, or delete it"
        )
    return store


def create_store(path: Path, task: Mapping[str, Any], arrays: Mapping[str, np.ndarray], **made_by: Any) -> EpisodeStore:
    """Create a store from the shapes of its first episode; no clock in its provenance, so that bytes repeat."""
    versions = {name: importlib.metadata.version(name) for name in ("mujoco", "robosuite", "numpy")}
    names = {"observation.state": task["proprio_names"], "action": task["action_names"]}
    names["action.executed"] = names["action"]
    features = {
        key: FeatureSpec(dtype=str(array.dtype), shape=array.shape[1:], names=tuple(names.get(key, ())) or None)
        for key, array in arrays.items()
    }
    provenance = {**made_by, "commit": git_commit(), "versions": versions}
    return EpisodeStore.create(path, features=features, fps=task["control_rate_hz"], env=task, provenance=provenance)


def _settings(config: CollectConfig) -> dict[str, Any]:
    """Return what the content of the store depends on."""
    kept = plain(asdict(config))
    unimportant = {"out", "workers", "episodes", "videos"}
    if config.render == "lean":
        unimportant.add("render")
    if not config.randomize:  # stores from before there was randomisation say nothing about it
        unimportant |= {"randomize", "randomize_strength"}
    return {key: value for key, value in kept.items() if key not in unimportant} | {"env": environment_id(config.env)}


def _meta(config: CollectConfig, result: Attempt) -> dict[str, Any]:
    return {
        "seed": config.seed + result.index,
        "attempt": result.index,
        "noise": float(config.noise[result.index % len(config.noise)]),
        "success": result.success,
    }


def _check_hope(attempts: int, kept: int, config: CollectConfig) -> None:
    if attempts >= _HOPELESS_ATTEMPTS and kept < _HOPELESS_RATE * attempts:
        raise ValueError(
            f"the expert of {config.env} succeeded in {kept} of {attempts} attempts with noise {list(config.noise)}; "
            "lower the noise, or see `toto_robot doctor` for the simulator's versions"
        )
