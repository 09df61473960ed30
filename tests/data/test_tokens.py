"""Do frames become the right tokens, once, in the same bytes after any kill, and are windows of them read right?"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from crash import all_files, killed_at
from make_video import make_video
from torch import Tensor

from toto_robot.data.frames import FrameStore, frame_sources, prepare_frames
from toto_robot.data.sources import find_sources
from toto_robot.data.token_shards import write_store
from toto_robot.data.tokenize import TokenizeConfig, tokenize, tokenize_sources
from toto_robot.data.tokens import TokenSpec, TokenStore, count_used_codes
from toto_robot.tokenizers.dvae import DVAE, DVAEConfig, save_dvae


class MeanTokenizer:
    """Code a patch of 4 px by its mean grey level; a tokenizer whose codes can be checked by hand."""

    vocab, stride = 256, 4

    def __init__(self, name: str = "mean") -> None:
        self.name = name

    def encode(self, images: Tensor) -> Tensor:
        b, h, w, _ = images.shape
        return images.double().reshape(b, h // 4, 4, w // 4, 4, 3).mean(dim=(2, 4, 5)).round().long()

    def decode(self, codes: Tensor) -> Tensor:
        grey = codes.repeat_interleave(4, 1).repeat_interleave(4, 2).to(torch.uint8)
        return grey[..., None].expand(*grey.shape, 3)

    def fingerprint(self) -> str:
        return self.name


def frame_store(path: Path, clips: tuple[int, ...] = (30, 70, 5), size_px: int = 8) -> FrameStore:
    """Make a frame store of noise with clips of these lengths."""
    from test_frames import ToySource

    class Noise(ToySource):
        def frames(self, size_px: int):  # type: ignore[no-untyped-def]
            rng = np.random.default_rng(self.seed)
            yield from rng.integers(0, 256, (self.length, size_px, size_px, 3), dtype=np.uint8)

    sources = [Noise(f"clip_{number}", length, seed=number) for number, length in enumerate(clips)]
    return prepare_frames(sources, path, size_px, progress=False)


def tokens_of(frames: FrameStore, path: Path, tokenizer: MeanTokenizer | None = None, **options: object) -> TokenStore:
    options = {"image_px": frames.image_px, "batch_size": 16, "unit_frames": 80, "progress": False, **options}
    return tokenize_sources(frame_sources(frames), tokenizer or MeanTokenizer(), path, **options)  # type: ignore[arg-type]


def test_every_frame_is_encoded_in_raster_order(tmp_path: Path) -> None:
    frames = frame_store(tmp_path / "f")
    store = tokens_of(frames, tmp_path / "t")
    pixels = frames.frames.read(0, 105)
    patches = pixels.reshape(105, 2, 4, 2, 4, 3).astype(np.float64).mean(axis=(2, 4, 5)).round()
    assert store.tokens.dtype == np.uint16
    np.testing.assert_array_equal(store.tokens.read(0, 105), patches.reshape(105, 4))
    np.testing.assert_array_equal(store.clip_ends, frames.clip_ends)
    assert store.clip_names == frames.clip_names
    assert [shard["rows"] for shard in store.shards] == [30, 75], "80 frames a unit, clips are not divided"
    for record, theirs in zip(store.records, frames.records, strict=True):
        start, stop = store.bounds(store.clip_names.index(record["name"]))
        assert record["sha256"] == hashlib.sha256(patches[start:stop].astype(np.uint16).data).hexdigest()
        assert {key: record[key] for key in ("group", "frames", "fps", "source", "kind")} == {
            key: theirs[key] for key in ("group", "frames", "fps", "source", "kind")
        }
    assert (store.grid, store.vocab, store.tokens_per_frame, store.image_px) == ((2, 2), 256, 4, 8)
    assert store.tokenizer == "mean" and store.precision == "fp32"
    for seed in range(3):
        for ours, theirs in zip(store.split(0.3, seed), frames.split(0.3, seed), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_windows_equal_zarr(tmp_path: Path) -> None:
    store = tokens_of(frame_store(tmp_path / "f"), tmp_path / "t")
    group = zarr.open_group(tmp_path / "t", mode="r")
    theirs = np.concatenate([group[f"units/{shard['name']}/data/tokens"][:] for shard in store.shards])
    assert theirs.shape == (105, 4)
    windows = [range(start, start + 15 * stride + 1, stride) for start, stride in ((0, 1), (30, 4), (7, 3), (60, 2))]
    windows.append(range(14, 30))  # up to the border of the shards, and (7, 3) across it
    ours = store.windows([*windows, tuple(range(100, 20, -5))])
    assert ours.shape == (6, 16, 4) and ours.flags.writeable and ours.dtype == np.uint16
    for window, rows in zip(ours, [*windows, range(100, 20, -5)], strict=True):
        np.testing.assert_array_equal(window, theirs[list(rows)])
    np.testing.assert_array_equal(ours[1], store.window(30, 16, 4))
    np.testing.assert_array_equal(store.tokens[::7], theirs[::7])
    np.testing.assert_array_equal(store.tokens.read(20, 101, 3), theirs[20:101:3])
    np.testing.assert_array_equal(store.tokens[[104, 0, 29, 30, -1]], theirs[[104, 0, 29, 30, -1]])
    for wrong in (range(90, 106), range(-1, 15), range(105, 121), (3, 105), (0, -106)):
        with pytest.raises(IndexError, match="the 105 rows"):
            store.windows([wrong])


def test_many_shards_are_not_all_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("toto_robot.data.joined_array.OPEN_PARTS", 3)
    frames = frame_store(tmp_path / "f", (5,) * 12)
    store = tokens_of(frames, tmp_path / "t", unit_frames=5)
    expected = tokens_of(frames, tmp_path / "one")
    assert (len(store.shards), len(expected.shards)) == (12, 1)
    rows = np.random.default_rng(0).permutation(60)
    np.testing.assert_array_equal(store.tokens.take(rows), expected.tokens.take(rows))
    windows = [range(row, row + 4) for row in rows[rows < 56].tolist()]
    np.testing.assert_array_equal(store.windows(windows), expected.windows(windows))
    assert len(store.tokens._parts) == 3
    assert store.fingerprint() == expected.fingerprint(), "of tokens and names, not of how they are cut"


def test_batches_do_not_span_videos(tmp_path: Path) -> None:
    """Then the tokens of a video do not depend on its neighbours."""
    seen: list[int] = []

    class Counting(MeanTokenizer):
        def encode(self, images: Tensor) -> Tensor:
            seen.append(len(images))
            assert images.dtype == torch.uint8 and not torch.is_grad_enabled()
            return super().encode(images)

    tokens_of(frame_store(tmp_path / "f"), tmp_path / "t", Counting(), batch_size=32)
    assert seen == [30, 32, 32, 6, 5]


def test_killed_at_every_touch_of_the_disk_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One shard of two clips; test_tokenize_kill.py has several."""
    monkeypatch.setattr(
        "os.fsync", lambda fd: None
    )  # a touch all the same; a kill does not ask whether it was waited for
    frames = frame_store(tmp_path / "f", (3, 5))
    tokens_of(frames, tmp_path / "straight")
    expected = all_files(tmp_path / "straight")
    touch = 1
    while killed_at(touch, lambda: tokens_of(frames, tmp_path / "killed")):
        tokens_of(frames, tmp_path / "killed")
        assert not list(tmp_path.glob(".*")), "what was half-built is gone"
        assert all_files(tmp_path / "killed") == expected, f"killed at touch {touch}"
        shutil.rmtree(tmp_path / "killed")
        touch += 1
    assert touch > 30, "hardly anything was tried"


def test_done_units_are_not_encoded_again_and_new_clips_are_added(tmp_path: Path) -> None:
    tokens_of(frame_store(tmp_path / "f"), tmp_path / "t")

    class Fresh(MeanTokenizer):
        def encode(self, images: Tensor) -> Tensor:
            assert len(images) == 9, "only the new clip"
            return super().encode(images)

    before = all_files(tmp_path / "t")
    tokens_of(frame_store(tmp_path / "f"), tmp_path / "t", Fresh())
    assert all_files(tmp_path / "t") == before
    more = frame_store(tmp_path / "f", (30, 70, 5, 9))
    assert tokens_of(more, tmp_path / "t", Fresh()).clip_ends.tolist() == [30, 100, 105, 114]
    assert len(TokenStore.open(tmp_path / "t")) == 4
    after = all_files(tmp_path / "t")
    assert {name: after[name] for name in before if name.startswith("units/")} == {
        name: was for name, was in before.items() if name.startswith("units/")
    }


def test_other_makers_are_refused(tmp_path: Path) -> None:
    frames = frame_store(tmp_path / "f")
    tokens_of(frames, tmp_path / "t")
    with pytest.raises(ValueError, match="made with tokenizer mean, not other; delete it or use another folder"):
        tokens_of(frames, tmp_path / "t", MeanTokenizer("other"))
    with pytest.raises(ValueError, match="made with precision fp32, not bf16"):
        tokens_of(frames, tmp_path / "t", precision="bf16")
    with pytest.raises(ValueError, match="frames of 10 px do not divide into patches of 4 px"):
        tokens_of(frame_store(tmp_path / "h", size_px=10), tmp_path / "u")
    with pytest.raises(ValueError, match=r"expected a store of tokens .* is a store of frames"):
        TokenStore.open(tmp_path / "f")
    with pytest.raises(ValueError, match="is no token store; delete it"):
        tokens_of(frames, tmp_path / "f")
    root = json.loads((tmp_path / "t" / "zarr.json").read_text())
    root["attributes"]["toto_robot"]["schema_version"] = 1
    (tmp_path / "t" / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(ValueError, match="schema version 1, this program reads version 2: delete it and make it again"):
        TokenStore.open(tmp_path / "t")


def test_tokens_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    about = {"grid": (2, 2), "image_px": 8, "tokenizer": "mean", "precision": "fp32"}
    with pytest.raises(ValueError, match="65536"):
        TokenSpec(vocab=70_000, **about)  # type: ignore[arg-type]
    spec = TokenSpec(vocab=100, **about)  # type: ignore[arg-type]
    record = {"name": "a", "group": "a"}
    for codes, message in (
        (np.full((3, 4), 100), r"0..99, got 100..100"),
        (np.full((3, 4), -1), "got -1"),
        (np.zeros((3, 5), int), r"expected codes \(T, 4\)"),
        (np.zeros((0, 4), int), "at least one frame"),
    ):
        with pytest.raises(ValueError, match=message):
            write_store(tmp_path / "t", [(codes, record)], spec)
    with pytest.raises(ValueError, match="needs group"):
        write_store(tmp_path / "t", [(np.zeros((3, 4), int), {"name": "a"})], spec)
    with pytest.raises(ValueError, match=r"unfinished \(0 of 1 units so far\)"):
        TokenStore.open(tmp_path / "t")
    with pytest.raises(ValueError, match="none of the 0 sources"):
        write_store(tmp_path / "empty", [], spec)


def test_the_command_goes_from_videos_to_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a real dVAE of toy size: from a folder, then from a frame store of the same videos."""
    make_video(tmp_path / "my_videos" / "a.mp4", 20)
    make_video(tmp_path / "my_videos" / "b.mp4", 3)
    generator = torch.Generator().manual_seed(0)
    dvae = DVAE(DVAEConfig(name="toy", hidden=8, blocks_per_group=1, vocab=32, decoder_init=8), generator=generator)
    save_dvae(dvae, tmp_path / "dvae")
    config = TokenizeConfig(
        data=(str(tmp_path / "my_videos"),), tokenizer=str(tmp_path / "dvae"), image_px=32, min_frames=8, device="cpu"
    )
    assert tokenize(config, tmp_path / "run") == 0
    store = TokenStore.open(tmp_path / "run" / "tokens")
    frames = prepare_frames(find_sources(*config.data), tmp_path / "frames", 32, min_frames=8, progress=False)
    expected = dvae.eval().encode(torch.from_numpy(frames.frames.read(0, 20))).flatten(1)
    np.testing.assert_array_equal(store.tokens.read(0, 20), expected.numpy())
    assert store.tokenizer == dvae.fingerprint() and store.grid == (4, 4)
    told = capsys.readouterr().out
    assert "1 clips, 20 frames, 320 tokens" in told and "left out: my_videos/b.mp4 has 3 frames" in told
    assert f"{len(np.unique(expected))} of 32 codes are used" in told and count_used_codes(store) > 1

    again = TokenizeConfig(
        data=(str(frames.path),), tokenizer=config.tokenizer, out=str(tmp_path / "t"), image_px=32, device="cpu"
    )
    assert tokenize(again, tmp_path / "run2") == 0
    assert TokenStore.open(tmp_path / "t").fingerprint() == store.fingerprint()
    with pytest.raises(ValueError, match="set image_px=32"):
        tokenize(TokenizeConfig(data=again.data, tokenizer=again.tokenizer, image_px=64), tmp_path / "run3")


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"precision": "fp16"},
        {"image_px": 4},
        {"engine": "dask"},
        {"min_frames": 9, "limit_frames": 8},
    ],
)
def test_the_config_checks_itself(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must"):
        TokenizeConfig(data=("x",), tokenizer="y", **wrong)  # type: ignore[arg-type]
