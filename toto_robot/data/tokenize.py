"""How do the frames of all clips become tokens, once, and go on after a kill?"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from toto_robot.data.flat_store import store_kind
from toto_robot.data.frames import FrameStore, is_frame_store, prepare_frames
from toto_robot.data.sources import find_sources
from toto_robot.data.tokens import TokenStore
from toto_robot.run_folder import provenance as run_provenance
from toto_robot.tokenizers.base import Tokenizer
from toto_robot.tokenizers.load import load_tokenizer

PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True, kw_only=True)
class TokenizeConfig:
    """What to turn into tokens, and with what."""

    data: str  # folder of videos, a video, an episode store (or a folder with one), or a frame store
    tokenizer: str  # folder of a saved tokenizer, as `train-tokenizer` leaves it in pretrained_model
    out: str | None = None  # token store to write or continue; default <run>/tokens
    image_px: int = 64  # side of the square frames, pixels
    limit_frames: int | None = None  # stop after that many frames; default all
    min_frames: int = 16  # shorter clips are left out
    batch_size: int = 64  # frames per call of the tokenizer
    device: str = "auto"  # auto | cpu | cuda | cuda:<n>
    precision: str = "fp32"  # fp32 | bf16 (a few per cent of the tokens differ)

    def __post_init__(self) -> None:
        _check(self.batch_size, self.precision)
        if self.image_px < 8:
            raise ValueError(f"image_px must be at least 8, got {self.image_px}")


def tokenize(config: TokenizeConfig, run_dir: Path) -> int:
    """Decode what `data` holds into `<run>/frames` (kept for training) and write its tokens; a rerun continues."""
    best = "cuda" if torch.cuda.is_available() else "cpu"
    device = best if config.device == "auto" else config.device
    tokenizer = load_tokenizer(Path(config.tokenizer), device)
    about = run_provenance(data=config.data, tokenizer=tokenizer.fingerprint())
    frames = _frames(config, run_dir, about)
    out = Path(config.out) if config.out else run_dir / "tokens"
    tokens = tokenize_frames(
        frames,
        tokenizer,
        out,
        batch_size=config.batch_size,
        device=device,
        precision=config.precision,
        provenance={**about, "frames": frames.fingerprint()},
    )
    rows, used = len(tokens.tokens), count_used_codes(tokens)
    print(f"{out}: {len(tokens)} clips, {rows} frames, {rows * tokens.tokens_per_frame} tokens")
    print(f"{used} of {tokens.vocab} codes are used")
    return 0


def tokenize_frames(
    frames: FrameStore,
    tokenizer: Tokenizer,
    out_dir: Path,
    *,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    provenance: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> TokenStore:
    """Encode every clip of `frames` that `out_dir` does not hold yet, in order, and return the finished token store.

    A batch never spans two clips, so that the tokens of a clip do not depend on where an interrupted run stopped.
    ValueError where `out_dir` was made by another tokenizer or precision, from other frames, or the sizes do not fit.
    """
    _check(batch_size, precision)
    if frames.image_px % tokenizer.stride:
        raise ValueError(f"frames of {frames.image_px} px do not divide into patches of {tokenizer.stride} px")
    store = _open_or_create(Path(out_dir), frames, tokenizer, precision, provenance or {})
    todo = range(len(store), len(frames))
    done = len(store.tokens)
    try:
        with tqdm(
            total=len(frames.frames), initial=done, desc="tokens", unit="frame", disable=not progress or not todo
        ) as bar:
            for clip in todo:
                start, stop = frames.bounds(clip)
                codes = [
                    _encode(frames.frames.read(first, min(first + batch_size, stop)), tokenizer, device, precision)
                    for first in range(start, stop, batch_size)
                ]
                store.append(np.concatenate(codes), frames.records[clip])
                bar.update(stop - start)
        store.finish()
    finally:
        store.close()
    return store


def count_used_codes(tokens: TokenStore, sample_frames: int = 4096) -> int:
    """Return how many different codes occur in an even sample of the frames: few of them mean a collapsed tokenizer."""
    step = max(1, len(tokens.tokens) // sample_frames)
    return len(np.unique(tokens.tokens[::step]))


@torch.inference_mode()
def _encode(
    images: npt.NDArray[np.uint8], tokenizer: Tokenizer, device: torch.device | str, precision: str
) -> npt.NDArray[np.int64]:
    """Return the codes (n, P) of images (n, h, w, 3)."""
    batch = torch.from_numpy(images).to(device)
    with torch.autocast(batch.device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext():
        codes = tokenizer.encode(batch)
    return codes.flatten(1).cpu().numpy()


def _open_or_create(
    path: Path, frames: FrameStore, tokenizer: Tokenizer, precision: str, provenance: Mapping[str, Any]
) -> TokenStore:
    side = frames.image_px // tokenizer.stride
    if store_kind(path) is None:
        return TokenStore.create(
            path,
            grid=(side, side),
            vocab=tokenizer.vocab,
            image_px=frames.image_px,
            tokenizer=tokenizer.fingerprint(),
            precision=precision,
            provenance=provenance,
        )
    store = TokenStore.open(path, partial=True)
    made = (store.tokenizer, store.precision, store.image_px)
    now = (tokenizer.fingerprint(), precision, frames.image_px)
    if made != now:
        named = "tokenizer {:.12}, {}, {} px".format
        advice = "delete it or use another folder"
        raise ValueError(f"{path} was made with {named(*made)}, not with {named(*now)}; {advice}")
    if store.records != frames.records[: len(store)]:
        raise ValueError(f"{path} holds the tokens of other clips than {frames.path}; delete it or use another folder")
    return store


def _frames(config: TokenizeConfig, run_dir: Path, about: Mapping[str, Any]) -> FrameStore:
    if not is_frame_store(Path(config.data)):
        return prepare_frames(
            find_sources(config.data),
            run_dir / "frames",
            config.image_px,
            limit_frames=config.limit_frames,
            min_frames=config.min_frames,
            provenance=about,
        )
    frames = FrameStore.open(Path(config.data))
    if frames.image_px != config.image_px:
        raise ValueError(f"{config.data} holds frames of {frames.image_px} px; set image_px={frames.image_px}")
    return frames


def _check(batch_size: int, precision: str) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
