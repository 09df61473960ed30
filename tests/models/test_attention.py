"""Does FlexAttention, under the window in blocks, compute what the boolean mask does?"""

from __future__ import annotations

import functools

import pytest
import torch

from toto_robot.models.attention import Layout, Window, attend, sequence_keys, sequence_layout

WINDOW = Window(tokens_per_frame=16, context_frames=3, head_dim=16, rope_base=10_000.0)
LENGTH = 1 + 8 * 16


def inputs(device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 2, LENGTH, 16, generator=generator).to(device) for _ in range(3))
    return q, k, v


def mixed(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: Layout) -> torch.Tensor:
    keys, values = sequence_keys(k, v, layout)
    return attend(q, keys, values, layout, None)


@functools.cache
def compiler_works() -> bool:
    try:
        return bool(torch.compile(lambda x: x + 1)(torch.zeros(3)).sum() == 3)
    except Exception:  # no C++ compiler, or one that torch cannot use
        return False


def test_block_mask_and_boolean_mask_say_the_same() -> None:
    device = torch.device("cpu")
    boolean, blocks = (sequence_layout(LENGTH, WINDOW, device, blocks=flag) for flag in (False, True))
    assert torch.equal(boolean.rotation.cos, blocks.rotation.cos)
    query, key = torch.arange(LENGTH)[:, None], torch.arange(boolean.mask.shape[1])
    assert torch.equal(blocks.mask.mask_mod(0, 0, query, key), boolean.mask)
    assert sequence_layout(LENGTH, WINDOW, device, blocks=True) is blocks  # built once


@torch.no_grad()
def test_flex_attention_computes_what_the_boolean_mask_computes() -> None:
    """Its backward pass exists on CUDA only: see the test below and benchmarks/cuda_check.py."""
    if not compiler_works():
        pytest.skip("torch.compile finds no working compiler here, and FlexAttention needs it")
    device = torch.device("cpu")
    boolean, blocks = (mixed(*inputs(device), sequence_layout(LENGTH, WINDOW, device, blocks=b)) for b in (False, True))
    torch.testing.assert_close(blocks, boolean, atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_flex_attention_on_cuda_has_the_gradients_of_the_boolean_mask() -> None:
    device = torch.device("cuda")
    found = []
    for blocks in (False, True):
        q, k, v = (x.requires_grad_() for x in inputs(device))
        result = mixed(q, k, v, sequence_layout(LENGTH, WINDOW, device, blocks=blocks))
        found.append([result, *torch.autograd.grad(result.square().sum(), (q, k, v))])
    for boolean, flex in zip(*found, strict=True):
        torch.testing.assert_close(flex, boolean, atol=2e-3, rtol=2e-3)  # its products may be TF32
