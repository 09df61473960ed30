"""Which parameters decay and at which rate do they learn, how does that rate run, what is averaged, in which precision?

The moving average of the weights lies in the optimizer's state, entry "ema" of each parameter: it is saved, restored
and sharded as the moments are.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import nn

from toto_robot.encoders.base import resolve_precision

ADAM_BETAS = (0.9, 0.95)  # Toto (facts 1.4), LLaMA and MAE agree
ADAM_EPS = 1e-8


def learning_rate(
    step: int, *, peak: float, warmup_steps: int, steps: int, final_ratio: float, wsd_decay: float | None = None,
    cosine_share: float = 1.0,
) -> float:  # fmt: skip
    """Return the learning rate of step `step` (0-based): linear warm-up, then a cosine to `final_ratio * peak`.

    Step `warmup_steps - 1` is the first at the peak and step `steps - 1` the last, at `final_ratio * peak`. With
    `wsd_decay`, a share of the steps, the rate stays at the peak until that share is left (warm-up, stable, decay) and
    then falls as 1 - sqrt(progress), the best of the shapes in arXiv 2405.18392. With `cosine_share` the cosine ends
    after that share of the steps, and the rate stays there.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if wsd_decay is not None:
        decay_steps = max(1, round(wsd_decay * steps))
        fallen = max(0.0, min(1.0, (step + 1 - (steps - decay_steps)) / decay_steps))
        return peak * (final_ratio + (1.0 - final_ratio) * (1.0 - math.sqrt(fallen)))
    progress = min(1.0, (step - warmup_steps + 1) / max(1, round(cosine_share * steps) - warmup_steps))
    return peak * (final_ratio + (1.0 - final_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress)))


def decays(parameter: nn.Parameter) -> bool:
    """Say whether weight decay applies: matrices and tables do, norms, biases and other vectors do not."""
    return parameter.ndim >= 2


def adamw(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    lr: float,
    weight_decay: float,
    scales: Mapping[str, float] | None = None,
    betas: tuple[float, float] = ADAM_BETAS,
) -> torch.optim.AdamW:
    """Build AdamW over the trainable parameters, decayed and undecayed apart (fused kernel, fp32 moments).

    `scales` multiply the learning rate of parameters by name (muP); the decay is divided by the same, so that a step's
    shrinking, lr times decay, does not depend on them (as in the `mup` package).
    """
    grouped: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            scale = 1.0 if scales is None else scales[name]
            grouped.setdefault((decays(parameter), scale), []).append(parameter)
    groups = [
        {
            "params": grouped[decayed, scale],
            "weight_decay": weight_decay / scale if decayed else 0.0,
            "lr": lr * scale,
            "lr_scale": scale,
        }
        for decayed, scale in sorted(grouped, reverse=True)
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=ADAM_EPS, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group the learning rate `lr`, times the scale it was built with."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


@torch.no_grad()
def update_average(optimizer: torch.optim.Optimizer, decay: float) -> None:
    """Move the average of every parameter by 1 - `decay` of the way to its value; it starts at the first it sees.

    Call it after `optimizer.step()`: an optimizer whose state is not empty before its first step does not start its
    moments.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter not in optimizer.state:  # it has had no gradient yet, so it has not moved
                continue
            state = optimizer.state[parameter]
            if "ema" in state:
                state["ema"].lerp_(parameter, 1.0 - decay)
            else:
                state["ema"] = parameter.detach().clone()


@contextlib.contextmanager
def averaged(optimizer: torch.optim.Optimizer, enabled: bool = True) -> Iterator[None]:
    """Put the averages in the place of the parameters for the block, then the same bits back."""
    held: list[tuple[torch.Tensor, torch.Tensor]] = []
    try:
        if enabled:
            for parameter, state in optimizer.state.items():
                if "ema" in state:
                    held.append((parameter, parameter.detach().clone()))
                    parameter.data.copy_(state["ema"])
        yield
    finally:
        for parameter, value in held:
            parameter.data.copy_(value)


def choose_device(device: str) -> torch.device:
    """Return the device that "auto", "cpu", "cuda" or "cuda:N" names; ValueError when it is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"expected device auto, cpu or cuda, got {device!r}") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda was asked for, but torch sees no CUDA device; use device=cpu or device=auto")
    return chosen


def choose_precision(precision: str, device: torch.device) -> torch.dtype:
    """Return the autocast dtype of "auto", "bf16" or "fp32" on `device`; weights and optimizer stay fp32."""
    return torch.bfloat16 if resolve_precision(precision, device) == "bf16" else torch.float32
