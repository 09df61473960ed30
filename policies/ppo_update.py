"""What does PPO do with a rollout: advantages, then epochs of clipped policy steps and value regression?"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from policies.failure import TrainingFailed
from policies.gae import advantages
from policies.observation import Inputs
from policies.ppo_actor import ActorCritic
from policies.ppo_config import PPOConfig
from policies.ppo_rollout import Rollout


def update(
    config: PPOConfig,
    model: ActorCritic,
    optimizer: torch.optim.Optimizer,
    rollout: Rollout,
    generator: torch.Generator,
    reward_scale: float = 1.0,
) -> dict[str, float]:
    """Improve the policy on a rollout; return what tells whether that went well.

    `approx_kl` is the third estimator of Schulman (2020), `explained_variance` that of the critic before the update,
    over the steps that count. TrainingFailed when the loss is not finite.
    """
    device = rollout.actions.device
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
    gain = (gain - chosen.mean()) / (chosen.std() + 1e-8)
    proprio, actions = rollout.proprio.flatten(0, 1), rollout.actions.flatten(0, 1)
    tokens = {camera: each.flatten(0, 1) for camera, each in rollout.tokens.items()}
    old = rollout.log_probability.flatten()
    sums, taken, epochs = torch.zeros(6, device=device), 0, 0
    for _ in range(config.epochs):
        order = counts[torch.randperm(len(counts), generator=generator)].to(device)
        epoch_kl, parts = 0.0, order.chunk(config.minibatches)
        for part in parts:
            inputs = Inputs(proprio[part], {camera: each[part].float() for camera, each in tokens.items()})
            told = _step(config, model, optimizer, inputs, actions[part], old[part], gain[part], returns[part])
            sums += told
            epoch_kl += float(told[2]) / len(parts) if config.target_kl is not None else 0.0
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


def _step(
    config: PPOConfig,
    model: ActorCritic,
    optimizer: torch.optim.Optimizer,
    inputs: Inputs,
    actions: Tensor,
    old: Tensor,
    gain: Tensor,
    returns: Tensor,
) -> Tensor:
    """Take one optimizer step; return its figures in the order that `update` names them, (6,)."""
    mean, values = model(inputs)
    log_ratio = model.log_probability(mean, actions) - old
    ratio = log_ratio.exp()
    policy_loss = -torch.min(gain * ratio, gain * ratio.clamp(1 - config.clip, 1 + config.clip)).mean()
    value_loss = (values - returns).square().mean()
    entropy = model.entropy()
    loss = policy_loss + config.value_weight * value_loss - config.entropy_weight * entropy
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm, foreach=True)
    optimizer.step()
    with torch.no_grad():
        kl = (ratio - 1 - log_ratio).mean()
        clipped = ((ratio - 1).abs() > config.clip).float().mean()
        return torch.stack([policy_loss.detach(), value_loss.detach(), kl, clipped, entropy.detach(), norm])


def _explained_variance(predicted: Tensor, actual: Tensor) -> float:
    """Return 1 for a perfect critic, 0 for one that knows the mean only, less for a worse one."""
    variance = float(actual.var())
    return 1.0 - float((actual - predicted).var()) / variance if variance > 0 else math.nan
