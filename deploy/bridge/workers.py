"""How do the two threads of one end of the bridge live and end together, with the reason of the first that fails?"""

from __future__ import annotations

import threading
from collections.abc import Callable

from deploy.bridge.wire import LOST_S, Channel, WireError


class Workers:
    """Threads over one channel: when one ends, the channel is closed, which ends the other."""

    def __init__(self, channel: Channel, *works: Callable[[], None]) -> None:
        self._channel, self._ended = channel, threading.Event()
        self.error = ""  # why the first of them ended
        self._threads = [threading.Thread(target=self._run, args=(work,), daemon=True) for work in works]

    def start(self) -> None:
        """Start them all."""
        for thread in self._threads:
            thread.start()

    def alive(self) -> bool:
        """Say whether all of them work."""
        return not self._ended.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait for so long at most; say whether it is over."""
        return self._ended.wait(seconds)

    def close(self) -> None:
        """End them all."""
        self._ended.set()
        self._channel.close()
        for thread in self._threads:
            thread.join(2.0 * LOST_S)

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except (WireError, RuntimeError) as error:
            if not self._ended.is_set():
                self.error = str(error)
        except Exception as error:  # whatever it is, the other threads must not go on without this one
            self.error = self.error or f"{type(error).__name__}: {error}"
            raise
        finally:
            self._ended.set()
            self._channel.close()
