"""Pickles of plain data, not unpickled: dict, list, tuple, text, numbers, arrays and tensors; all else is refused.

A pickle is a program that names classes and functions and calls them. Here nothing is imported and
nothing is called: the standard library only splits the stream into its instructions. The few names
that a pickled tensor of torch or an array of numpy needs stand for code below, also the one by
which torch would load a second pickle inside the first. Tensors come as numpy arrays, numpy's
numbers as Python's.
"""

from __future__ import annotations

import io
import math
import pickletools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

_ELEMENTS: dict[str, np.dtype[Any]] = {
    "torch.BoolStorage": np.dtype(np.uint8),  # one byte each, of which any but 0 is true
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ShortStorage": np.dtype("<i2"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.LongStorage": np.dtype("<i8"),
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.DoubleStorage": np.dtype("<f8"),
}
_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *(
        "STRING",
        "BINSTRING",
        "SHORT_BINSTRING",
        "UNICODE",
        "BINUNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE8",
    ),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001  # of what torch.save wrote before it wrote zips
_MOST_DIMENSIONS = 8
_ARRAY = "numpy.ndarray"
_NUMBERS = re.compile(
    "b1|[iu][1248]|f[248]"
)  # of numpy; an array of objects would be a pickle inside the pickle


@dataclass(frozen=True)
class _Name:
    """A class or function that the stream names."""

    name: str


@dataclass
class _Unbuilt:
    """An array or dtype of numpy, of which a pickle tells the content (BUILD) after it has given it a number."""

    build: Callable[..., Any]
    built: Any = None


def read_pickle(data: bytes) -> Any:
    """Build what a pickle describes; raises ValueError that says what else than plain data and arrays it holds."""
    return _read(io.BytesIO(data))


def _read(stream: IO[bytes], persistent: Callable[[Any], Any] | None = None) -> Any:
    machine = _Machine(persistent)
    try:
        for instruction, argument, _ in pickletools.genops(stream):
            if instruction.name == "STOP":
                return _values(machine.stack)[-1]
            machine.run(instruction.name, argument)
    except (
        LookupError,
        AttributeError,
        TypeError,
        OverflowError,
        MemoryError,
        RecursionError,
    ) as error:
        raise ValueError(f"it is a damaged pickle ({type(error).__name__})") from error
    raise ValueError("it ends too early")


class _Machine:
    def __init__(self, persistent: Callable[[Any], Any] | None) -> None:
        self.stack: list[Any] = []
        self._persistent = persistent
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
            item = self._memo[argument]
            stack.append(
                item if not isinstance(item, _Unbuilt) or item.built is None else item.built
            )
        elif name == "MARK":
            self._marks.append(len(stack))
        elif name == "GLOBAL":
            stack.append(_known(argument.replace(" ", ".", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            if not isinstance(module, str) or not isinstance(attribute, str):
                raise ValueError("it is a damaged pickle (a name that is no text)")
            stack.append(_known(f"{module}.{attribute}"))
        elif name == "REDUCE":
            arguments, made_by = stack.pop(), stack.pop()
            stack.append(_make(made_by, arguments))
        elif name == "BUILD":
            state, target = stack.pop(), stack.pop()
            if not isinstance(target, _Unbuilt) or not isinstance(state, tuple):
                raise ValueError("it sets the state of something that has none")
            target.built = target.build(*state)
            stack.append(target.built)
        elif name == "BINPERSID" and self._persistent is not None:
            stack.append(self._persistent(stack.pop()))
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
            stack.append(tuple(_values(reversed(items))))
        elif name == "TUPLE":
            items = self._since_mark()
            stack.append(tuple(items if self._persistent is not None else _values(items)))
        elif name == "LIST":
            stack.append(_values(self._since_mark()))
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
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else self._since_mark()
            if not isinstance(stack[-1], list):
                raise ValueError("it is a damaged pickle (items for something that holds none)")
            stack[-1].extend(_values(items))
        else:
            raise ValueError(f"it uses {name}, which plain data and arrays do not need")

    def _since_mark(self) -> list[Any]:
        first = self._marks.pop()
        items = self.stack[first:]
        del self.stack[first:]
        return items


def _set_items(target: Any, items: list[Any]) -> None:
    if not isinstance(target, dict):
        raise ValueError("it is a damaged pickle (items for something that holds none)")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(
            key, str | int | float | None
        ):  # to hash a tuple would run down whatever is nested in it
            raise ValueError(f"it has a {type(key).__name__} as a key")
        [target[key]] = _values([value])


def _values(items: Iterable[Any]) -> list[Any]:
    """Refuse names, which only stand for what is called at once, and arrays without content."""
    values = list(items)
    for value in values:
        if isinstance(value, _Name):
            raise ValueError(f"it holds {value.name} itself")
        if isinstance(value, _Unbuilt):
            raise ValueError("it holds an array or a type of numpy that has no content")
    return values


def _known(name: str) -> _Name | str:
    if name == _ARRAY:
        return name  # an argument, and so a text: it is never called
    if name not in _ELEMENTS and name not in _MADE:
        raise ValueError(f"it names {name}, which is neither plain data nor an array")
    return _Name(name)


def _make(made_by: Any, arguments: Any) -> Any:
    if (
        not isinstance(made_by, _Name)
        or made_by.name not in _MADE
        or not isinstance(arguments, tuple)
    ):
        raise ValueError("it calls something that is no function")
    return _MADE[made_by.name](*arguments)


def _encode(text: str, encoding: str) -> bytes:
    """Stand for how protocol 2 writes bytes."""
    if encoding != "latin1":
        # Not what it is: references make data that would take for ever to print.
        raise ValueError("it encodes text otherwise than as latin1")
    return text.encode("latin1")


def _hooks(*items: Any) -> dict[str, Any]:
    """Stand for the empty OrderedDict of a tensor's hooks."""
    if items:
        raise ValueError("it holds an OrderedDict that is not empty")
    return {}


def _load_storage(data: bytes) -> np.ndarray:
    """Stand for `torch.storage._load_from_bytes`: the elements of one storage, in the layout before zips."""
    stream = io.BytesIO(data)
    if _read(stream) != _MAGIC or _read(stream) != _VERSION or not _read(stream)["little_endian"]:
        raise ValueError("a tensor's storage is in an unknown layout")
    dtype, is_bool, key, count = _read(stream, _storage)
    if _read(stream) != [key] or int.from_bytes(stream.read(8), "little") != count:
        raise ValueError("a tensor's storage is not the one that it announces")
    content = stream.read()
    if len(content) != count * dtype.itemsize:
        raise ValueError(
            f"a tensor's storage has {len(content):,} bytes instead of {count * dtype.itemsize:,}"
        )
    elements = np.frombuffer(content, dtype)
    return elements != 0 if is_bool else elements


def _storage(identity: Any) -> tuple[np.dtype[Any], bool, str, int]:
    word, kind, key, _, count = identity[:5]
    if (
        word != "storage"
        or not isinstance(kind, _Name)
        or not isinstance(key, str)
        or type(count) is not int
    ):
        raise ValueError("a tensor's storage is in an unknown layout")
    if identity[5:] not in ((), (None,)):
        raise ValueError("a tensor's storage is in an unknown layout")
    return _ELEMENTS[kind.name], kind.name == "torch.BoolStorage", key, count


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> np.ndarray:
    if (
        not isinstance(storage, np.ndarray)
        or not isinstance(shape, tuple)
        or not isinstance(strides, tuple)
    ):
        raise ValueError("it holds a tensor of an unusual type")
    numbers = (offset, *shape, *strides)
    if len(shape) != len(strides) or len(shape) > _MOST_DIMENSIONS:
        raise ValueError(
            "it holds a tensor whose sizes and strides are not of one number of dimensions"
        )
    if not _are_sizes(numbers):
        raise ValueError(
            "it holds a tensor whose sizes, strides or offset are no whole numbers of 0 or more"
        )
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    elements = math.prod(shape)
    if elements > len(storage) or (elements and last >= len(storage)):
        raise ValueError(
            f"it holds a tensor of shape {shape} that does not fit its storage of {len(storage):,} elements"
        )
    if not elements:
        return np.empty(shape, storage.dtype)
    steps = [stride * storage.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps).copy()


def _are_sizes(numbers: tuple[Any, ...]) -> bool:
    return all(type(number) is int and 0 <= number < 2**40 for number in numbers)


def _dtype(name: Any, *_: Any) -> _Unbuilt:
    """Stand for numpy.dtype; the order of the bytes comes as its state."""
    if not isinstance(name, str) or not _NUMBERS.fullmatch(name):
        raise ValueError(f"it holds an array of {name!r:.40}, which are no numbers")

    def build(_version: Any, order: Any, *_: Any) -> np.dtype[Any]:
        if order not in ("<", ">", "|", "="):
            raise ValueError("it holds an array of an unknown order of bytes")
        return np.dtype(order + name)

    return _Unbuilt(build)


def _scalar(dtype: Any, content: Any) -> Any:
    return _elements(dtype, content, 1)[0].item()


def _array(kind: Any, *_: Any) -> _Unbuilt:
    """Stand for how numpy begins an array; shape and elements come as its state."""
    if kind != _ARRAY:
        raise ValueError("it holds an array of an unusual type")

    def build(
        _version: Any, shape: Any, dtype: Any, columns_first: Any, content: Any
    ) -> np.ndarray:
        if not isinstance(shape, tuple) or len(shape) > _MOST_DIMENSIONS or not _are_sizes(shape):
            raise ValueError("it holds an array whose sizes are no whole numbers of 0 or more")
        elements = _elements(dtype, content, math.prod(shape))
        return elements.reshape(shape, order="F" if columns_first else "C")

    return _Unbuilt(build)


def _elements(dtype: Any, content: Any, count: int) -> np.ndarray:
    if not isinstance(dtype, np.dtype) or not isinstance(content, bytes):
        raise ValueError("it holds an array of an unusual type")
    if len(content) != count * dtype.itemsize:
        raise ValueError(
            f"it holds an array of {len(content):,} bytes instead of {count * dtype.itemsize:,}"
        )
    return np.frombuffer(content, dtype)


_MADE: dict[str, Callable[..., Any]] = {
    "numpy.dtype": _dtype,
    **{
        f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")
    },  # before numpy 2, and since
    **{f"numpy.{core}.multiarray._reconstruct": _array for core in ("core", "_core")},
    "_codecs.encode": _encode,
    "__builtin__.bytes": lambda: b"",  # as protocol 2 writes it
    "collections.OrderedDict": _hooks,
    "torch.storage._load_from_bytes": _load_storage,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
}
