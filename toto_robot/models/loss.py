"""What is the loss of a batch, without ever holding all of its logits?

Logits are the largest tensor of a training step: 4096 positions of 8192 ids are 134 MB in float32, and their gradient
as much again. Here head and cross-entropy go through the positions in chunks. With gradients a chunk's are computed
while its logits are there (in the forward pass, as Liger does), so that a chunk's logits are all that is ever held and
nothing is computed twice.

Its precision is that of `precision.py`: products in the dtype of autocast, all else in float32.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from toto_robot.models.precision import product_dtype

LOSS_CHUNK_TOKENS = 1024  # 512 to 2048 are equally fast on a CPU, all of 4096 at once a fifth slower (RESULTS.md)


def mean_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor, chunk_tokens: int) -> Tensor:
    """Return the mean of the cross-entropy of logits x @ weight.T against `targets`, a float32 scalar.

    x (N, D) the head's input, weight (V, D), targets (N,) int64; at most `chunk_tokens` rows of logits at a time. It
    can be differentiated once.
    """
    if chunk_tokens < 1:
        raise ValueError(f"expected chunk_tokens of at least 1, got {chunk_tokens}")
    loss: Tensor = _MeanCrossEntropy.apply(x, weight, targets, chunk_tokens, product_dtype(x))
    return loss


class TokenLosses(NamedTuple):
    """How well each target was foreseen."""

    nats: Tensor  # cross-entropy, float32
    likeliest: Tensor  # the id of the largest logit, int64


@torch.no_grad()
def token_losses(x: Tensor, weight: Tensor, targets: Tensor, chunk_tokens: int) -> TokenLosses:
    """Return the cross-entropy of every target and the likeliest id in its place, each (N,); arguments as above."""
    losses, likeliest = [], []
    for rows, wanted in zip(_chunks(x, chunk_tokens), _chunks(targets, chunk_tokens), strict=True):
        logits = F.linear(rows, weight.to(rows.dtype)).float()
        losses.append(F.cross_entropy(logits, wanted, reduction="none"))
        likeliest.append(logits.argmax(-1))
    return TokenLosses(torch.cat(losses), torch.cat(likeliest))


def _chunks(x: Tensor, chunk_tokens: int) -> tuple[Tensor, ...]:
    """Cut the rows of `x` into pieces of nearly equal length, none longer than `chunk_tokens`."""
    return x.tensor_split(-(-len(x) // chunk_tokens))


class _MeanCrossEntropy(torch.autograd.Function):
    """See `mean_cross_entropy`. The gradients of the sum are saved; backward scales them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, chunk_tokens: int, dtype: torch.dtype) -> Tensor:
        products, rows_of = weight.to(dtype), x.to(dtype)
        total = torch.zeros((), dtype=torch.float32, device=x.device)
        weight_grad = torch.zeros_like(weight, dtype=torch.float32)
        x_grads = []
        with torch.autocast(x.device.type, enabled=False):
            for rows, wanted in zip(_chunks(rows_of, chunk_tokens), _chunks(targets, chunk_tokens), strict=True):
                logs = F.log_softmax(F.linear(rows, products).float(), dim=-1)
                at = wanted.unsqueeze(1)
                total -= logs.gather(1, at).sum()
                grad = logs.exp_().scatter_add_(1, at, logs.new_full((len(rows), 1), -1.0)).to(dtype)
                x_grads.append(grad @ products)
                weight_grad += grad.T @ rows
        ctx.save_for_backward(torch.cat(x_grads).to(x.dtype), weight_grad)
        ctx.weight_dtype = weight.dtype
        return total / len(targets)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x_grad, weight_grad = ctx.saved_tensors
        scale = upstream / len(x_grad)
        return (x_grad.float() * scale).to(x_grad.dtype), (weight_grad * scale).to(ctx.weight_dtype), None, None, None
