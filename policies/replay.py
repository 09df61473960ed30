"""Do the stored actions, simulated again from the first stored state, lead where they led when they were recorded?

The environment is the one that the recording names, found through gymnasium. It is put into each episode's first
`simulator.state` and given the executed actions; after every step its state is compared with the stored one. Same
versions on the same machine give the same bits; other versions of the simulator drift, and this says how far.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from policies.environment import make_environment, task_spec
from toto_robot.data.installed_environment import seed_of, settings_of
from toto_robot.data.recording import Recording, open_recording
from toto_robot.run_folder import write_json

_STATE, _EXECUTED, _LABEL = "simulator.state", "action.executed", "action"


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """Settings of `toto_robot data replay`."""

    POSITIONAL = ("path",)

    path: str  # episode store, LeRobot folder or robomimic file with simulator states
    episodes: int | None = None  # how many, from the first on; null is all
    tolerance: float = 1e-6  # drift that is still called none: largest difference of a number of the simulator's state

    def __post_init__(self) -> None:
        if self.episodes is not None and self.episodes < 1:
            raise ValueError(f"expected episodes of at least 1, got {self.episodes}")
        if self.tolerance < 0:
            raise ValueError(f"expected a tolerance of 0 or more, got {self.tolerance}")


@dataclass(frozen=True)
class Replay:
    """What came of one episode. States mix metres, radians and their speeds, and are compared number by number."""

    drift: tuple[float, ...]  # largest difference of a number of the state after step 0, 1, ...; the last is not stored
    element: int | None  # of the state, where the largest difference was
    success: bool
    stored_success: bool
    reward_difference: float  # largest, where rewards are stored

    @property
    def max_drift(self) -> float:
        """Return the largest drift of the episode."""
        return max(self.drift, default=0.0)

    def first_beyond(self, tolerance: float) -> int | None:
        """Return the first step after which the state is further off than `tolerance`."""
        return next((step for step, drift in enumerate(self.drift) if not drift <= tolerance), None)


def replay(config: ReplayConfig, run_dir: Path) -> int:
    """Simulate the stored actions again and print how far states drift and whether success agrees.

    Exit code 1 where success differs or a state is further off than the tolerance. `replay.json` holds every step.
    """
    recording = open_recording(Path(config.path))
    _require_states(recording)
    count = min(len(recording), config.episodes or len(recording))
    environment = _environment(recording)
    _warn_of_other_scene(recording, environment)
    replays, meta = [], recording.meta
    for index in tqdm(range(count), desc="replay", unit="episode"):
        result = replay_episode(
            environment, _arrays(recording, index), _stored_success(recording, index), seed_of(meta, index)
        )
        replays.append(result)
        tqdm.write(_line(index, result, config.tolerance))
    environment.close()
    write_json(run_dir / "replay.json", _report(recording, replays, config))
    agree = sum(result.success == result.stored_success for result in replays)
    still = sum(result.first_beyond(config.tolerance) is None for result in replays)
    worst = max((result.max_drift for result in replays), default=0.0)
    print(
        f"{recording.path}: {still} of {count} episodes within {config.tolerance:g}, largest drift {worst:.3g}; "
        f"success agrees in {agree} of {count}"
    )
    return 0 if agree == still == count else 1


def replay_episode(environment: Any, arrays: Mapping[str, np.ndarray], stored_success: bool, seed: int = 0) -> Replay:
    """Run the actions of one episode from its first state.

    `arrays` holds states (T, S), actions (T, A) and maybe rewards (T,); `seed` is what the episode was reset with.
    """
    states, rewards = arrays[_STATE], arrays.get("next.reward")
    actions = arrays[_EXECUTED] if _EXECUTED in arrays else arrays[_LABEL]
    environment.reset(seed=seed)  # decides what is randomised, such as friction, and is no part of the state
    environment.unwrapped.set_simulator_state(states[0])
    drift: list[float] = []
    difference, element, success = 0.0, None, False
    for step, action in enumerate(actions):
        _, reward, _, _, info = environment.step(action)
        success = bool(info["success"])
        if rewards is not None:
            difference = max(difference, abs(float(reward) - float(rewards[step])))
        if step + 1 < len(states):
            off = np.abs(environment.unwrapped.simulator_state() - states[step + 1])
            if float(off.max()) > max(drift, default=0.0):
                element = int(off.argmax())
            drift.append(float(off.max()))
    return Replay(tuple(drift), element, success, stored_success, difference)


def _require_states(recording: Recording) -> None:
    if not len(recording):
        raise ValueError(f"{recording.path} holds no episodes yet")
    missing = [key for key in (_STATE, _LABEL) if key not in recording.features]
    if missing:
        raise ValueError(
            f"{recording.path} has no {' and no '.join(missing)}, from which an episode is simulated again; "
            f"it has {', '.join(recording.features)}"
        )


def _environment(recording: Recording) -> Any:
    wanted = ("preset", "action_mode", "randomize", *(recording.env.get("options") or {}))
    settings = {key: value for key, value in settings_of(recording.env).items() if key in wanted}
    obs_mode = {"obs_mode": "proprio"} if settings else {}
    environment = make_environment(str(recording.env["env_id"]), **settings, **obs_mode)
    if not hasattr(environment.unwrapped, "set_simulator_state"):
        raise ValueError(f"{recording.env['env_id']} cannot be put into a stored state, so nothing can be replayed")
    return environment


def _warn_of_other_scene(recording: Recording, environment: Any) -> None:
    made, here = recording.env.get("scene_hash"), task_spec(environment).get("scene_hash")
    if made != here:
        print(f"warning: recorded in scene {made}, the installed environment has {here}: expect drift")


def _arrays(recording: Recording, index: int) -> dict[str, np.ndarray]:
    keys = [key for key in (_STATE, _LABEL, _EXECUTED, "next.reward") if key in recording.features]
    return recording.episode(index, keys)


def _stored_success(recording: Recording, index: int) -> bool:
    if "success" in recording.meta:
        return bool(recording.meta["success"][index])
    if "next.success" in recording.features:
        return bool(recording.episode(index, ["next.success"])["next.success"].any())
    raise ValueError(f"{recording.path} does not say which episodes succeeded (neither success nor next.success)")


def _line(index: int, result: Replay, tolerance: float) -> str:
    beyond = result.first_beyond(tolerance)
    since = "" if beyond is None else f", beyond {tolerance:g} from step {beyond} on (element {result.element})"
    names = {True: "success", False: "failure"}
    agrees = "as stored" if result.success == result.stored_success else f"stored was {names[result.stored_success]}"
    return (
        f"episode {index}: {len(result.drift) + 1} steps, largest drift {result.max_drift:.3g}{since}; "
        f"{names[result.success]}, {agrees}; rewards within {result.reward_difference:.3g}"
    )


def _report(recording: Recording, replays: list[Replay], config: ReplayConfig) -> dict[str, Any]:
    episodes = [
        {**result.__dict__, "max_drift": result.max_drift, "first_beyond": result.first_beyond(config.tolerance)}
        for result in replays
    ]
    return {
        "path": str(recording.path),
        "env_id": recording.env["env_id"],
        "scene_hash": recording.env.get("scene_hash"),
        "tolerance": config.tolerance,
        "episodes": episodes,
    }
