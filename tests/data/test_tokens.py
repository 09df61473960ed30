"""Do frames become the right tokens, once, in the same bytes after any kill, and are windows of them read right?"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from crash import all_files, killed_at, run_and_kill
from make_video import make_video
from torch import Tensor

from toto_robot.data.frames import FrameStore
from toto_robot.data.tokenize import TokenizeConfig, count_used_codes, tokenize, tokenize_frames
from toto_robot.data.tokens import TokenStore
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

    from toto_robot.data.frames import prepare_frames

    class Noise(ToySource):
        def frames(self, size_px: int):  # type: ignore[no-untyped-def]
            rng = np.random.default_rng(self.seed)
            yield from rng.integers(0, 256, (self.length, size_px, size_px, 3), dtype=np.uint8)

    sources = [Noise(f"clip_{number}", length, seed=number) for number, length in enumerate(clips)]
    return prepare_frames(sources, path, size_px, progress=False)


def tokens_of(frames: FrameStore, path: Path, tokenizer: MeanTokenizer | None = None, **options: object) -> TokenStore:
    options = {"batch_size": 16, "progress": False, **options}
    return tokenize_frames(frames, tokenizer or MeanTokenizer(), path, **options)  # type: ignore[arg-type]


def test_every_frame_is_encoded_in_raster_order(tmp_path: Path) -> None:
    frames = frame_store(tmp_path / "f")
    store = tokens_of(frames, tmp_path / "t")
    pixels = frames.frames.read(0, 105)
    patches = pixels.reshape(105, 2, 4, 2, 4, 3).astype(np.float64).mean(axis=(2, 4, 5)).round()
    assert store.tokens.dtype == np.uint16
    np.testing.assert_array_equal(store.tokens.read(0, 105), patches.reshape(105, 4))
    np.testing.assert_array_equal(store.clip_ends, frames.clip_ends)
    assert store.clip_names == frames.clip_names and store.records == frames.records
    assert (store.grid, store.vocab, store.tokens_per_frame, store.image_px) == ((2, 2), 256, 4, 8)
    assert store.tokenizer == "mean" and store.precision == "fp32"
    for seed in range(3):
        for ours, theirs in zip(store.split(0.3, seed), frames.split(0.3, seed), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_windows_equal_zarr(tmp_path: Path) -> None:
    store = tokens_of(frame_store(tmp_path / "f"), tmp_path / "t")
    theirs = zarr.open_group(tmp_path / "t", mode="r")["data/tokens"]
    for start, frames, stride in ((0, 16, 1), (30, 16, 4), (104, 1, 9), (7, 33, 3)):
        window = store.window(start, frames, stride)
        np.testing.assert_array_equal(window, theirs[start : start + (frames - 1) * stride + 1 : stride])
        assert window.shape == (frames, 4) and window.flags.writeable and window.dtype == np.uint16
    with pytest.raises(IndexError):
        store.window(100, 16, 1)


def test_batches_do_not_span_clips(tmp_path: Path) -> None:
    """Then the tokens of a clip do not depend on where an interrupted run went on."""
    seen: list[int] = []

    class Counting(MeanTokenizer):
        def encode(self, images: Tensor) -> Tensor:
            seen.append(len(images))
            assert images.dtype == torch.uint8 and not torch.is_grad_enabled()
            return super().encode(images)

    tokens_of(frame_store(tmp_path / "f"), tmp_path / "t", Counting(), batch_size=32)
    assert seen == [30, 32, 32, 6, 5]


def test_killed_at_every_touch_of_the_disk_and_resumed(tmp_path: Path) -> None:
    frames = frame_store(tmp_path / "f")
    tokens_of(frames, tmp_path / "straight")
    expected = all_files(tmp_path / "straight")
    touch = 1
    while killed_at(touch, lambda: tokens_of(frames, tmp_path / "killed")):
        tokens_of(frames, tmp_path / "killed")
        assert all_files(tmp_path / "killed") == expected, f"killed at touch {touch}"
        shutil.rmtree(tmp_path / "killed")
        touch += 1
    assert touch > 30, "hardly anything was tried"


TOKENIZE = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import torch
from test_tokens import MeanTokenizer, tokens_of
from toto_robot.data.frames import FrameStore
torch.set_num_threads(1)
class Telling(MeanTokenizer):
    def encode(self, images):
        print(len(images), flush=True)
        return super().encode(images)
tokens_of(FrameStore.open(Path(sys.argv[1])), Path(sys.argv[2]), Telling())
"""


def test_kill_9_while_encoding_and_resume(tmp_path: Path) -> None:
    frames = frame_store(tmp_path / "f", (30, 700, 200))
    script = TOKENIZE.format(tests=str(Path(__file__).parent))
    arguments = [str(tmp_path / "f"), str(tmp_path / "killed")]
    assert run_and_kill(script, arguments, 20), "in the second clip of 44 batches"
    with pytest.raises(ValueError, match=r"unfinished \(1 clips so far\)"):
        TokenStore.open(tmp_path / "killed")
    assert not run_and_kill(script, arguments, 1000)
    tokens_of(frames, tmp_path / "straight")
    assert all_files(tmp_path / "killed") == all_files(tmp_path / "straight")


def test_done_clips_are_not_encoded_again_and_new_ones_are_added(tmp_path: Path) -> None:
    tokens_of(frame_store(tmp_path / "f"), tmp_path / "t")

    class Fresh(MeanTokenizer):
        def encode(self, images: Tensor) -> Tensor:
            assert len(images) == 9, "only the new clip"
            return super().encode(images)

    tokens_of(frame_store(tmp_path / "f"), tmp_path / "t", Fresh())
    more = frame_store(tmp_path / "f", (30, 70, 5, 9))
    assert tokens_of(more, tmp_path / "t", Fresh()).clip_ends.tolist() == [30, 100, 105, 114]
    assert len(TokenStore.open(tmp_path / "t")) == 4


def test_other_makers_are_refused(tmp_path: Path) -> None:
    frames = frame_store(tmp_path / "f")
    tokens_of(frames, tmp_path / "t")
    with pytest.raises(ValueError, match=r"made with tokenizer mean, fp32, 8 px, not with tokenizer other, fp32, 8 px"):
        tokens_of(frames, tmp_path / "t", MeanTokenizer("other"))
    with pytest.raises(ValueError, match="not with tokenizer mean, bf16"):
        tokens_of(frames, tmp_path / "t", precision="bf16")
    with pytest.raises(ValueError, match="holds the tokens of other clips"):
        tokens_of(frame_store(tmp_path / "g", (31, 70, 5)), tmp_path / "t")
    with pytest.raises(ValueError, match="frames of 10 px do not divide into patches of 4 px"):
        tokens_of(frame_store(tmp_path / "h", size_px=10), tmp_path / "u")
    with pytest.raises(ValueError, match=r"expected a store of tokens .* is a store of frames"):
        TokenStore.open(tmp_path / "f")


def test_tokens_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    about = {"grid": (2, 2), "image_px": 8, "tokenizer": "mean", "precision": "fp32"}
    with pytest.raises(ValueError, match="65536"):
        TokenStore.create(tmp_path / "t", vocab=70_000, **about)  # type: ignore[arg-type]
    store = TokenStore.create(tmp_path / "t", vocab=100, **about)  # type: ignore[arg-type]
    record = {"name": "a", "group": "a", "frames": 3}
    for codes, message in (
        (np.full((3, 4), 100), r"0..99, got 100..100"),
        (np.full((3, 4), -1), "got -1"),
        (np.zeros((3, 5), int), r"expected codes \(T, 4\)"),
        (np.zeros((0, 4), int), "at least one frame"),
    ):
        with pytest.raises(ValueError, match=message):
            store.append(codes, record)
    with pytest.raises(ValueError, match="needs group, frames"):
        store.append(np.zeros((3, 4), int), {"name": "a"})
    assert len(store) == 0


def test_the_command_goes_from_videos_to_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a real dVAE of toy size: from a folder, then from the frames that the first run left."""
    make_video(tmp_path / "my_videos" / "a.mp4", 20)
    make_video(tmp_path / "my_videos" / "b.mp4", 3)
    generator = torch.Generator().manual_seed(0)
    dvae = DVAE(DVAEConfig(name="toy", hidden=8, blocks_per_group=1, vocab=32, decoder_init=8), generator=generator)
    save_dvae(dvae, tmp_path / "dvae")
    config = TokenizeConfig(
        data=str(tmp_path / "my_videos"), tokenizer=str(tmp_path / "dvae"), image_px=32, min_frames=8, device="cpu"
    )
    assert tokenize(config, tmp_path / "run") == 0
    store = TokenStore.open(tmp_path / "run" / "tokens")
    frames = FrameStore.open(tmp_path / "run" / "frames")
    expected = dvae.eval().encode(torch.from_numpy(frames.frames.read(0, 20))).flatten(1)
    np.testing.assert_array_equal(store.tokens.read(0, 20), expected.numpy())
    assert store.tokenizer == dvae.fingerprint() and store.grid == (4, 4)
    told = capsys.readouterr().out
    assert "1 clips, 20 frames, 320 tokens" in told and "my_videos/b.mp4: has 3 frames" in told
    assert f"{len(np.unique(expected))} of 32 codes are used" in told and count_used_codes(store) > 1

    again = TokenizeConfig(
        data=str(tmp_path / "run" / "frames"), tokenizer=config.tokenizer, out=str(tmp_path / "t"), image_px=32
    )
    assert tokenize(again, tmp_path / "run2") == 0
    assert TokenStore.open(tmp_path / "t").content_hash() == store.content_hash()
    with pytest.raises(ValueError, match="set image_px=32"):
        tokenize(TokenizeConfig(data=again.data, tokenizer=again.tokenizer, image_px=64), tmp_path / "run3")


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"precision": "fp16"}, {"image_px": 4}])
def test_the_config_checks_itself(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be"):
        TokenizeConfig(data="x", tokenizer="y", **wrong)  # type: ignore[arg-type]
