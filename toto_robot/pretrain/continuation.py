"""How are clips of a video read and continued by a trained Toto?"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from tqdm import tqdm

from toto_robot import packaged
from toto_robot.data.frames import FrameStore, is_frame_store
from toto_robot.data.sources import find_sources
from toto_robot.data.video import BadVideo, Frame, resize_square
from toto_robot.encoders.base import autocast, halve_matrices, resolve_precision
from toto_robot.models.generate import check_sampling, generate, surprise
from toto_robot.models.hub import fingerprint, from_pretrained
from toto_robot.models.toto import Toto
from toto_robot.pretrain.loop import step_seed
from toto_robot.pretrain.optim import choose_device
from toto_robot.tokenizers.load import load_tokenizer
from toto_robot.weights import read_config

_UNKNOWN_RATE_HZ = 20.0


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """What to continue, with what, how far, and how the tokens are drawn."""

    MAY_CHANGE = ("device",)

    model: str  # folder of a trained Toto: pretrained_model of a `toto_robot pretrain` run, or a packaged name
    data: str  # a video, a folder of videos, an episode store or a frame store
    clips: int = 4  # videos (or cameras of episodes) to continue, spread evenly over the data
    prompt_frames: int = 4  # frames that are given
    frames: int = 12  # frames that the model makes
    stride: int = 1  # every how many-th frame of the video is taken
    start_frame: int | None = None  # of the video, where the prompt begins; null: prompt and truth lie in the middle
    samples: int = 3  # continuations of each clip
    temperature: float = 1.0  # of the draws; 0 takes the most likely token, below 1 prefers likely ones
    top_k: int | None = None  # draw among that many most likely tokens; null: all
    top_p: float | None = None  # draw among the fewest tokens that together are that likely; null: all
    seed: int = 0  # of the first sample; the next ones count up
    picture_px: int = 192  # least side of a picture in the films
    device: str = "auto"  # auto, cpu, cuda or cuda:<n>
    precision: str = "auto"  # auto, bf16 or fp32

    def __post_init__(self) -> None:
        for name in ("clips", "prompt_frames", "frames", "stride", "samples", "picture_px"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} of at least 1, got {getattr(self, name)}")
        if self.start_frame is not None and self.start_frame < 0:
            raise ValueError(f"expected start_frame of at least 0 (or null), got {self.start_frame}")
        check_sampling(self.temperature, self.top_k, self.top_p)

    def deciding(self) -> dict[str, Any]:
        """Return the settings that decide the result."""
        return {key: value for key, value in asdict(self).items() if key not in self.MAY_CHANGE}


class ClipSource(Protocol):
    """What a clip is read from (data/sources.py, or a frame store)."""

    @property
    def id(self) -> str:
        """Name the clip."""

    def header(self) -> tuple[int, float]:
        """Return (number of frames, frames per second) as far as known, else 0."""

    def frames(self, size_px: int) -> Iterator[Frame]:
        """Yield square uint8 RGB frames of `size_px`."""


@dataclass(frozen=True)
class StoredClip:
    """A clip of a frame store."""

    store: FrameStore
    index: int

    @property
    def id(self) -> str:
        """Return the name it was stored under."""
        return self.store.clip_names[self.index]

    def header(self) -> tuple[int, float]:
        """Return its length and rate."""
        start, stop = self.store.bounds(self.index)
        return stop - start, float(self.store.records[self.index].get("fps") or 0)

    def frames(self, size_px: int) -> Iterator[Frame]:
        """Read the frames one by one."""
        for row in range(*self.store.bounds(self.index)):
            yield resize_square(self.store.clip(row, 1)[0], size_px)


@dataclass(frozen=True)
class Clip:
    """The frames that are given and those that really came, (T, h, w, 3), T at most prompt and continuation."""

    name: str
    start_frame: int
    rate_hz: float  # of the frames taken
    frames: np.ndarray


@dataclass(frozen=True)
class Continued:
    """A clip as tokens (T, P), its continuations (S, prompt + frames, P), the surprise of each true token (T, P)."""

    clip: Clip
    codes: np.ndarray
    made: np.ndarray
    nats: np.ndarray


class Continuer:
    """A trained model with its tokenizer, ready to continue clips."""

    def __init__(self, config: GenerateConfig) -> None:
        self.config, self.device = config, choose_device(config.device)
        self.precision = resolve_precision(config.precision, self.device)
        folder = packaged.model_folder(config.model)
        read_config(folder, "toto")
        if not (folder / "tokenizer").is_dir():
            raise ValueError(f"{folder} has no tokenizer/ folder; give pretrained_model of a `toto_robot pretrain` run")
        model = from_pretrained(folder, self.device)
        assert isinstance(model, Toto)
        self.model, self.tokenizer = model, load_tokenizer(folder / "tokenizer", self.device)
        self.fingerprints = {"model": fingerprint(model), "tokenizer": self.tokenizer.fingerprint()}
        side = model.config.image_px // self.tokenizer.stride
        self.grid = (side, side)
        if self.precision == "bf16":
            halve_matrices(model.blocks)  # once, and not at every token

    def read(self, source: ClipSource) -> Clip:
        """Read the frames of a clip; BadVideo where the prompt does not fit."""
        config = self.config
        length, fps = source.header()
        start, taken = self._take(source, length)
        if config.start_frame is None and len(taken) < config.prompt_frames + config.frames:
            # Headers guess, too many where the rate varies: count, and look for the middle again.
            length = sum(1 for _ in source.frames(self.model.config.image_px))
            start, taken = self._take(source, length)
        if len(taken) < config.prompt_frames:
            raise BadVideo(
                f"has {len(taken)} frames at stride {config.stride} from frame {start} on; the prompt needs "
                f"{config.prompt_frames}"
            )
        return Clip(source.id, start, (fps or _UNKNOWN_RATE_HZ) / config.stride, np.stack(taken))

    def _take(self, source: ClipSource, length: int) -> tuple[int, list[Frame]]:
        """Return the first frame and the frames of the prompt and the truth of a video of `length` frames."""
        config = self.config
        span = (config.prompt_frames + config.frames - 1) * config.stride + 1
        start = max(0, (length - span) // 2) if config.start_frame is None else config.start_frame
        frames = source.frames(self.model.config.image_px)
        return start, list(itertools.islice(frames, start, start + span, config.stride))

    def run(self, clip: Clip, bar: tqdm[Any]) -> Continued:
        """Tokenize a clip, draw the continuations, and measure the surprise of what really came."""
        config = self.config
        # Of the seed and the clip alone: other clips beside it, or more samples, change nothing.
        seeds = [step_seed(config.seed + sample, clip.start_frame, clip.name) for sample in range(config.samples)]
        with torch.no_grad(), autocast(self.precision, self.device):
            codes = self.tokenizer.encode(torch.from_numpy(clip.frames).to(self.device)).flatten(1)[None]
            prompt = codes[:, : config.prompt_frames].expand(config.samples, -1, -1)
            made = generate(
                self.model, prompt, config.frames,
                temperature=config.temperature, top_k=config.top_k, top_p=config.top_p,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds], on_token=bar.update,
            )  # fmt: skip
            nats = surprise(self.model, codes)
        return Continued(clip, codes[0].cpu().numpy(), made.cpu().numpy(), nats[0].cpu().numpy())

    def pictures(self, codes: np.ndarray) -> np.ndarray:
        """Decode codes (T, P) to uint8 (T, h, w, 3)."""
        grids = torch.from_numpy(codes).view(-1, *self.grid).to(self.device)
        return self.tokenizer.decode(grids).cpu().numpy()


def clip_sources(path: Path) -> list[ClipSource]:
    """Return the clips of a frame store, or what `find_sources` finds; ValueError where there is nothing."""
    if is_frame_store(path):
        store = FrameStore.open(path)
        return [StoredClip(store, index) for index in range(len(store))]
    return list(find_sources(path))
