"""How do the units of a manifest become shards: which are left, what does one hold, what is left out and why?

The sources of a unit are decoded in threads (decoders.py) while the tokenizer works; a batch never spans two videos, so
the tokens of a video depend on nothing but itself, and single pictures share batches with their neighbours in the
manifest. The codes of a unit stay in memory until its last source has ended: 8 MiB for 16384 frames of 256 tokens.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from toto_robot.data.decoders import Decoders, Ended
from toto_robot.data.manifest import Entry, Manifest
from toto_robot.data.sources import Source
from toto_robot.data.token_shards import Clip, write_shard
from toto_robot.data.tokens import TokenSpec
from toto_robot.data.video import BadVideo, Frame
from toto_robot.tokenizers.base import Tokenizer

Codes = npt.NDArray[np.uint16]  # (n, P)


class TokenJob:
    """Everything that one process needs to do units of one manifest."""

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        sources: Sequence[Source],
        tokenizer: Tokenizer,
        *,
        batch_size: int,
        device: torch.device | str,
        decoders: int,
        provenance: Mapping[str, Any],
    ) -> None:
        """`sources` are found again by their ids; `decoders` is the number of threads that decode."""
        self.path, self.manifest = path, manifest
        self._spec = TokenSpec.of(manifest.settings)
        self._sources = {source.id: source for source in sources}
        self._batch_size, self._decoders, self._provenance = batch_size, decoders, provenance
        self._encoder = _Encoder(tokenizer, torch.device(device), self._spec.precision)

    def run(self, units: Sequence[int], *, progress: bool = True) -> Iterator[int]:
        """Do these units, yielding each one when its shard is there."""
        works = {unit: _Work(self.manifest.units[unit]) for unit in units}
        runs = [(unit, run) for unit in units for run in self._runs(unit)]
        opened = [run.frames for _, run in runs]
        expected = sum(entry.expected_frames for unit in units for entry in self.manifest.units[unit])
        with (
            tqdm(total=expected, desc="tokens", unit="frame", disable=not progress or not units) as bar,
            Decoders(opened, batch_size=self._batch_size, threads=self._decoders) as decoded,
        ):
            for number, item in self._encoder.encoded(decoded):
                unit, run = runs[number]
                if isinstance(item, Ended):
                    expected += run.rows - run.expected_frames
                    bar.total = expected
                    bar.refresh()
                    if works[unit].take(run.result(item, self._settings("min_frames"))):
                        yield self._write(unit, works.pop(unit))
                else:
                    run.codes.append(item)
                    bar.update(len(item))

    def _settings(self, name: str) -> int:
        return int(self.manifest.settings[name])

    def _runs(self, unit: int) -> Iterator[_Run]:
        """Cut the entries of a unit into what is encoded together: a video alone, neighbouring pictures in batches."""
        numbered = enumerate(self.manifest.units[unit])
        for kind, entries in itertools.groupby(numbered, key=lambda pair: pair[1].kind):
            together = self._batch_size if kind == "images" else 1
            while block := list(itertools.islice(entries, together)):
                yield _Run(block, self._frames)

    def _frames(self, entry: Entry) -> Iterator[Frame]:
        """Yield the frames of an entry; BadVideo where its source is not what was planned."""
        source = self._sources.get(entry.id)
        if source is None:
            raise BadVideo("is not there any more")
        if source.fingerprint() != entry.fingerprint:
            raise BadVideo("has changed since the manifest was made")
        yield from itertools.islice(source.frames(self._spec.image_px), entry.take)

    def _write(self, unit: int, work: _Work) -> int:
        clips = [clip for _, clip in sorted(work.clips.items(), key=lambda pair: pair[0])]
        skipped = [{"source": work.entries[at].id, "reason": reason} for at, reason in sorted(work.reasons.items())]
        for one in skipped:
            tqdm.write(f"left out: {one['source']} {one['reason']}")
        write_shard(self.path, unit, self._spec, clips, skipped, self._provenance)
        return unit


@dataclass
class _Work:
    """What has come of the entries of a unit so far, by their place in it."""

    entries: Sequence[Entry]
    clips: dict[int, Clip] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)

    def take(self, result: Iterator[tuple[int, Codes | str]]) -> bool:
        """Note codes, or the reason why there are none; True once nothing is missing."""
        for at, codes in result:
            if isinstance(codes, str):
                self.reasons[at] = codes
            else:
                self.clips[at] = (codes, _record(self.entries[at]))
        return len(self.clips) + len(self.reasons) == len(self.entries)


class _Run:
    """Entries that are decoded into the same batches: one video, or some pictures."""

    def __init__(self, entries: Sequence[tuple[int, Entry]], opened: Callable[[Entry], Iterator[Frame]]) -> None:
        self.entries, self._opened = entries, opened
        self.codes: list[Codes] = []
        self._counts: dict[int, int] = {}  # frames of each entry that came
        self._reasons: dict[int, str] = {}  # of the pictures that are bad

    @property
    def expected_frames(self) -> int:
        return sum(entry.expected_frames for _, entry in self.entries)

    @property
    def rows(self) -> int:
        return sum(map(len, self.codes))

    def frames(self) -> Iterator[Frame]:
        """Yield the frames of all entries; a video that is bad ends it, a picture is left out alone."""
        for at, entry in self.entries:
            if entry.kind == "video":
                self._counts[at] = 0
                for frame in self._opened(entry):
                    self._counts[at] += 1
                    yield frame
                continue
            try:
                pictures = list(self._opened(entry))
            except (ValueError, OSError) as error:
                self._reasons[at] = str(error)
                continue
            self._counts[at] = len(pictures)
            yield from pictures

    def result(self, end: Ended, min_frames: int) -> Iterator[tuple[int, Codes | str]]:
        """Yield the codes of each entry, or why there are none; once all batches are encoded."""
        codes, start = np.concatenate(self.codes) if self.codes else np.empty((0, 0), np.uint16), 0
        for at, entry in self.entries:
            count, least = self._counts.get(at, 0), min_frames if entry.kind == "video" else 1
            reason = self._reasons.get(at) or end.reason
            if reason is None and count < least:
                reason = f"has {count} frames, at least {least} are needed"
            yield at, reason or codes[start : start + count]
            start += count


class _Encoder:
    """Runs the tokenizer on batches; on a GPU the next batch is prepared while the last one is computed."""

    def __init__(self, tokenizer: Tokenizer, device: torch.device, precision: str) -> None:
        self._tokenizer, self._device, self._precision = tokenizer, device, precision

    def encoded(self, decoded: Iterator[tuple[int, Any]] | Decoders) -> Iterator[tuple[int, Codes | Ended]]:
        """Yield what comes in, batches of frames (n, h, w, 3) turned to codes (n, P)."""
        waiting: tuple[int, Tensor] | None = None
        for number, item in decoded:
            codes = None if isinstance(item, Ended) else self._start(item)
            if waiting is not None:
                yield waiting[0], _to_host(waiting[1])
            waiting = None if codes is None else (number, codes)
            if isinstance(item, Ended):
                yield number, item
        if waiting is not None:
            yield waiting[0], _to_host(waiting[1])

    @torch.inference_mode()
    def _start(self, images: npt.NDArray[np.uint8]) -> Tensor:
        """Return the codes (n, P), on a GPU before they are computed."""
        batch = torch.from_numpy(images)
        if self._device.type == "cuda":
            batch = batch.pin_memory()
        batch = batch.to(self._device, non_blocking=True)
        half = self._precision == "bf16"
        with torch.autocast(self._device.type, torch.bfloat16) if half else contextlib.nullcontext():
            return self._tokenizer.encode(batch).flatten(1)


def _to_host(codes: Tensor) -> Codes:
    return codes.cpu().numpy().astype(np.uint16)


def _record(entry: Entry) -> dict[str, Any]:
    about = {"name": entry.id, "group": entry.group, "source": entry.source, "kind": entry.kind, "fps": entry.fps}
    return {**about, "source_fingerprint": entry.fingerprint}
