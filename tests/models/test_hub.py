"""Do models come back from disk bit for bit, and do wrong folders say what is wrong?"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.models.small import CONFIG, MAE, make
from toto_robot.models.hub import fingerprint, from_pretrained, save_pretrained
from toto_robot.models.mae import build_mae, mae_config
from toto_robot.models.toto import Toto


def test_toto_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model = make()
    save_pretrained(model, tmp_path)
    loaded = from_pretrained(tmp_path)
    assert isinstance(loaded, Toto) and loaded.config == CONFIG and not loaded.training
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "toto"
    assert fingerprint(loaded) == fingerprint(model) != fingerprint(make(seed=1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_mae_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model = build_mae(MAE, seed=3)
    save_pretrained(model, tmp_path)
    loaded = from_pretrained(tmp_path)
    assert mae_config(loaded) == MAE  # type: ignore[arg-type]
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert fingerprint(loaded) == fingerprint(model) != fingerprint(build_mae(MAE, seed=4))


def test_mae_weights_come_from_the_seed_alone() -> None:
    state = torch.get_rng_state()
    a, b = build_mae(MAE, seed=0).state_dict(), build_mae(MAE, seed=0).state_dict()
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_checkpoint_of_another_size_names_the_tensor_and_both_shapes(tmp_path: Path) -> None:
    save_pretrained(make(), tmp_path)
    wider = replace(CONFIG, ffn_width=64)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "ffn_width": wider.ffn_width}))
    with pytest.raises(ValueError, match=r"blocks\.0\.ffn\.gate_up\.weight is \(96, 32\) in the file, \(128, 32\)"):
        from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "layers": 5}))
    with pytest.raises(ValueError, match=r"no tensor blocks\.4\."):
        from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "layers": 3}))
    with pytest.raises(ValueError, match=r"holds blocks\.3\."):
        from_pretrained(tmp_path)


def test_wrong_folders_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="toto_robot pretrain"):
        from_pretrained(tmp_path / "nowhere")
    save_pretrained(make(), tmp_path / "run" / "pretrained_model")
    with pytest.raises(ValueError, match=r"did you mean .*pretrained_model"):
        from_pretrained(tmp_path / "run")
    config_path = tmp_path / "run" / "pretrained_model" / "config.json"
    good = json.loads(config_path.read_text())
    for text, message in [
        ("{", "not valid JSON"),
        ("{}", "names no model_type"),
        (json.dumps({**good, "model_type": "gpt"}), "'gpt'; expected toto or mae"),
        (json.dumps({**good, "dropout": 0.1}), r"unknown entries \['dropout'\]"),
        (json.dumps({k: v for k, v in good.items() if k != "width"}), "incomplete.*width"),
    ]:
        config_path.write_text(text)
        with pytest.raises(ValueError, match=message):
            from_pretrained(config_path.parent)
    config_path.write_text(json.dumps(good))
    (config_path.parent / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no weights"):
        from_pretrained(config_path.parent)
