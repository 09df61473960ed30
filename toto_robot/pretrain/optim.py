"""Which parameters decay, how does the learning rate run, and in which precision does a step compute?"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from toto_robot.encoders.base import resolve_precision

ADAM_BETAS = (0.9, 0.95)  # Toto (facts 1.4), LLaMA and MAE agree
ADAM_EPS = 1e-8


def learning_rate(step: int, *, peak: float, warmup_steps: int, steps: int, final_ratio: float) -> float:
    """Return the learning rate of step `step` (0-based): linear warm-up, then a cosine to `final_ratio * peak`.

    Step `warmup_steps - 1` is the first at the peak and step `steps - 1` the last, at `final_ratio * peak`.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps + 1) / max(1, steps - warmup_steps))
    return peak * (final_ratio + (1.0 - final_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress)))


def decays(parameter: nn.Parameter) -> bool:
    """Say whether weight decay applies: matrices and tables do, norms, biases and other vectors do not."""
    return parameter.ndim >= 2


def adamw(named_parameters: Iterable[tuple[str, nn.Parameter]], *, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """Build AdamW over the trainable parameters, in a decayed and an undecayed group (fused kernel, fp32 moments)."""
    trainable = [parameter for _, parameter in named_parameters if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if decays(p)], "weight_decay": weight_decay},
        {"params": [p for p in trainable if not decays(p)], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=lr, betas=ADAM_BETAS, eps=ADAM_EPS, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group the learning rate `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr


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
