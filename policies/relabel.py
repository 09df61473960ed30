"""How does a policy roll out while an expert says, in every state, what it would have done?

As in policies/rollout.py the environments of a process are rows of one batch. The features of every frame are kept as
the closed loop saw them, so nothing is encoded twice. An episode is a pure function of the policy, the seed and the
share of the expert: its coin takes nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from policies.bundle import load_policy
from policies.chunks import ExecutionConfig
from policies.collect import before_step
from policies.environment import check_same_task, make_environment, stack_observations, task_spec
from policies.policy import Policy
from policies.rollout import environment_settings

FEATURE_PREFIX = "observation.features."  # + camera: float16 (T, P, D) of the encoder that the rollout looked through


@dataclass(frozen=True, kw_only=True)
class RelabelJob:
    """What a worker process is asked to do: roll a policy out on some seeds and ask the expert about every state."""

    bundle: str  # folder of the policy
    seeds: tuple[int, ...]
    slots: int  # environments in lock-step
    expert_share: float  # chance, at each step, that the expert's action is executed
    seed: int  # of the coin
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the environments, on top of what the policy needs
    expert: str | None = None  # bundle of a policy that labels; null is the environment's scripted expert


@dataclass(frozen=True)
class Labelled:
    """An episode with the expert's labels, as a store keeps it."""

    seed: int
    success: bool
    task: dict[str, Any]
    arrays: dict[str, np.ndarray]


class Labeller(Protocol):
    """Who says what should be done."""

    def label(self, slots: Sequence[Slot]) -> np.ndarray:
        """Return the actions (B, A) for the present states; rows without an episode get any."""
        ...


@dataclass
class Slot:
    """One environment and the episode it is in."""

    environment: Any
    observation: Mapping[str, Any]
    seed: int | None = None
    fresh: bool = False
    coin: np.random.Generator | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)

    def begin(self, seed: int, coin_seed: int) -> None:
        """Start the episode of a seed."""
        self.observation, _ = self.environment.reset(seed=seed)
        self.seed, self.fresh, self.rows = seed, True, []
        self.coin = np.random.default_rng((coin_seed, seed))

    def step(self, label: np.ndarray, executed: np.ndarray, features: Mapping[str, np.ndarray], horizon: int) -> bool:
        """Act once and keep what happened; return whether the episode has ended."""
        row = {**before_step(self.environment, self.observation, label, executed), **features}
        self.observation, reward, terminated, truncated, info = self.environment.step(executed)
        success = bool(info["success"])
        self.rows.append({**row, "next.reward": np.float32(reward), "next.success": success})
        self.fresh = False
        return success or terminated or truncated or len(self.rows) >= horizon


class ScriptedLabeller:
    """The environments' own scripted experts."""

    def __init__(self, slots: int) -> None:
        self._experts: list[Any] = [None] * slots

    def label(self, slots: Sequence[Slot]) -> np.ndarray:
        """Return the actions (B, A) for the present states."""
        for index, slot in enumerate(slots):
            if self._experts[index] is None or slot.fresh:
                self._experts[index] = slot.environment.unwrapped.expert(seed=slot.seed or 0, noise=0.0)
        return np.stack([expert.label()[0] for expert in self._experts])


class PolicyLabeller:
    """A trained policy, usually one that is told the simulator's state."""

    def __init__(self, policy: Policy, slots: int) -> None:
        self._policy = policy
        policy.reset(batch=slots)
        policy.reset()

    def label(self, slots: Sequence[Slot]) -> np.ndarray:
        """Return the actions (B, A) for the present states."""
        self._policy.reset(rows=np.array([slot.fresh for slot in slots]), seeds=[slot.seed or 0 for slot in slots])
        return self._policy.act(stack_observations([slot.observation for slot in slots]))


def worker(jobs: Iterator[RelabelJob]) -> Iterator[Labelled]:
    """Worker process: one set of environments for all jobs, which are rounds of one task."""
    environments: list[Any] = []
    for job in jobs:
        policy = load_policy(job.bundle)
        if not environments:
            environments = [make_labelled(policy, job.settings) for _ in range(job.slots)]
        labeller: Labeller = ScriptedLabeller(job.slots)
        if job.expert is not None:
            labeller = PolicyLabeller(load_expert(job.expert, policy.task, policy.cameras), job.slots)
        yield from relabel(policy, labeller, environments, job)


def relabel(policy: Policy, labeller: Labeller, environments: Sequence[Any], job: RelabelJob) -> Iterator[Labelled]:
    """Run every seed of the job once and yield the labelled episodes as they end."""
    slots = [Slot(environment, environment.reset(seed=job.seeds[0])[0]) for environment in environments]
    waiting = iter(job.seeds)
    policy.reset(batch=len(slots))
    policy.reset()
    task, horizon = task_spec(environments[0]), int(policy.task["horizon_steps"])
    while True:
        for slot in slots:
            if slot.seed is None and (seed := next(waiting, None)) is not None:
                slot.begin(seed, job.seed)
        if all(slot.seed is None for slot in slots):
            return
        policy.reset(rows=np.array([slot.fresh for slot in slots]), seeds=[slot.seed or 0 for slot in slots])
        acted = policy.act(stack_observations([slot.observation for slot in slots]))
        labels = labeller.label(slots)
        for index, slot in enumerate(slots):
            if slot.seed is None or slot.coin is None:
                continue
            executed = labels[index] if slot.coin.random() < job.expert_share else acted[index]
            if slot.step(labels[index], executed, _features(policy, index), horizon):
                yield _finish(slot, task)


def load_expert(bundle: str, task: Mapping[str, Any], cameras: tuple[str, ...]) -> Policy:
    """Load a policy that labels; ValueError where it is of another task or needs a camera that is not rendered.

    A label is what it would do in the present state, hence the first action of a chunk that is made now: the others of
    a chunk go on from where the expert would be by then, and the learner is somewhere else.
    """
    expert = load_policy(bundle, execution=ExecutionConfig(kind="first"))
    check_same_task(expert.task, task, f"the expert {bundle} and the policy", expert.cameras)
    unseen = [camera for camera in expert.cameras if camera not in cameras]
    if unseen:
        raise ValueError(
            f"the expert {bundle} looks through {', '.join(unseen)}, which the policy does not; "
            "give one that is told the state (encoder=state), or leave dagger.expert out"
        )
    return expert


def _features(policy: Policy, index: int) -> dict[str, np.ndarray]:
    return {FEATURE_PREFIX + camera: tokens[index].half().numpy() for camera, tokens in policy.tokens.items()}


def _finish(slot: Slot, task: dict[str, Any]) -> Labelled:
    assert slot.seed is not None
    arrays = {key: np.stack([row[key] for row in slot.rows]) for key in slot.rows[0]}
    done = Labelled(slot.seed, bool(arrays["next.success"][-1]), task, arrays)
    slot.seed, slot.rows = None, []
    return done


def make_labelled(policy: Policy, settings: Mapping[str, Any]) -> Any:
    """Make an environment that shows all the policy sees, and the state, to whoever labels."""
    needed = {**environment_settings(policy), "obs_mode": "all" if policy.cameras else "state"}
    environment = make_environment(**needed, **settings)
    check_same_task(policy.task, task_spec(environment), "the policy's task and this installation's", policy.cameras)
    return environment
