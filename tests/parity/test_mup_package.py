"""Do our muP models train as the `mup` package would have them, and pass its coordinate check?

Install it with `pip install --no-deps mup`: its metadata asks for torchvision and pandas, which its rules do not need.
"""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.small import CONFIG
from toto_robot.models.mup import learning_rate_scales, with_mup
from toto_robot.models.toto import Toto, TotoConfig
from toto_robot.pretrain.optim import adamw

mup = pytest.importorskip("mup", reason="pip install --no-deps mup")

BASE = replace(CONFIG, layers=2, context_frames=4, frames=4)
LR, DECAY = 4e-3, 0.1


def at(width: int, **changes: Any) -> TotoConfig:
    return replace(BASE, width=width, ffn_width=width * 3 // 2, **changes)


def sample() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return BASE.pack(torch.randint(20, (4, 4, 4), generator=generator))


def optimizer_of(model: Toto) -> torch.optim.Optimizer:
    scales = learning_rate_scales(model.named_parameters(), model.config)
    return adamw(model.named_parameters(), lr=LR, weight_decay=DECAY, scales=scales)


def theirs_like(ours: Toto) -> Toto:
    """Return a standard Toto with their read-out, their shapes, and the weights of ours."""
    width, heads = ours.config.width, ours.config.heads
    models = [Toto(at(size, heads=count)) for size, count in ((width, heads), (32, 2), (64, 4))]
    for model in models:
        model.head = mup.MuReadout(model.config.width, model.config.vocab_size, bias=False)
    theirs = models[0]
    mup.set_base_shapes(theirs, models[1], delta=models[2], rescale_params=False)
    theirs.load_state_dict(ours.state_dict())
    return theirs


def test_their_package_scales_the_same_parameters_by_the_same_factors() -> None:
    ours = Toto(with_mup(at(128, heads=8), BASE))
    scales = learning_rate_scales(ours.named_parameters(), ours.config)
    assert scales is not None
    for name, parameter in theirs_like(ours).named_parameters():
        expected = 1 / parameter.infshape.width_mult() if parameter.infshape.ninf() == 2 else 1.0
        assert scales[name] == expected, name


def test_training_equals_their_read_out_and_their_adamw() -> None:
    """With equal head dimensions: what they say of attention is a rule for the author of a model, not code."""
    ours = Toto(with_mup(at(128, heads=8), BASE), generator=torch.Generator().manual_seed(0))
    theirs = theirs_like(ours)
    optimizers = [
        optimizer_of(ours),
        mup.MuAdamW(theirs.parameters(), lr=LR, weight_decay=DECAY, betas=(0.9, 0.95), eps=1e-8),
    ]
    for optimizer in optimizers:  # theirs decays the gains of norms too, ours does not
        for group in optimizer.param_groups:
            group["weight_decay"] = DECAY * LR / group["lr"]
    inputs, targets = sample()
    for _ in range(6):
        losses = []
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            loss = F.cross_entropy(model(inputs).logits.flatten(0, 1), targets.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[0] == pytest.approx(losses[1], abs=2e-5)
    for (name, mine), parameter in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter, atol=2e-5, rtol=1e-3, msg=name)


class Logits(nn.Module):
    """What their check can call: a tensor in, a tensor out."""

    def __init__(self, model: Toto) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        # Not self.model(ids): their hooks would look at its output, of which parts are None, and know tensors only.
        logits = self.model.forward(ids).logits
        assert logits is not None
        return logits.flatten(0, 1)


@pytest.fixture()
def get_coord_data(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Their measuring function; it asks pandas for nothing but a table to put its records in."""
    try:
        import pandas  # noqa: F401
    except ImportError:
        table = types.ModuleType("pandas")
        table.DataFrame = list  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "pandas", table)
    monkeypatch.delitem(sys.modules, "mup.coord_check", raising=False)
    from mup.coord_check import _get_coord_data

    yield _get_coord_data
    sys.modules.pop("mup.coord_check", None)


def growth(records: Any, at_step: int) -> dict[str, float]:
    """Return by module the slope of log2(mean |output|) over log2(width) at a step: 0 = does not depend on width."""
    rows = records if isinstance(records, list) else records.to_dict("records")
    found: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        if row["t"] == at_step:
            found.setdefault(row["module"], {}).setdefault(row["width"], []).append(row["l1"])
    slopes = {}
    for module, by_width in found.items():
        x = torch.tensor([math.log2(width) for width in by_width], dtype=torch.float64)
        y = torch.tensor([math.log2(sum(values) / len(values)) for values in by_width.values()], dtype=torch.float64)
        slopes[module] = float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
    return slopes


def coordinates(get_coord_data: Callable[..., Any], *, keep_heads: bool, with_rules: bool) -> dict[str, float]:
    """Train widths 32 to 256 for four steps by their function; return the growth of every module's output."""

    def lazy(width: int) -> Callable[[], Logits]:
        config = at(width, heads=2 if keep_heads else width // 16)
        return lambda: Logits(Toto(with_mup(config, BASE) if with_rules else config))

    inputs, targets = sample()
    records = get_coord_data(
        {width: lazy(width) for width in (32, 64, 128, 256)}, [(inputs, targets.flatten())],
        lambda module: optimizer_of(module.model), nsteps=4, nseeds=3, cuda=False, show_progress=False,
    )  # fmt: skip
    return growth(records, at_step=4)


@pytest.mark.parametrize("keep_heads", [True, False])
def test_their_coordinate_check(get_coord_data: Callable[..., Any], keep_heads: bool) -> None:
    """After four steps no output grows with the width in muP; in the standard parametrisation logits and blocks do."""
    ours = coordinates(get_coord_data, keep_heads=keep_heads, with_rules=True)
    standard = coordinates(get_coord_data, keep_heads=keep_heads, with_rules=False)
    del ours["model.norm"], standard["model.norm"]  # holds the read-out's 1 / m, so it falls by design
    assert all(abs(slope) < 0.2 for slope in ours.values()), ours
    assert standard["model.head"] > 0.5 and standard["model.blocks.1"] > 0.5, standard
