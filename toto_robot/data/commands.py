"""Which commands look at and convert data sets: `toto_robot data info | check | view | convert`?

`data replay` needs an environment and is in `policies/replay.py`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from toto_robot.data import check as checks
from toto_robot.data import convert as conversion
from toto_robot.data.codecs import require_codec
from toto_robot.data.compress import compress_store
from toto_robot.data.finding import ERROR
from toto_robot.data.flat_store import store_kind
from toto_robot.data.info import clip_store_info, describe, recording_info, size_bytes
from toto_robot.data.recording import FORMATS, open_recording
from toto_robot.data.video import write_mp4
from toto_robot.data.view import film, frame_clips, recording_clips, sheet, spread
from toto_robot.run_folder import atomic_path, write_json


@dataclass(frozen=True, kw_only=True)
class InfoConfig:
    """Settings of `toto_robot data info`."""

    POSITIONAL = ("path",)

    path: str  # store of ours (episodes, frames, tokens), LeRobot folder or robomimic file
    fps: float | None = None  # control rate of a robomimic file that does not say it, Hz
    json: bool = False  # print JSON instead of lines


def info(config: InfoConfig, run_dir: Path) -> int:
    """Print what is in a data set; the same as JSON is `info.json` in the run folder."""
    path = Path(config.path)
    about = clip_store_info(path) or recording_info(open_recording(path, fps=config.fps))
    print(json.dumps(about, indent=2, default=str) if config.json else describe(about))
    write_json(run_dir / "info.json", about)
    return 0


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """Settings of `toto_robot data check`."""

    POSITIONAL = ("path",)

    path: str  # store of ours (episodes, frames, tokens), LeRobot folder or robomimic file
    environment: bool = True  # compare with the environment that made the data, where gymnasium has it
    images: bool = True  # read and check the pictures
    fps: float | None = None  # control rate of a robomimic file that does not say it, Hz
    flip_images: bool = False  # the pictures of the robomimic file are upside down


def check(config: CheckConfig, run_dir: Path) -> int:
    """Print what is wrong, one line a finding: severity, episode, step, key, what was expected and what came.

    Exit code 1 if there is an error; warnings alone are 0. The same as JSON is `findings.json` in the run folder.
    """
    options = checks.Options(
        environment=config.environment, images=config.images, fps=config.fps, flip_images=config.flip_images
    )
    found = []
    for finding in checks.check(Path(config.path), options):
        tqdm.write(str(finding))
        found.append(finding)
    write_json(run_dir / "findings.json", [finding.__dict__ for finding in found])
    errors = sum(finding.severity == ERROR for finding in found)
    print(f"{config.path}: {errors} errors, {len(found) - errors} warnings")
    return 1 if errors else 0


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """Settings of `toto_robot data view`."""

    POSITIONAL = ("path",)

    path: str  # store of ours (episodes, frames), LeRobot folder or robomimic file
    episodes: tuple[int, ...] = ()  # which episodes; default: spread evenly over all
    cameras: tuple[str, ...] = ()  # which cameras; default: all
    sheet_episodes: int = 8  # how many episodes, where they are not named
    sheet_moments: int = 8  # pictures of an episode on the sheet, from its first to its last step
    min_side_px: int = 128  # smaller pictures are enlarged by a whole factor to at least this, px
    fps: float | None = None  # control rate of a robomimic file that does not say it, Hz
    flip_images: bool = False  # the pictures of the robomimic file are upside down

    def __post_init__(self) -> None:
        if min(self.sheet_episodes, self.sheet_moments, self.min_side_px) < 1:
            raise ValueError(f"sizes and counts must be at least 1, got {self}")


def view(config: ViewConfig, run_dir: Path) -> int:
    """Write `contact_sheet.png` and `episodes.mp4` into the run folder."""
    path = Path(config.path)
    clips = frame_clips(path)
    if clips is None:
        recording = open_recording(path, fps=config.fps, flip_images=config.flip_images)
        clips = recording_clips(recording, config.cameras)
    if not clips.count:
        raise ValueError(f"{path} holds no episodes yet")
    outside = [index for index in config.episodes if not 0 <= index < clips.count]
    if outside:
        raise ValueError(f"{path} has episodes 0 to {clips.count - 1}; got {outside[0]}")
    chosen = list(config.episodes) or spread(clips.count, config.sheet_episodes)
    with atomic_path(run_dir / "contact_sheet.png") as temporary:
        sheet(clips, chosen, config.sheet_moments, config.min_side_px).save(temporary, format="PNG")
    frames = tqdm(film(clips, chosen, config.min_side_px), desc="video", unit="frame")
    write_mp4(run_dir / "episodes.mp4", frames, clips.rate_hz(chosen[0]))
    print(f"{run_dir / 'contact_sheet.png'} and {run_dir / 'episodes.mp4'}: {len(chosen)} of {clips.count} episodes")
    return 0


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Settings of `toto_robot data convert`."""

    POSITIONAL = ("source", "target")

    source: str  # episode store, LeRobot folder or robomimic file
    target: str  # new folder (toto, lerobot) or file (robomimic)
    format: str  # toto, lerobot or robomimic: what to write
    task: str | None = None  # the task in words; null is what the data says, else the environment's name
    lossless: bool = False  # lerobot: images as PNG in the parquet files instead of video
    crf: int = 18  # lerobot: quality of the H.264 video, 0 (best) to 51
    next_obs: bool = True  # robomimic: also write next_obs, which its training reads unless told otherwise
    compression: str = "none"  # toto: none, blosc-lz4 (for training from images), zstd (smallest); then read only
    fps: float | None = None  # control rate of a robomimic file that does not say it, Hz
    flip_images: bool = False  # the pictures of the robomimic file are upside down (raw robosuite observations)

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"expected format as one of {', '.join(FORMATS)}, got {self.format!r}")
        if not 0 <= self.crf <= 51:
            raise ValueError(f"expected crf from 0 (best) to 51, got {self.crf}")
        require_codec(self.compression)
        if self.compression != "none" and self.format != "toto":
            raise ValueError(f"only format=toto has a compression, got format={self.format}")


def convert_data(config: ConvertConfig, run_dir: Path) -> int:
    """Convert a data set; the target appears when it is whole, and one that exists is left alone.

    A store of episodes or frames may be compressed, or made to grow again with compression=none.
    Numbers are exact in every format. Images are exact in ours and in robomimic's, and in LeRobot's with lossless=true;
    its video is a few grey levels off.
    """
    target = Path(config.target)
    if config.format == "robomimic" and target.suffix.lower() not in (".hdf5", ".h5"):
        raise ValueError(f"expected a target that ends in .hdf5, as robomimic's files do; got {target}")
    if target.exists():
        raise ValueError(f"{target} exists already; delete it or choose another place")
    if config.format == "toto" and store_kind(Path(config.source)) is not None and config.task is None:
        compress_store(Path(config.source), target, codec=config.compression, progress=True)
        print(f"{target}: {config.compression}, {size_bytes(target) / 2**20:.1f} MiB")
        return 0
    recording = open_recording(Path(config.source), fps=config.fps, flip_images=config.flip_images)
    for key, reason in recording.left_out.items():
        print(f"left out: {key} ({reason})")
    if config.task is not None:
        recording.env = {**recording.env, "tasks": [config.task]}
        recording.tasks = (config.task,)
    options = conversion.Options(
        lossless=config.lossless, crf=config.crf, next_obs=config.next_obs, compression=config.compression
    )
    conversion.convert(recording, target, config.format, options)
    print(f"{target}: {config.format}, {len(recording)} episodes, {size_bytes(target) / 2**20:.1f} MiB")
    return 0
