"""A cache of encoded blocks of a test set: evaluations resume, and a second one encodes nothing.

In: everything that each block depends on, and a function that computes it. Out: the blocks, in
order, on every process. The hash of everything that a block depends on is its file name and is
stored inside; the hash of its content is stored too. So a file of another model or of other data is
refused, and a file with a flipped bit is computed again.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from accelerate import PartialState
from accelerate.utils import gather_object
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from data_pipeline.errors import DataError, IncompleteError, UsageError
from data_pipeline.files import replaced_file

FORMAT = "glscl-features/1"


@dataclass(frozen=True)
class Block:
    """Consecutive images or texts, encoded: tensors on the CPU, and JSON for each item."""

    arrays: dict[str, Tensor]
    items: list[Any]


def encoded_blocks(
    state: PartialState,
    folder: Path | None,
    model: Mapping[str, Any],
    keys: Sequence[Mapping[str, Any]],
    compute: Callable[[int], Block],
) -> list[Block]:
    """Compute the blocks that are not cached, divided over the processes, and return all blocks.

    Parameters
    ----------
    state
        The processes; they must see the same ``folder``.
    folder
        The cache; without one, nothing is written.
    model, keys
        What all blocks depend on, and what each block depends on in addition: JSON.
    compute
        Computes a block from its number.

    Raises
    ------
    UsageError, IncompleteError, DataError
        If the folder cannot be used, a block cannot be written, or a file holds another block.
    """
    mine = range(state.process_index, len(keys), state.num_processes)
    if folder is None:
        gathered = dict(gather_object([(number, compute(number)) for number in mine]))
        return [gathered[number] for number in range(len(keys))]
    of_model = folder / _hash(model)[:16]
    hashes = [_hash({"model": model, "block": key}) for key in keys]
    paths = [of_model / f"{digest[:32]}.safetensors" for digest in hashes]
    try:
        of_model.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot keep features in {folder}: {error.strerror}: name another folder as cache"
        ) from None
    blocks: dict[int, Block] = {}
    for number in mine:
        block = _read(paths[number], hashes[number])
        if block is None:
            block = compute(number)
            _write(paths[number], hashes[number], block)
        blocks[number] = block
    # The other processes' blocks are read from their files, once all are written.
    state.wait_for_everyone()
    for number in range(len(keys)):
        if number not in blocks:
            # Blocks with values that are not finite are never written. They are computed again
            # here, so that every process sees them and raises.
            blocks[number] = _read(paths[number], hashes[number]) or compute(number)
    return [blocks[number] for number in range(len(keys))]


def joined(blocks: Sequence[Block], name: str) -> Tensor:
    """Concatenate one array of all blocks; a block without items has no arrays."""
    return torch.cat([block.arrays[name] for block in blocks if block.arrays])


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _write(path: Path, key: str, block: Block) -> None:
    if not all(torch.isfinite(array).all() for array in block.arrays.values()):
        return
    arrays = {name: array.contiguous() for name, array in block.arrays.items()}
    header = {
        "format": FORMAT,
        "key": key,
        "items": block.items,
        "digest": _digest(arrays, block.items),
    }
    try:
        with replaced_file(path) as beside:
            save_file(arrays, beside, metadata={"block": json.dumps(header)})
    except (OSError, SafetensorError) as error:
        raise IncompleteError(
            f"cannot keep features in {path.parent}: {error}: "
            "make room and run the same command again, or leave out the cache"
        ) from error


def _read(path: Path, key: str) -> Block | None:
    """Read one block; return None if there is none, and, with a message, if it is damaged.

    Raises DataError for an undamaged file that holds another block: files were moved, so that none
    of them can be trusted.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["block"])
            names = list(file.keys())
            arrays = {name: file.get_tensor(name) for name in names}
        if header["format"] == FORMAT and header["digest"] == _digest(arrays, header["items"]):
            if header["key"] == key:
                return Block(arrays, header["items"])
            raise DataError(
                f"{path} holds features of another model or other data under a wrong name: "
                f"remove the folder {path.parent}, or name another folder as cache"
            )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        pass  # damaged, like a file whose digest differs
    print(f"features in {path} are damaged and are computed again", file=sys.stderr)
    return None


def _digest(arrays: Mapping[str, Tensor], items: Sequence[Any]) -> str:
    digest = xxhash.xxh3_128(json.dumps(items).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {tuple(array.shape)}".encode())
        digest.update(array.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
