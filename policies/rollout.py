"""How do several episodes run in lock-step under one policy, each exactly as if it were alone?

M environments of a process are rows of one batch: one encoder forward serves all their cameras. A row that has no
episode left keeps its last picture, so the batch, and with it the arithmetic, never changes shape: what comes of a seed
does not depend on which other seeds run beside it, nor on the number of processes. (One exception, of the order of the
last bit: the streaming cache grows with the longest-running row, and a masked slot may change how a sum is blocked.
Contact amplifies last bits, so now and then a seed on the edge may fall to the other side.)
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from policies.bundle import load_policy
from policies.environment import check_same_task, make_environment, stack_observations, task_spec
from policies.policy import Policy
from policies.videos import write_rollout


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker process is asked to do: roll a policy out on some seeds."""

    bundle: str  # folder
    seeds: tuple[int, ...]
    slots: int  # environments in lock-step, M
    worker: int  # index of the process, for the report
    videos: str | None = None  # folder for videos; null records none
    videos_each: int = 0  # videos of successes, and of failures
    settings: Mapping[str, Any] = field(default_factory=dict)  # for the environments, on top of what the policy needs


@dataclass(frozen=True, kw_only=True)
class EpisodeResult:
    """What became of one seed."""

    seed: int
    success: bool  # the goal was held
    steps: int  # control steps until success or the end
    ended: str  # success, failure (the environment ended it) or horizon
    reward: float  # sum over the steps
    worker: int
    slot: int
    sim_s: float  # in env.step and reset, rendering included
    encode_s: float  # this row's share of the batched encoder
    head_s: float


@dataclass
class _Slot:
    """One environment and the episode it is in."""

    environment: Any
    index: int
    seed: int | None = None
    observation: Mapping[str, Any] | None = None
    steps: int = 0
    reward: float = 0.0
    fresh: bool = False
    sim_s: float = 0.0
    encode_s: float = 0.0
    head_s: float = 0.0
    frames: list[dict[str, np.ndarray]] = field(default_factory=list)

    def begin(self, seed: int) -> None:
        """Start the episode of a seed."""
        began = time.perf_counter()
        self.observation, _ = self.environment.reset(seed=seed)
        self.seed, self.steps, self.reward, self.fresh = seed, 0, 0.0, True
        self.sim_s = self.encode_s = self.head_s = 0.0
        self.sim_s += time.perf_counter() - began
        self.frames = []

    def step(self, action: np.ndarray, horizon: int, record: bool) -> tuple[bool, str]:
        """Act once; return whether the goal is held, and how the episode ended ("" while it runs)."""
        if record and self.observation is not None:
            self.frames.append(dict(self.observation.get("pixels", {})))
        began = time.perf_counter()
        self.observation, reward, terminated, truncated, info = self.environment.step(action)
        self.sim_s += time.perf_counter() - began
        self.steps += 1
        self.reward += float(reward)
        self.fresh = False
        if info["success"]:
            return True, "success"
        if terminated:
            return False, "failure"
        return False, "horizon" if truncated or self.steps >= horizon else ""


def roll_out(policy: Policy, environments: Sequence[Any], job: Job) -> Iterator[EpisodeResult]:
    """Run every seed of the job once and yield the results as episodes end. An episode ends when the goal is held."""
    slots = [_Slot(environment, index) for index, environment in enumerate(environments)]
    waiting = iter(job.seeds)
    videos = _Videos(job)
    policy.reset(batch=len(slots))
    policy.reset()
    for slot in slots:  # a row without a seed of its own needs a picture all the same
        slot.observation, _ = slot.environment.reset(seed=job.seeds[0])
    horizon = int(policy.task["horizon_steps"])
    while True:
        for slot in slots:
            if slot.seed is None:
                seed = next(waiting, None)
                if seed is not None:
                    slot.begin(seed)
        running = [slot for slot in slots if slot.seed is not None]
        if not running:
            return
        policy.reset(rows=np.array([slot.fresh for slot in slots]), seeds=[slot.seed or 0 for slot in slots])
        actions = policy.act(stack_observations([slot.observation for slot in slots]))
        for slot in running:
            slot.encode_s += policy.time.encode_s / len(slots)
            slot.head_s += policy.time.head_s / len(slots)
            success, ended = slot.step(actions[slot.index], horizon, videos.wanted())
            if ended:
                yield _finish(slot, success, ended, job.worker, videos)


def worker(jobs: Iterator[Job]) -> Iterator[EpisodeResult]:
    """Worker process: keep the environments of the last job, since the next one often has the same task."""
    made: dict[tuple[Any, ...], list[Any]] = {}
    for job in jobs:
        policy = load_policy(job.bundle)
        settings = {**environment_settings(policy, videos=job.videos is not None), **job.settings}
        key = (job.slots, repr(sorted(settings.items())))
        if key not in made:
            made.clear()
            made[key] = [make_environment(**settings) for _ in range(job.slots)]
        for environment in made[key]:  # each job has a policy of its own
            check_same_task(
                policy.task, task_spec(environment), "the policy's task and this installation's", policy.cameras
            )
        yield from roll_out(policy, made[key], job)


def environment_settings(policy: Policy, videos: bool = False) -> dict[str, Any]:
    """Return what the environment of a policy is made with; a blind policy renders for its videos only."""
    task = policy.task
    sees = bool(policy.cameras) or (videos and bool(task["cameras"]))
    blind_mode, seeing_mode = ("state", "all") if policy.oracle else ("proprio", "pixels")
    return {
        "name": task["env_id"],
        "obs_mode": seeing_mode if sees else blind_mode,
        "cameras": tuple(policy.cameras or task["cameras"]),
        "image_size": task["image_size"],
        "action_mode": task["action_mode"],
        "preset": task["preset"],
        **(task.get("options") or {}),
    }


def _finish(slot: _Slot, success: bool, ended: str, worker_index: int, videos: _Videos) -> EpisodeResult:
    assert slot.seed is not None
    videos.keep(slot.seed, success, slot.frames)
    result = EpisodeResult(
        seed=slot.seed,
        success=success,
        steps=slot.steps,
        ended=ended,
        reward=slot.reward,
        worker=worker_index,
        slot=slot.index,
        sim_s=slot.sim_s,
        encode_s=slot.encode_s,
        head_s=slot.head_s,
    )
    slot.seed, slot.frames = None, []
    return result


class _Videos:
    """Writes the first few successes and failures that a worker sees."""

    def __init__(self, job: Job) -> None:
        self._folder = Path(job.videos) if job.videos else None
        self._left = {True: job.videos_each, False: job.videos_each}

    def wanted(self) -> bool:
        """Say whether an episode that ends may still be written."""
        return self._folder is not None and any(self._left.values())

    def keep(self, seed: int, success: bool, frames: list[dict[str, np.ndarray]]) -> None:
        """Write an episode unless there are enough of its kind."""
        if self._folder is None or not frames or not frames[0] or self._left[success] == 0:
            return
        self._left[success] -= 1
        write_rollout(self._folder, seed, success, frames)
