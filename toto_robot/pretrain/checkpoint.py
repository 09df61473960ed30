"""How is the state of a training written, so that a kill at any moment and a restart give the bits of one long run?

    checkpoints/000500/pretrained_model/    config.json, model.safetensors (parameters and buffers)
    checkpoints/000500/training_state/      optimizer.safetensors, rng.safetensors, state.json
    checkpoints/last -> 000500
Everything is safetensors or JSON; nothing is pickled. A directory takes the name of its step only when it is whole.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from toto_robot.run_folder import read_json, write_json
from toto_robot.weights import read_weights

LAST = "last"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Restored:
    """What a checkpoint says besides the tensors: the number of steps done and what the loop noted."""

    step: int
    notes: dict[str, Any]


def save(
    run_dir: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    write_model: Callable[[Path], None],
    notes: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write the checkpoint after `step` steps, point `last` at it, and drop all but the `keep` newest.

    `write_model(directory)` writes `model.safetensors` with the model's whole state, and the config beside it. OSError
    names the way out when the disk is full; the checkpoints before stay as they were.
    """
    checkpoints = run_dir / "checkpoints"
    final = checkpoints / f"{step:06d}"
    with _whole_directory(final) as partial:
        write_model(partial / "pretrained_model")
        training = partial / "training_state"
        training.mkdir()
        safetensors.torch.save_file(_optimizer_tensors(model, optimizer), training / "optimizer.safetensors")
        safetensors.torch.save_file(_rng_tensors(), training / "rng.safetensors")
        write_json(training / "state.json", {"format": FORMAT_VERSION, "step": step, "notes": dict(notes)})
    _point_last(checkpoints, final.name)
    for old in sorted(path for path in checkpoints.iterdir() if path.name.isdigit())[:-keep]:
        shutil.rmtree(old)
    return final


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
    """Load parameters, buffers, optimizer moments and random generators in place; return the step and the notes.

    ValueError when the checkpoint is of another format or of a model of another size.
    """
    training = checkpoint / "training_state"
    state = read_json(training / "state.json")
    if state.get("format") != FORMAT_VERSION:
        raise ValueError(
            f"{checkpoint} has format {state.get('format')}, this version reads {FORMAT_VERSION}; start a new run"
        )
    read_weights(checkpoint / "pretrained_model", model)
    _load_optimizer(safetensors.torch.load_file(training / "optimizer.safetensors"), model, optimizer)
    _load_rng(safetensors.torch.load_file(training / "rng.safetensors"))
    return Restored(step=int(state["step"]), notes=state["notes"])


@contextlib.contextmanager
def _whole_directory(final: Path) -> Iterator[Path]:
    """Yield an empty directory that takes the name `final` when the block ends, and vanishes if it ends by an error."""
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = final.with_name(f".{final.name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)  # left by a kill
    partial.mkdir()
    try:
        yield partial
        for directory, _, files in os.walk(partial):
            for path in [Path(directory), *(Path(directory) / name for name in files)]:
                _sync(path)
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
        shutil.rmtree(partial, ignore_errors=True)


def _point_last(checkpoints: Path, name: str) -> None:
    temporary = checkpoints / f".{LAST}.tmp"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(name)
    os.replace(temporary, checkpoints / LAST)
    _sync(checkpoints)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Name each moment after its parameter, so that the file does not depend on the order of parameter groups."""
    return {
        f"{name}/{key}": torch.as_tensor(value).contiguous()
        for name, parameter in _trainable(model).items()
        for key, value in optimizer.state[parameter].items()
    }


def _load_optimizer(stored: Mapping[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    parameters = _trainable(model)
    optimizer.state.clear()
    for full_name, tensor in stored.items():
        name, key = full_name.rsplit("/", 1)
        if name not in parameters:
            raise ValueError(f"the checkpoint has optimizer state of {name}, which the configured model does not train")
        parameter = parameters[name]
        if tensor.shape == parameter.shape:
            # A moment must lie in memory as its parameter does (channels_last): the fused kernel pairs them by address.
            tensor = torch.empty_like(parameter, requires_grad=False).copy_(tensor)
        optimizer.state[parameter][key] = tensor.to(parameter.device)


def _rng_tensors() -> dict[str, Tensor]:
    tensors = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f"cuda:{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    return tensors


def _load_rng(stored: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(stored["cpu"])
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        if f"cuda:{index}" in stored:
            torch.cuda.set_rng_state(stored[f"cuda:{index}"], index)
