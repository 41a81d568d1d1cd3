"""Read pickled checkpoints without executing them.

In: a pickle stream. Out: plain containers, text, numbers and descriptions of tensors. A pickle is a
program that names classes and functions and calls them. Here nothing is imported or called: the
standard library only splits the stream into its instructions, and this small machine interprets
containers and torch's own records of tensors. Anything else that a file names becomes an `Inert`,
which accepts every argument, state and item.

`data_pipeline/importing/plain_pickle.py` reads pickled data sets. It stays separate, because this
folder is shipped alone as remote code, and because it refuses unknown names instead of ignoring
them.
"""

from __future__ import annotations

import math
import pickletools
from dataclasses import dataclass
from typing import IO, Any

import torch

# Names of element types of a storage in pickled checkpoints.
_ELEMENTS = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
_TENSOR = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
_PARAMETER = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_MOST_DIMENSIONS = 8


@dataclass(frozen=True)
class Inert:
    """A placeholder for a class, a function or an object made by one, with its name in the file."""

    name: str


@dataclass(frozen=True)
class Storage:
    """A buffer that tensors are views of: `count` elements of `dtype`, under `key` in the file."""

    key: str
    dtype: torch.dtype
    count: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.count * self.dtype.itemsize


@dataclass(frozen=True)
class StoredTensor:
    """A strided view of a storage, checked to lie inside it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes of the elements."""
        return math.prod(self.shape) * self.storage.dtype.itemsize


def unpickle(stream: IO[bytes]) -> tuple[Any, dict[str, Storage]]:
    """Read one pickle from a stream; return the object and every storage that it mentions, by key.

    Dicts keep only the entries whose key is text. Raises ValueError for a stream that is not a
    pickle, ends too early, or describes a tensor that does not fit its storage.
    """
    machine = _Machine()
    try:
        for instruction, argument, _ in pickletools.genops(stream):
            # A file of torch before 1.6 holds several pickles in a row.
            if instruction.name == "STOP":
                return machine.stack.pop(), machine.storages
            machine.run(instruction.name, argument)
    except (IndexError, KeyError, AttributeError, TypeError, OverflowError, MemoryError) as error:
        raise ValueError(f"damaged pickle ({type(error).__name__})") from error
    raise ValueError("the pickle ends too early")


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.storages: dict[str, Storage] = {}
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name == "MARK":
            self._marks.append(len(stack))
        elif name == "GLOBAL":
            stack.append(Inert(argument.replace(" ", ".", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(Inert(f"{_text(module)}.{_text(attribute)}"))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, made_by = stack.pop(), stack.pop()
            stack.append(_make(made_by, arguments))
        elif name == "BUILD":
            # An object's state. It is dropped: torch's containers only carry metadata there.
            stack.pop()
        # torch stores the bytes of a tensor outside of the pickle, under a persistent id.
        elif name == "BINPERSID":
            storage = _storage(stack.pop())
            stack.append(storage)
            if isinstance(storage, Storage):
                self.storages[storage.key] = storage
        elif name not in ("PROTO", "FRAME"):
            self._containers(name)

    def _containers(self, name: str) -> None:
        stack = self.stack
        if name == "EMPTY_DICT":
            stack.append({})
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            items = [stack.pop() for _ in range(int(name[-1]))]
            stack.append(tuple(reversed(items)))
        elif name == "TUPLE":
            stack.append(tuple(self._since_mark()))
        elif name == "LIST":
            stack.append(self._since_mark())
        elif name == "DICT":
            items = self._since_mark()
            stack.append({})
            _set_items(stack[-1], items)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _set_items(stack[-1], [key, value])
        elif name == "SETITEMS":
            items = self._since_mark()
            _set_items(stack[-1], items)
        elif name == "APPEND":
            item = stack.pop()
            _extend(stack[-1], [item])
        elif name == "APPENDS":
            items = self._since_mark()
            _extend(stack[-1], items)
        elif name == "EMPTY_SET":
            stack.append(Inert("builtins.set"))
        elif name == "ADDITEMS":
            self._since_mark()
        # Never part of a tensor, so that their content can be dropped.
        elif name in ("FROZENSET", "INST", "OBJ"):
            self._since_mark()
            stack.append(Inert(f"an object ({name})"))
        elif name == "NEWOBJ_EX":
            del stack[-2:]
            stack.append(_make(stack.pop(), None))
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "POP":
            if self._marks and self._marks[-1] == len(stack):
                self._marks.pop()
            else:
                stack.pop()
        elif name == "POP_MARK":
            self._since_mark()
        else:
            raise ValueError(f"the pickle uses {name}, which no checkpoint needs")

    def _since_mark(self) -> list[Any]:
        first = self._marks.pop()
        items = self.stack[first:]
        del self.stack[first:]
        return items


def _set_items(target: Any, items: list[Any]) -> None:
    if isinstance(target, dict):
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Text keys only: hashing a nested tuple from a hostile file could recurse too deep.
            if isinstance(key, str):
                target[key] = value
    elif not isinstance(target, Inert):
        raise ValueError("damaged pickle: items for something that holds none")


def _extend(target: Any, items: list[Any]) -> None:
    if isinstance(target, list):
        target += items
    elif not isinstance(target, Inert):
        raise ValueError("damaged pickle: items for something that holds none")


def _make(made_by: Any, arguments: Any) -> Any:
    name = made_by.name if isinstance(made_by, Inert) else "an object"
    if name == "collections.OrderedDict" and arguments == ():
        return {}
    if name in _TENSOR:
        return _tensor(arguments)
    # A parameter is a tensor with flags, which do not matter here.
    if name in _PARAMETER:
        return arguments[0]
    return Inert(name)


def _storage(identity: Any) -> Storage | Inert:
    if not isinstance(identity, tuple) or len(identity) < 5 or identity[0] != "storage":
        return Inert("an object outside the pickle")
    kind, key, _, count = identity[1:5]
    if identity[5:] not in ((), (None,)):
        raise ValueError("a storage is part of another one, which only torch before 0.4 wrote")
    if not isinstance(kind, Inert) or kind.name not in _ELEMENTS:
        return Inert("a storage of an unusual type")
    return Storage(_text(key), _ELEMENTS[kind.name], _whole((count,))[0])


def _tensor(arguments: Any) -> StoredTensor | Inert:
    storage, offset, shape, strides = arguments[:4]
    if not isinstance(storage, Storage):
        return Inert("a tensor of an unusual type")
    (offset,), shape, strides = _whole((offset,)), _whole(shape), _whole(strides)
    # Position of the last element that the view reads.
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    elements = math.prod(shape)
    if math.prod(size or 1 for size in shape) >= 2**63:
        raise ValueError(f"a tensor of shape {shape} is larger than any memory")
    # Strides of 0 would allow more elements than the storage has: a tiny file could then require
    # any amount of memory.
    if elements > storage.count or (elements and last >= storage.count):
        raise ValueError(
            f"a tensor of shape {shape} does not fit its storage of {storage.count:,} elements"
        )
    return StoredTensor(storage, offset, shape, strides)


def _whole(numbers: Any) -> tuple[int, ...]:
    if not isinstance(numbers, tuple) or len(numbers) > _MOST_DIMENSIONS:
        raise ValueError(f"a tensor's sizes are not a tuple of at most {_MOST_DIMENSIONS} numbers")
    # `type(...) is int`, because bool is a subclass of int.
    if not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
        raise ValueError("a tensor's sizes, strides or offset are not whole numbers of at least 0")
    return numbers


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("damaged pickle: a name that is not text")
    return value
