"""Do accumulation, moving averages, WSD and muP do what they say, resume to the bit, and does a NaN touch nothing?"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.pretrain.test_loop import Regression, Stop, fit, settings, stop_at
from tests.pretrain.toy import CPU, SIZES, loop_settings, toto_objective
from toto_robot.pretrain.loop import train
from toto_robot.pretrain.objectives import TotoObjective
from toto_robot.run_folder import read_metrics

ALL = {"wsd_decay": 0.5, "ema_decay": 0.9, "accumulate": 3}


def weights_of(run_dir: Path, where: str = "pretrained_model") -> dict[str, Tensor]:
    return load_file(run_dir / where / "model.safetensors")


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("options", [{name: value} for name, value in ALL.items()] + [ALL], ids=[*ALL, "all"])
def test_a_run_stopped_anywhere_ends_with_the_bits_of_an_unbroken_one(
    tmp_path: Path, options: dict[str, float]
) -> None:
    """Dropout and batch norm included; batches count three to a step where gradients accumulate."""
    fit(tmp_path / "whole", **options)
    for step in (1, 8, 9, 21):
        with pytest.raises(Stop):
            fit(tmp_path / "broken", Regression(at_step=stop_at(step * options.get("accumulate", 1))), **options)
    fit(tmp_path / "broken", **options)
    state = "checkpoints/last/training_state"
    for name in (
        "pretrained_model/model",
        "checkpoints/last/pretrained_model/model",
        f"{state}/optimizer/00001-of-00001",
    ):
        whole, broken = (load_file(tmp_path / run / f"{name}.safetensors") for run in ("whole", "broken"))
        assert equal(whole, broken), name
    fit(tmp_path / "plain")
    assert not equal(weights_of(tmp_path / "whole"), weights_of(tmp_path / "plain"))  # the option does something


def test_accumulated_batches_are_one_large_batch(tmp_path: Path) -> None:
    runs = {}
    for accumulate, batch_size in ((1, 8), (4, 2)):
        objective = toto_objective(tmp_path, batch_size=batch_size)
        options = loop_settings(steps=6, accumulate=accumulate)
        run_dir = tmp_path / f"by_{batch_size}"
        runs[batch_size] = (train(objective, options, run_dir, device=CPU, dtype=torch.float32), weights_of(run_dir))
    (whole, large), (parts, small) = runs[8], runs[2]
    assert whole.units == parts.units == 6 * 8 * SIZES.frames * SIZES.tokens_per_frame
    torch.testing.assert_close(small, large, rtol=1e-4, atol=1e-6)
    for key in ("grad_norm", "train/loss"):  # Adam and the clipping would hide a gradient of another size
        logged = [[line[key] for line in read_metrics(tmp_path / f"by_{size}") if key in line] for size in (8, 2)]
        assert len(logged[0]) == 6
        assert logged[1] == pytest.approx(logged[0], rel=1e-4)


class Watched(Regression):
    """Keeps the weights at the start of every step."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict[str, Tensor]] = []
        self.at_step = lambda step: self.seen.append({k: v.clone() for k, v in self.model.state_dict().items()})


def test_the_average_is_published_and_training_does_not_notice(tmp_path: Path) -> None:
    objective = Watched()
    fit(tmp_path / "ema", objective, ema_decay=0.9, eval_every=3)
    fit(tmp_path / "plain", eval_every=3)
    last = weights_of(tmp_path / "ema", "checkpoints/last/pretrained_model")
    assert equal(last, weights_of(tmp_path / "plain"))
    published = weights_of(tmp_path / "ema")
    for name, _ in objective.model.named_parameters():
        expected = objective.seen[1][name]
        for step in (*(seen[name] for seen in objective.seen[2:]), last[name]):
            expected = 0.9 * expected + 0.1 * step
        torch.testing.assert_close(published[name], expected)
        assert not torch.equal(published[name], last[name])


class NaNLoss(Regression):
    """Loss is not a number in one batch."""

    def loss(self, batch: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        loss, extra = super().loss(batch, step)
        return (loss * float("nan") if step == 13 else loss), extra


class NaNGradient(Regression):
    """Loss is finite, its gradient is not: the slope of a square root at zero."""

    def loss(self, batch: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        loss, extra = super().loss(batch, step)
        return (loss + (0 * self.model[0].weight).sum().sqrt() if step == 13 else loss), extra


@pytest.mark.parametrize(
    ("kind", "accumulate", "message"),
    [
        (NaNLoss, 1, r"train/loss became nan in step 14,.*from batch 13: draw 13$"),
        (NaNLoss, 3, r"train/loss became nan in step 5,.*from batch 13: draw 13$"),
        (NaNGradient, 1, r"grad_norm became nan in step 14,.*from batch 13: draw 13$"),
        (NaNGradient, 2, r"grad_norm became nan in step 7,.*from batch 12: draw 12; batch 13: draw 13$"),
    ],
)
def test_what_is_not_finite_stops_before_the_update_and_names_the_batch(
    tmp_path: Path, kind: type[Regression], accumulate: int, message: str
) -> None:
    objective, seen = kind(), []
    objective.at_step = lambda step: seen.append([p.detach().clone() for p in objective.model.parameters()])
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, objective, accumulate=accumulate, log_every=100)
    assert all(torch.equal(now, before) for now, before in zip(objective.model.parameters(), seen[-1], strict=True))
    assert all(bool(parameter.isfinite().all()) for parameter in objective.model.parameters())


def test_a_batch_of_tokens_is_named_by_its_clips_and_frames(tmp_path: Path) -> None:
    """In the toy store, place 0 of frame f of clip c holds the code (f + c) % 16."""
    objective = toto_objective(tmp_path)
    assert isinstance(objective, TotoObjective)
    named = re.findall(r"clip_(\d+) from frame (\d+) \(stride (\d)\)", objective.name_batch(5))
    assert len(named) == 8
    codes = objective.batch(5)[:, 1:].unflatten(1, (SIZES.frames, -1)) - SIZES.first_visual_id
    for (clip, frame, stride), window in zip(named, codes, strict=True):
        at = [int(frame) + int(clip) + int(stride) * index for index in range(SIZES.frames)]
        assert window[:, 0].tolist() == [value % 16 for value in at]


def test_checkpoints_from_before_an_option_existed_continue_at_its_default() -> None:
    before = {name: value for name, value in settings().same_run().items() if name not in ALL}
    assert settings().changed(before) == []
    assert settings(**ALL).changed(before) == ["wsd_decay", "ema_decay", "accumulate"]
    assert settings(lr=0.5).changed(before) == ["lr"]


def test_options_are_checked() -> None:
    for wrong in (0.0, 0.91):
        with pytest.raises(ValueError, match=r"expected wsd_decay above 0 and at most 0\.9 \(after warm-up\)"):
            settings(wsd_decay=wrong)
    for wrong in (0.0, 1.0):
        with pytest.raises(ValueError, match="expected ema_decay between 0 and 1"):
            settings(ema_decay=wrong)
    with pytest.raises(ValueError, match="expected accumulate of at least 1, got 0"):
        settings(accumulate=0)
