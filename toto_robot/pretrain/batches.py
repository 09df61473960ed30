"""How are the batches of the coming steps read while a step computes, in the same order as without that?"""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor

_AHEAD = 2  # batches a thread has read or is reading before they are asked for


@contextlib.contextmanager
def batches(read: Callable[[int], Tensor], numbers: range, workers: int) -> Iterator[Iterator[Tensor]]:
    """Yield an iterator over `read(number)` of every number, in order.

    `workers` threads read ahead; with 0 a batch is read when it is asked for. Reading is a function of the number
    alone, so who reads when changes nothing. An error of a read is raised when its batch is asked for.
    """
    if not workers:
        yield map(read, numbers)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="batches")
    try:
        yield _ahead(pool, read, numbers, _AHEAD * workers)
    finally:
        pool.shutdown(cancel_futures=True)


def _ahead(pool: ThreadPoolExecutor, read: Callable[[int], Tensor], numbers: range, count: int) -> Iterator[Tensor]:
    coming = iter(numbers)
    begun: deque[Future[Tensor]] = deque(pool.submit(read, number) for number in itertools.islice(coming, count))
    while begun:
        batch = begun.popleft().result()
        begun.extend(pool.submit(read, number) for number in itertools.islice(coming, 1))
        yield batch
