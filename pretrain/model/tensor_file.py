"""Tensors by name in a checkpoint file, read without running anything that is stored in it.

In: a file that `torch.save` wrote (a zip archive since torch 1.6, a row of pickles before), with a
plain state dict or PyTorch-Lightning's layout, or a safetensors file. Out: lazy tensors; the bytes
of a tensor are read when it is requested.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .unpickle import Inert, Storage, StoredTensor, unpickle

_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of a file that torch before 1.6 wrote
_SAFETENSORS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_STATE = ("state_dict", "model")  # where training programs store the tensors, beside other things


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is still in its file.

    `read` returns it as stored. Callers must copy it and never write to it, because tensors may
    share memory.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]


@contextmanager
def open_tensors(path: str | Path) -> Iterator[dict[str, LazyTensor | None]]:
    """Open a checkpoint and yield its tensors by name, None for an entry that is not a tensor.

    Raises ValueError, here and in `read`, for a file that is damaged, is not a checkpoint, or
    requires more memory than its own size explains; OSError for one that cannot be opened.
    """
    path = Path(path)
    with ExitStack() as opened:
        with _naming(path):
            file = opened.enter_context(path.open("rb"))
            start = file.read(9)
            file.seek(0)
            # Safetensors comes first: its header length may start like a pickle, but neither a
            # zip archive nor a pickle has "{" as its ninth byte.
            if start[8:] == b"{":
                tensors = _of_safetensors(opened.enter_context(safe_open(str(path), "pt")), path)
            elif start.startswith(b"PK\x03\x04"):
                tensors = _of_archive(opened.enter_context(zipfile.ZipFile(file)), path)
            elif start.startswith(b"\x80"):
                tensors = _of_pickles(file, path)
            else:
                raise ValueError("neither a PyTorch checkpoint nor safetensors")
        yield tensors


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    # zipfile raises RuntimeError for an encrypted record, and its subclass NotImplementedError for
    # an unknown version.
    except (
        ValueError,
        zipfile.BadZipFile,
        SafetensorError,
        EOFError,
        struct.error,
        RuntimeError,
    ) as error:
        raise ValueError(f"{path} is not a usable checkpoint: {error}") from error


def _of_safetensors(file: Any, path: Path) -> dict[str, LazyTensor | None]:
    def lazy(name: str) -> LazyTensor:
        def read() -> Tensor:
            with _naming(path):
                return file.get_tensor(name)

        stored = file.get_slice(name)
        # uint8 for every other type: the converter refuses all that are not floating-point.
        dtype = _SAFETENSORS.get(stored.get_dtype(), torch.uint8)
        return LazyTensor(tuple(stored.get_shape()), dtype, read)

    return {name: lazy(name) for name in file.keys()}  # noqa: SIM118


def _of_archive(archive: zipfile.ZipFile, path: Path) -> dict[str, LazyTensor | None]:
    records, size = {info.filename: info for info in archive.infolist()}, path.stat().st_size

    def record(name: str) -> bytes:
        if name not in records:
            raise ValueError(f"its record {name!r} is missing")
        info = records[name]
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise ValueError(f"its record {name!r} is compressed, which torch.save never does")
        if not 0 <= info.header_offset <= size - info.file_size:
            raise ValueError(f"its record {name!r} does not lie inside the file")
        return archive.read(info)  # checks the record's CRC

    pickles = [name for name in records if name.endswith("data.pkl") and name.count("/") <= 1]
    if len(pickles) != 1:
        raise ValueError("a zip archive, but not one that torch.save wrote")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}byteorder" in records and record(f"{folder}byteorder") != b"little":
        raise ValueError("written on a machine of the other byte order")
    root, _ = unpickle(io.BytesIO(record(pickles[0])))
    return _tensors(root, path, lambda storage: record(f"{folder}data/{storage.key}"))


def _of_pickles(file: IO[bytes], path: Path) -> dict[str, LazyTensor | None]:
    if unpickle(file)[0] != _MAGIC:
        raise ValueError("a pickle, but not one that torch.save wrote")
    _, system = unpickle(file)[0], unpickle(file)[0]
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("written on a machine of the other byte order")
    (root, storages), (keys, _) = unpickle(file), unpickle(file)
    if not isinstance(keys, list):
        raise ValueError("it has storages of an unusual type")
    for key in keys:
        if not isinstance(key, str) or key not in storages:
            raise ValueError("it has storages of an unusual type")
    positions, start, size = {}, file.tell(), path.stat().st_size
    for key in keys:
        positions[key] = start + 8  # 8 bytes hold the number of elements
        start = positions[key] + storages[key].size
        if start > size:
            raise ValueError(f"it ends inside storage {key!r}: download it again")
        file.seek(positions[key] - 8)
        if int.from_bytes(file.read(8), "little") != storages[key].count:
            raise ValueError(f"storage {key!r} has another size than its tensors expect")

    def content(storage: Storage) -> bytes:
        if storage.key not in positions:
            raise ValueError(f"storage {storage.key!r} is missing")
        file.seek(positions[storage.key])
        return file.read(storage.size)

    return _tensors(root, path, content)


def _tensors(
    root: Any, path: Path, content: Callable[[Storage], bytes]
) -> dict[str, LazyTensor | None]:
    """Find the state dict in the unpickled object."""
    if not isinstance(root, dict):
        content_type = f"a {type(root).__name__}"
        if isinstance(root, Inert):
            content_type = f"an object of {root.name[:80]!r}"
        raise ValueError(f"it holds {content_type} instead of tensors by name")
    state = next((root[key] for key in _STATE if isinstance(root.get(key), dict)), root)
    stored = {name: value for name, value in state.items() if isinstance(value, StoredTensor)}
    if not stored:
        raise ValueError("it holds no tensors by name")
    size = path.stat().st_size
    # Twice the size, because a few tensors may be tied and share their bytes.
    if sum(tensor.size for tensor in stored.values()) > 2 * size:
        raise ValueError(f"its tensors claim many times the {size:,} bytes that it has")

    # The storage that was read last, because the next tensors are often views of the same one.
    newest: list[tuple[Storage, Tensor]] = []

    def elements(storage: Storage) -> Tensor:
        if not newest or newest[0][0] != storage:
            data = bytearray(content(storage))
            if len(data) != storage.size:
                raise ValueError(
                    f"storage {storage.key!r} has {len(data):,} bytes instead of {storage.size:,}"
                )
            newest[:] = [(storage, torch.frombuffer(data, dtype=storage.dtype))]
        return newest[0][1]

    def lazy(tensor: StoredTensor) -> LazyTensor:
        def read() -> Tensor:
            if not tensor.size:
                return torch.empty(tensor.shape, dtype=tensor.storage.dtype)
            with _naming(path):
                return elements(tensor.storage).as_strided(
                    tensor.shape, tensor.strides, tensor.offset
                )

        return LazyTensor(tensor.shape, tensor.storage.dtype, read)

    return {name: lazy(stored[name]) if name in stored else None for name in state}
