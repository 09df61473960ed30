"""How do several processes work for one, without outliving it, fighting over cores or hiding an error?

A worker is a generator function: it is given an iterator of jobs and yields results. Each runs in a fresh (spawned)
process with one thread, because OpenGL contexts and torch's thread pool do not survive a fork, and because two
processes with two threads each on two cores run four times slower than with one (facts/proto.md 4).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any

from toto_robot.one_thread import ONE_THREAD, environment_variables

Worker = Callable[..., Iterator[Any]]  # (jobs, *arguments) -> results


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


class Processes:
    """`count` processes that run one worker function; a context manager that ends them with the block.

    A process that reads its pipe sees the parent's death as its end, so that `kill -9` of the parent leaves no orphan.
    """

    def __init__(self, count: int, worker: Worker, *arguments: Any) -> None:
        if count < 1:
            raise ValueError(f"expected at least one process, got {count}")
        self._count = count
        self._worker = worker
        self._arguments = arguments
        self._pipes: list[Connection[Any, Any]] = []
        self._processes: list[Any] = []

    def __len__(self) -> int:
        return self._count

    def __enter__(self) -> Processes:
        context = multiprocessing.get_context("spawn")
        with environment_variables(ONE_THREAD):  # read by the numeric libraries when the child imports them
            for _ in range(self._count):
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs, self._worker, self._arguments), daemon=True)
                process.start()
                theirs.close()
                self._pipes.append(ours)
                self._processes.append(process)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in self._pipes:
            pipe.close()  # the worker reads end-of-file and leaves its loop
        for process in self._processes:
            if kind is None:
                process.join(timeout=10)
            if process.is_alive():
                process.terminate()
                process.join()

    def send(self, index: int, job: Any) -> None:
        """Give a job to process `index`; it is queued when that one is busy."""
        try:
            self._pipes[index].send(job)
        except OSError:
            self._receive(self._pipes[index])  # the worker's own error, if it could still send it
            raise

    def results(self, timeout_s: float | None = None) -> list[tuple[int, Any]]:
        """Wait for results and return those that are there as (process index, result).

        Raises the worker's ValueError, KeyboardInterrupt as it comes, and RuntimeError with the worker's traceback for
        anything else or for a worker that was killed.
        """
        ready = wait(self._pipes, timeout_s)
        return [(self._pipes.index(pipe), self._receive(pipe)) for pipe in ready]  # type: ignore[arg-type]

    def _receive(self, pipe: Connection[Any, Any]) -> Any:
        index = self._pipes.index(pipe)
        try:
            kind, value = pipe.recv()
        except (EOFError, ConnectionError) as error:
            self._processes[index].join(timeout=5)
            code = self._processes[index].exitcode
            raise RuntimeError(
                f"worker process {index} ended with exit code {code} (-9: killed, often for want of memory); "
                "the same command continues, with workers=<fewer> if memory was short"
            ) from error
        if kind == "value_error":
            raise ValueError(value)
        if kind == "error":
            raise RuntimeError(f"worker process {index} failed:\n{value}")
        return value


def _serve(pipe: Connection[Any, Any], worker: Worker, arguments: tuple[Any, ...]) -> None:
    """Run a worker in its process until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    try:
        for result in worker(_jobs(pipe), *arguments):
            pipe.send(("result", result))
    except (BrokenPipeError, ConnectionError):
        return  # the parent is gone
    except ValueError as error:
        _send_error(pipe, "value_error", str(error))
    except Exception:
        _send_error(pipe, "error", traceback.format_exc())


def _jobs(pipe: Connection[Any, Any]) -> Iterator[Any]:
    while True:
        try:
            yield pipe.recv()
        except (EOFError, ConnectionError):
            return


def _send_error(pipe: Connection[Any, Any], kind: str, text: str) -> None:
    with contextlib.suppress(OSError):
        pipe.send((kind, text))
