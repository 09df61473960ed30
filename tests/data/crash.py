"""How do tests kill a writer: at its n-th touch of the disk, or from outside with kill -9?"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

_TOUCHES = ("pwrite", "ftruncate", "truncate", "fsync", "replace", "rename")


def killed_at(touch: int, work: Callable[[], object]) -> bool:
    """Run `work` in a forked child that kills itself (SIGKILL) at its `touch`-th touch of the disk.

    A killed `pwrite` has written half of its bytes. False if the work ended before.
    """
    child = os.fork()
    if child == 0:
        _arm(touch)
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, "the work failed by itself"
    return False


def _arm(touch: int) -> None:
    left = touch

    def armed(name: str) -> Callable[..., object]:
        real = getattr(os, name)

        def call(*arguments: object) -> object:
            nonlocal left
            left -= 1
            if left == 0:
                if name == "pwrite":
                    fd, data, offset = arguments
                    real(fd, data[: len(data) // 2], offset)  # type: ignore[index, arg-type]
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments)

        return call

    for name in _TOUCHES:
        setattr(os, name, armed(name))


def run_and_kill(script: str, arguments: list[str], after_lines: int) -> bool:
    """Run a Python script in a process of its own, kill -9 it after some lines of output; False if it ended before."""
    process = subprocess.Popen([sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(after_lines):
        if not process.stdout.readline():
            break
    else:
        process.kill()
    killed = process.wait() == -signal.SIGKILL
    process.stdout.close()
    assert killed or process.returncode == 0
    return killed


def all_files(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file of a store, by its path in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
