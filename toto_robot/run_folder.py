"""What is in a run folder, and how is it written so that a kill at any moment leaves it whole?"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

_VERSIONED = ("torch", "numpy", "mujoco", "robosuite", "gymnasium", "zarr", "transformers", "av", "hydra-core")


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path` that replaces it when the block ends without an error.

    The bytes reach the disk before the name does, so a reader finds the old file or the new one, never a part.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON to `path` atomically."""
    write_text(path, json.dumps(value, indent=2, sort_keys=False, default=str) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; ValueError names the file when it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); delete it and run the command again") from error


def lock_folder(path: Path) -> io.TextIOWrapper:
    """Return the lock of a store or run folder, held until it is closed; ValueError where another process has it."""
    # POSIX locks: a worker process that outlives a killed parent does not inherit this one.
    path.mkdir(parents=True, exist_ok=True)
    lock = open(path / ".lock", "a")  # noqa: SIM115 (held until close)
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise ValueError(f"another process is writing to {path}; wait for it or stop it") from error
    return lock


@contextlib.contextmanager
def wait_for_folder(path: Path) -> Iterator[None]:
    """Hold the lock of a folder for the block, after whoever has it: work that several processes need once."""
    path.mkdir(parents=True, exist_ok=True)
    with open(path / ".lock", "a") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        yield


def sha256_file(path: Path) -> str:
    """Return the hex SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def provenance(**extra: Any) -> dict[str, Any]:
    """Return what made this run: commit, versions, machine, time, and whatever `extra` names (seeds, input hashes)."""
    versions = {"python": platform.python_version()}
    for name in _VERSIONED:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "commit": git_commit(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": versions,
        "machine": machine(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **extra,
    }


def git_commit() -> str | None:
    """Return the short commit of the source tree, with `+` when it has uncommitted changes; None outside git."""
    root = Path(__file__).resolve().parent.parent
    try:
        commit = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        dirty = subprocess.run(
            ["git", "-C", str(root), "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if dirty else "")


def machine() -> dict[str, Any]:
    """Return processor, usable cores and memory in GiB."""
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                processor = line.split(":", 1)[1].strip()
                break
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"processor": processor, "cores": len(os.sched_getaffinity(0)), "memory_gib": round(memory_gib, 1)}


class MetricLog:
    """Scalars of one run, to `metrics.jsonl` and TensorBoard.

    A resumed run calls it with the step it continues from: lines past that step are dropped, so the file reads as
    if the run had never been killed.
    """

    def __init__(self, run_dir: Path, resume_step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and not for the robot side

        run_dir.mkdir(parents=True, exist_ok=True)
        self.path = run_dir / "metrics.jsonl"
        kept = (
            [line for line in self.path.read_text().splitlines() if _step(line) <= resume_step]
            if self.path.exists()
            else []
        )
        write_text(self.path, "".join(line + "\n" for line in kept))
        self._file = open(self.path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 (closed in __exit__)
        self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=resume_step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line `{"step": step, **values}`."""
        self._file.write(json.dumps({"step": step, **{key: float(value) for key, value in values.items()}}) + "\n")
        for key, value in values.items():
            self._board.add_scalar(key, value, step)

    def __enter__(self) -> MetricLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._board.close()


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """Return the lines of `metrics.jsonl` in order; an unfinished last line is left out."""
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if _step(line) >= 0]


def _step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return -1
