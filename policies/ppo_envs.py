"""How do many environments step in few processes, so that the policy thinks for some while the others move?

Each worker process holds several environments of every group. While the workers step one group, the parent encodes and
decides for the other, and its answer waits in the pipe when a worker gets there: with two groups nobody waits for
anybody as long as thinking is not slower than stepping.

An environment that ended gives its last observation as the answer to the step that ended it, and starts anew with the
next one, whose action it ignores. So every observation, last ones included, comes by exactly once: each frame is
encoded once, and the value of a last observation, which a time limit is bootstrapped from, costs nothing extra.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from policies.environment import stack_observations
from policies.processes import Processes


@dataclass(frozen=True, kw_only=True)
class Episode:
    """An episode that ended."""

    reward: float  # sum
    steps: int
    success: bool


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What came of one step of the n environments of a group."""

    observation: Mapping[str, Any]  # stacked, (n, ...)
    fresh: np.ndarray  # (n,) bool: the observation begins an episode; no step led to it and its reward is 0
    rewards: np.ndarray  # (n,) float32
    terminated: np.ndarray  # (n,) bool
    truncated: np.ndarray  # (n,) bool
    episodes: tuple[Episode, ...]  # that ended in this step
    reward_terms: Mapping[str, float]  # sums over the environments


class _Moved(NamedTuple):
    """What a step of one environment gave."""

    observation: Any
    fresh: bool
    reward: float
    terminated: bool
    truncated: bool
    ended: Episode | None
    reward_terms: Mapping[str, float]


class _Running:
    """One environment and its present episode."""

    def __init__(self, environment: Any, seed: int) -> None:
        self.environment = environment
        self._seed: int | None = seed
        self._over = True
        self._reward, self._steps = 0.0, 0

    def step(self, action: np.ndarray | None) -> _Moved:
        """Act, or begin the next episode where the last one is over."""
        if self._over or action is None:
            observation, _ = self.environment.reset(seed=self._seed)
            self._seed, self._over, self._reward, self._steps = None, False, 0.0, 0
            return _Moved(observation, True, 0.0, False, False, None, {})
        observation, reward, terminated, truncated, info = self.environment.step(action)
        self._reward, self._steps, self._over = self._reward + float(reward), self._steps + 1, terminated or truncated
        ended = Episode(reward=self._reward, steps=self._steps, success=bool(info["success"])) if self._over else None
        terms = info.get("reward_terms", {})
        return _Moved(observation, False, float(reward), bool(terminated), bool(truncated), ended, terms)


def _take_turn(running: list[_Running], actions: np.ndarray | None) -> Turn:
    moved = [each.step(None if actions is None else actions[row]) for row, each in enumerate(running)]
    return Turn(
        observation=stack_observations([each.observation for each in moved]),
        fresh=np.array([each.fresh for each in moved]),
        rewards=np.array([each.reward for each in moved], np.float32),
        terminated=np.array([each.terminated for each in moved]),
        truncated=np.array([each.truncated for each in moved]),
        episodes=tuple(each.ended for each in moved if each.ended is not None),
        reward_terms=_sum([each.reward_terms for each in moved]),
    )


def _sum(terms: Iterable[Mapping[str, float]]) -> dict[str, float]:
    sums: dict[str, float] = defaultdict(float)
    for one in terms:
        for name, value in one.items():
            sums[name] += value
    return dict(sums)


def _worker(
    jobs: Iterator[Any], make: Callable[[], Any], shares: list[np.ndarray]
) -> Generator[tuple[int, Turn], None, None]:
    """Worker: its first job is its number; it then holds the environments of `shares[number]`, seeds (groups, n)."""
    groups = [[_Running(make(), int(seed)) for seed in row] for row in shares[next(jobs)]]
    for group, actions in jobs:
        yield group, _take_turn(groups[group], actions)


class _Here:
    """A worker in this process, for what is too small to be worth processes; as `Processes`."""

    def __init__(self, make: Callable[[], Any], shares: list[np.ndarray]) -> None:
        self._jobs: deque[Any] = deque()
        self._worker = _worker(iter(self._jobs.popleft, None), make, shares)

    def __enter__(self) -> _Here:
        return self

    def __exit__(self, *error: Any) -> None:
        self._worker.close()

    def send(self, index: int, job: Any) -> None:
        self._jobs.append(job)

    def results(self) -> list[tuple[int, tuple[int, Turn]]]:
        return [(0, next(self._worker))]


class EnvironmentPool:
    """`num_envs` environments in `workers` processes, in groups that step in turns; a context manager.

    Args:
        make: makes an environment; must be picklable.
        num_envs: a multiple of `groups * max(workers, 1)`, or ValueError.
        workers: processes; 0 is this one.
        groups: how many parts the environments are in; 2 overlaps stepping and thinking.
        seed: decides the first episode of every environment; later ones follow from it.
    """

    def __init__(self, make: Callable[[], Any], *, num_envs: int, workers: int, groups: int, seed: tuple[int, ...]):
        processes = max(workers, 1)
        if num_envs < 1 or num_envs % (groups * processes):
            raise ValueError(
                f"expected a number of environments that {groups} groups in {processes} processes share evenly, a "
                f"multiple of {groups * processes}, got {num_envs}"
            )
        self.groups, self.rows = groups, num_envs // groups  # rows: environments of a group
        drawn = np.random.SeedSequence(seed).generate_state(num_envs)
        self._shares = list(drawn.reshape(processes, groups, -1))
        self.seeds = np.concatenate(self._shares, axis=1).flatten()  # of each row's first episode, group by group
        self._make, self._workers = make, workers
        self._arrived: dict[int, dict[int, Turn]] = {group: {} for group in range(groups)}
        self._running: Any = None

    def __enter__(self) -> EnvironmentPool:
        if self._workers:
            self._running = Processes(self._workers, _worker, self._make, self._shares)
        else:
            self._running = _Here(self._make, self._shares)
        self._running.__enter__()
        for index in range(len(self._shares)):
            self._running.send(index, index)
        for group in range(self.groups):
            self.send(group, None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.__exit__(kind, error, trace)

    def send(self, group: int, actions: np.ndarray | None) -> None:
        """Let a group step with actions (rows, A); the caller goes on at once."""
        shares = [None] * len(self._shares) if actions is None else np.split(actions, len(self._shares))
        for index, share in enumerate(shares):
            self._running.send(index, (group, share))

    def receive(self, group: int) -> Turn:
        """Wait for what came of the last `send` to a group."""
        arrived = self._arrived[group]
        while len(arrived) < len(self._shares):
            for index, (which, turn) in self._running.results():
                self._arrived[which][index] = turn
        turns = [arrived.pop(index) for index in range(len(self._shares))]
        return turns[0] if len(turns) == 1 else _join(turns)


def _join(turns: list[Turn]) -> Turn:
    return Turn(
        observation=_concatenate([turn.observation for turn in turns]),
        fresh=np.concatenate([turn.fresh for turn in turns]),
        rewards=np.concatenate([turn.rewards for turn in turns]),
        terminated=np.concatenate([turn.terminated for turn in turns]),
        truncated=np.concatenate([turn.truncated for turn in turns]),
        episodes=tuple(episode for turn in turns for episode in turn.episodes),
        reward_terms=_sum([turn.reward_terms for turn in turns]),
    )


def _concatenate(parts: list[Any]) -> Any:
    if isinstance(parts[0], Mapping):
        return {key: _concatenate([part[key] for part in parts]) for key in parts[0]}
    return np.concatenate(parts)
