"""What does a program that moves an arm owe the person beside it: a question before a motion, and an ear?"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from deploy.operator_keys import OperatorKeys


def confirm_motion(address: str | None) -> None:
    """Ask the person at the terminal before the first motion; RuntimeError without a terminal or without a yes."""
    if not sys.stdin.isatty():
        raise RuntimeError("a real arm moves only after a person confirmed it: run this in a terminal, or dry_run=true")
    print(f"\nThe arm at {address} will move. Nobody within its reach? The user stop in your hand?")
    with contextlib.suppress(EOFError):
        if input("type yes to begin: ").strip().lower() == "yes":
            return
    raise RuntimeError("not confirmed; nothing has moved")


def begun_by_person(keys: OperatorKeys, number: int) -> bool:
    """Wait until the person who resets the scene of a real arm has left it; False where they end the run instead."""
    tqdm.write(f"episode {number}: put the scene back and leave the arm's reach; enter begins it, s ends the run")
    return keys.wait_for_start()


@contextlib.contextmanager
def stop_signals() -> Iterator[None]:
    """Turn SIGTERM, SIGHUP (a lost terminal) and SIGQUIT (Ctrl-\\) into what Ctrl-C is: the arm ramps, the run ends.

    SIGINT too: a program that a script starts in the background inherits that it is ignored, and a robot must hear it.
    Ctrl-Z is ignored: it would freeze the processes that hold the arm.
    """

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    ending = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
    before = {number: signal.signal(number, interrupt) for number in ending}
    before[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
