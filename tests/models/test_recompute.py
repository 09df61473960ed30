"""Does activation checkpointing give the same bits, and is what should be kept not computed again?"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.models.small import CONFIG, codes, make
from toto_robot.models.recompute import MODES


class Calls(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.of: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.of[func.name().removeprefix("aten::")] += 1
        return func(*args, **(kwargs or {}))


def step(mode: str, dtype: torch.dtype = torch.float32) -> tuple[list[torch.Tensor], Counter[str]]:
    """Return loss and gradients of a sample beyond its window, and how often which operation ran."""
    model = make(CONFIG).train()
    model.activation_checkpointing = mode
    ids, targets = model.pack(codes(2, CONFIG.frames))
    with Calls() as calls:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = model(ids, targets=targets).loss
        loss.backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    return [loss.detach(), *(gradient for gradient in gradients if gradient is not None)], calls.of


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_and_gradients_are_the_same_bits(dtype: torch.dtype) -> None:
    plain, *others = (step(mode, dtype)[0] for mode in MODES)
    assert len(plain) == 1 + len(list(make(CONFIG).parameters()))
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(plain, other, strict=True))


def test_full_runs_blocks_twice_and_selective_only_what_is_cheap() -> None:
    none, selective, full = (step(mode)[1] for mode in MODES)
    attention = next(name for name in none if name.startswith("_scaled_dot_product") and "backward" not in name)
    layers = CONFIG.layers
    assert [calls[attention] for calls in (none, selective, full)] == [layers, layers, 2 * layers]
    assert [calls["silu"] for calls in (none, selective, full)] == [layers, 2 * layers, 2 * layers]
    assert selective["mm"] == none["mm"]
    assert full["mm"] >= none["mm"] + 3 * layers  # qkv, out and gate_up; the last product of a block is not needed


def test_without_gradients_nothing_runs_twice() -> None:
    model = make(CONFIG)
    model.activation_checkpointing = "full"
    with torch.no_grad(), Calls() as calls:
        model(model.pack(codes(1, 2))[0])
    assert calls.of["silu"] == CONFIG.layers
