"""How does Ctrl-C end a training without leaving a step half done?"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType

_INTERRUPTED = b"\nfinishing this step, then saving (Ctrl-C again: stop now, from the last checkpoint)\n"


@contextlib.contextmanager
def finish_step_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a flag, so that no step is left half applied; the second one acts at once."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        os.write(2, _INTERRUPTED)  # not print: the signal may arrive inside one

    try:
        before = signal.signal(signal.SIGINT, note)
    except ValueError:  # not the main thread: interrupts do not arrive here
        yield lambda: False
        return
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGINT, before)
