"""How do processes collect a rollout without waiting for each other: environments, encoder and policy in each?

On a CPU whoever steps an environment can as well look and decide: every process has its share of the environments and a
copy of encoder and policy, is sent the weights once a rollout and answers with its part of it. Nobody waits for a turn
of the others, and frames are encoded on all cores. On a GPU one policy thinks for everybody instead (`ppo_envs.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from policies.heads.base import InputSizes
from policies.normalize import Normalizer
from policies.ppo_actor import ActorCritic
from policies.ppo_config import PPOConfig
from policies.ppo_envs import EnvironmentPool
from policies.ppo_rollout import Collector, Rollout
from policies.processes import Processes
from toto_robot.encoders.base import Encoder


@dataclass(frozen=True, kw_only=True)
class Acting:
    """What a process needs to act; picklable."""

    make: Callable[[], Any]  # makes an environment
    open_encoder: Callable[[], Encoder]
    config: PPOConfig
    sizes: InputSizes
    cameras: tuple[str, ...]
    action_low: np.ndarray
    action_high: np.ndarray
    seed: tuple[int, ...]  # of the first episodes, with the process's number

    def pool(self, number: int, environments: int) -> EnvironmentPool:
        """Return the environments of a process."""
        return EnvironmentPool(self.make, num_envs=environments, workers=0, groups=1, seed=(*self.seed, number))


@dataclass(frozen=True)
class _Order:
    """What a process is told before a rollout."""

    weights: Mapping[str, np.ndarray]
    normalizer: Normalizer
    steps: int
    noise_seed: int


class ActingProcesses:
    """`workers` processes that share the environments evenly, or ValueError; a context manager, used as `Collector`."""

    def __init__(self, acting: Acting, *, num_envs: int, workers: int, normalizer: Normalizer) -> None:
        if num_envs % workers:
            raise ValueError(
                f"expected a number of environments that {workers} processes share evenly, got {num_envs}; set "
                "ppo.workers or ppo.num_envs"
            )
        self._processes = Processes(workers, _worker, acting, num_envs // workers)
        self._normalizer = normalizer

    def __enter__(self) -> ActingProcesses:
        self._processes.__enter__()
        for index in range(len(self._processes)):
            self._processes.send(index, index)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._processes.__exit__(kind, error, trace)

    def set_normalizer(self, normalizer: Normalizer) -> None:
        """Use these statistics from the next rollout on."""
        self._normalizer = normalizer

    def collect(self, model: ActorCritic, steps: int, generator: torch.Generator) -> Rollout:
        """Return the next `steps` steps of every environment, process by process."""
        weights = {name: tensor.detach().cpu().numpy() for name, tensor in model.state_dict().items()}
        seeds = torch.randint(2**62, (len(self._processes),), generator=generator).tolist()
        for index, seed in enumerate(seeds):
            self._processes.send(index, _Order(weights, self._normalizer, steps, seed))
        parts: dict[int, Mapping[str, Any]] = {}
        while len(parts) < len(seeds):
            parts.update(self._processes.results())
        return _joined([parts[index] for index in range(len(seeds))])


def _worker(jobs: Iterator[Any], acting: Acting, environments: int) -> Generator[Mapping[str, Any], None, None]:
    """Worker: its first job is its number, every further one an order."""
    config = acting.config
    model = ActorCritic(config, acting.sizes, len(acting.action_low), seed=0)
    collector: Collector | None = None
    with acting.pool(next(jobs), environments) as pool:
        for order in jobs:
            if collector is None:
                collector = Collector(
                    pool,
                    acting.open_encoder(),
                    cameras=acting.cameras,
                    image_size=config.image_size,
                    normalizer=order.normalizer,
                    action_low=acting.action_low,
                    action_high=acting.action_high,
                    device=torch.device("cpu"),
                )
            model.load_state_dict({name: torch.from_numpy(array) for name, array in order.weights.items()})
            collector.set_normalizer(order.normalizer)
            generator = torch.Generator().manual_seed(order.noise_seed)
            yield _packed(collector.collect(model, order.steps, generator))


def _packed(rollout: Rollout) -> Mapping[str, Any]:
    """Return the fields with arrays for tensors, which a pipe would pass through shared memory: that may be small."""
    return {field.name: _arrays(getattr(rollout, field.name)) for field in fields(rollout)}


def _arrays(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _arrays(each) for key, each in value.items()}
    return value.numpy() if isinstance(value, Tensor) else value


def _joined(parts: Sequence[Mapping[str, Any]]) -> Rollout:
    """Return one rollout whose environments are those of all parts, in their order."""

    def beside(name: str) -> np.ndarray:
        return np.concatenate([part[name] for part in parts], axis=1)

    def total(name: str) -> float:
        return sum(part[name] for part in parts)

    terms = sorted({term for part in parts for term in part["reward_terms"]})
    return Rollout(
        proprio=torch.from_numpy(beside("proprio")),
        tokens={
            camera: torch.from_numpy(np.concatenate([part["tokens"][camera] for part in parts], axis=1))
            for camera in parts[0]["tokens"]
        },
        actions=torch.from_numpy(beside("actions")),
        log_probability=torch.from_numpy(beside("log_probability")),
        told=beside("told"),
        values=beside("values"),
        rewards=beside("rewards"),
        terminated=beside("terminated"),
        truncated=beside("truncated"),
        counts=beside("counts"),
        episodes=[episode for part in parts for episode in part["episodes"]],
        reward_terms={term: sum(part["reward_terms"].get(term, 0.0) for part in parts) for term in terms},
        encode_s=total("encode_s"),
        policy_s=total("policy_s"),
        wait_s=total("wait_s"),
    )
