"""How does a child process get numeric libraries that use one thread, so that children do not fight over cores?

The libraries read the environment when the child imports them. Without it OpenBLAS wakes a thread a core even for the
solution of six equations: an emulator that does so a thousand times a second kept half a core busy with waiting.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

# The last one is Mesa's software renderer.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LP_NUM_THREADS"), "1")


@contextlib.contextmanager
def environment_variables(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables for the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
