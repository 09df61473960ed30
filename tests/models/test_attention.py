"""Do FlexAttention and the stream's own attention compute what scaled_dot_product_attention does under a mask?"""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tests.models.small import CONFIG, make
from toto_robot.models import attention
from toto_robot.models.attention import Layout, Window, attend, sequence_keys, sequence_layout

original = attention._attend_by_head
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


@torch.no_grad()
@pytest.mark.parametrize("scores_at_once", [1, 2 * 4 * 9, 1 << 20])
@pytest.mark.parametrize("scale", [None, 0.5])
def test_attention_of_a_bf16_stream_is_attention(
    scores_at_once: int, scale: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever number of heads is taken at a time; rows have masks of their own."""
    monkeypatch.setattr(attention, "_SCORES_AT_ONCE", scores_at_once)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, 5, n, 16, generator=generator).bfloat16() for n in (4, 9, 9))
    hidden = torch.rand(3, 1, 4, 9, generator=generator) < 0.5
    hidden[..., 0] = False
    mask = torch.zeros(hidden.shape, dtype=torch.bfloat16).masked_fill_(hidden, float("-inf"))
    layout = sequence_layout(1, WINDOW, q.device)._replace(mask=mask, causal=False)
    by_head = []
    monkeypatch.setattr(attention, "_attend_by_head", lambda *a: by_head.append(a) or original(*a))
    found = attend(q, k, v, layout, scale)
    expected = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=~hidden, scale=scale)
    assert by_head and (found - expected).norm() / expected.norm() < 0.01
    # float32 scores are taken by torch, exactly
    exact = attend(q.float(), k.float(), v.float(), layout._replace(mask=mask.float()), scale)
    torch.testing.assert_close(exact, expected, atol=1e-6, rtol=1e-6)
    assert len(by_head) == 1


def test_block_mask_and_boolean_mask_say_the_same() -> None:
    device = torch.device("cpu")
    boolean, blocks = (sequence_layout(LENGTH, WINDOW, device, blocks=flag) for flag in (False, True))
    assert torch.equal(boolean.rotation.cos, blocks.rotation.cos)
    query, key = torch.arange(LENGTH)[:, None], torch.arange(boolean.mask.shape[1])
    assert torch.equal(blocks.mask.mask_mod(0, 0, query, key), boolean.mask)
    assert sequence_layout(LENGTH, WINDOW, device, blocks=True) is blocks  # built once


@torch.no_grad()
def test_flex_attention_computes_what_the_boolean_mask_computes() -> None:
    """Its backward pass exists on CUDA only: see the tests below."""
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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("context_frames", [3, 8])
@pytest.mark.parametrize("compile_it", [False, True])
def test_a_training_step_on_cuda_has_the_loss_and_gradients_of_the_cpu(context_frames: int, compile_it: bool) -> None:
    config = replace(CONFIG, width=64, tokens_per_frame=16, context_frames=context_frames)
    shape = (2, config.frames, config.tokens_per_frame)
    ids, targets = config.pack(torch.randint(config.visual_vocab, shape, generator=torch.Generator().manual_seed(0)))
    found = []
    for device in ("cpu", "cuda"):
        model = make(config).train().to(device)
        forward = torch.compile(model) if compile_it and device == "cuda" else model
        loss = forward(ids.to(device), targets=targets.to(device)).loss
        loss.backward()
        found.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
    for on_cpu, on_cuda in zip(*found, strict=True):
        error = (on_cuda.cpu() - on_cpu).norm() / on_cpu.norm()
        assert float(error) < 5e-3  # the products of FlexAttention may be TF32
