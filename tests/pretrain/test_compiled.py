"""Does torch.compile compute the same loss and gradients, with a cache that no other run reads?"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.models.small import CONFIG, codes, make
from toto_robot.models.toto import Toto
from toto_robot.pretrain.loop import compiled


@pytest.fixture
def _cache_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the environment back as it was: `compiled` sets the cache of this process."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", os.environ.get("TORCHINDUCTOR_CACHE_DIR", ""))


def gradients(model: Toto, forward: torch.nn.Module) -> list[torch.Tensor]:
    ids, targets = model.pack(codes(2, 2))
    loss = forward(ids, targets=targets, loss_chunk_tokens=10).loss
    loss.backward()
    found = [loss.detach(), *(parameter.grad for parameter in model.parameters())]
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.usefixtures("_cache_variable")
def test_compiled_loss_and_gradients_equal_eager_and_the_cache_is_the_runs_own(tmp_path: Path) -> None:
    """What a killed compilation left behind is not read again, by this run or another."""
    cache = tmp_path / "inductor_cache" / "0"
    truncated = cache / "ab" / "truncated.so"
    truncated.parent.mkdir(parents=True)
    truncated.write_bytes(b"\x7fELF")
    model = make(replace(CONFIG, layers=1)).train()
    for ours, theirs in zip(gradients(model, compiled(model, tmp_path)), gradients(model, model), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5 * float(theirs.abs().max()), rtol=1e-4)
    assert list(cache.rglob("*.so")) and not truncated.exists()
