"""Are packaged weights found by their name wherever a folder is taken, small enough, and what their card says?"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from policies.encoder import EncoderConfig, open_encoder
from tests.encoders.small import PX, frames, save_mae, save_toto
from tests.models.small import CONFIG
from tests.pretrain.toy import frame_store
from toto_robot import packaged
from toto_robot.encoders.load import load_encoder
from toto_robot.models.hub import fingerprint, from_pretrained
from toto_robot.pretrain.continuation import Continuer, GenerateConfig
from toto_robot.run_folder import read_json, write_json, write_text
from toto_robot.tokenizers.load import load_tokenizer
from toto_robot.weights import read_config


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = Path(__file__).parents[2] / "scripts" / "package_weights.py"
    spec = importlib.util.spec_from_file_location("package_weights", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SETTINGS = {"frames": None, "seed": 0, "val_fraction": 0.05, "data": "somewhere/videos"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folders of a tokenizer, of a Toto on it and of an MAE, at the sizes of the tests."""
    folder = tmp_path_factory.mktemp("runs")
    store = str(frame_store(folder / "frames", frames=2 * CONFIG.frames, size_px=PX).path)
    save_toto(folder / "toto" / "pretrained_model")
    save_mae(folder / "mae" / "pretrained_model")
    shutil.copytree(folder / "toto" / "pretrained_model" / "tokenizer", folder / "dvae" / "pretrained_model")
    for kind in ("toto", "mae", "dvae"):
        write_json(folder / kind / "provenance.json", {"commit": "abc1234"})
        write_json(
            folder / kind / "summary.json",
            {
                "settings": {**SETTINGS, "frames": store, "model": "nano", "strides": [1], "tokenizer": "x"},
                "steps": 3, "images": 96, "held_out": True, "measured_frames": 10, "psnr_db": 20.5, "codes_used": 7,
                "vocab": CONFIG.visual_vocab, "perplexity": 5.5, "stability": 0.97,
            },
        )  # fmt: skip
    return folder


@pytest.fixture
def weights(runs: Path, script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The toy tokenizer and what is named after it, packaged in a folder of the test's own."""
    monkeypatch.setattr(packaged, "FOLDER", tmp_path)
    monkeypatch.setattr(script, "_card", lambda run, kind, frames: script.tokenizer_card(run, _summary(run), frames))
    for kind in ("dvae", "toto", "mae"):
        script.package(runs / kind, f"{kind}-test", data="squares that move", licence="apache-2.0")
    return tmp_path
