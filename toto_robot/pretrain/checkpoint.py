"""How is the state of a training written, so that a kill at any moment and a restart give the bits of one long run?

    checkpoints/000500/pretrained_model/    config.json, model.safetensors (parameters and buffers)
    checkpoints/000500/training_state/      state.json, optimizer/00001-of-00002.safetensors (one a process) and so on
    checkpoints/last -> 000500
Everything is safetensors or JSON; nothing is pickled. A directory takes the name of its step only when it is whole, and
any number of processes continues what any number wrote. Generators of random numbers are not in it: the loops set them
anew from (seed, step). A save copies the state and writes the copy; `Saver` does the writing beside the training.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from toto_robot.pretrain.distributed import ALONE, Processes, full_state
from toto_robot.pretrain.pieces import Piece, Pieces, local_piece, write_pieces
from toto_robot.run_folder import read_json, write_json
from toto_robot.weights import WEIGHTS_FILE, check_fit, write_model

LAST = "last"
FORMAT_VERSION = 2


@dataclass(frozen=True)
class Restored:
    """What a checkpoint says besides the tensors: the number of steps done and what the loop noted."""

    step: int
    notes: dict[str, Any]


@dataclass(frozen=True)
class Snapshot:
    """A copy, on the CPU, of what this process has to write after `step` steps."""

    step: int
    config: Mapping[str, Any]  # of the model
    notes: Mapping[str, Any]
    model: dict[str, Tensor]  # whole, in the first process; empty in the others
    optimizer: dict[str, Piece]


def snapshot(
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    config: Mapping[str, Any],
    notes: Mapping[str, Any],
    processes: Processes = ALONE,
) -> Snapshot:
    """Copy the state after `step` steps; all processes must call this together. `config` is the model's config.json."""
    weights = full_state(model, keep=processes.is_first)
    pieces = {}
    for name, tensor in _optimizer_tensors(model, optimizer, processes).items():
        piece = local_piece(tensor)
        pieces[name] = Piece(piece.rows.to("cpu", copy=True), piece.first_row)
    return Snapshot(step, config, dict(notes), weights, pieces)


def save(run_dir: Path, state: Snapshot, *, keep: int, processes: Processes = ALONE) -> Path:
    """Write a snapshot as a checkpoint, point `last` at it, and drop all but the `keep` newest.

    OSError names the way out when the disk is full; the checkpoints before stay as they were.
    """
    checkpoints = run_dir / "checkpoints"
    final = checkpoints / f"{state.step:06d}"
    with _whole_directory(final, processes) as partial:
        training = partial / "training_state"
        if state.optimizer:
            write_pieces(training / "optimizer" / processes.file_name, state.optimizer)
        if processes.is_first:
            write_model(partial / "pretrained_model", state.config, state.model)
            about = {"format": FORMAT_VERSION, "step": state.step, "processes": processes.size}
            write_json(training / "state.json", {**about, "notes": state.notes})
    if processes.is_first:
        _point_last(checkpoints, final.name)
        there = [path for path in checkpoints.iterdir() if path.name.isdigit()]
        for old in sorted(there, key=lambda path: int(path.name))[:-keep]:  # as text 1000001 sorts before 999999
            shutil.rmtree(old)
    return final


class Saver:
    """Writes checkpoints in a thread while the training goes on, one at a time.

    A context: at its end the last one is whole. An error of the thread is raised by the next call, of whichever method.
    """

    def __init__(self, run_dir: Path, keep: int, processes: Processes = ALONE) -> None:
        self._run_dir, self._keep, self._processes = run_dir, keep, processes
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        if processes.is_first:
            for left_by_a_kill in (run_dir / "checkpoints").glob(".*.tmp"):
                shutil.rmtree(left_by_a_kill, ignore_errors=True)

    def save(self, state: Snapshot) -> None:
        """Begin to write a snapshot, once the one before is written."""
        self.wait()
        self._thread = threading.Thread(target=self._write, args=(state,), name="checkpoint", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise what went wrong in the thread, if anything did."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Return when nothing is left to be written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def _write(self, state: Snapshot) -> None:
        try:
            save(self._run_dir, state, keep=self._keep, processes=self._processes)
        except BaseException as error:
            self._error = error

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or self._processes.size == 1:  # after an error others may be gone that the thread waits for
            self.wait()


def last(run_dir: Path) -> Path | None:
    """Return the newest whole checkpoint of a run, or None."""
    pointer = run_dir / "checkpoints" / LAST
    if pointer.is_symlink() and not pointer.exists():
        gone = os.readlink(pointer)
        raise ValueError(f"{pointer} points at {gone}, which is gone; point it at another step or delete it")
    return pointer.resolve() if pointer.exists() else None


def publish(final: Path, write: Callable[[Path], None]) -> None:
    """Let `write(directory)` fill the directory `final`, which appears (or is replaced) whole."""
    with _whole_directory(final) as partial:
        write(partial)


def restore(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Restored:
    """Load parameters, buffers and optimizer moments in place; return the step and the notes.

    Where the model is divided over processes, each reads its own rows. ValueError when the checkpoint is of another
    format or of a model of another size.
    """
    training = checkpoint / "training_state"
    state = read_json(training / "state.json")
    if state.get("format") != FORMAT_VERSION:
        raise ValueError(
            f"{checkpoint} has format {state.get('format')}, this version reads {FORMAT_VERSION}; start a new run"
        )
    folder = checkpoint / "pretrained_model"
    weights, into = Pieces(folder), model.state_dict()
    check_fit(into, weights.shapes(), str(folder / WEIGHTS_FILE))
    for name, tensor in into.items():
        weights.read_into(name, tensor)
    _load_optimizer(Pieces(training / "optimizer"), model, optimizer)
    return Restored(step=int(state["step"]), notes=state["notes"])


@contextlib.contextmanager
def _whole_directory(final: Path, processes: Processes = ALONE) -> Iterator[Path]:
    """Yield an empty directory that takes the name `final` when the block ends, and vanishes if it ends by an error.

    Several processes enter it together; it takes its name when all have left it.
    """
    partial = final.with_name(f".{final.name}.tmp")
    try:
        if processes.is_first:
            shutil.rmtree(partial, ignore_errors=True)  # left by a kill
            partial.mkdir(parents=True)
        processes.meet_writers()
        yield partial
        processes.meet_writers()
        if processes.is_first:
            _sync_all(partial)
            if final.exists():  # a run killed before `last` moved comes by here again
                shutil.rmtree(final)
            os.replace(partial, final)
            _sync(final.parent)
    except (OSError, safetensors.SafetensorError) as error:  # safetensors hides the errno in its message
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(error):
            raise OSError(
                errno.ENOSPC,
                f"no space left to write {final}; what was there before is whole: free some disk and run the same "
                "command again",
            ) from error
        raise OSError(errno.EIO, f"cannot write {final}: {error}") from error
    finally:
        if processes.is_first:
            shutil.rmtree(partial, ignore_errors=True)


def _point_last(checkpoints: Path, name: str) -> None:
    temporary = checkpoints / f".{LAST}.tmp"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(name)
    os.replace(temporary, checkpoints / LAST)
    _sync(checkpoints)


def _sync_all(directory: Path) -> None:
    for folder, _, files in os.walk(directory):
        for path in [Path(folder), *(Path(folder) / name for name in files)]:
            _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, processes: Processes) -> dict[str, Tensor]:
    """Name each moment after its parameter, so that the file does not depend on the order of parameter groups.

    What every process has, such as the count of steps, is the first one's.
    """
    return {
        f"{name}/{key}": torch.as_tensor(value)
        for name, parameter in _trainable(model).items()
        for key, value in optimizer.state[parameter].items()
        if processes.is_first or (processes.holds_pieces and hasattr(value, "to_local"))
    }


def _load_optimizer(stored: Pieces, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    parameters = _trainable(model)
    optimizer.state.clear()
    for full_name, about in stored.shapes().items():
        name, key = full_name.rsplit("/", 1)
        if name not in parameters:
            raise ValueError(f"the checkpoint has optimizer state of {name}, which the configured model does not train")
        parameter = parameters[name]
        if about.shape == parameter.shape:
            # A moment must lie in memory as its parameter does (channels_last): the fused kernel pairs them by address.
            moment = torch.empty_like(parameter, requires_grad=False)
        else:
            moment = torch.empty(about.shape, device=parameter.device)
        stored.read_into(full_name, moment)
        optimizer.state[parameter][key] = moment
