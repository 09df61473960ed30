"""What does a pickle say, read without running it?

A pickle is a program: `pickle.load` runs whatever its author wrote. Here the program is never run. `read_pickle` walks
its opcodes and builds a description: plain data as they are, every class or function as a `Name`, every call as a
`Call` that nobody makes, every tensor as a `StoredTensor` whose numbers lie elsewhere in the file. Names outside the
packages that checkpoints are made of are refused, so a file that asks for `os.system` is reported, not merely defused.
Source of the format: Python's pickletools.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any

import torch

# What published checkpoints name. Nothing of it is imported or called; the list is there to notice a hostile file.
_PACKAGES = {"torch", "dall_e", "taming", "pytorch_lightning", "lightning", "omegaconf", "numpy"}
_STANDARD = {
    "collections": {"OrderedDict", "defaultdict", "Counter", "deque"}, "argparse": {"Namespace"}, "typing": {"Any"},
    "pathlib": {"Path", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"},
}  # fmt: skip
_DATA_TYPES = {"set", "frozenset", "list", "dict", "tuple", "int", "float", "bool", "str", "bytes", "bytearray",
               "complex", "slice", "range", "object"}  # fmt: skip


@dataclass(frozen=True)
class Name:
    """A class or function that a pickle names; not imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Call:
    """A call that a pickle asks for; not made. Of an object, `state` is what its `__setstate__` would be given."""

    callee: Name
    args: tuple[Any, ...]
    state: Any = None
    items: list[Any] = field(default_factory=list)  # what would be appended, added or (key, value) set afterwards


@dataclass(frozen=True)
class Storage:
    """A run of numbers in the file."""

    key: str
    dtype: torch.dtype
    numel: int


@dataclass(eq=False)
class StoredTensor:
    """A tensor that still lies in the file: a view of a storage."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def read_pickle(file: IO[bytes], persistent: Callable[[Any], Any] | None = None) -> Any:
    """Return the description of the next pickle in `file`, which is left behind it; any protocol.

    Plain data come back as they are; classes and functions as `Name`, calls as `Call`, tensors as `StoredTensor`.
    `persistent` resolves ids of things outside the pickle. ValueError when it names what no checkpoint needs.
    """
    machine = _Machine(persistent)
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "STOP":
            break
        machine.step(opcode.name, argument)
    return machine.stack.pop()


class _Machine:
    """The stack of a pickle, whose opcodes only ever build data."""

    def __init__(self, persistent: Callable[[Any], Any] | None) -> None:
        self.stack: list[Any] = []
        self._below: list[list[Any]] = []  # stacks under the marks
        self._memo: dict[int, Any] = {}
        self._persistent = persistent

    def step(self, name: str, argument: Any) -> None:
        """Obey one opcode."""
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self._memo[len(self._memo) if name == "MEMOIZE" else argument] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self._memo[argument])
        elif name not in ("PROTO", "FRAME"):
            operation = getattr(self, f"_{name.lower()}", None)
            if operation is None:
                raise ValueError(f"pickle opcode {name} is not read")
            operation(argument)

    def _take(self, count: int) -> list[Any]:
        if count > len(self.stack):
            raise ValueError("the pickle takes more than it put down")
        taken = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return taken

    def _marked(self) -> list[Any]:
        """Take everything above the last mark."""
        taken, self.stack = self.stack, self._below.pop()
        return taken

    def _mark(self, _: Any) -> None:
        self._below.append(self.stack)
        self.stack = []

    def _pop(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self._marked()

    def _pop_mark(self, _: Any) -> None:
        self._marked()

    def _dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    # containers

    def _list(self, _: Any) -> None:
        taken = self._marked()
        self.stack.append(taken)

    def _tuple(self, _: Any) -> None:
        taken = self._marked()
        self.stack.append(tuple(taken))

    def _tuple1(self, _: Any) -> None:
        self.stack.append(tuple(self._take(1)))

    def _tuple2(self, _: Any) -> None:
        self.stack.append(tuple(self._take(2)))

    def _tuple3(self, _: Any) -> None:
        self.stack.append(tuple(self._take(3)))

    def _dict(self, _: Any) -> None:
        taken = self._marked()
        self.stack.append({})
        self._set(taken)

    def _frozenset(self, _: Any) -> None:
        taken = self._marked()
        self.stack.append(frozenset(map(_key, taken)))

    def _append(self, _: Any) -> None:
        self._extend(self._take(1))

    def _appends(self, _: Any) -> None:
        self._extend(self._marked())

    def _additems(self, _: Any) -> None:
        self._extend(self._marked())

    def _setitem(self, _: Any) -> None:
        self._set(self._take(2))

    def _setitems(self, _: Any) -> None:
        self._set(self._marked())

    def _extend(self, values: list[Any]) -> None:
        top = self.stack[-1]
        if isinstance(top, set):
            top.update(map(_key, values))
        elif isinstance(top, list | Call):
            (top if isinstance(top, list) else top.items).extend(values)
        else:
            raise ValueError(f"items are put into {describe(top)}")

    def _set(self, flat: list[Any]) -> None:
        top, pairs = self.stack[-1], list(zip(flat[::2], flat[1::2], strict=True))
        if isinstance(top, dict):
            top.update((_key(key), value) for key, value in pairs)
        elif isinstance(top, Call):
            top.items.extend(pairs)
        else:
            raise ValueError(f"keys are set in {describe(top)}")

    # names and calls

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(_allowed(module, name))

    def _stack_global(self, _: Any) -> None:
        module, name = self._take(2)
        self.stack.append(_allowed(module, name))

    def _reduce(self, _: Any) -> None:
        callee, args = self._take(2)
        self.stack.append(_call(callee, args))

    _newobj = _reduce  # cls.__new__(cls, *args)

    def _newobj_ex(self, _: Any) -> None:
        callee, args, _keywords = self._take(3)
        self.stack.append(_call(callee, args))

    def _inst(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        taken = self._marked()
        self.stack.append(_call(_allowed(module, name), tuple(taken)))

    def _obj(self, _: Any) -> None:
        callee, *args = self._marked()
        self.stack.append(_call(callee, tuple(args)))

    def _build(self, _: Any) -> None:
        (state,) = self._take(1)
        top = self.stack[-1]
        if isinstance(top, Call):
            top.state = state
        elif not isinstance(top, dict | StoredTensor):  # an OrderedDict's attributes (`_metadata`), a tensor's
            raise ValueError(f"a state is given to {describe(top)}")

    def _persid(self, argument: Any) -> None:
        if self._persistent is None:
            raise ValueError("something outside the pickle is named where nothing can be")
        self.stack.append(self._persistent(argument))

    def _binpersid(self, _: Any) -> None:
        (saved,) = self._take(1)
        self._persid(saved)


_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE", "SHORT_BINUNICODE",
    "BINUNICODE", "BINUNICODE8",
}  # fmt: skip
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict, "EMPTY_SET": set,
}  # fmt: skip


def _allowed(module: Any, name: Any) -> Name:
    """Return the name if checkpoints name such things; ValueError otherwise."""
    fine = isinstance(module, str) and isinstance(name, str) and (
        module.split(".")[0] in _PACKAGES
        or name in _STANDARD.get(module, ())
        or (module in ("builtins", "__builtin__") and name in _DATA_TYPES)
        or (module in ("copyreg", "copy_reg") and name == "_reconstructor")
        or (module == "_codecs" and name == "encode")
    )  # fmt: skip
    if not fine:
        raise ValueError(
            f"refused: it asks for {module}.{name}, which no checkpoint needs and which may do harm when run. "
            "Nothing was run; do not load this file with torch.load"
        )
    return Name(module, name)


def _call(callee: Any, args: Any) -> Any:
    """Describe a call; the few that make plain data or tensors are carried out on descriptions."""
    if not isinstance(callee, Name) or not isinstance(args, tuple):
        raise ValueError(f"a call of {describe(callee)}, where a class or function was expected")
    if callee == Name("collections", "OrderedDict"):
        return {_key(key): value for key, value in (args[0] if args else ())}
    if callee.module in ("builtins", "__builtin__") and callee.name in ("set", "frozenset") and args:
        return set(map(_key, args[0]))
    if callee.name == "bytes" and not args:
        return b""  # which protocol 2 writes as a call, and other bytes as an encoded string
    if callee == Name("_codecs", "encode"):
        return str(args[0]).encode("latin1")
    if callee.module == "torch._utils" and callee.name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
        storage, offset, size, stride = args[:4]
        if not isinstance(storage, Storage) or not all(isinstance(n, int) for n in (offset, *size, *stride)):
            raise ValueError("a tensor is not described by a storage, an offset, a size and a stride")
        return StoredTensor(storage, offset, tuple(size), tuple(stride))
    if callee.module == "torch._utils" and callee.name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
        return args[0]
    return Call(callee, args)


def _key(value: Any) -> Any:
    """Return a key of a dict or set; only flat ones, because hashing nested ones can be made to take for ever."""
    if not isinstance(value, str | bytes | int | float | bool | Name | None):
        raise ValueError(f"a key is {describe(value)}, expected a string, a number or a name")
    return value


def describe(value: Any) -> str:
    """Return a few words for an error message."""
    return f"a call of {value.callee}" if isinstance(value, Call) else f"a {type(value).__name__}"
