"""How are ours, the peer and the limit measured in turns, and what does a result line hold?"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from toto_robot.run_folder import git_commit, machine

Step = Callable[[], Any]


def step_rates(
    makers: Mapping[str, Callable[[], Step]], *, rounds: int, steps: int, warm_up: int, peer_steps: int | None = None
) -> dict[str, list[float]]:
    """Return steps a second of each kind in each round; one process a kind, one BLAS thread each, taking turns.

    `makers` (`ours`, `peer`, `limit`) must be picklable and return a function that does one step. The peer does
    `peer_steps`, or an eighth of the steps, since it is slow.
    """
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # for the workers; more slow robosuite down
    context = multiprocessing.get_context("spawn")
    lines, workers = {}, []
    for kind, make in makers.items():
        lines[kind], other = context.Pipe()
        workers.append(context.Process(target=_serve, args=(make, warm_up, other)))
        workers[-1].start()
        other.close()
        lines[kind].recv()  # ready
    rates: dict[str, list[float]] = {kind: [] for kind in makers}
    for _ in range(rounds):
        for kind, line in lines.items():
            line.send((peer_steps or max(20, steps // 8)) if kind == "peer" else steps)
            rates[kind].append(line.recv())
    for line, worker in zip(lines.values(), workers, strict=True):
        line.send(None)
        worker.join()
    return rates


def result(
    name: str, rates: Mapping[str, list[float]], *, peer_name: str, unit: str, limit_name: str, **more: Any
) -> dict[str, Any]:
    """Return one result line: medians of the rounds of `ours`, `peer` and `limit`, ratios round by round."""
    ratios = np.array(rates["ours"]) / np.array(rates["peer"])
    return {
        "name": name,
        "ours": round(float(np.median(rates["ours"])), 1),
        "peer": round(float(np.median(rates["peer"])), 1),
        "peer_name": peer_name,
        "unit": unit,
        "ratio": round(float(np.median(ratios)), 2),
        "ratio_range": [round(float(ratios.min()), 2), round(float(ratios.max()), 2)],
        "limit": round(float(np.median(rates["limit"])), 1),
        "limit_name": limit_name,
        "rounds": len(ratios),
        **more,
        "commit": git_commit(),
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _serve(make: Callable[[], Step], warm_up: int, line: Connection) -> None:
    """Answer each number of steps with steps a second, until None."""
    step = make()
    for _ in range(warm_up):
        step()
    line.send(0.0)
    while (steps := line.recv()) is not None:
        started = time.perf_counter()
        for _ in range(steps):
            step()
        line.send(steps / (time.perf_counter() - started))
