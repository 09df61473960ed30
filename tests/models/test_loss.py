"""Is the loss in chunks that of all logits at once, in value and gradient, whatever the chunk, muP and precision?"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tests.models.small import CONFIG, codes, make
from toto_robot.models.loss import mean_cross_entropy
from toto_robot.models.mup import with_mup

N, V, D = 37, 50, 16


def drawn() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(rows, D, generator=generator).requires_grad_() for rows in (N, V))
    return x, weight, torch.randint(V, (N,), generator=generator)


def gradients(loss: torch.Tensor, *of: torch.Tensor) -> list[torch.Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, of)]


@pytest.mark.parametrize("chunk_tokens", [1, 8, 36, 37, 1000])
def test_loss_and_gradients_are_those_of_all_logits_at_once(chunk_tokens: int) -> None:
    x, weight, targets = drawn()
    expected = gradients(3 * F.cross_entropy(F.linear(x, weight), targets), x, weight)
    got = gradients(3 * mean_cross_entropy(x, weight, targets, chunk_tokens), x, weight)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def test_in_bf16_only_the_products_are_rounded() -> None:
    """As precise as autocast's own loss over all logits, in float32 outside the products."""
    x, weight, targets = drawn()
    exact = gradients(F.cross_entropy(F.linear(x, weight), targets), x, weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = mean_cross_entropy(x, weight, targets, 8)
        at_once = F.cross_entropy(F.linear(x, weight).float(), targets)
    assert loss.dtype == torch.float32
    assert abs(loss.item() - at_once.item()) < 1e-5
    for ours, theirs, true in zip(gradients(loss, x, weight), gradients(at_once, x, weight), exact, strict=True):
        assert ours.dtype == torch.float32
        error, usual = (float((value - true).norm() / true.norm()) for value in (ours, theirs))
        assert error < max(1.2 * usual, 1e-5) and error < 5e-3


def test_gradients_of_several_batches_add_up() -> None:
    x, weight, targets = drawn()
    (mean_cross_entropy(x, weight, targets, 8) / 2).backward()
    (mean_cross_entropy(x, weight, targets.flip(0), 8) / 2).backward()
    both = (F.cross_entropy(F.linear(x, weight), t) / 2 for t in (targets, targets.flip(0)))
    expected = torch.autograd.grad(sum(both), (x, weight))
    torch.testing.assert_close((x.grad, weight.grad), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("chunk_tokens", [5, 1000])
def test_the_model_loses_what_its_logits_lose_mup_included(chunk_tokens: int) -> None:
    base = replace(CONFIG, width=16, ffn_width=24, context_frames=8)
    model = make(with_mup(replace(CONFIG, context_frames=8), base))
    assert model.norm.multiplier == 0.5  # muP's output scale: halves the head's input, and must reach the loss
    ids, targets = model.pack(codes(3, 8))
    parameters = list(model.parameters())
    expected = gradients(F.cross_entropy(model(ids).logits.flatten(0, 1), targets.flatten()), *parameters)
    output = model(ids, targets=targets, loss_chunk_tokens=chunk_tokens)
    assert output.logits is None
    for ours, theirs in zip(gradients(output.loss, *parameters), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5 * float(theirs.abs().max()), rtol=1e-5)
    nats, likeliest = model(ids, targets=targets, loss_chunk_tokens=chunk_tokens, per_token=True).per_token
    logits = model(ids).logits
    torch.testing.assert_close(nats, F.cross_entropy(logits.mT, targets, reduction="none"), atol=1e-5, rtol=1e-5)
    assert torch.equal(likeliest, logits.argmax(-1))


def test_a_chunk_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="chunk_tokens of at least 1, got 0"):
        mean_cross_entropy(*drawn(), 0)


class LargestLogits(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the most rows of any result with V columns."""

    rows = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.ndim == 2 and result.shape[1] == V:
            self.rows = max(self.rows, result.shape[0])
        return result


def test_no_more_than_a_chunk_of_logits_is_ever_there() -> None:
    x, weight, targets = drawn()
    with LargestLogits() as seen:
        mean_cross_entropy(x, weight, targets, 20).backward()
    assert D < seen.rows <= 20 < N  # D rows are the transposed weight
