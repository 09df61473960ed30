"""Does every name load what it says, and does every mistake say what to do?"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.encoders.small import PX, frames, save_mae, save_toto
from toto_robot.encoders.base import Encoder
from toto_robot.encoders.load import load_encoder
from toto_robot.encoders.mae import MAEEncoder
from toto_robot.models.hub import from_pretrained
from toto_robot.models.mae import mae_features, normalise_pixels


@pytest.fixture(scope="module")
def toto(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_toto(tmp_path_factory.mktemp("toto"))


@pytest.fixture(scope="module")
def mae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_mae(tmp_path_factory.mktemp("mae"))


def test_every_encoder_keeps_the_protocol(toto: Path, mae: Path, tmp_path: Path) -> None:
    encoders: list[Encoder] = [
        load_encoder("toto", path=toto),
        load_encoder("random_toto", path=toto, seed=1),
        load_encoder("mae", path=mae),
        load_encoder("random_vit", path=mae, seed=1),
        load_encoder("none"),
    ]
    for encoder in encoders:
        D, P = encoder.width, encoder.tokens_per_frame
        assert encoder.encode(frames(3)).shape == (3, P, D)
        assert encoder.encode_clip(frames(6).reshape(2, 3, PX, PX, 3)).shape == (2, 3, P, D)
        assert encoder.stream(3).step(frames(3), torch.ones(3, dtype=torch.bool)).shape == (3, P, D)
        assert encoder.context_frames >= 1 and len(encoder.fingerprint) == 64
        assert (encoder.parameters == 0) == (encoder.name == "none") == (D == 0)
        encoder.save(tmp_path / encoder.name)
        again = load_encoder(tmp_path / encoder.name, **encoder.settings())  # type: ignore[arg-type]
        assert again.fingerprint == encoder.fingerprint
        assert torch.equal(again.encode(frames(3)), encoder.encode(frames(3)))
    assert len({encoder.fingerprint for encoder in encoders}) == 5
    assert [encoder.name for encoder in encoders] == ["toto", "random_toto", "mae", "random_vit", "none"]


@torch.no_grad()
def test_mae_encodes_normalised_unmasked_pixels(mae: Path) -> None:
    encoder, model = load_encoder(mae, layer="last", precision="fp32"), from_pretrained(mae)
    assert isinstance(encoder, MAEEncoder) and encoder.layers == (2,) and encoder.context_frames == 1
    expected = mae_features(model, normalise_pixels(frames(3)), [2])[2]  # type: ignore[arg-type]
    torch.testing.assert_close(encoder.encode(frames(3)), expected)
    torch.testing.assert_close(encoder.encode(frames(3, px=2 * PX)).shape, expected.shape)
    stream = encoder.stream(3)
    stream.step(frames(3, seed=7))
    torch.testing.assert_close(stream.step(frames(3)), expected)  # no memory
    with pytest.raises(ValueError, match="3 rows, got 2"):
        stream.step(frames(2))


def test_random_encoders_follow_their_seed_and_keep_the_tokenizer(toto: Path, mae: Path) -> None:
    for name, path in (("random_toto", toto), ("random_vit", mae)):
        a, b, c = (load_encoder(name, path=path, seed=seed) for seed in (0, 0, 1))
        assert a.fingerprint == b.fingerprint != c.fingerprint
    trained, random = load_encoder("toto", path=toto), load_encoder("random_toto", path=toto, seed=3)
    assert torch.equal(trained.codes(frames(3)), random.codes(frames(3)))  # type: ignore[attr-defined]
    assert load_encoder("random_vit").tokens_per_frame == 64  # the nano preset needs no folder


def test_layers_by_name_and_number(toto: Path, mae: Path) -> None:
    assert load_encoder(toto).layers == (2,) and load_encoder(mae).layers == (1,)  # of 4 and of 2
    assert load_encoder(toto, layer="last").layers == (4,) and load_encoder(mae, layer="last").layers == (2,)
    assert load_encoder("random_vit", path=mae).layers == load_encoder(mae, layer="mid").layers
    assert load_encoder(toto, layer=3).layers == load_encoder(toto, layer="3").layers == (3,)
    assert load_encoder(toto, layer="0+mid").layers == load_encoder(toto, layer=[0, "mid"]).layers == (0, 2)
    assert load_encoder(toto, layer="last,0").layers == (4, 0)
    for wrong in ("top", 5, -1, "0+top", "0+5", [], [2, 2], ""):
        with pytest.raises(ValueError, match=r"layer must"):
            load_encoder(toto, layer=wrong)
        with pytest.raises(ValueError, match=r"layer must"):
            load_encoder(mae, layer=wrong)


def test_mistakes_say_what_to_do(toto: Path, mae: Path, tmp_path: Path) -> None:
    def message(*arguments: object, **settings: object) -> str:
        with pytest.raises(ValueError) as caught:
            load_encoder(*arguments, **settings)  # type: ignore[arg-type]
        return str(caught.value)

    assert "toto_robot pretrain" in message("toto")
    assert "toto_robot pretrain" in message("random_toto")
    assert "toto_robot pretrain" in message("mae", path=tmp_path / "nowhere")
    assert "toto_robot pretrain" in message(tmp_path / "nowhere")
    assert "toto, mae, random_vit" in message("clip")
    assert "'mae'" in message("toto", path=mae) and "'toto'" in message("mae", path=toto)
    assert "'toto'" in message("toto", path=toto / "tokenizer") and "image_px" in message(toto, image_px=32)
    assert "not both" in message(toto, path=toto)
    assert "1..3" in message(toto, context_frames=4)
    assert "no memory" in message(mae, context_frames=2) and "no memory" in message("random_vit", context_frames=8)
    assert "precision" in message(toto, precision="fp16")
    assert "ring, reset, staggered, recompute" in message(toto, streaming="sliding")
    assert "no memory" in message(mae, streaming="ring")
    shutil.copytree(toto, tmp_path / "bare")
    shutil.rmtree(tmp_path / "bare" / "tokenizer")
    assert "tokenizer/" in message(tmp_path / "bare")
