"""Are pictures drawn on the way, of the right things, and does the training not notice?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.pretrain.toy import CPU, SIZES, loop_settings, token_store, toto_objective
from toto_robot.models.toto import Toto
from toto_robot.pretrain import toto_pictures
from toto_robot.pretrain.clips import divide
from toto_robot.pretrain.loop import train
from toto_robot.pretrain.pictures import draw_per_position
from toto_robot.pretrain.toto_pictures import Continuations


def continuations(folder: Path) -> Continuations:
    tokens = token_store(folder / "tokens")
    _, held_out = divide(tokens.clip_ends, tokens.records, 0.25, 0, SIZES.frames).samplers(SIZES.frames, (1,), 0)
    assert held_out is not None
    return Continuations(held_out, tokens, None, folder / "tokenizer", kind="held-out", seed=0)


@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.9}], ids=["plain", "averaged"])
def test_pictures_on_the_way_change_no_bit_of_the_training(tmp_path: Path, options: dict[str, Any]) -> None:
    watched, plain = toto_objective(tmp_path), toto_objective(tmp_path)
    shown, drawn_after = continuations(tmp_path), []

    def draw(done: int) -> None:
        shown.draw(watched.model, tmp_path / "pictures" / f"{done}.png")
        torch.rand(5)  # a picture that draws from the global generator must not matter either
        drawn_after.append((done, watched.model.training, torch.is_grad_enabled()))

    config = loop_settings(12, pictures_every=3, eval_every=5, **options)
    train(watched, config, tmp_path / "with", device=CPU, dtype=torch.bfloat16, draw=draw)
    train(plain, config, tmp_path / "without", device=CPU, dtype=torch.bfloat16)
    assert drawn_after == [(3, False, False), (6, False, False), (9, False, False)]
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["3.png", "6.png", "9.png"]
    written = sorted(path.relative_to(tmp_path / "with") for path in (tmp_path / "with").rglob("*.safetensors"))
    assert len(written) > 3
    for name in written:
        one, other = (load_file(tmp_path / run / name) for run in ("with", "without"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name


def test_when_pictures_are_due() -> None:
    def due(steps: int, **settings: Any) -> list[int]:
        return [done for done in range(1, steps + 1) if loop_settings(steps, **settings).draws_after(done)]

    assert due(452) == [91, 182, 273, 364]  # a fifth, rounded up
    assert due(120) == [50, 100]
    assert due(40) == []
    assert due(22, pictures_every=11) == [11]  # those after the last step are drawn from what is published
    assert due(452, pictures_every=0) == []
    with pytest.raises(ValueError, match="pictures_every of at least 0"):
        loop_settings(pictures_every=-1)


def test_a_continuation_starts_with_what_was_given_and_is_the_same_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toto_objective(tmp_path)
    drawn: list[Any] = []
    monkeypatch.setattr(toto_pictures, "draw_rows", lambda path, rows, title, mark: drawn.append((rows, title, mark)))
    for seed in (0, 0, 1):
        model = Toto(SIZES, generator=torch.Generator().manual_seed(seed))
        continuations(tmp_path).draw(model, tmp_path / "x.png")
    rows, title, mark = drawn[0]
    assert "held-out video" in title and mark == 1
    assert [label for label, _ in rows] == ["its tokens", "continued"] * 2  # two clips are held out
    for (_, truth), (_, made) in zip(rows[::2], rows[1::2], strict=True):
        assert truth.shape == made.shape == (SIZES.frames, 16, 16, 3)
        assert np.array_equal(truth[:mark], made[:mark])
    pictures = [np.stack([row for _, row in rows]) for rows, _, _ in drawn]
    assert np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0], pictures[2])  # another model makes another continuation


def test_loss_by_position_is_drawn_with_what_is_known(tmp_path: Path) -> None:
    """Missing references are left out, and a picture with a higher curve is another picture."""
    nats = np.concatenate([np.full(64, 4.0), np.full(64, 1.0)])
    measured = {"unit": "nats per token", "per_position": nats.tolist(), "per_frame": [4.0, 1.0]}
    pictures = []
    for references in ({}, {"single tokens": 5.0, "copying the frame before": None}, {"single tokens": 9.0}):
        path = draw_per_position(tmp_path / "per_position.png", {**measured, "references": references})
        pictures.append(np.asarray(Image.open(path).convert("RGB")))
    one, other = ({**measured, "per_frame": [level, level]} for level in (2.0, 3.0))
    path = draw_per_position(tmp_path / "mixed.png", {**measured, "sources": {"arms": one, "kitchens": other}})
    alone = draw_per_position(tmp_path / "alone.png", {**measured, "sources": {"arms": measured}})
    assert np.array_equal(np.asarray(Image.open(alone).convert("RGB")), pictures[0])  # one source is all there is
    assert not np.array_equal(np.asarray(Image.open(path).convert("RGB")), pictures[0])
    assert all(picture.shape == pictures[0].shape and picture.std() > 10 for picture in pictures)
    assert not np.array_equal(pictures[1], pictures[2])
    assert not np.array_equal(pictures[0], pictures[1])
