"""How are tensors that lie in pieces over several processes written, and read by another number of processes?

Each process writes the rows that it holds, by name, into one safetensors file of the folder; where they belong in the
whole stands in the file's header. A reader takes the rows it needs from whichever files have them. This is the layout
of torch.distributed.checkpoint's HuggingFaceStorageWriter and -Reader, which read and write the same folders; those
plan every save by messages between the processes and hold each file in memory a second time, and a save that runs
beside the training should do neither.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

_HEADER = "DCP_SHARDING_INFO"  # torch's name of the entry: {tensor name: {"saved_offsets": [first row, 0, ...]}}
_OFFSETS = "saved_offsets"


@dataclass(frozen=True)
class Piece:
    """Rows of a tensor, from `first_row` on."""

    rows: Tensor
    first_row: int = 0


def local_piece(tensor: Tensor) -> Piece:
    """Return the rows of a tensor that this process holds; they share its memory."""
    if not hasattr(tensor, "to_local"):
        return Piece(tensor.detach())
    divided: Any = tensor.detach()
    (chunk,) = divided.__create_chunk_list__()
    assert tuple(chunk.sizes[1:]) == tuple(tensor.shape[1:]), "divided along another axis than the first"
    return Piece(divided.to_local(), chunk.offsets[0])


def write_pieces(path: Path, pieces: Mapping[str, Piece]) -> None:
    """Write one process's pieces, which are on the CPU, to a safetensors file."""
    held = {name: piece for name, piece in pieces.items() if piece.rows.numel()}
    offsets = {
        name: {_OFFSETS: [piece.first_row, *[0] * piece.rows.ndim][: piece.rows.ndim]} for name, piece in held.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = {name: piece.rows.contiguous() for name, piece in held.items()}
    safetensors.torch.save_file(rows, path, metadata={_HEADER: json.dumps(offsets), "format": "pt"})


class Pieces:
    """The tensors in the safetensors files of a folder, whatever number of processes wrote them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._places: dict[str, list[tuple[Any, int, tuple[int, ...]]]] = {}  # open file, first row, shape there
        for path in sorted(folder.glob("*.safetensors")):
            file = safe_open(path, "pt")
            offsets = json.loads((file.metadata() or {}).get(_HEADER, "{}"))
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                offset = offsets.get(name, {}).get(_OFFSETS) or [0]
                place = (file, int(offset[0]), tuple(file.get_slice(name).get_shape()))
                self._places.setdefault(name, []).append(place)

    def shapes(self) -> dict[str, Tensor]:
        """Return every tensor by name, on the meta device: its shape as a whole, and nothing in it."""
        whole = {}
        for name, places in self._places.items():
            rows = max(first + shape[0] if shape else 0 for _, first, shape in places)
            shape = places[0][2]
            whole[name] = torch.empty((rows, *shape[1:]) if shape else (), device="meta")
        return whole

    @torch.no_grad()
    def read_into(self, name: str, target: Tensor) -> None:
        """Fill `target` (this process's rows, where it is divided) in place; ValueError where rows are missing."""
        local = local_piece(target)
        missing = local.rows.shape[0] if local.rows.ndim else 1
        for file, first, shape in self._places[name]:
            if not shape:
                local.rows.copy_(file.get_tensor(name))
                return
            start = max(first, local.first_row)
            stop = min(first + shape[0], local.first_row + local.rows.shape[0])
            if start < stop:
                mine = local.rows[start - local.first_row : stop - local.first_row]
                mine.copy_(file.get_slice(name)[start - first : stop - first])
                missing -= stop - start
        if missing:
            raise ValueError(f"{self._folder} lacks {missing} rows of {name}; copy the checkpoint again, all its files")
