"""How does `toto_robot generate` continue videos, and how good are the continuations beside what really came?"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from tqdm import tqdm

from toto_robot.data.frames import FrameStore, is_frame_store
from toto_robot.data.sources import find_sources
from toto_robot.data.video import BadVideo, Frame, resize_square, write_mp4
from toto_robot.data.view import spread
from toto_robot.encoders.base import autocast, halve_matrices, resolve_precision
from toto_robot.models.generate import check_sampling, generate, surprise
from toto_robot.models.hub import fingerprint, from_pretrained
from toto_robot.models.toto import Toto
from toto_robot.pretrain.films import draw_sheet, film, heat, scale_bar
from toto_robot.pretrain.loop import step_seed
from toto_robot.pretrain.optim import choose_device
from toto_robot.pretrain.stages import Stages
from toto_robot.run_folder import write_json
from toto_robot.tokenizers.load import load_tokenizer
from toto_robot.weights import read_config

_UNKNOWN_RATE_HZ = 20.0


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """What to continue, with what, how far, and how the tokens are drawn."""

    MAY_CHANGE = ("device",)

    model: str  # folder of a trained Toto: pretrained_model of a `toto_robot pretrain` run
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
        folder = Path(config.model)
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


def generate_command(config: GenerateConfig, run_dir: Path) -> int:
    """Continue clips of a video; write them beside the truth, and how surprising the truth was to the model.

    A folder a clip: continuation.mp4 (truth, its tokens, samples), surprise.mp4 (a heat map over the truth), sheet.png,
    surprise.json (nats per token, frame and place). summary.json compares tokens and pixels of the samples with the
    truth, beside repeating the last given frame. A rerun continues with the next clip.
    """
    continuer = Continuer(config)
    sources = _sources(Path(config.data))
    chosen = [sources[index] for index in spread(len(sources), config.clips)]
    stages = Stages(run_dir, {**config.deciding(), **continuer.fingerprints})
    found: dict[str, dict[str, Any]] = {}
    rejected: dict[str, str] = {}
    tokens_each = config.frames * continuer.model.config.tokens_per_frame
    for index, source in enumerate(chosen):

        def work(index: int = index, source: ClipSource = source) -> dict[str, Any]:
            # The total is that of all clips, so that the time left is, too.
            with tqdm(
                total=len(chosen) * tokens_each, initial=index * tokens_each, desc=f"clip {index + 1} of {len(chosen)}",
                unit="token", leave=False,
            ) as bar:  # fmt: skip
                return _continue(continuer, source, _clip_dir(run_dir, index, source.id), bar)

        try:
            found[source.id] = stages.run(f"clip {index + 1}", work)
        except BadVideo as error:
            rejected[source.id] = str(error)
            print(f"left out {source.id}: {error}")
    if not found:
        raise ValueError(f"none of the {len(chosen)} clips can be continued: {next(iter(rejected.items()))}")
    _summarise(config, run_dir, continuer, found, rejected)
    return 0


def _sources(path: Path) -> list[ClipSource]:
    if is_frame_store(path):
        store = FrameStore.open(path)
        return [StoredClip(store, index) for index in range(len(store))]
    return list(find_sources(path))


def _clip_dir(run_dir: Path, index: int, name: str) -> Path:
    return run_dir / f"{index:02d}_{re.sub(r'[^A-Za-z0-9.]+', '_', name)[-60:].strip('_')}"


def _continue(continuer: Continuer, source: ClipSource, out: Path, bar: tqdm[Any]) -> dict[str, Any]:
    """Do one clip: continue it, write its files, return its numbers."""
    continued = continuer.run(continuer.read(source), bar)
    samples = np.stack([continuer.pictures(codes) for codes in continued.made])  # (S, T, h, w, 3)
    decoded = continuer.pictures(continued.codes)
    _write_surprise(continued, continuer, out)
    _write_pictures(continued, continuer, decoded, samples, out)
    found = {"folder": out.name, **_measure(continued, decoded, samples, continuer.config.prompt_frames)}
    made = continuer.config.frames
    truth = "no truth to compare with"
    if found["truth_frames"]:
        truth = f"{found['agreement']:.2f} of the tokens right (repeating {found['copy_agreement']:.2f})"
    return {"summary": f"{made} frames, {truth}, {found['surprise']:.2f} nats", "name": source.id, **found}


def _measure(continued: Continued, decoded: np.ndarray, samples: np.ndarray, given: int) -> dict[str, Any]:
    """Compare the samples with the truth, frame by frame, beside repeating the last given frame; None: no truth."""
    codes, frames = continued.codes, continued.clip.frames
    truth, n = codes[given:], len(codes) - given
    right = (continued.made[:, given:][:, :n] == truth).mean((0, 2))
    copied = (codes[given - 1] == truth).mean(1)
    psnr = {
        "psnr_db": _psnr_db(samples[:, given:][:, :n], frames[given:]),
        "copy_psnr_db": _psnr_db(frames[given - 1][None, None], frames[given:]),
        "tokenizer_psnr_db": _psnr_db(decoded[given:][None], frames[given:]),  # no continuation can be expected above
    }
    return {
        "truth_frames": n,
        "surprise": round(float(continued.nats.mean()), 4),
        "surprise_after_prompt": round(float(continued.nats[given:].mean()), 4) if n else None,
        "agreement": round(float(right.mean()), 4) if n else None,
        "copy_agreement": round(float(copied.mean()), 4) if n else None,
        **{name: round(float(values.mean()), 2) if n else None for name, values in psnr.items()},
        "per_frame": {
            "agreement": right.round(4).tolist(),
            "copy_agreement": copied.round(4).tolist(),
            **{name: values.round(2).tolist() for name, values in psnr.items()},
        },
    }


def _psnr_db(pictures: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the PSNR of each frame: pictures (S, T or 1, h, w, 3) against truth (T, h, w, 3); mean error over S."""
    squared = np.square(pictures.astype(np.float64) - truth).mean((0, 2, 3, 4))
    return 10 * np.log10(255**2 / np.maximum(squared, 1e-2))


def _write_surprise(continued: Continued, continuer: Continuer, out: Path) -> None:
    nats = continued.nats
    write_json(
        out / "surprise.json",
        {
            "unit": "nats per token: negative log-likelihood of the true token given all before, over all ids",
            "clip": continued.clip.name,
            "start_frame": continued.clip.start_frame,
            "stride": continuer.config.stride,
            "grid": list(continuer.grid),
            "mean": round(float(nats.mean()), 4),
            "per_frame": nats.mean(1).round(4).tolist(),
            "per_place": nats.mean(0).round(4).tolist(),  # of the grid, raster order
            "per_position": nats.ravel().round(4).tolist(),  # of the sequence, start id left out
        },
    )


def _write_pictures(
    continued: Continued, continuer: Continuer, decoded: np.ndarray, samples: np.ndarray, out: Path
) -> None:
    config, clip = continuer.config, continued.clip
    given, total = config.prompt_frames, config.prompt_frames + config.frames
    most_nats = float(np.log(continuer.model.config.visual_vocab))  # what guessing costs
    hot = heat(clip.frames, continued.nats.reshape(-1, *continuer.grid), most_nats)
    made = [(f"sample, seed {config.seed + index}", sample) for index, sample in enumerate(samples)]
    columns = [("truth", clip.frames), ("its tokens", decoded), *made]
    captions = [
        f"{clip.name}  {index / clip.rate_hz:.2f} s  frame {index + 1} of {total}: "
        + ("given" if index < given else "made by the model (red)")
        for index in range(total)
    ]
    films = film(columns, captions, config.picture_px, given=given, made_from=2)
    write_mp4(out / "continuation.mp4", films, clip.rate_hz)
    per_frame = continued.nats.mean(1)
    captions = [
        f"{clip.name}  {index / clip.rate_hz:.2f} s  frame {index + 1}: {value:.2f} nats a token"
        for index, value in enumerate(per_frame)
    ]
    columns = [("truth", clip.frames), ("surprise", hot)]
    bar = scale_bar(most_nats, config.picture_px)
    write_mp4(out / "surprise.mp4", film(columns, captions, config.picture_px, beside=bar), clip.rate_hz)
    how = f"temperature {config.temperature:g}, top_k {config.top_k}, top_p {config.top_p}"
    title = f"{clip.name}: right of the line the model draws every token ({how}); surprise: 0 to {most_nats:.1f} nats"
    rows = [("truth", clip.frames), ("its tokens", decoded), ("surprise", hot), *made]
    draw_sheet(out / "sheet.png", rows, title=title, given=given)


def _summarise(
    config: GenerateConfig, run_dir: Path, continuer: Continuer, found: dict[str, Any], rejected: dict[str, str]
) -> None:
    """Write summary.json and print the means over the clips that have a truth."""
    names = ("surprise", "agreement", "copy_agreement", "psnr_db", "copy_psnr_db", "tokenizer_psnr_db")
    values = {name: [clip[name] for clip in found.values() if clip[name] is not None] for name in names}
    mean = {name: round(float(np.mean(value)), 4) if value else None for name, value in values.items()}
    clips = [{key: value for key, value in clip.items() if key != "summary"} for clip in found.values()]
    write_json(
        run_dir / "summary.json",
        {"mean": mean, "clips": clips, "rejected": rejected, **continuer.fingerprints, "settings": config.deciding()},
    )
    if mean["agreement"] is not None:
        print(
            f"tokens right {mean['agreement']:.3f} (repeating the last frame {mean['copy_agreement']:.3f}), "
            f"PSNR {mean['psnr_db']:.1f} dB (repeating {mean['copy_psnr_db']:.1f}, tokenizer "
            f"{mean['tokenizer_psnr_db']:.1f}), surprise {mean['surprise']:.3f} nats a token"
        )
    print(f"films, sheets and numbers in {run_dir}")
