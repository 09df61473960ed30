"""How does a device become a mailbox of newest frames, in a process of its own that outlives a pulled cable?

A source opens, reads (blocking) and closes; the loop stamps each frame, puts it into the mailbox, and opens the source
anew after a failure. Sources: `opencv:<number or /dev/video*>`, `file:<video>` (in a loop), `realsense:<serial>`.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from deploy.realtime.mailbox import Mailbox
from deploy.realtime.records import frame_dtype
from toto_robot.one_thread import ONE_THREAD, environment_variables

_REOPEN_S = 1.0
_WARM_UP_FRAMES = 5  # while exposure settles


class CameraError(Exception):
    """A device does not open or has stopped giving frames."""


class Source(Protocol):
    """A device. `read` blocks until the next frame and says when it was captured."""

    def open(self) -> None:
        """Open; CameraError, with what to do, if that does not work."""

    def read(self) -> tuple[float, np.ndarray]:
        """Return the capture time (monotonic s) and the picture, uint8 (h, w, 3) RGB; CameraError on a timeout."""

    def close(self) -> None:
        """Close; twice is once."""


@dataclass(frozen=True, kw_only=True)
class CaptureSettings:
    """One camera of a run."""

    name: str  # as the bundle calls it
    source: str  # opencv:0, file:clip.mp4, realsense:<serial>
    width: int = 640
    height: int = 480
    rate_hz: float = 30.0


def make_source(settings: CaptureSettings) -> Source:
    """Return the source that `settings.source` names; ValueError for an unknown kind."""
    kind, _, place = settings.source.partition(":")
    if kind in ("opencv", "file") and place:
        from deploy.cameras.opencv import OpenCVSource

        return OpenCVSource(settings, place, is_file=kind == "file")
    if kind == "realsense":
        from deploy.cameras.realsense import RealSenseSource

        return RealSenseSource(settings, place)
    raise ValueError(
        f"camera {settings.name}: expected opencv:<device>, file:<video> or realsense:<serial>, got {settings.source!r}"
    )


def capture(settings: CaptureSettings, path: Path, ended: Callable[[], bool]) -> None:
    """Fill the mailbox at `path` until `ended`; reopens the source after every failure."""
    box = Mailbox(path, frame_dtype(settings.height, settings.width))
    record, source, opened = np.zeros((), box.dtype), make_source(settings), False
    while not ended():
        try:
            if not opened:
                source.open()
                opened = True
                for _ in range(_WARM_UP_FRAMES):
                    source.read()
            record["capture_s"], record["image"] = source.read()
            record["number"] = int(record["number"]) + 1
            box.put(record)
        except CameraError as error:
            print(f"camera {settings.name}: {error}; opening it again", flush=True)
            source.close()
            opened = False
            time.sleep(_REOPEN_S)
    source.close()


class CaptureProcess:
    """A capturing process and its mailbox; use as a context manager."""

    def __init__(self, settings: CaptureSettings, path: Path) -> None:
        self.settings, self.path = settings, path
        self._process: BaseProcess | None = None

    @property
    def pid(self) -> int:
        """Return the process id."""
        assert self._process is not None and self._process.pid is not None
        return self._process.pid

    def __enter__(self) -> CaptureProcess:
        Mailbox(self.path, frame_dtype(self.settings.height, self.settings.width), create=True).close()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=_main, args=(self.settings, self.path, os.getpid()), daemon=True)
        with environment_variables(ONE_THREAD):
            self._process.start()
        return self

    def __exit__(self, *error: Any) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.join(3.0)
        if self._process.is_alive():  # a driver that hangs in the kernel
            self._process.kill()
            self._process.join()


def _main(settings: CaptureSettings, path: Path, parent: int) -> None:
    asked = []
    # A terminal's Ctrl-C, Ctrl-\, Ctrl-Z and hang-up are for the process that started it.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    with contextlib.suppress(KeyboardInterrupt):
        capture(settings, path, lambda: bool(asked) or os.getppid() != parent)
