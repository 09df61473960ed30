"""Are packaged weights found by their name wherever a folder is taken, and do a mistake and a namesake do no harm?"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from policies.encoder import EncoderConfig, open_encoder
from tests.encoders.small import frames, save_mae, save_toto
from toto_robot import packaged
from toto_robot.encoders.load import load_encoder
from toto_robot.models.hub import fingerprint, from_pretrained
from toto_robot.pretrain.continuation import Continuer, GenerateConfig
from toto_robot.run_folder import write_json
from toto_robot.tokenizers.load import load_tokenizer


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of three: toto-toy has its tokenizer by name only."""
    folder = tmp_path / "packaged"
    monkeypatch.setattr(packaged, "FOLDER", folder)
    save_toto(folder / "toto-toy")
    (folder / "toto-toy" / "tokenizer").rename(folder / "dvae-toy")
    refers = {"model_type": packaged.REFERENCE, "name": "dvae-toy"}
    write_json(folder / "toto-toy" / "tokenizer" / "config.json", refers)
    save_mae(folder / "mae-toy")
    monkeypatch.chdir(tmp_path)
    return folder


def test_names_stand_for_folders_everywhere(weights: Path) -> None:
    assert packaged.names() == ["dvae-toy", "mae-toy", "toto-toy"]
    assert fingerprint(from_pretrained("toto-toy")) == fingerprint(from_pretrained(weights / "toto-toy"))
    tokenizer = load_tokenizer("dvae-toy").fingerprint()
    assert load_tokenizer("toto-toy/tokenizer").fingerprint() == tokenizer
    for encoder in (
        load_encoder("toto-toy"),
        load_encoder("toto", path="toto-toy"),
        open_encoder(EncoderConfig(path="toto-toy", context_frames=None)),
    ):
        assert encoder.fingerprint == load_encoder(weights / "toto-toy").fingerprint
    assert load_encoder("random_toto", path="toto-toy").encode(frames(2)).shape == (2, 4, 32)
    assert load_encoder("mae-toy").name == open_encoder(EncoderConfig(name="mae", path="mae-toy")).name == "mae"
    assert Continuer(GenerateConfig(model="toto-toy", data="x")).fingerprints["tokenizer"] == tokenizer


def test_an_encoder_saved_from_packaged_weights_needs_the_package_no_more(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load_encoder("toto-toy")
    encoder.save(tmp_path / "bundle")
    monkeypatch.setattr(packaged, "FOLDER", tmp_path / "nothing")
    again = load_encoder(tmp_path / "bundle", **encoder.settings())  # type: ignore[arg-type]
    assert torch.equal(again.encode(frames(2)), encoder.encode(frames(2)))


def test_a_folder_of_that_name_is_meant_only_where_it_is_written_as_a_folder(weights: Path, tmp_path: Path) -> None:
    mine = fingerprint(from_pretrained(save_toto(tmp_path / "toto-toy", seed=1)))
    theirs = fingerprint(from_pretrained(weights / "toto-toy"))
    assert mine != theirs == fingerprint(from_pretrained("toto-toy"))
    assert mine == fingerprint(from_pretrained("./toto-toy")) == fingerprint(from_pretrained(Path("toto-toy")))
    assert load_encoder("toto", path="./toto-toy").fingerprint != load_encoder("toto", path="toto-toy").fingerprint


def test_an_unknown_name_lists_what_there_is(weights: Path) -> None:
    for load in (from_pretrained, load_tokenizer, load_encoder, lambda name: load_encoder("toto", path=name)):
        with pytest.raises(ValueError, match="dvae-toy, mae-toy, toto-toy"):
            load("toto-toi")
    with pytest.raises(ValueError, match="expected a tokenizer"):
        load_tokenizer("toto-toy")


def test_what_really_comes_with_the_package_loads_and_keeps_the_budget() -> None:
    """Nothing may be there yet: then there is nothing to load."""
    sizes = [path.stat().st_size for path in packaged.FOLDER.rglob("*.*") if path.suffix in (".safetensors", ".md")]
    assert sum(sizes) <= packaged.BUDGET_BYTES
    for name in packaged.names():
        assert name in (packaged.FOLDER / name / "README.md").read_text()
        model = load_tokenizer(name) if name.startswith(("dvae", "vqgan")) else load_encoder(name, precision="fp32")
        assert model.encode(torch.zeros(1, 64, 64, 3, dtype=torch.uint8)).shape[0] == 1
