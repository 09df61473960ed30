"""Which numbers are bf16 and which float32?

| what | with bf16 | with fp32 |
|---|---|---|
| weights, gradients, optimizer moments, averages, checkpoints | float32 | float32 |
| matrix products and attention: what goes in and comes out | bf16 | float32 |
| inside them: sums, softmax | float32 | float32 |
| residual stream, norms, rotary angles and rotations, logits, loss | float32 | float32 |
| sums of gradients over chunks of positions and over batches | float32 | float32 |

The master weights are cast at the product, by torch's autocast, once a step. Casting by hand (as nanochat does) was
measured beside it and is not faster here (benchmarks/RESULTS.md); so there is one mechanism, which the tokenizers and
transformers' MAE have in common with Toto. Frozen encoders keep their matrices in bf16 (`halve_matrices`): the same
numbers, without the cast. What decides between codes leaves autocast and is float32 everywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor


def product_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which a product with `x` is computed: that of autocast, or its own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
