"""How does `toto_robot generate` show continued videos, and how good are they beside what really came?"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from toto_robot.data.video import BadVideo, write_mp4
from toto_robot.data.view import spread
from toto_robot.pretrain.continuation import ClipSource, Continued, Continuer, GenerateConfig, clip_sources
from toto_robot.pretrain.films import draw_sheet, film, heat, scale_bar
from toto_robot.pretrain.stages import Stages
from toto_robot.run_folder import write_json


def generate_command(config: GenerateConfig, run_dir: Path) -> int:
    """Continue clips of a video; write them beside the truth, and how surprising the truth was to the model.

    A folder a clip: continuation.mp4 (truth, its tokens, samples), surprise.mp4 (a heat map over the truth), sheet.png,
    surprise.json (nats per token, frame and place). summary.json compares tokens and pixels of the samples with the
    truth, beside repeating the last given frame. A rerun continues with the next clip.
    """
    continuer = Continuer(config)
    sources = clip_sources(Path(config.data))
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
    nats = continued.nats.astype(np.float64)  # float32 would be written with nine digits
    write_json(
        out / "surprise.json",
        {
            "unit": "nats per token: negative log-likelihood of the true token given all before",
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
