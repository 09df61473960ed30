"""How are the tensors of a published torch checkpoint read without running anything that it holds?

`inert_pickle` describes the pickle; this file knows the containers around it, the zip of torch >= 1.6 and the sequence
of pickles before that, and reads the numbers of the tensors that are asked for. Source of the formats:
torch/serialization.py.
"""

from __future__ import annotations

import math
import struct
import zipfile
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from toto_robot.inert_pickle import Call, Name, Storage, StoredTensor, describe, read_pickle
from toto_robot.run_folder import sha256_file

_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_MAX_DEPTH = 64  # modules within modules
_DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip


class Checkpoint:
    """An opened file: `content` is its description, `tensor` reads numbers. Close it, or use it in `with`."""

    def __init__(self, path: Path | str, *, sha256: str | None = None) -> None:
        """Open and describe; ValueError for another hash, a hostile, damaged or foreign file."""
        self.path = Path(path)
        self.sha256 = _checked_hash(self.path, sha256)
        self._file = open(self.path, "rb")  # noqa: SIM115 (closed in close)
        try:
            zipped = self._file.read(4) == b"PK\3\4"
            self._file.seek(0)
            self.content, self._spans = self._open_zip() if zipped else self._open_legacy()
        except ValueError as error:
            self.close()
            raise ValueError(f"{self.path}: {error}") from error
        except Exception as error:  # a damaged pickle can fail in any way while it is walked
            self.close()
            raise ValueError(f"{self.path} is not a readable torch file: {type(error).__name__}: {error}") from error

    def tensor(self, stored: StoredTensor) -> Tensor:
        """Read a tensor into memory of its own; ValueError when the file does not hold what it says."""
        storage, size, stride = stored.storage, stored.size, stored.stride
        last = stored.offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if min((stored.offset, *size, *stride), default=0) < 0 or math.prod(size) > storage.numel:
            raise ValueError(f"{self.path}: a tensor {size} cannot lie in {storage.numel} numbers")
        if 0 in size:
            return torch.empty(size, dtype=storage.dtype)
        if last >= storage.numel:
            raise ValueError(f"{self.path}: a tensor {size} reaches past its {storage.numel} numbers")
        start, length = self._spans[storage.key]
        self._file.seek(start)
        data = bytearray(self._file.read(length))
        if len(data) != length:
            raise ValueError(f"{self.path} is truncated: {length} bytes expected at {start}, {len(data)} came")
        return torch.frombuffer(data, dtype=storage.dtype).as_strided(size, stride, stored.offset).clone()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open_zip(self) -> tuple[Any, dict[str, tuple[int, int]]]:
        archive = zipfile.ZipFile(self._file)  # closed with the file below it
        infos = {info.filename: info for info in archive.infolist()}
        roots = [name.removesuffix("data.pkl") for name in infos if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(roots) != 1 or f"{roots[0]}constants.pkl" in infos:
            raise ValueError("expected what torch.save writes, got another zip archive (TorchScript is not read)")
        root = roots[0]
        if any(infos[name].compress_type != zipfile.ZIP_STORED for name in infos):
            raise ValueError("expected a zip without compression, as torch writes it; a compressed one could be a bomb")
        if f"{root}byteorder" in infos and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("expected little-endian numbers; save it again on a little-endian machine")
        storages: dict[str, Storage] = {}
        with archive.open(f"{root}data.pkl") as file:
            content = read_pickle(file, lambda saved: _persistent(saved, storages))
        return content, {key: self._entry(infos.get(f"{root}data/{key}"), storages[key]) for key in storages}

    def _entry(self, info: zipfile.ZipInfo | None, storage: Storage) -> tuple[int, int]:
        """Return first byte and length of a zip entry: torch stores them uncompressed, to be mapped into memory."""
        length = storage.numel * storage.dtype.itemsize
        if info is None or info.file_size != length:
            raise ValueError(f"the numbers {storage.key!r} are missing or not {length} bytes long")
        self._file.seek(info.header_offset + 26)
        name, extra = struct.unpack("<HH", self._file.read(4))  # of the local header, whose padding differs
        return info.header_offset + 30 + name + extra, length

    def _open_legacy(self) -> tuple[Any, dict[str, tuple[int, int]]]:
        try:
            magic = read_pickle(self._file)
        except ValueError as error:
            raise ValueError(f"expected what torch.save writes; {error}") from error
        if magic != _LEGACY_MAGIC or read_pickle(self._file) != _LEGACY_PROTOCOL:
            raise ValueError("expected what torch.save writes (a zip, or pickles that begin with its magic number)")
        system = read_pickle(self._file)
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise ValueError("expected little-endian numbers; save it again on a little-endian machine")
        storages: dict[str, Storage] = {}
        content = read_pickle(self._file, lambda saved: _persistent(saved, storages))
        spans, end = {}, self.path.stat().st_size
        for key in read_pickle(self._file):
            (numel,) = struct.unpack("<q", self._file.read(8))
            length = storages[key].numel * storages[key].dtype.itemsize
            spans[key] = (self._file.tell(), length)
            if numel != storages[key].numel or self._file.tell() + length > end:
                raise ValueError(f"the numbers {key!r} are not {storages[key].numel} long, or the file is truncated")
            self._file.seek(length, 1)
        if spans.keys() != storages.keys():
            raise ValueError("some numbers are missing")
        return content, spans


def state_dict(content: Any) -> dict[str, StoredTensor]:
    """Return name -> tensor of a described module (a whole `nn.Module` that was pickled) or of a plain state dict.

    ValueError for anything else.
    """
    if isinstance(content, dict) and all(isinstance(key, str) for key in content):
        return {key: value for key, value in content.items() if isinstance(value, StoredTensor)}
    if not isinstance(content, Call) or not _is_module(content.state):
        raise ValueError(f"expected a module or a state dict, got {describe(content)}")
    return _module_tensors(content, "", set())


def _module_tensors(module: Call, prefix: str, seen: set[int]) -> dict[str, StoredTensor]:
    if id(module) in seen or prefix.count(".") > _MAX_DEPTH:  # a module in itself, or doubled at every level
        raise ValueError(f"{prefix} is used twice or lies more than {_MAX_DEPTH} modules deep: not a published network")
    seen.add(id(module))
    state = module.state
    own = {**state["_parameters"], **state["_buffers"]}
    found = {f"{prefix}{name}": value for name, value in own.items() if isinstance(value, StoredTensor)}
    for name, child in state["_modules"].items():
        if isinstance(child, Call) and _is_module(child.state):
            found |= _module_tensors(child, f"{prefix}{name}.", seen)
    return found


def _is_module(state: Any) -> bool:
    parts = ("_parameters", "_buffers", "_modules")
    return isinstance(state, dict) and all(isinstance(state.get(part), dict) for part in parts)


def _checked_hash(path: Path, expected: str | None) -> str:
    if not path.is_file():
        raise ValueError(f"no such file: {path}")
    found = sha256_file(path)
    if expected is not None and found != expected.lower().removeprefix("sha256:"):
        raise ValueError(
            f"{path} is not the file you want: expected SHA-256 {expected}, got {found}; download it again"
        )
    return found


def _persistent(saved: Any, storages: dict[str, Storage]) -> Any:
    """Resolve what a checkpoint keeps outside its pickle: runs of numbers, and (before zips) sources of modules."""
    if isinstance(saved, tuple) and len(saved) == 4 and saved[0] == "module":
        return saved[1]  # with the file and the source of the class, which nobody needs
    if not isinstance(saved, tuple) or len(saved) not in (5, 6) or saved[0] != "storage":
        raise ValueError(f"expected a storage outside the pickle, got {describe(saved)}")
    kind, key, numel = saved[1], str(saved[2]), saved[4]
    if not isinstance(kind, Name) or kind.module != "torch" or kind.name not in _DTYPES:
        raise ValueError(f"numbers of type {kind} are not read; there are {', '.join(_DTYPES)}")
    if len(saved) == 6 and saved[5] is not None:
        raise ValueError("views of storages (torch < 0.4) are not read; save it again with a newer torch")
    storage = Storage(key, _DTYPES[kind.name], int(numel))
    if numel < 0 or storages.setdefault(key, storage) != storage:
        raise ValueError(f"the numbers {key!r} are described twice, or have a negative length")
    return storage
