"""Does packaging leave small, rounded, loadable weights with a true card, and refuse what is too large?"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from tests.pretrain.toy_videos import write_plain
from toto_robot import packaged
from toto_robot.encoders.load import load_encoder
from toto_robot.models.hub import from_pretrained
from toto_robot.pretrain.command import pretrain
from toto_robot.pretrain.config import PretrainConfig
from toto_robot.pretrain.tokenizer import train_tokenizer
from toto_robot.pretrain.tokenizer_config import TrainTokenizerConfig
from toto_robot.run_folder import read_json
from toto_robot.tokenizers.load import load_tokenizer

NAMES = {"toto": "toto-nano-test", "mae": "mae-nano-test", "dvae": "dvae-nano-test"}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = Path(__file__).parents[2] / "scripts" / "package_weights.py"
    spec = importlib.util.spec_from_file_location("package_weights", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real runs of the nano size, hardly trained."""
    folder = tmp_path_factory.mktemp("runs")
    videos = str(write_plain(folder / "videos", 3, 20))
    train_tokenizer(TrainTokenizerConfig(data=(videos,), steps=6, warmup_steps=1, batch_size=2), folder / "dvae")
    frames, tokenizer = str(folder / "dvae" / "frames"), str(folder / "dvae" / "pretrained_model")
    short = {"frames": frames, "steps": 2, "batch_size": 1, "val_samples": 1, "precision": "fp32"}
    pretrain(PretrainConfig(tokenizer=tokenizer, **short), folder / "toto")  # type: ignore[arg-type]
    pretrain(PretrainConfig(model="mae_nano", **short), folder / "mae")  # type: ignore[arg-type]
    return folder


@pytest.fixture(scope="module")
def weights(runs: Path, script: ModuleType) -> Path:
    """All three, packaged beside the runs."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(packaged, "FOLDER", runs / "packaged")
        for run in ("dvae", "toto", "mae"):
            given = [str(runs / run), NAMES[run], "--data", "squares that move", "--licence", "apache-2.0"]
            script.main(given)
    return runs / "packaged"


@pytest.mark.e2e
def test_all_three_nano_models_keep_the_budget_in_bfloat16(runs: Path, weights: Path) -> None:
    total = sum(path.stat().st_size for path in weights.rglob("*") if path.is_file())
    assert 23e6 < total <= packaged.BUDGET_BYTES
    for run, name in NAMES.items():
        halved = load_file(weights / name / "model.safetensors")
        whole = load_file(runs / run / "pretrained_model" / "model.safetensors")
        assert halved.keys() == whole.keys()
        assert all(torch.equal(halved[key], whole[key].bfloat16()) for key in whole)
    refers = read_json(weights / NAMES["toto"] / "tokenizer" / "config.json")
    assert refers == {"model_type": packaged.REFERENCE, "name": NAMES["dvae"]}
    assert sorted(path.name for path in weights.iterdir()) == sorted(NAMES.values())  # no temporary left


@pytest.mark.e2e
def test_what_is_loaded_is_float32_and_as_near_as_its_card_says(
    runs: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packaged, "FOLDER", weights)
    assert {p.dtype for p in from_pretrained(NAMES["toto"]).parameters()} == {torch.float32}
    assert {p.dtype for p in load_tokenizer(NAMES["dvae"]).parameters()} == {torch.float32}
    pictures = torch.randint(256, (4, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before = load_encoder(runs / "mae" / "pretrained_model", precision="fp32").encode(pictures)
    after = load_encoder(NAMES["mae"], precision="fp32").encode(pictures)
    assert 0 < float((after - before).norm() / before.norm()) < 0.02


@pytest.mark.e2e
def test_cards_say_what_was_trained_on_and_what_the_rounding_changed(runs: Path, weights: Path) -> None:
    for run, words in {
        "toto": ["# Toto nano", "| tokens seen | 2,048 |", "features of layer 3 |", "nats per token |"],
        "mae": ["# MAE nano", "| images seen | 2 |", "features of layer 3 |", "load_encoder("],
        "dvae": [
            "# Tokenizer dvae_nano", "| images seen | 12 |", "codes that are the same |", "dB before", "| PSNR |",
            "compute | not counted", "load_tokenizer(",
        ],
    }.items():  # fmt: skip
        text = (weights / NAMES[run] / "README.md").read_text()
        loads = f"`load_{'tokenizer' if run == 'dvae' else 'encoder'}('{NAMES[run]}')`"
        for word in [*words, loads, "| data | squares that move |", "license: apache-2.0", "bfloat16", "| commit |"]:
            assert word in text, (run, word)
        assert str(runs) not in text


@pytest.mark.e2e
def test_what_is_too_large_is_refused_and_leaves_no_trace(
    runs: Path, weights: Path, script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packaged, "FOLDER", weights)
    before = (weights / NAMES["mae"] / "README.md").read_bytes()
    with pytest.raises(ValueError, match=r"second has 11,.* are allowed; package a smaller"):
        script.package(runs / "mae", "second", data="x", licence=None)
    assert sorted(path.name for path in weights.iterdir()) == sorted(NAMES.values())
    script.package(runs / "mae", NAMES["mae"], data="squares that move", licence="apache-2.0")  # takes its own place
    assert (weights / NAMES["mae"] / "README.md").read_bytes() == before
