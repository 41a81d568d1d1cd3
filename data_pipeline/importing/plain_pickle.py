"""Read pickles of plain data without unpickling: containers, text, numbers, arrays and tensors.

In: the bytes of a pickle. Out: its content, with tensors as numpy arrays and numpy's numbers as
Python's; anything else is refused. A pickle is a program that names classes and functions and calls
them. Here nothing is imported and nothing is called: the standard library only splits the stream
into its instructions. The few names that a pickled tensor of torch or an array of numpy needs stand
for code below, including the one by which torch would load a second pickle inside the first.

`pretrain/model/unpickle.py` reads checkpoints in a similar way, but stays separate: it is shipped
as remote code, so it may import only the files of its own folder, and it tolerates unknown names.
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
    "torch.BoolStorage": np.dtype(np.uint8),  # one byte each; any but 0 is true
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
_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001  # of the layout of torch.save before zip files
_MAX_DIMENSIONS = 8
_ARRAY = "numpy.ndarray"
# The numbers of numpy. An array of objects would be a pickle inside the pickle.
_NUMBERS = re.compile("b1|[iu][1248]|f[248]")


@dataclass(frozen=True)
class _Name:
    """A class or function that the stream names, to call it with the next instruction."""

    name: str


@dataclass
class _Unbuilt:
    """An array or dtype of numpy whose content follows in a later instruction (BUILD).

    The pickle may already refer to it by its number in the memo.
    """

    build: Callable[..., Any]
    built: Any = None


def read_pickle(data: bytes) -> Any:
    """Build what a pickle describes.

    Raises ValueError that says what it holds besides plain data and arrays.
    """
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
    """Executes the instructions of a pickle on a stack, as Python's unpickler would.

    `persistent` makes the objects that a pickle of torch stores outside of the stream.
    """

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
            if isinstance(item, _Unbuilt) and item.built is not None:
                item = item.built
            stack.append(item)
        elif name == "MARK":
            self._marks.append(len(stack))
        elif name == "GLOBAL":
            stack.append(_allowed(argument.replace(" ", ".", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            if not isinstance(module, str) or not isinstance(attribute, str):
                raise ValueError("it is a damaged pickle (a name that is not text)")
            stack.append(_allowed(f"{module}.{attribute}"))
        elif name == "REDUCE":
            arguments, made_by = stack.pop(), stack.pop()
            stack.append(_make(made_by, arguments))
        elif name == "BUILD":
            state, target = stack.pop(), stack.pop()
            if not isinstance(target, _Unbuilt) or not isinstance(state, tuple):
                raise ValueError("it sets the state of something without a state")
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
            if self._persistent is None:  # the description of a storage contains a name
                items = _values(items)
            stack.append(tuple(items))
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
                raise ValueError("it is a damaged pickle (items for something that is not a list)")
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
        raise ValueError("it is a damaged pickle (items for something that is not a dict)")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Hashing a tuple would visit everything nested in it, which can take forever.
        if not isinstance(key, str | int | float | None):
            raise ValueError(f"it has a {type(key).__name__} as a key")
        [target[key]] = _values([value])


def _values(items: Iterable[Any]) -> list[Any]:
    """Return items that are plain data; refuse names and arrays without content.

    A name may only be called by the next instruction.
    """
    values = list(items)
    for value in values:
        if isinstance(value, _Name):
            raise ValueError(f"it holds {value.name} itself")
        if isinstance(value, _Unbuilt):
            raise ValueError("it holds an array or a type of numpy without content")
    return values


def _allowed(name: str) -> _Name | str:
    if name == _ARRAY:
        return name  # only an argument, which is never called, so text is enough
    if name not in _ELEMENTS and name not in _MADE:
        raise ValueError(f"it names {name}, which is neither plain data nor an array")
    return _Name(name)


def _make(made_by: Any, arguments: Any) -> Any:
    callable_ = isinstance(made_by, _Name) and made_by.name in _MADE
    if not callable_ or not isinstance(arguments, tuple):
        raise ValueError("it calls something that is not a function")
    return _MADE[made_by.name](*arguments)


def _encode(text: str, encoding: str) -> bytes:
    """Replace `_codecs.encode`, with which protocol 2 writes bytes."""
    if encoding != "latin1":
        # Do not print the encoding: references can make data that would take forever to print.
        raise ValueError("it encodes text with something else than latin1")
    return text.encode("latin1")


def _hooks(*items: Any) -> dict[str, Any]:
    """Replace `collections.OrderedDict`: the hooks of a tensor are an empty one."""
    if items:
        raise ValueError("it holds an OrderedDict that is not empty")
    return {}


def _load_storage(data: bytes) -> np.ndarray:
    """Replace `torch.storage._load_from_bytes`: read the elements of one storage.

    They are in the layout of torch.save before zip files: a pickle each of a magic number, a
    version, the system, the storages and their keys, then the bytes.
    """
    stream = io.BytesIO(data)
    if _read(stream) != _MAGIC or _read(stream) != _VERSION or not _read(stream)["little_endian"]:
        raise ValueError("a tensor's storage is in an unknown layout")
    dtype, is_bool, key, count = _read(stream, _storage)
    if _read(stream) != [key] or int.from_bytes(stream.read(8), "little") != count:
        raise ValueError("a tensor's storage is not the one that was announced")
    content = stream.read()
    if len(content) != count * dtype.itemsize:
        raise ValueError(
            f"a tensor's storage has {len(content):,} bytes instead of {count * dtype.itemsize:,}"
        )
    elements = np.frombuffer(content, dtype)
    return elements != 0 if is_bool else elements


def _storage(identity: Any) -> tuple[np.dtype[Any], bool, str, int]:
    """Return dtype, whether it holds booleans, key and number of elements of a storage."""
    word, kind, key, _, count = identity[:5]
    typed = isinstance(kind, _Name) and isinstance(key, str) and type(count) is int
    if word != "storage" or not typed or identity[5:] not in ((), (None,)):
        raise ValueError("a tensor's storage is in an unknown layout")
    return _ELEMENTS[kind.name], kind.name == "torch.BoolStorage", key, count


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> np.ndarray:
    """Replace `torch._utils._rebuild_tensor` by an array, copied out of the storage."""
    tuples = isinstance(shape, tuple) and isinstance(strides, tuple)
    if not isinstance(storage, np.ndarray) or not tuples:
        raise ValueError("it holds a tensor of an unusual type")
    if len(shape) != len(strides) or len(shape) > _MAX_DIMENSIONS:
        raise ValueError("it holds a tensor whose sizes and strides do not fit together")
    if not _are_sizes((offset, *shape, *strides)):
        raise ValueError(
            "it holds a tensor whose sizes, strides or offset are not whole numbers of 0 or more"
        )
    # Check every bound here, because as_strided would read outside of the storage.
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    elements = math.prod(shape)
    if elements > len(storage) or (elements and last >= len(storage)):
        raise ValueError(
            f"it holds a tensor of shape {shape} that does not fit its storage of "
            f"{len(storage):,} elements"
        )
    if not elements:
        return np.empty(shape, storage.dtype)
    steps = [stride * storage.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps).copy()


def _are_sizes(numbers: tuple[Any, ...]) -> bool:
    # The bound keeps products of sizes and strides far from overflow.
    return all(type(number) is int and 0 <= number < 2**40 for number in numbers)


def _dtype(name: Any, *_: Any) -> _Unbuilt:
    """Replace `numpy.dtype`; the byte order comes as its state."""
    if not isinstance(name, str) or not _NUMBERS.fullmatch(name):
        raise ValueError(f"it holds an array of {name!r:.40}, which are not numbers")

    def build(_version: Any, order: Any, *_: Any) -> np.dtype[Any]:
        if order not in ("<", ">", "|", "="):
            raise ValueError("it holds an array of an unknown byte order")
        return np.dtype(order + name)

    return _Unbuilt(build)


def _scalar(dtype: Any, content: Any) -> Any:
    return _elements(dtype, content, 1)[0].item()


def _array(kind: Any, *_: Any) -> _Unbuilt:
    """Replace `numpy._reconstruct`, which begins an array; shape and elements are its state."""
    if kind != _ARRAY:
        raise ValueError("it holds an array of an unusual type")

    def build(
        _version: Any, shape: Any, dtype: Any, columns_first: Any, content: Any
    ) -> np.ndarray:
        if not isinstance(shape, tuple) or len(shape) > _MAX_DIMENSIONS or not _are_sizes(shape):
            raise ValueError("it holds an array whose sizes are not whole numbers of 0 or more")
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
    # Numpy 2 renamed core to _core.
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy.core.multiarray._reconstruct": _array,
    "numpy._core.multiarray._reconstruct": _array,
    "_codecs.encode": _encode,
    "__builtin__.bytes": lambda: b"",  # protocol 2 writes empty bytes so
    "collections.OrderedDict": _hooks,
    "torch.storage._load_from_bytes": _load_storage,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
}
