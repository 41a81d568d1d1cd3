"""Samples -> one batch: numpy arrays in whichever process reads, a dataclass of tensors where the batch is used.

Everything random is already in a batch, so that a model's forward is deterministic apart from its dropout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipeline.masking import Masks
from data_pipeline.order import fold, hash_key
from data_pipeline.text import Encoding, Tokenizer

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PAD_TO = 8
Arrays = dict[str, np.ndarray[Any, Any]]


@dataclass
class Batch:
    """One micro-batch, on the CPU until `to`: B samples, N patches, T tokens, g samples a group.

    Flat positions are b * T + t for tokens and b * N + n for patches, ascending.
    """

    keys: list[str]
    pixels: Tensor  # uint8 (B, H, W, 3)
    text_ids: Tensor  # int64 (B, T)
    text_mask: Tensor  # int64 (B, T), 1 where there is a token
    masked_text_ids: Tensor  # int64 (B, T)
    masked_tokens: Tensor  # int64 (Mt,) flat positions that masked_text_ids hides
    mlm_ids: Tensor  # int64 (B, T)
    mlm_positions: Tensor  # int64 (Mm,) flat positions to predict
    mlm_labels: Tensor  # int64 (Mm,) what stands there
    keep_patches: Tensor  # int64 (B, K), patches that the dropped view keeps, ascending
    masked_patches: Tensor  # int64 (Mp,) flat positions, the same number in every sample
    itm_labels: Tensor  # int64 (B,), 1 keeps its image, 0 gets another of its group
    itm_noise: Tensor  # float32 (B, g), Gumbel; column j is the j-th sample of the row's own group

    @classmethod
    def of(cls, keys: Sequence[str], pixels: np.ndarray[Any, Any], arrays: Arrays) -> Batch:
        """Make the tensors; they share the memory of the arrays."""
        import torch  # only where batches are used: worker processes never import it

        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return cls(list(keys), torch.from_numpy(pixels), **tensors)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Copy all tensors to a device."""
        names = [field.name for field in fields(self) if field.name != "keys"]
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=non_blocking) for name in names})


def collate(
    encodings: Sequence[Encoding], masks: Sequence[Masks], *, patches: int, max_length: int, tokenizer: Tokenizer
) -> Arrays:
    """Text and mask arrays of a batch, trimmed to its longest text, padded to a multiple of 8 up to `max_length`."""
    rows, longest = len(encodings), max(len(encoding.ids) for encoding in encodings)
    width = min(max_length, -(-longest // PAD_TO) * PAD_TO)
    ids = np.full((rows, width), tokenizer.pad_id, dtype=np.int64)
    present = np.zeros((rows, width), dtype=np.int64)
    for row, encoding in enumerate(encodings):
        ids[row, : len(encoding.ids)] = encoding.ids
        present[row, : len(encoding.ids)] = 1
    masked_tokens = _flat([mask.masked_tokens for mask in masks], width)
    mlm_positions = _flat([mask.mlm_positions for mask in masks], width)
    masked_ids, mlm_ids = ids.copy(), ids.copy()
    masked_ids.ravel()[masked_tokens] = tokenizer.mask_id
    mlm_ids.ravel()[mlm_positions] = np.concatenate([mask.mlm_inputs for mask in masks])
    return {
        "text_ids": ids,
        "text_mask": present,
        "masked_text_ids": masked_ids,
        "masked_tokens": masked_tokens,
        "mlm_ids": mlm_ids,
        "mlm_positions": mlm_positions,
        "mlm_labels": ids.ravel()[mlm_positions],
        "keep_patches": np.stack([mask.keep_patches for mask in masks]),
        "masked_patches": _flat([mask.masked_patches for mask in masks], patches),
    }


def matching_arrays(seed: int, step: int, first_group: int, groups: int, size: int) -> Arrays:
    """Image-text matching labels (groups * size,) and Gumbel noise (groups * size, size).

    Keyed by the group's number in the global batch, so that no division of the batch appears in them. Exactly half of a
    group (rounded down) are positives.
    """
    key = hash_key(seed, "matching")
    labels = np.zeros((groups, size), dtype=np.int64)
    noise = np.empty((groups, size, size), dtype=np.float32)
    for number in range(groups):
        words = fold(key, step, first_group + number)
        random = np.random.Generator(np.random.Philox(key=int(words[0])))
        labels[number, np.argsort(random.random(size), kind="stable")[: size // 2]] = 1
        uniform = np.maximum(random.random((size, size)), np.finfo(np.float64).tiny)
        noise[number] = -np.log(-np.log(uniform))
    return {"itm_labels": labels.reshape(-1), "itm_noise": noise.reshape(-1, size)}


def _flat(positions: Sequence[np.ndarray[Any, Any]], width: int) -> np.ndarray[Any, Any]:
    """Positions inside each sample -> positions in the whole batch."""
    return np.concatenate([row * width + inside for row, inside in enumerate(positions)])
