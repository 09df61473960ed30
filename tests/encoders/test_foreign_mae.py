"""Do published masked autoencoders give here the features that they give at home, and are hostile files refused?"""

from __future__ import annotations

import argparse
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.encoders.published_mae import PublishedMAE, randomised
from tests.encoders.small import PX, frames
from tests.models.small import MAE
from toto_robot import cli
from toto_robot.encoders.foreign_mae import read_mae
from toto_robot.encoders.import_encoder import ImportEncoderConfig, import_encoder
from toto_robot.encoders.load import load_encoder
from toto_robot.models.mae import build_mae, mae_config, normalise_pixels
from toto_robot.run_folder import read_json, sha256_file


def save(path: Path, model: PublishedMAE, **extra: Any) -> Path:
    """Save as the authors' scripts do: weights under "model", beside what their training kept."""
    torch.save({"model": model.state_dict(), **extra}, path)
    return path


def imported(source: Path, out: Path, **settings: Any) -> Any:
    assert import_encoder(ImportEncoderConfig(source=str(source), out=str(out), **settings), out) == 0
    return load_encoder("mae", path=out, layer="last", precision="fp32")


def mvp_small(seed: int = 0) -> PublishedMAE:
    return randomised(PublishedMAE(width=384, heads=12, depth=2, image_px=64), seed)


@torch.no_grad()
def test_mvp_gives_the_features_it_gives_at_home(tmp_path: Path) -> None:
    home = mvp_small()
    encoder = imported(save(tmp_path / "vits-mae-hoi.pth", home), tmp_path / "out", format="mvp")
    assert (encoder.image_px, encoder.width, encoder.tokens_per_frame) == (64, 384, 16)
    pictures = frames(3, px=64)
    torch.testing.assert_close(encoder.encode(pictures), home(normalise_pixels(pictures))[:, 1:], atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_the_whole_mae_of_its_authors_comes_over_with_its_decoder(tmp_path: Path) -> None:
    home = randomised(PublishedMAE(width=768, heads=12, depth=1, image_px=32, decoder_width=64))
    trained = {"optimizer": {"state": {}, "param_groups": []}, "epoch": 800, "args": argparse.Namespace(lr=1.5e-4)}
    path = save(tmp_path / "mae_visualize_vit_base.pth", home, **trained)
    model, hashes = read_mae(path, "mae")
    assert hashes == {path.name: sha256_file(path)}
    assert (mae_config(model).heads, mae_config(model).decoder_heads, mae_config(model).decoder_layers) == (12, 16, 2)
    pixels = normalise_pixels(frames(2, px=32))
    model.config.mask_ratio = 0.0
    order = torch.arange(4.0).expand(2, -1)  # noise in order: the patches stay where they are
    output = model(pixel_values=pixels, noise=order)
    torch.testing.assert_close(output.logits, home.decode(home(pixels)), atol=2e-5, rtol=1e-4)


def test_heads_that_no_tensor_tells_are_asked_for(tmp_path: Path) -> None:
    home = randomised(PublishedMAE(width=32, heads=4, depth=1, image_px=32))
    path = save(tmp_path / "tiny.pth", home)
    with pytest.raises(ValueError, match=r"width of 32 .*heads=<n>"):
        read_mae(path, "mae")
    assert mae_config(read_mae(path, "mae", heads=4)[0]).heads == 4
    with pytest.raises(ValueError, match="no multiple of heads=5"):
        read_mae(path, "mae", heads=5)


@torch.no_grad()
def test_folders_of_transformers_old_and_new_give_what_transformers_gives(tmp_path: Path) -> None:
    model = build_mae(replace(MAE, image_px=PX), seed=3).eval()
    model.save_pretrained(tmp_path / "new")
    (tmp_path / "old").mkdir()
    state = {old_name(name): tensor for name, tensor in load_file(tmp_path / "new" / "model.safetensors").items()}
    save_file(state, tmp_path / "old" / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(tmp_path / "new" / "config.json", tmp_path / "old")
    model.config.mask_ratio = 0.0
    order = torch.arange(float(encoder_patches(model))).expand(3, -1)  # patches are kept in the order of the noise
    expected = model.vit(normalise_pixels(frames(3)), noise=order).last_hidden_state[:, 1:]
    for name in ("new", "old"):
        encoder = imported(tmp_path / name, tmp_path / f"out_{name}", format="hf")
        torch.testing.assert_close(encoder.encode(frames(3)), expected, atol=1e-5, rtol=1e-5)
        assert str(tmp_path) not in (tmp_path / f"out_{name}" / "config.json").read_text()


def encoder_patches(model: Any) -> int:
    return int(model.vit.embeddings.position_embeddings.shape[1]) - 1


def old_name(name: str) -> str:
    """Call a tensor what transformers 4 called it."""
    name = name.replace("vit.layers.", "vit.encoder.layer.")
    for new, old in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")):
        name = name.replace(f"attention.{new}", f"attention.attention.{old}")
    name = name.replace("attention.o_proj", "attention.output.dense")
    return name.replace("mlp.fc1", "intermediate.dense").replace("mlp.fc2", "output.dense")


def test_what_is_no_mae_says_what_was_expected(tmp_path: Path) -> None:
    state = mvp_small().state_dict()

    def message(changed: dict[str, torch.Tensor], name: str = "x.pth") -> str:
        torch.save({"model": changed}, tmp_path / name)
        with pytest.raises(ValueError) as caught:
            read_mae(tmp_path / name, "mvp")
        return str(caught.value)

    tuned = {name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: t for name, t in state.items()}
    assert "norm" in message(tuned)
    assert "no tensor pos_embed" in message({name: t for name, t in state.items() if name != "pos_embed"})
    assert "blocks.1.attn.qkv" in message({**state, "blocks.1.attn.qkv.weight": torch.full((1152, 384), torch.nan)})
    assert "which the model does not have" in message({**state, "dist_token": torch.zeros(1, 1, 384)})
    wide = torch.zeros(1, 1 + 3 * 5, 384)
    assert "no square" in message({**state, "pos_embed": wide})
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        read_mae(tmp_path, "hf")
    with pytest.raises(ValueError, match="SHA-256"):
        read_mae(save(tmp_path / "a.pth", mvp_small()), "mvp", sha256="0" * 64)


def test_a_hostile_file_is_refused_and_nothing_of_it_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {tmp_path}/was_here",)

    path = save(tmp_path / "vitb-mae-egosoup.pth", mvp_small(), args=Hostile())
    with pytest.raises(SystemExit) as ended:
        cli.main(["import-encoder", f"source={path}", "format=mvp", f"out={tmp_path}/out", f"run={tmp_path}/run"])
    assert ended.value.code == 1
    told = capsys.readouterr().err
    assert "system" in told and "Nothing was run" in told
    assert not (tmp_path / "was_here").exists() and not (tmp_path / "out").exists()


def test_the_command_writes_a_folder_and_does_not_overwrite_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (save(tmp_path / f"{seed}.pth", mvp_small(seed)) for seed in (0, 1))
    for run, source, code in (("a", first, 0), ("a", first, 0), ("b", first, 0), ("c", second, 1)):
        with pytest.raises(SystemExit) as ended:
            cli.main(
                ["import-encoder", f"source={source}", "format=mvp", f"out={tmp_path}/out", f"run={tmp_path}/{run}"]
            )
        assert ended.value.code == code
    told = capsys.readouterr()
    assert sha256_file(first) in told.out and "holds another model" in told.err
    assert read_json(tmp_path / "out" / "imported.json")["sha256"] == {"0.pth": sha256_file(first)}
    assert load_encoder(tmp_path / "out").name == "mae"
