"""How does a gripper library that holds the GIL for seconds serve a process that must not stop? From two others.

One runs the blocking commands, one reads reports and stops: a stop must get through while a command blocks. This side
waits on pipes, which lets other threads run. pylibfranka holds the GIL in every call, panda_py while it waits for a
report, 100 ms. `python -m deploy.drivers.remote_hand <library> <address>` answers JSON lines.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any


class RemoteHand:
    """A `Hand` whose calls are those of a library's `Gripper` in other processes."""

    def __init__(self, library: str, address: str) -> None:
        """Connect both; `library` is the module that has `Gripper`. RuntimeError if nobody answers at the address."""
        self._commands, self._reports = _Remote(library, address), _Remote(library, address)
        try:
            for remote in (self._commands, self._reports):
                remote.answer()
        except RuntimeError:
            self.close()
            raise

    def read(self) -> tuple[float, float, bool]:
        """Wait for the next report."""
        width, most, grasped = self._reports.call("read")
        return width, most, grasped

    def move(self, width_m: float, speed_m_s: float) -> bool:
        """Move."""
        return bool(self._commands.call("move", width_m, speed_m_s))

    def grasp(self, width_m: float, speed_m_s: float, force_n: float, inner_m: float, outer_m: float) -> bool:
        """Grasp."""
        return bool(self._commands.call("grasp", width_m, speed_m_s, force_n, inner_m, outer_m))

    def stop(self) -> bool:
        """Stop what runs."""
        return bool(self._reports.call("stop"))

    def close(self) -> None:
        """End both processes."""
        self._commands.close()
        self._reports.close()


class _Remote:
    """One process and the pipes to it; one call at a time."""

    def __init__(self, library: str, address: str) -> None:
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "deploy.drivers.remote_hand", library, address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=dict(os.environ, PYTHONPATH=path),
            start_new_session=True,  # Ctrl-C is this process's to handle: the hand is stopped, then disconnected
        )
        self._turn = threading.Lock()

    def call(self, name: str, *arguments: float) -> Any:
        with self._turn:
            assert self._process.stdin is not None
            try:
                self._process.stdin.write(json.dumps([name, arguments]) + "\n")
                self._process.stdin.flush()
            except OSError as error:
                raise RuntimeError("the gripper's process has ended") from error
            return self.answer()

    def answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the gripper's process has ended")
        done, value = json.loads(line)
        if not done:
            raise RuntimeError(value)
        return value

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def serve(library: str, address: str) -> None:
    """Connect, then answer [name, arguments] with [done, value], a line each, until the input ends."""
    output = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints must not become an answer

    def reply(done: bool, value: Any) -> None:
        output.write(json.dumps([done, value]) + "\n")

    try:
        hand = importlib.import_module(library).Gripper(address)
    except Exception as error:
        reply(False, str(error))
        return
    reply(True, None)
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            if name == "read":
                state = hand.read_once()
                reply(True, [state.width, state.max_width, state.is_grasped])
            else:
                reply(True, getattr(hand, name)(*arguments))
        except Exception as error:
            reply(False, str(error))


if __name__ == "__main__":
    serve(*sys.argv[1:])
