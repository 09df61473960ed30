"""What does PPO do with a rollout: advantages, then epochs of clipped policy steps and value regression?

On a CPU the threads share a minibatch, each with its own part and products on one core: a head's products are too small
for all cores to work on one (benchmarks/RESULTS.md, PPO's speed). The gradient is the weighted sum of the parts'.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from policies.failure import TrainingFailed
from policies.gae import advantages
from policies.observation import Inputs
from policies.ppo_actor import ActorCritic
from policies.ppo_config import PPOConfig
from policies.ppo_rollout import Rollout


@dataclass(frozen=True)
class _Batch:
    """What is learnt from, a row a step."""

    proprio: Tensor  # (N, Dp)
    tokens: dict[str, Tensor]  # camera -> (N, P, D)
    actions: Tensor  # (N, A)
    log_probability: Tensor  # (N,) when it acted
    gain: Tensor  # (N,) advantage, normalised
    returns: Tensor  # (N,)

    def rows(self, index: Tensor) -> _Batch:
        """Return some of the rows."""
        tokens = {camera: each[index].float() for camera, each in self.tokens.items()}
        rest = (self.actions, self.log_probability, self.gain, self.returns)
        return _Batch(self.proprio[index], tokens, *(each[index] for each in rest))


def update(
    config: PPOConfig,
    model: ActorCritic,
    optimizer: torch.optim.Optimizer,
    rollout: Rollout,
    generator: torch.Generator,
    reward_scale: float = 1.0,
    threads: int = 1,
) -> dict[str, float]:
    """Improve the policy on a rollout; return what tells whether that went well.

    `approx_kl` is the third estimator of Schulman (2020), `explained_variance` that of the critic before the update,
    over the steps that count. Each of the `threads` works on its part of a minibatch with as many threads as torch is
    set to; one, where the model is on a GPU. TrainingFailed when the loss is not finite.
    """
    device = rollout.actions.device
    threads = threads if device.type == "cpu" else 1
    gains = advantages(
        rollout.rewards * np.float32(reward_scale),
        rollout.values[:-1],
        rollout.values[1:],
        rollout.terminated,
        rollout.truncated,
        discount=config.discount,
        trace_decay=config.trace_decay,
    )
    counts = torch.from_numpy(rollout.counts).flatten().nonzero().squeeze(1)  # the steps to learn from
    returns = torch.from_numpy(gains + rollout.values[:-1]).flatten().to(device)
    before = torch.from_numpy(rollout.values[:-1]).flatten().to(device)
    told_variance = _explained_variance(before[counts], returns[counts])
    gain = torch.from_numpy(gains).flatten().to(device)
    chosen = gain[counts]
    batch = _Batch(
        proprio=rollout.proprio.flatten(0, 1),
        tokens={camera: each.flatten(0, 1) for camera, each in rollout.tokens.items()},
        actions=rollout.actions.flatten(0, 1),
        log_probability=rollout.log_probability.flatten(),
        gain=(gain - chosen.mean()) / (chosen.std() + 1e-8),
        returns=returns,
    )
    sums, taken, epochs = torch.zeros(6, device=device), 0, 0
    with _side_by_side(threads) as run:
        for _ in range(config.epochs):
            order = counts[torch.randperm(len(counts), generator=generator)].to(device)
            epoch_kl, minibatches = 0.0, order.chunk(config.minibatches)
            for index in minibatches:
                told = _step(config, model, optimizer, batch, index.chunk(threads), run)
                sums += told
                epoch_kl += float(told[2]) / len(minibatches) if config.target_kl is not None else 0.0
                taken += 1
            epochs += 1
            if config.target_kl is not None and epoch_kl > config.target_kl:
                break
    names = ("policy_loss", "value_loss", "approx_kl", "clip_fraction", "entropy", "gradient_norm")
    values = {f"train/{name}": value for name, value in zip(names, (sums / taken).tolist(), strict=True)}
    if not all(math.isfinite(value) for value in values.values()):
        raise TrainingFailed(f"PPO's loss is not finite ({values}); lower ppo.learning_rate, or set ppo.target_kl=0.02")
    return {
        **values,
        "train/explained_variance": told_variance,
        "train/epochs": float(epochs),
        "train/std": float(model.log_std.detach().exp().mean()),
    }


@contextlib.contextmanager
def _side_by_side(threads: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """Give a `map` that calls a function for several arguments at once."""
    if threads == 1:
        yield map
        return
    with ThreadPoolExecutor(threads) as pool:
        yield pool.map


def _step(
    config: PPOConfig,
    model: ActorCritic,
    optimizer: torch.optim.Optimizer,
    batch: _Batch,
    parts: tuple[Tensor, ...],
    run: Callable[..., Iterable[Any]],
) -> Tensor:
    """Take one optimizer step on a minibatch given as parts; return its figures in the order of their names, (6,)."""
    parameters, count = list(model.parameters()), sum(len(part) for part in parts)

    def of_part(index: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        loss, figures = _loss(config, model, batch.rows(index))
        share = len(index) / count
        return torch.autograd.grad(loss * share, parameters), figures * share

    gradients, figures = zip(*run(of_part, parts), strict=True)
    for parameter, *each in zip(parameters, *gradients, strict=True):
        parameter.grad = each[0] if len(each) == 1 else torch.stack(each).sum(0)
    norm = nn.utils.clip_grad_norm_(parameters, config.clip_norm, foreach=True)
    optimizer.step()
    return torch.cat([torch.stack(figures).sum(0), norm[None]])


def _loss(config: PPOConfig, model: ActorCritic, batch: _Batch) -> tuple[Tensor, Tensor]:
    """Return the loss, and its parts with KL, clip fraction and entropy as figures (5,)."""
    mean, values = model(Inputs(batch.proprio, batch.tokens))
    log_ratio = model.log_probability(mean, batch.actions) - batch.log_probability
    ratio, gain = log_ratio.exp(), batch.gain
    policy_loss = -torch.min(gain * ratio, gain * ratio.clamp(1 - config.clip, 1 + config.clip)).mean()
    value_loss = (values - batch.returns).square().mean()
    entropy = model.entropy()
    loss = policy_loss + config.value_weight * value_loss - config.entropy_weight * entropy
    with torch.no_grad():
        kl = (ratio - 1 - log_ratio).mean()
        clipped = ((ratio - 1).abs() > config.clip).float().mean()
        return loss, torch.stack([policy_loss.detach(), value_loss.detach(), kl, clipped, entropy.detach()])


def _explained_variance(predicted: Tensor, actual: Tensor) -> float:
    """Return 1 for a perfect critic, 0 for one that knows the mean only, less for a worse one."""
    variance = float(actual.var())
    return 1.0 - float((actual - predicted).var()) / variance if variance > 0 else math.nan
