"""Which results of a block are kept for the backward pass, and which are computed again (activation checkpointing)?

| mode | kept of a block | computed again |
|---|---|---|
| none | everything | nothing |
| selective | its input, results of matrix products and attention | norms, rotations, SwiGLU: all that is cheap |
| full | its input | the block: a third more computing |

The same operations give the same bits, so a training does not depend on the mode.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    checkpoint,
    create_selective_checkpoint_contexts,
)

MODES = ("none", "selective", "full")

_KEPT = {
    torch.ops.aten.mm.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.higher_order.flex_attention,
}


def check_mode(mode: str) -> str:
    """Return `mode`; ValueError where there is no such mode."""
    if mode not in MODES:
        raise ValueError(f"expected activation_checkpointing as one of {', '.join(MODES)}, got {mode!r}")
    return mode


def run_block(mode: str, block: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """Return `block(*inputs)`, keeping of it what the mode says; without gradients everything is let go anyway."""
    if mode == "none" or not torch.is_grad_enabled():
        return block(*inputs)
    # The model draws no random numbers, so no generator needs to be set back.
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if mode == "selective":
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _keep)
    result: Tensor = checkpoint(block, *inputs, **options)
    return result


def _keep(context: SelectiveCheckpointContext, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE
