"""What can the person at the terminal do with one key while the arm moves?

s, space  ramp to rest and end the run      e  end this episode     y  end it as a success
q         the same as s                     c  confirm after a user stop
enter     begin the next episode, where the program asks for it
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import threading
import tty
from typing import Any, Protocol, Self

_POLL_S = 0.1


class Stoppable(Protocol):
    """What the keys act on."""

    def stop_arm(self) -> None:
        """Ramp to rest."""

    def confirm(self) -> None:
        """Confirm after a user stop."""


class OperatorKeys:
    """Reads single keys in a thread; a terminal that goes away counts as a stop. Without a terminal it does nothing."""

    def __init__(self, session: Stoppable) -> None:
        self._session = session
        self._verdict: str | None = None
        self._stopped = False
        self._began = threading.Event()
        self._ended = threading.Event()
        self._before: Any = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if sys.stdin is not None and sys.stdin.isatty():
            self._before = termios.tcgetattr(sys.stdin.fileno())
            tty.setcbreak(sys.stdin.fileno())
            self._thread = threading.Thread(target=self._read, name="keys", daemon=True)
            self._thread.start()
        return self

    def verdict(self) -> str | None:
        """Return how the person ended the episode, once; None while it goes on."""
        if self._stopped:
            return "operator"
        verdict, self._verdict = self._verdict, None
        return verdict

    def _read(self) -> None:
        while not self._ended.is_set():
            try:
                ready, _, _ = select.select([sys.stdin], [], [], _POLL_S)
                key = os.read(sys.stdin.fileno(), 1) if ready else None
            except OSError:
                key = b""
            if key is not None:
                self.press(key)
            if key == b"":
                return

    def press(self, key: bytes) -> None:
        """Act on a key; an empty one says that the terminal has gone."""
        if key in (b"s", b" ", b"q", b"\x1b", b""):
            self._stopped = True
            self._session.stop_arm()
        elif key == b"e":
            self._verdict = "failure"
        elif key == b"y":
            self._verdict = "success"
        elif key == b"c":
            self._session.confirm()
        elif key in (b"\n", b"\r"):
            self._began.set()

    def wait_for_start(self) -> bool:
        """Wait until the person begins an episode, from now on; False when they end the run instead."""
        self._began.clear()
        while not self._began.wait(_POLL_S):
            if self._stopped:
                return False
        self._verdict = None  # of the episode before
        return not self._stopped

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join(1.0)
            with contextlib.suppress(termios.error):  # the terminal has gone
                termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, self._before)
