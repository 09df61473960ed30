"""Does `generate` write films, sheets and numbers that say what the model did, and go on where it was stopped?"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from tests.pretrain.toy import DVAE_SIZES, SIZES
from tests.pretrain.toy_videos import write_odd, write_plain
from toto_robot.data.frames import prepare_frames
from toto_robot.data.sources import find_sources
from toto_robot.models.generate import surprise
from toto_robot.models.hub import from_pretrained, save_pretrained
from toto_robot.models.toto import Toto
from toto_robot.pretrain.continuation import GenerateConfig
from toto_robot.pretrain.films import film, heat, scale_bar
from toto_robot.pretrain.generate import generate_command
from toto_robot.tokenizers.dvae import DVAE, load_dvae, save_dvae

SHORT: dict[str, Any] = {
    "prompt_frames": 3, "frames": 4, "samples": 2, "clips": 2, "picture_px": 32, "precision": "fp32",
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model and its tokenizer, and three videos of 12 frames."""
    folder = tmp_path_factory.mktemp("generate")
    model = Toto(replace(SIZES, frames=8, context_frames=5), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    save_pretrained(model, folder / "model")
    save_dvae(DVAE(DVAE_SIZES, generator=torch.Generator().manual_seed(0)), folder / "model" / "tokenizer")
    write_plain(folder / "videos", 3, 12)
    return folder


def config(made: Path, **changes: Any) -> GenerateConfig:
    return GenerateConfig(**{"model": str(made / "model"), "data": str(made / "videos"), **SHORT, **changes})


def film_frames(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_films_sheets_and_numbers_of_every_clip(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate_command(config(made), tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [clip["name"] for clip in summary["clips"]] == ["videos/plain_0.mp4", "videos/plain_2.mp4"]
    clip = summary["clips"][0]
    folder = tmp_path / clip["folder"]
    assert clip["truth_frames"] == 4 and len(clip["per_frame"]["agreement"]) == 4
    assert film_frames(folder / "continuation.mp4").shape == (7, 64, 4 * 36, 3)  # 16 px twice, text, four columns
    assert film_frames(folder / "surprise.mp4").shape[0] == 7
    assert (folder / "sheet.png").read_bytes().startswith(b"\x89PNG")
    assert "tokens right" in capsys.readouterr().out

    # the surprise is that of the frames in the middle of the video, by the model and tokenizer of the folder
    numbers = json.loads((folder / "surprise.json").read_text())
    assert numbers["start_frame"] == 2 and numbers["grid"] == [2, 2]
    source = find_sources(made / "videos")[0]
    frames = np.stack(list(source.frames(16)))[2:9]
    codes = load_dvae(made / "model" / "tokenizer").encode(torch.from_numpy(frames)).flatten(1)
    nats = surprise(from_pretrained(made / "model"), codes[None])[0]  # type: ignore[arg-type]
    np.testing.assert_allclose(numbers["per_position"], nats.ravel(), atol=2e-4)
    np.testing.assert_allclose(numbers["per_frame"], nats.mean(1), atol=2e-4)
    np.testing.assert_allclose(numbers["per_place"], nats.mean(0), atol=2e-4)
    assert clip["copy_agreement"] == pytest.approx(float((codes[3:] == codes[2]).double().mean()), abs=1e-4)


def test_a_run_goes_on_with_the_clip_it_was_stopped_in(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate_command(config(made), tmp_path / "whole")
    calls: list[int] = []

    def stopped(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return surprise(*arguments, **named)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("toto_robot.pretrain.continuation.surprise", stopped)
        generate_command(config(made), tmp_path / "resumed")
    first = next((tmp_path / "resumed").glob("00_*/surprise.json"))
    written = first.stat().st_mtime_ns
    generate_command(config(made), tmp_path / "resumed")
    assert first.stat().st_mtime_ns == written
    for name in ("summary.json", f"{first.parent.name}/continuation.mp4"):
        assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    with pytest.raises(ValueError, match=r"other settings \(temperature: 1.0 -> 0.5\)"):
        generate_command(config(made, temperature=0.5), tmp_path / "resumed")


def test_a_sample_is_a_function_of_seed_and_clip(made: Path, tmp_path: Path) -> None:
    """More samples, fewer clips or a frame store of the same video change nothing."""
    store = prepare_frames(find_sources(made / "videos"), tmp_path / "frames", 16, progress=False)
    generate_command(config(made, samples=1), tmp_path / "many")
    generate_command(config(made, samples=1, clips=1, data=str(store.path)), tmp_path / "one")
    generate_command(config(made, samples=1, clips=1, seed=7), tmp_path / "other")
    many, one, other = (
        json.loads((tmp_path / name / "summary.json").read_text())["clips"][0] for name in ("many", "one", "other")
    )
    assert many == one
    assert many["per_frame"]["psnr_db"] != other["per_frame"]["psnr_db"]
    assert many["per_frame"]["tokenizer_psnr_db"] == other["per_frame"]["tokenizer_psnr_db"]


def test_videos_that_end_or_break_are_told(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_odd(tmp_path / "odd")  # five videos: one broken, one of three frames
    generate_command(config(made, data=str(tmp_path / "odd"), clips=9), tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert list(summary["rejected"]) == ["odd/corrupt.mp4"]
    lengths = {clip["name"]: clip["truth_frames"] for clip in summary["clips"]}
    assert lengths.pop("odd/three_frames.mp4") == 0  # continued beyond its end: nothing to compare with
    assert list(lengths.values()) == [4, 4, 4]  # of variable_rate.mkv too, whose header promises twice its frames
    assert "left out odd/corrupt.mp4" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"none of the 1 clips.*the prompt needs 5"):
        only = config(made, data=str(tmp_path / "odd" / "three_frames.mp4"), prompt_frames=5)
        generate_command(only, tmp_path / "none")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prompt_frames": 0}, "prompt_frames of at least 1, got 0"),
        ({"start_frame": -1}, "start_frame of at least 0"),
        ({"top_p": 0.0}, "0 < top_p <= 1"),
        ({"temperature": -1.0}, "temperature >= 0"),
    ],
)
def test_settings_are_checked(wrong: dict[str, Any], message: str, made: Path) -> None:
    with pytest.raises(ValueError, match=message):
        config(made, **wrong)


def test_a_folder_without_a_tokenizer_is_refused(made: Path, tmp_path: Path) -> None:
    model = from_pretrained(made / "model")
    save_pretrained(model, tmp_path / "bare")
    with pytest.raises(ValueError, match=r"bare has no tokenizer/ folder; give pretrained_model"):
        generate_command(config(made, model=str(tmp_path / "bare")), tmp_path / "run")


def test_the_heat_map_lies_over_its_patch() -> None:
    frames = np.full((1, 16, 16, 3), 128, np.uint8)
    hot = heat(frames, np.array([[[0.0, 7.0], [0.0, 0.0]]]), 7.0)[0].astype(int)
    assert hot.shape == (16, 16, 3)
    assert (hot[:8, 8:] == hot[0, 8]).all() and (hot[8:] == hot[0, 0]).all() and (hot[:8, :8] == hot[0, 0]).all()
    assert hot[0, 8].sum() > hot[0, 0].sum() + 100
    bar = scale_bar(7.0, 100).astype(int)
    assert bar.shape == (100, 72, 3) and (bar[0, 0] == hot[0, 8]).all() and (bar[-1, 0] == hot[0, 0]).all()


def test_made_pictures_have_a_red_border_and_ended_columns_are_grey() -> None:
    black = np.zeros((4, 8, 8, 3), np.uint8)
    pictures = list(film([("truth", black[:2]), ("made", black)], ["a"] * 4, 16, given=1, made_from=1))
    assert all(picture.shape == pictures[0].shape for picture in pictures)
    left = 16 + 4
    assert tuple(pictures[0][28, left]) == (0, 0, 0) and tuple(pictures[1][28, left]) == (220, 30, 30)
    assert tuple(pictures[1][28, 0]) == (0, 0, 0) and tuple(pictures[2][30, 8]) == (200, 200, 200)
