"""Do the cameras show what they showed in successful episodes, or should somebody look?

The score of a frame is the surprise of its tokens to the policy's own Toto, in nats: how unlikely the frame's codes are
given the frames before it. Of a frame's P tokens the `top` most surprising count, because most of what happens between
the arm and an object is in a few of them. Each camera's mean is standardised by its successful episodes, apart for the
first frames of an episode, which have less context; the frame's score is its most surprising camera.

The monitor has a memory of its own of `context_frames`, since packaged policies remember nothing; the tokens are those
of the policy's encoder (`Policy.codes`), made anyway. It knows no robot: a loop feeds it and acts on `alarm`.
`Calibration` says where the threshold comes from, and what is promised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deploy.conformal import Scores, conformal_threshold, episode_score
from policies.bundle import bundle_hash
from toto_robot.encoders.base import Encoder
from toto_robot.encoders.toto import TotoEncoder
from toto_robot.run_folder import provenance, read_json, write_json

FILE = "surprise.json"  # beside a bundle's policy.json, no part of its hash
SCHEMA = 1
_LEAST_DEVIATION = 1e-3  # nats: a camera that sees nothing move


@dataclass(frozen=True, kw_only=True)
class SurpriseSettings:
    """How the score is made, and when it becomes an alarm."""

    context_frames: int = 4  # W that the monitor looks back on, the newest included
    top: int = 4  # most surprising tokens of a frame that count
    consecutive: int = 1  # frames that must all be above the threshold
    clear: int = 10  # frames below it that end an alarm
    alpha: float = 0.05  # share of successful episodes that may raise an alarm

    def __post_init__(self) -> None:
        for name in ("context_frames", "top", "consecutive", "clear"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} of at least 1, got {getattr(self, name)}")


class SurpriseMeter:
    """Nats of every camera's newest frame, while the video runs."""

    def __init__(self, encoder: Encoder, cameras: Sequence[str], settings: SurpriseSettings) -> None:
        if not isinstance(encoder, TotoEncoder):
            raise ValueError(f"surprise needs an encoder that predicts, a Toto; the policy's is {encoder.name!r}")
        self._encoder, self.cameras = encoder, tuple(cameras)
        self._top = min(settings.top, encoder.tokens_per_frame)
        self._stream = encoder.surprise_stream(len(self.cameras), settings.context_frames)
        self.frames = 0  # of this episode

    def reset(self) -> None:
        """Forget the past: the next frame begins an episode."""
        self.frames = 0

    def feed(self, frames: Mapping[str, npt.NDArray[np.uint8]]) -> Scores:
        """Take the newest frame (h, w, 3) of every camera; return (N,) nats, in the order of `cameras`."""
        stacked = np.stack([frames[camera] for camera in self._known(frames)])
        return self.feed_codes(dict(zip(self.cameras, self._encoder.codes(stacked).split(1), strict=True)))

    def feed_codes(self, codes: Mapping[str, Tensor]) -> Scores:
        """Take the newest frame's tokens (1, P) of every camera (`Policy.codes`); return (N,) nats."""
        rows = torch.cat([codes[camera] for camera in self._known(codes)])
        restart = torch.full((len(rows),), self.frames == 0)
        nats = self._encoder.surprise(self._stream, rows, restart)  # (N, P)
        self.frames += 1
        top: Scores = nats.topk(self._top, dim=1).values.mean(1).double().cpu().numpy()
        return top

    def _known(self, given: Mapping[str, Any]) -> tuple[str, ...]:
        missing = [camera for camera in self.cameras if camera not in given]
        if missing:
            raise ValueError(f"expected a frame of {', '.join(self.cameras)}; {', '.join(missing)} is missing")
        return self.cameras


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What successful episodes looked like to one bundle, and the threshold that follows.

    A further successful episode from the same source (task, scene, lights, policy) raises an alarm with a probability
    of at most `settings.alpha` (`conformal.py`). Nothing is promised for episodes that last longer than those, and
    nothing about the share of faults that are noticed: that is measured (`benchmarks/surprise_detection.py`).
    """

    bundle: str  # hash
    encoder: str  # fingerprint
    cameras: tuple[str, ...]
    settings: SurpriseSettings
    mean: npt.NDArray[np.float64]  # (W, N) nats, by the frame's number in its episode, the last row for all later
    deviation: npt.NDArray[np.float64]  # (W, N)
    threshold: float
    fitted_on: int  # episodes, apart from those of the threshold
    calibrated_on: int

    def score(self, nats: Scores, frame: int) -> float:
        """Return the score of a frame, in standard deviations of its camera: nats (N,), number in its episode."""
        return float(standard_scores(nats[None], self.mean, self.deviation, first=frame)[0])

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        arrays = {"mean": self.mean.tolist(), "deviation": self.deviation.tolist()}
        write_json(path, {"schema": SCHEMA, **asdict(self), **arrays, "provenance": provenance()})

    @staticmethod
    def load(path: Path, bundle: Path, encoder: Encoder) -> Calibration:
        """Read what `save` wrote; ValueError if it belongs to another bundle or encoder."""
        if not path.exists():
            raise ValueError(f"no calibration of the surprise monitor at {path}; make it: docs/surprise.md")
        stored = read_json(path)
        if stored.get("schema") != SCHEMA:
            raise ValueError(f"{path}: schema {stored.get('schema')}, this version reads {SCHEMA}; calibrate again")
        for name, here in (("bundle", bundle_hash(bundle)), ("encoder", encoder.fingerprint)):
            if stored[name] != here:
                raise ValueError(
                    f"{path} was calibrated for {name} {stored[name][:16]}, this one is {here[:16]}; calibrate again"
                )
        return Calibration(
            bundle=stored["bundle"],
            encoder=stored["encoder"],
            cameras=tuple(stored["cameras"]),
            settings=SurpriseSettings(**stored["settings"]),
            mean=np.array(stored["mean"]),
            deviation=np.array(stored["deviation"]),
            threshold=float(stored["threshold"]),
            fitted_on=stored["fitted_on"],
            calibrated_on=stored["calibrated_on"],
        )


def calibrate(
    bundle: Path, encoder: Encoder, cameras: Sequence[str], settings: SurpriseSettings,
    fit: Sequence[Scores], held_out: Sequence[Scores],
) -> Calibration:  # fmt: skip
    """Make a calibration from the nats (T, N) of successful episodes: `fit` to standardise, `held_out` to calibrate.

    ValueError for too few episodes.
    """
    mean, deviation = standardisation(fit, settings.context_frames)
    scores = [standard_scores(nats, mean, deviation) for nats in held_out]
    return Calibration(
        bundle=bundle_hash(bundle),
        encoder=encoder.fingerprint,
        cameras=tuple(cameras),
        settings=settings,
        mean=mean,
        deviation=deviation,
        threshold=conformal_threshold([episode_score(each, settings.consecutive) for each in scores], settings.alpha),
        fitted_on=len(fit),
        calibrated_on=len(held_out),
    )


def standardisation(episodes: Sequence[Scores], depth: int) -> tuple[Scores, Scores]:
    """Return mean and deviation (depth, N) of episodes (T, N): one row a frame, the last for all later ones."""
    if len(episodes) < 2 or min(map(len, episodes)) < depth:
        raise ValueError(f"expected two episodes or more of at least {depth} frames to standardise scores with")
    rows = [np.stack([episode[frame] for episode in episodes]) for frame in range(depth - 1)]
    rows.append(np.concatenate([episode[depth - 1 :] for episode in episodes]))
    deviation = np.stack([row.std(axis=0) for row in rows])
    return np.stack([row.mean(axis=0) for row in rows]), np.maximum(deviation, _LEAST_DEVIATION)


def standard_scores(episode: Scores, mean: Scores, deviation: Scores, first: int = 0) -> Scores:
    """Return the scores (T,) of nats (T, N) of frames `first`, `first` + 1, ...: the most surprising camera's."""
    row = np.minimum(first + np.arange(len(episode)), len(mean) - 1)
    most: Scores = ((episode - mean[row]) / deviation[row]).max(axis=1)
    return most


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What one frame did."""

    time_s: float
    nats: dict[str, float]  # camera -> mean of its most surprising tokens
    score: float  # standard deviations above the successful mean, of the most surprising camera
    alarm: bool


class SurpriseMonitor:
    """Feed it every frame; `alarm` rises after `consecutive` scores above the threshold, falls after `clear` below."""

    def __init__(self, encoder: Encoder, calibration: Calibration) -> None:
        self.calibration = calibration
        self._meter = SurpriseMeter(encoder, calibration.cameras, calibration.settings)
        self.alarm = False
        self._above = self._below = 0

    @property
    def threshold(self) -> float:
        """Above which a score counts."""
        return self.calibration.threshold

    def reset(self) -> None:
        """Begin an episode, without an alarm."""
        self._meter.reset()
        self.alarm = False
        self._above = self._below = 0

    def feed(self, frames: Mapping[str, npt.NDArray[np.uint8]], time_s: float) -> Reading:
        """Take the newest frame (h, w, 3) of every camera, captured at `time_s`."""
        return self._read(self._meter.feed(frames), time_s)

    def feed_codes(self, codes: Mapping[str, Tensor], time_s: float) -> Reading:
        """Take the tokens of the newest frames, after `Policy.act`: `policy.codes`."""
        return self._read(self._meter.feed_codes(codes), time_s)

    def _read(self, nats: Scores, time_s: float) -> Reading:
        score = self.calibration.score(nats, self._meter.frames - 1)
        settings = self.calibration.settings
        # Not "score <= threshold": a NaN is an alarm.
        above = not score <= self.calibration.threshold
        self._above = self._above + 1 if above else 0
        self._below = 0 if above else self._below + 1
        if self._above >= settings.consecutive:
            self.alarm = True
        elif self._below >= settings.clear:
            self.alarm = False
        each = dict(zip(self._meter.cameras, map(float, nats), strict=True))
        return Reading(time_s=time_s, nats=each, score=score, alarm=self.alarm)


def open_monitor(bundle: Path, encoder: Encoder) -> SurpriseMonitor:
    """Return a monitor with the calibration beside a bundle; ValueError if there is none, or another bundle's."""
    return SurpriseMonitor(encoder, Calibration.load(bundle / FILE, bundle, encoder))
