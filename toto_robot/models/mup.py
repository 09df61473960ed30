"""How do initialisation, learning rates and multipliers follow the width, so that one learning rate fits all widths?

The maximal update parametrisation for Adam (arXiv 2203.03466, table 8), with the choices of its authors' package `mup`.
With m = width / base width and K the head dimension (K0 that of the base):

| parameters | initial deviation | learning rate | weight decay | in the forward pass |
|---|---|---|---|---|
| embedding, norms | as the base | lr | as the base | |
| matrices in blocks | as the base / sqrt(m) | lr / m | times m (lr x decay is kept) | q.k times sqrt(K0) / K |
| head | as the base | lr | as the base | its input / m |

At the base width nothing differs from the standard parametrisation, to the bit. FFN width is taken to grow with the
width. Depth is not covered: its rule here is GPT-2's, 1 / sqrt(2 layers) at the start. Adam's eps does not scale: it
stays far below the gradients of every width we train.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from toto_robot.models.toto import TotoConfig


def with_mup(config: TotoConfig, base: TotoConfig) -> TotoConfig:
    """Return `config` in muP, so that what is right for `base` (learning rate, deviations) is right for it.

    Heads may be kept and widened (a1..a6 do) or kept wide and multiplied (nano to base): both are muP.
    """
    return replace(config, mup_base_width=base.width, mup_base_head_dim=base.width // base.heads)


def width_multiplier(config: TotoConfig) -> float:
    """Return m, the width over the base width; 1 in the standard parametrisation."""
    return config.width / (config.mup_base_width or config.width)


def attention_scale(config: TotoConfig) -> float | None:
    """Return what multiplies q.k: sqrt(K0) / K; None where that is the usual 1 / sqrt(K)."""
    head_dim = config.width // config.heads
    if config.mup_base_head_dim in (None, head_dim):
        return None
    assert config.mup_base_head_dim is not None
    return math.sqrt(config.mup_base_head_dim) / head_dim


def output_multiplier(config: TotoConfig) -> float:
    """Return what multiplies the input of the head: 1 / m."""
    return 1.0 / width_multiplier(config)


def deviation_scale(name: str, parameter: nn.Parameter, config: TotoConfig) -> float:
    """Return by what the base's initial deviation is multiplied for a parameter: 1 / sqrt(m) in blocks."""
    return 1.0 / math.sqrt(width_multiplier(config)) if _grows_both_ways(name, parameter) else 1.0


def learning_rate_scales(
    named_parameters: Iterable[tuple[str, nn.Parameter]], config: TotoConfig
) -> dict[str, float] | None:
    """Return by what the learning rate of each parameter is multiplied, by name; None in the standard parametrisation.

    Weight decay is to be divided by the same (`optim.adamw` does).
    """
    if config.mup_base_width is None:
        return None
    scale = 1.0 / width_multiplier(config)
    return {name: scale if _grows_both_ways(name, parameter) else 1.0 for name, parameter in named_parameters}


def _grows_both_ways(name: str, parameter: nn.Parameter) -> bool:
    """Say whether a parameter has two dimensions that grow with the width: "matrix-like" in the paper."""
    return name.startswith("blocks.") and parameter.ndim >= 2
