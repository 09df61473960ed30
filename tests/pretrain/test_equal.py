"""Does the baseline train for as many patches, or FLOPs, as a finished Toto, on its clips and their division?"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toto_robot.models.compute import mae_training_flops, toto_training_flops
from toto_robot.models.presets import mae_preset, preset
from toto_robot.pretrain.clips import divide
from toto_robot.pretrain.config import PretrainConfig
from toto_robot.pretrain.equal import division_of, equalled, fingerprint, shortest_clip
from toto_robot.run_folder import write_json

TOKENS = 450 * 4 * 1024
RECORDS = [{"name": f"clip_{index}", "group": f"group_{index // 2}"} for index in range(40)]
ENDS = np.arange(1, 41) * 30


def toto_run(folder: Path, seed: int = 3, **found: Any) -> Path:
    """Write what a finished Toto leaves: its summary and configuration, and frames of its size."""
    settings = asdict(PretrainConfig(seed=seed, val_fraction=0.2, data=("videos",), weights=(2,), limit_frames=500))
    division = divide(ENDS, RECORDS, 0.2, seed, 16)
    told = {"tokens_seen": TOKENS, "division": fingerprint(division, ENDS, RECORDS), "settings": settings}
    write_json(folder / "toto" / "summary.json", {**told, **found})
    write_json(folder / "toto" / "pretrained_model" / "config.json", {"model_type": "toto", **asdict(preset("nano"))})
    (folder / "toto" / "frames").mkdir(exist_ok=True)
    return folder / "toto"


def mae(run: Path, **settings: Any) -> PretrainConfig:
    return equalled(PretrainConfig(**{"model": "mae_nano", "equal_to": str(run), **settings}))


def test_equal_tokens_are_patches_seen(tmp_path: Path) -> None:
    """Nano has 64 tokens and 64 patches a frame: as many images as the Toto saw frames."""
    config = mae(toto_run(tmp_path), batch_size=32)
    assert config.steps == 450 * 4 * 16 / 32
    assert config.steps * 32 * 64 == TOKENS
    assert config.recipe().warmup_steps == 50
    assert mae(toto_run(tmp_path), batch_size=64).steps == config.steps / 2
    with_larger = mae(toto_run(tmp_path), model="mae_tiny", batch_size=32, frames="frames of 128 px")
    assert with_larger.steps == round(TOKENS / 256 / 32)


def test_equal_compute_is_equal_training_flops(tmp_path: Path) -> None:
    config = mae(toto_run(tmp_path), equal="compute")
    assert config.steps is not None
    flops = mae_training_flops(mae_preset("nano"), config.steps * config.recipe().batch_size)
    assert flops == pytest.approx(toto_training_flops(preset("nano"), TOKENS), rel=0.5 / config.steps)
    assert config.steps > 2 * (mae(toto_run(tmp_path)).steps or 0)  # MAE's encoder sees a quarter of an image


def test_the_clips_and_what_is_held_out_are_totos_whatever_the_seed(tmp_path: Path) -> None:
    config = mae(toto_run(tmp_path), seed=7)
    assert config.frames == str(tmp_path / "toto" / "frames")
    assert shortest_clip(config) == 16
    division = division_of(config, ENDS, RECORDS, 1)
    theirs = divide(ENDS, RECORDS, 0.2, 3, 16)
    assert np.array_equal(division.held_out, theirs.held_out)
    other = divide(ENDS, RECORDS, 0.2, 7, 16)
    assert not np.array_equal(division.held_out, other.held_out)
    without = replace(config, equal_to=None)
    assert np.array_equal(division_of(replace(without, val_fraction=0.2), ENDS, RECORDS, 1).held_out, other.held_out)
    assert shortest_clip(without) == 1


def test_another_size_is_made_from_the_same_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = toto_run(tmp_path)
    with pytest.raises(ValueError, match=r"frames of 64 px, 128 px are needed.*not at videos; give data="):
        mae(run, model="mae_tiny")
    Path("videos").mkdir()
    config = mae(run, model="mae_tiny")
    assert (config.frames, config.data, config.limit_frames) == (None, ("videos",), 500)
    assert config.weights == (2,), "and mixed as they were"


def test_other_clips_or_another_division_are_refused(tmp_path: Path) -> None:
    config = mae(toto_run(tmp_path))
    for ends, records in (
        (ENDS[:-2], RECORDS[:-2]),
        (ENDS, [{**record, "name": record["name"] + "x"} for record in RECORDS]),
        (ENDS + np.arange(40), RECORDS),
    ):
        with pytest.raises(ValueError, match=r"not the clips that .*toto was trained and measured on"):
            division_of(config, ends, records, 1)
    backwards = list(reversed(RECORDS))  # another order of the same clips is the same division
    assert {backwards[clip]["name"] for clip in division_of(config, ENDS, backwards, 1).held_out} == {
        RECORDS[clip]["name"] for clip in division_of(config, ENDS, RECORDS, 1).held_out
    }


def test_the_cut_of_a_single_video_is_totos_too(tmp_path: Path) -> None:
    """Held out are its last frames, at least a window of the Toto; a baseline of single images would hold out fewer."""
    ends, records = np.array([100]), [{"name": "one", "group": "one"}]
    cut = fingerprint(divide(ends, records, 0.05, 0, 16), ends, records)
    settings = {**asdict(PretrainConfig()), "val_fraction": 0.05}
    division = division_of(mae(toto_run(tmp_path, division=cut, settings=settings)), ends, records, 1)
    assert division.ends.tolist() == [84, 100]


def test_mistakes_are_named(tmp_path: Path) -> None:
    run = toto_run(tmp_path)
    with pytest.raises(ValueError, match=r"give steps or equal_to, not both"):
        mae(run, steps=5)
    with pytest.raises(ValueError, match=r"equal_to=x is for the baseline"):
        PretrainConfig(equal_to="x")
    with pytest.raises(ValueError, match=r"expected equal=tokens or equal=compute, got 'time'"):
        PretrainConfig(model="mae_nano", equal="time")
    with pytest.raises(ValueError, match=r"no finished run of Toto \(summary.json is missing\)"):
        mae(tmp_path / "nowhere")
    write_json(run / "pretrained_model" / "config.json", {"model_type": "mae"})
    with pytest.raises(ValueError, match="expected a model of type 'toto'"):
        mae(run)
