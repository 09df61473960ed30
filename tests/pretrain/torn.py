"""Processes that train the toy, started in milliseconds and killed with -9 at any moment."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import socket
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from safetensors import safe_open

from tests.pretrain.toy import CPU, train_toy
from toto_robot.models.compute import peak_flops_per_s
from toto_robot.run_folder import read_metrics

torch.set_num_threads(1)  # before the fork: a pool of threads would not survive it
peak_flops_per_s(CPU, torch.bfloat16)  # measured once, for all processes that are forked

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.pretrain.torn", "torch.distributed.fsdp", "torch.utils.tensorboard"])


def start(kind: str, folder: Path, run_dir: Path, size: int = 1, **changes: object) -> list[BaseProcess]:
    """Start `size` processes, as torchrun would, that train the toy together."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    run_dir.mkdir(parents=True, exist_ok=True)
    started = []
    for rank in range(size):
        environment = {**shared, "RANK": rank, "LOCAL_RANK": rank} if size > 1 else {}
        arguments = ({key: str(value) for key, value in environment.items()}, kind, folder, run_dir, changes)
        process = _CONTEXT.Process(target=_train, args=arguments)
        process.start()
        started.append(process)
    return started


def _train(environment: dict[str, str], kind: str, folder: Path, run_dir: Path, changes: dict[str, object]) -> None:
    os.environ.update(environment)
    os.fsync = lambda descriptor: None  # as in conftest.py: a kill loses nothing that the kernel has
    with open(printed(run_dir, int(environment.get("RANK", 0))), "w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        train_toy(kind, folder, run_dir, **changes)


def printed(run_dir: Path, rank: int = 0) -> Path:
    """Return the file that holds what a process printed last."""
    return run_dir.with_name(f"{run_dir.name}.{rank}.log")


def finish(kind: str, folder: Path, run_dir: Path, size: int = 1, **changes: object) -> None:
    """Train to the end; AssertionError with what was printed, where a process fails."""
    for rank, process in enumerate(start(kind, folder, run_dir, size, **changes)):
        process.join(300)
        assert process.exitcode == 0, printed(run_dir, rank).read_text()[-3000:]


def kill(processes: Sequence[BaseProcess], chance: random.Random) -> None:
    """Kill all processes with -9, one shortly before the others."""
    for process in chance.sample(list(processes), len(processes)):
        os.kill(process.pid, signal.SIGKILL)
        time.sleep(chance.uniform(0, 0.01))
    for process in processes:
        process.join()


def check_files(run_dir: Path) -> int:
    """Open every JSON and safetensors file that has its name; return how many there are."""
    count = 0
    for path in run_dir.rglob("*"):
        if any(part.endswith(".tmp") for part in path.relative_to(run_dir).parts):
            continue  # never read under this name
        if path.suffix == ".json":
            json.loads(path.read_text())
            count += 1
        elif path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 (it is no mapping)
                    file.get_tensor(name)
            count += 1
    read_metrics(run_dir)
    return count
