"""How do several processes train one model: who are they, what is each one's share, and what stops them all?

`torchrun` starts them, one a GPU (or some on CPUs, for tests); without it there is one, which needs none of this. The
model's weights, gradients and moments are divided over the processes (FSDP2), layer by layer; with `replicas` the
processes form that many groups, a node each say, which divide the model inside and only add gradients across (HSDP).
Every process computes its share of a step's batch, so what is learned does not depend on how many there are, up to the
rounding of sums.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)

_PATIENCE = timedelta(days=14)  # for what one process does alone: decoding and tokenizing may take days
_FAILED = "failed"  # key in the store that the processes share: who failed first, and why


@dataclass(frozen=True)
class Processes:
    """The processes of a training and this one's place among them."""

    rank: int = 0
    size: int = 1
    mesh: DeviceMesh | None = None  # over which the model is divided
    patient: dist.ProcessGroup | None = None  # waits while one process works alone
    writers: dist.ProcessGroup | None = None  # for the threads that write checkpoints

    @property
    def is_first(self) -> bool:
        """Say whether this is the process that logs, draws and publishes."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """Return which of `count` samples are this process's; in the order of the processes they are all of them."""
        if count % self.size:
            raise ValueError(
                f"{self.size} processes cannot share {count} samples equally; choose a batch_size (and micro_batch) "
                f"that is a multiple of {self.size}"
            )
        each = count // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def total(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    @property
    def holds_pieces(self) -> bool:
        """Say whether this process has rows of the model that no process before it has (not so in later replicas)."""
        return self.mesh is None or self.rank < self.mesh.size(-1)

    @property
    def file_name(self) -> str:
        """Return the name of the file in which this process writes its rows."""
        files = 1 if self.mesh is None else self.mesh.size(-1)
        return f"{self.rank + 1:05d}-of-{files:05d}.safetensors"

    def meet_writers(self) -> None:
        """Wait until every process's thread that writes checkpoints is here."""
        if self.size > 1:
            dist.barrier(group=self.writers)

    def first(self, work: Callable[[], T]) -> T:
        """Let the first process work alone, on all cores of its machine; return its result in every process."""
        if self.size == 1:
            return work()
        found: list[T | None] = [None]
        if self.is_first:
            with _threads(len(os.sched_getaffinity(0))):
                found = [work()]
        dist.broadcast_object_list(found, src=0, group=self.patient)
        return found[0]  # type: ignore[return-value]

    def shard(self, model: nn.Module) -> None:
        """Divide a model in place, layer by layer; every process must have drawn or read the same weights."""
        if self.mesh is None:
            return
        from torch.distributed.fsdp import fully_shard  # seconds to import, and one process needs none of it

        for layer in layers(model):
            fully_shard(layer, mesh=self.mesh)
        fully_shard(model, mesh=self.mesh)

    def undivided(self, model: M, build: Callable[[], M]) -> M:
        """Return the model whole, in the first process (elsewhere as it is); `build()` makes one of the same sizes."""
        if self.size == 1:
            return model
        state = full_state(model, keep=self.is_first)
        if not self.is_first:
            return model
        copy = build()
        copy.load_state_dict(state)
        return copy.eval()

    def reshard(self, model: nn.Module) -> None:
        """Give back what forwards without a backward left gathered; else the next step computes with old weights."""
        if self.mesh is not None:
            model.reshard()  # type: ignore[operator]


ALONE = Processes()


@contextlib.contextmanager
def started(device: str = "auto", replicas: int = 1) -> Iterator[Processes]:
    """Join the processes that torchrun started, for the block; alone without torchrun.

    `device` is auto, cpu or cuda; each process takes the GPU of its local rank. `replicas` is the number of groups that
    hold a whole model each. Only the first process prints. An error in one process ends all, and each says whose error
    it was. ValueError where the processes do not divide into the replicas, or more are on a machine than it has GPUs.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if replicas < 1 or size % replicas:
        raise ValueError(f"expected replicas to divide the {size} processes, got {replicas}")
    if size == 1:
        yield ALONE
        return
    kind = _take_device(device)
    store, rank, size = next(rendezvous("env://"))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo",
        store=PrefixStore("processes", store), rank=rank, world_size=size,
    )  # fmt: skip
    shape = {"replicate": replicas, "shard": size // replicas}
    if replicas == 1:
        del shape["replicate"]
    processes = Processes(
        rank=rank,
        size=size,
        mesh=init_device_mesh(kind, tuple(shape.values()), mesh_dim_names=tuple(shape)),
        patient=dist.new_group(backend="gloo", timeout=_PATIENCE),
        writers=dist.new_group(backend="gloo", timeout=_PATIENCE),
    )
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    with (
        _threads(max(1, len(os.sched_getaffinity(0)) // local)),
        contextlib.nullcontext() if rank == 0 else _silenced(),
        _blamed(store, rank),
    ):
        yield processes
    dist.destroy_process_group()  # after an error it would wait for processes that are gone


def layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers of a model, the members of its module lists: what is gathered, computed and given back."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return [layer for members in lists for layer in members]


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor that is divided over the processes put together, any other as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def clip_gradients(model: nn.Module, limit: float) -> Tensor:
    """Scale all gradients so that their norm, over all processes, is at most `limit`; return the norm before."""
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    norm = whole(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
    nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm


def full_state(model: nn.Module, keep: bool = True) -> dict[str, Tensor]:
    """Return copies on the CPU of all parameters and buffers, whole; all processes must call this together.

    With `keep` false the result is empty: this process only takes part in putting the others' together.
    """
    state = {}
    for name, tensor in model.state_dict().items():
        complete = whole(tensor.detach())
        if keep:
            state[name] = complete.to("cpu", copy=True)
    return state


def _take_device(device: str) -> str:
    """Make the GPU of the local rank the current one, if GPUs are to be used; return cuda or cpu."""
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return "cpu"
    local, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if device not in ("auto", "cuda"):
        raise ValueError(
            f"with several processes each takes its own GPU: expected device auto, cuda or cpu, got {device}"
        )
    if local >= there:
        raise ValueError(f"process {local} of this machine has no GPU: torch sees {there}; start at most one a GPU")
    torch.cuda.set_device(local)
    return "cuda"


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


@contextlib.contextmanager
def _blamed(store: Store, rank: int) -> Iterator[None]:
    """Tell the others why this process fails; where another one failed before, say so instead of what that caused."""
    try:
        yield
    except Exception as error:
        first = store.compare_set(_FAILED, "", f"{rank}: {error}").decode().split(": ", 1)
        if first[0] == str(rank):
            raise
        raise RuntimeError(f"process {rank} stopped, because process {first[0]} failed: {first[1]}") from None
