"""Encoded blocks of a test set on disk, so that a killed evaluation goes on and a second one encodes nothing.

In: what each block depends on, and how to compute it. Out: the blocks, in order, on every process.
A block's file is found by the hash of all that it depends on and checked by the hash of what it
holds: a file of another model, of other data is refused, one with a flipped bit computed again.
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
    """Consecutive pictures or texts, encoded: tensors on the CPU, and what JSON can hold of each item."""

    arrays: dict[str, Tensor]
    items: list[Any]


def encoded_blocks(
    state: PartialState,
    folder: Path | None,
    model: Mapping[str, Any],
    wanted: Sequence[Mapping[str, Any]],
    compute: Callable[[int], Block],
) -> list[Block]:
    """Compute the blocks that no file holds, divided over the processes, and return all of them.

    Parameters
    ----------
    state
        The processes; they must see the same ``folder``.
    folder
        Where blocks are kept; nothing is written without one.
    model, wanted
        What every block depends on, and each one besides: JSON.
    compute
        Number of a block to the block.

    Raises
    ------
    UsageError, IncompleteError, DataError
        If the folder cannot be used, if a block cannot be written, if a file is another block's.
    """
    mine = range(state.process_index, len(wanted), state.num_processes)
    if folder is None:
        gathered = dict(gather_object([(number, compute(number)) for number in mine]))
        return [gathered[number] for number in range(len(wanted))]
    keys = [_hash({"model": model, "block": each}) for each in wanted]
    paths = [folder / _hash(model)[:16] / f"{key[:32]}.safetensors" for key in keys]
    try:
        (folder / _hash(model)[:16]).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot keep features in {folder}: {error.strerror}: name another folder as cache"
        ) from None
    found: dict[int, Block] = {}
    for number in mine:
        block = _read(paths[number], keys[number])
        if block is None:
            block = compute(number)
            _write(paths[number], keys[number], block)
        found[number] = block
    state.wait_for_everyone()
    # What another process could not keep (scores that are not finite) is computed here too, and
    # refused by all.
    return [
        found.get(number) or _read(paths[number], keys[number]) or compute(number)
        for number in range(len(wanted))
    ]


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
            f"cannot keep features in {path.parent}: {error}: make room and run the same command again, "
            "or leave out the cache"
        ) from error


def _read(path: Path, key: str) -> Block | None:
    """Read one block; None where there is none, and with a message where it is not what was written.

    Raises DataError where it is whole, but another block: somebody moved it, and nothing tells what
    else.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["block"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        if header["format"] == FORMAT and header["digest"] == _digest(arrays, header["items"]):
            if header["key"] == key:
                return Block(arrays, header["items"])
            raise DataError(
                f"{path} holds features of another model or other data, put there under a name that is not theirs: "
                f"remove the folder {path.parent}, or name another folder as cache"
            )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        pass
    print(f"features in {path} are damaged and are computed again", file=sys.stderr)
    return None


def _digest(arrays: Mapping[str, Tensor], items: Sequence[Any]) -> str:
    digest = xxhash.xxh3_128(json.dumps(items).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {tuple(array.shape)}".encode())
        digest.update(array.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
