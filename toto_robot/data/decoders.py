"""How are clips decoded beside the tokenizer, without ever being much ahead of it?

Threads take one clip after the other and put batches of frames into one bounded queue: decoding and resizing leave
Python's lock to others, so they run while the tokenizer does. With several threads the batches of several clips come
mixed, each clip's own in order. A clip that fails ends with the reason instead of more batches.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from toto_robot.data.video import Frame

_AHEAD = 4  # batches in the queue for each thread
_POLL_S = 0.1  # how long a thread waits for room before it looks whether it should stop

Images = npt.NDArray[np.uint8]  # (n, h, w, 3)


@dataclass(frozen=True)
class Ended:
    """The last thing that comes of a clip; `reason` says why it cannot be used, None where all frames came."""

    reason: str | None = None


class Decoders:
    """Iterate over (clip, batch of frames or `Ended`); close by leaving the `with` block, at any time."""

    def __init__(self, clips: Sequence[Callable[[], Iterator[Frame]]], *, batch_size: int, threads: int) -> None:
        """`clips` open the frames of each clip; ValueError and OSError while it is read mean that it is bad."""
        self._clips, self._batch_size = clips, batch_size
        self._turn = itertools.count()  # next() of it is one step of the interpreter: no two threads get the same
        self._queue: queue.Queue[Any] = queue.Queue(maxsize=_AHEAD * threads)
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, daemon=True, name=f"decoder {number}")
            for number in range(min(threads, len(clips)))
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def __iter__(self) -> Iterator[tuple[int, Images | Ended]]:
        left = len(self._clips)
        while left:
            clip, item = self._queue.get()
            if isinstance(item, BaseException):
                raise item
            left -= isinstance(item, Ended)
            yield clip, item

    def _work(self) -> None:
        while not self._stop.is_set() and (clip := next(self._turn)) < len(self._clips):
            try:
                self._decode(clip)
            except (ValueError, OSError) as error:
                self._put(clip, Ended(str(error)))
            except BaseException as error:  # a fault of this program: raised where the batches are read
                self._put(clip, error)

    def _decode(self, clip: int) -> None:
        frames = self._clips[clip]()
        while block := list(itertools.islice(frames, self._batch_size)):
            if not self._put(clip, np.stack(block)):
                return
        self._put(clip, Ended())

    def _put(self, clip: int, item: Images | Ended | BaseException) -> bool:
        """Hand an item over as soon as there is room; False where nobody will take it any more."""
        while not self._stop.is_set():
            try:
                self._queue.put((clip, item), timeout=_POLL_S)
                return True
            except queue.Full:
                continue
        return False
