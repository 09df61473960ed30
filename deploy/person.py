"""What does a program that moves an arm owe the person beside it: a question before the first motion, and an ear?"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from typing import Any


def confirm_motion(address: str | None) -> None:
    """Ask the person at the terminal before the first motion; RuntimeError without a terminal or without a yes."""
    if not sys.stdin.isatty():
        raise RuntimeError("a real arm moves only after a person confirmed it: run this in a terminal, or dry_run=true")
    print(f"\nThe arm at {address} will move. Nobody within its reach? The user stop in your hand?")
    with contextlib.suppress(EOFError):
        if input("type yes to begin: ").strip().lower() == "yes":
            return
    raise RuntimeError("not confirmed; nothing has moved")


@contextlib.contextmanager
def stop_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP (a lost terminal) into what Ctrl-C is: the run ends, the arm in a ramp.

    SIGINT too: a program that a script starts in the background inherits that it is ignored, and a robot must hear it.
    """

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
