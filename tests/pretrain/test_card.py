"""Does the card of a trained model say what the run knows, and nothing of the machine?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from tests.pretrain.toy import token_store
from toto_robot.models.compute import toto_training_flops
from toto_robot.models.presets import preset
from toto_robot.pretrain.card import write_card
from toto_robot.pretrain.config import PretrainConfig
from toto_robot.run_folder import write_json

FOUND = {
    "tokens_seen": 2_048_000, "steps": 500, "parameters": 5_641_472, "val_loss": 1.2326, "val_unigram": 5.148,
    "val_accuracy": 0.6789, "val_copy_accuracy": 0.6125, "val_first_frame": 1.791, "val_last_frame": 1.1344,
    "val_windows": 128,
}  # fmt: skip


def card(folder: Path, found: dict[str, object] = FOUND, **settings: object) -> str:
    write_json(folder / "provenance.json", {"commit": "abc1234"})
    write_json(folder / "pretrained_model" / "config.json", {"model_type": "toto", **asdict(preset("nano"))})
    store = token_store(folder / "tokens")
    return write_card(PretrainConfig(**settings), folder, found, store).read_text()  # type: ignore[arg-type]


def test_the_card_says_what_the_run_knows(tmp_path: Path) -> None:
    text = card(tmp_path, data=(str(tmp_path / "kitchen videos"),), seed=3)
    flops = toto_training_flops(preset("nano"), 2_048_000)
    assert 5e13 < flops < 2e14  # 6 N tokens are 6.6e13
    for words in (
        "# Toto nano", "| data | data kitchen videos |", "8 clips, 240 frames |", f"| compute | {flops:.3g} FLOP (",
        "| commit | abc1234 |", "| seed | 3 |", "| loss | 1.2326 nats per token, 128 windows |", "license: unknown",
        "5% of the videos or episodes",
    ):  # fmt: skip
        assert words in text, words
    assert "| first weights | random |" in text and str(tmp_path) not in text
    assert text == card(tmp_path, data=(str(tmp_path / "kitchen videos"),), seed=3)  # a rerun writes the same


def test_a_later_stage_says_where_its_weights_come_from(tmp_path: Path) -> None:
    text = card(tmp_path, data=("videos",), start=str(tmp_path / "first_stage"), tokenizer="tokenizer")
    assert "| first weights | first_stage, whose training is not counted below |" in text


def test_what_was_recorded_in_simulation_has_a_licence_and_what_was_not_measured_says_so(tmp_path: Path) -> None:
    text = card(tmp_path, {"tokens_seen": 1024, "steps": 1, "parameters": 5_641_472, "val_loss": None})
    assert "license: apache-2.0" in text and "FrankaPick episodes of our simulation" in text
    assert "| held out | nothing was |" in text
