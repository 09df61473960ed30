"""Does the Toto encoder give the same features by clip, by stream and by hand, and know itself by its fingerprint?"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tests.encoders.small import PX, frames, save_toto
from toto_robot.encoders.load import load_encoder
from toto_robot.encoders.toto import TotoEncoder
from toto_robot.models.hub import from_pretrained
from toto_robot.models.toto import Toto
from toto_robot.tokenizers.dvae import load_dvae


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_toto(tmp_path_factory.mktemp("toto"))


def load(folder: Path, **settings: object) -> TotoEncoder:
    encoder = load_encoder(folder, **{"precision": "fp32", **settings})  # type: ignore[arg-type]
    assert isinstance(encoder, TotoEncoder)
    return encoder


@torch.no_grad()
@pytest.mark.parametrize("context_frames", [1, 2, 3])
def test_clips_streams_and_the_full_forward_agree_from_pixels(folder: Path, context_frames: int) -> None:
    encoder = load(folder, context_frames=context_frames)
    clips = frames(2 * 7).reshape(2, 7, PX, PX, 3)
    by_clip = encoder.encode_clip(clips)
    assert by_clip.shape == (2, 7, encoder.tokens_per_frame, encoder.width) and by_clip.dtype == torch.float32
    stream = encoder.stream(2)
    by_stream = torch.stack([stream.step(clips[:, t]) for t in range(7)], dim=1)
    torch.testing.assert_close(by_clip, by_stream, atol=1e-5, rtol=1e-5)
    model, tokenizer = from_pretrained(folder), load_dvae(folder / "tokenizer")
    assert isinstance(model, Toto)
    codes = tokenizer.encode(clips.flatten(0, 1)).flatten(1).unflatten(0, (2, 7))
    assert codes.unique().numel() > 5
    first = max(0, 7 - context_frames)  # one block deep, the last frame depends on its window alone
    ids, _ = model.pack(codes[:, first:])
    by_hand = model(ids, layers=(1,), logits=False).features[1][:, -encoder.tokens_per_frame :]
    one_deep = load(folder, context_frames=context_frames, layer=1).encode_clip(clips)
    torch.testing.assert_close(one_deep[:, -1], by_hand, atol=1e-4, rtol=1e-4)


def test_single_frames_are_first_frames(folder: Path) -> None:
    encoder, images = load(folder), frames(5)
    alone = encoder.encode(images)
    assert encoder.context_frames == 3
    stream = encoder.stream(5)
    stream.step(frames(5, seed=9))
    stream.step(frames(5, seed=8))
    torch.testing.assert_close(stream.step(images, torch.ones(5, dtype=torch.bool)), alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(stream.step(images), alone, atol=1e-2)


def test_rows_restart_on_their_own(folder: Path) -> None:
    encoder = load(folder)
    clip = frames(2 * 5).reshape(2, 5, PX, PX, 3)
    stream = encoder.stream(2)
    for t in range(5):
        features = stream.step(clip[:, t], np.array([t == 3, False]))
    torch.testing.assert_close(features[0], encoder.encode_clip(clip[:1, 3:])[0, -1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features[1], encoder.encode_clip(clip[1:])[0, -1], atol=1e-5, rtol=1e-5)
    for wrong in (torch.zeros(3, dtype=torch.bool), torch.zeros(2)):
        with pytest.raises(ValueError, match=r"boolean \(2,\)"):
            stream.step(clip[:, 0], wrong)


def test_other_sizes_are_resized_inside(folder: Path) -> None:
    encoder = load(folder)
    large = frames(3, px=4 * PX)
    small = np.stack([cv2.resize(f, (PX, PX), interpolation=cv2.INTER_AREA) for f in large.numpy()])
    assert torch.equal(encoder.encode(large), encoder.encode(small))
    wide = torch.cat([torch.zeros(3, PX, 6, 3, dtype=torch.uint8), frames(3), frames(3)[:, :, :6]], dim=2)
    assert torch.equal(encoder.encode(wide), encoder.encode(frames(3)))  # the centre is cut out
    for wrong in (frames(3).float(), frames(3)[0], frames(3)[..., :2]):
        with pytest.raises(ValueError, match=r"expected uint8 RGB frames \(B, h, w, 3\)"):
            encoder.encode(wrong)


def test_bf16_is_close_and_deterministic_and_its_own_fingerprint(folder: Path) -> None:
    exact, half = load(folder), load(folder, precision="bf16")
    codes = exact.codes(frames(4))
    a, b = exact.encode_codes(codes), half.encode_codes(codes)
    assert 0 < (a - b).norm() / a.norm() < 0.05
    assert torch.equal(half.encode(frames(4)), half.encode(frames(4)))
    clip = frames(6).reshape(1, 6, PX, PX, 3)
    stream = half.stream(1)
    by_stream = torch.stack([stream.step(clip[:, t]) for t in range(6)], dim=1)
    torch.testing.assert_close(half.encode_clip(clip), by_stream)
    assert half.fingerprint != exact.fingerprint
    assert load(folder, precision="auto").precision in ("bf16", "fp32")


def test_the_fast_copy_is_exactly_autocast(folder: Path) -> None:
    """Weights cast once give the numbers of weights cast in every call."""
    half, model = load(folder, precision="bf16"), from_pretrained(folder)
    codes = half.codes(frames(4))
    assert isinstance(model, Toto)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model(model.pack(codes[:, None])[0], layers=half.layers, logits=False).features[half.layers[0]]
    assert torch.equal(half.encode_codes(codes), expected[:, 1:].float())
    tokenizer = load_dvae(folder / "tokenizer")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(codes, tokenizer.encode(frames(4)).flatten(1))


def test_the_fingerprint_follows_everything_that_changes_features(folder: Path, tmp_path: Path) -> None:
    plain = load(folder).fingerprint
    assert load(folder).fingerprint == plain
    others = [load(folder, layer=1), load(folder, context_frames=1), load(save_toto(tmp_path / "other", seed=1))]
    others += [load(folder, streaming="reset"), load(folder, layer="1+2"), load(folder, layer="2+1")]
    others.append(load(save_toto(tmp_path / "tokenizer", tokenizer_seed=1)))
    assert len({plain, *(encoder.fingerprint for encoder in others)}) == 8


def test_a_saved_encoder_loads_as_itself(folder: Path, tmp_path: Path) -> None:
    options = {"context_frames": 2, "layer": [0, 3], "precision": "bf16", "streaming": "staggered"}
    encoder = load_encoder("random_toto", path=folder, seed=5, **options)  # type: ignore[arg-type]
    assert encoder.settings() == options
    encoder.save(tmp_path)
    again = load_encoder(tmp_path, **encoder.settings())  # type: ignore[arg-type]
    assert again.fingerprint == encoder.fingerprint
    clip = frames(5)[None]
    assert torch.equal(again.encode_clip(clip), encoder.encode_clip(clip))


def test_several_layers_lie_side_by_side(folder: Path) -> None:
    both, clip = load(folder, layer="3+0"), frames(2 * 5).reshape(2, 5, PX, PX, 3)
    alone = [load(folder, layer=layer) for layer in (3, 0)]
    assert both.width == 2 * alone[0].width and both.parameters == alone[0].parameters
    expected = torch.cat([encoder.encode_clip(clip) for encoder in alone], dim=-1)
    torch.testing.assert_close(both.encode_clip(clip), expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(both.encode(clip[0]), torch.cat([encoder.encode(clip[0]) for encoder in alone], dim=-1))


@pytest.mark.parametrize("streaming", ["reset", "staggered", "recompute"])
def test_streaming_policies_reach_from_pixels_to_features(folder: Path, streaming: str) -> None:
    """Frame 4 of windows of 3: what `test_streaming.py` proves of the model, through the encoder."""
    encoder, clip = load(folder, streaming=streaming, layer=2), frames(5)[None]
    first = {"reset": 3, "staggered": 3, "recompute": 2}[streaming]
    codes = encoder.codes(clip[0, first:])[None]
    with torch.no_grad():
        expected = encoder.model(encoder.model.pack(codes)[0], layers=(2,), logits=False).features[2]
    last = expected[:, -encoder.tokens_per_frame :]
    torch.testing.assert_close(encoder.encode_clip(clip)[:, -1], last, atol=1e-5, rtol=1e-5)


def test_parameters_count_what_a_frame_passes_through(folder: Path) -> None:
    shallow, deep = load(folder, layer=0), load(folder, layer=2)
    model, tokenizer = from_pretrained(folder), load_dvae(folder / "tokenizer")
    assert isinstance(model, Toto)
    tokens = sum(p.numel() for p in tokenizer.encoder.parameters()) + model.embed.weight.numel()
    assert shallow.parameters == tokens
    assert deep.parameters == tokens + sum(p.numel() for p in model.blocks[:2].parameters())
