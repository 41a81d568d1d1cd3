"""Samples to one batch: numpy arrays in the process that reads, tensors where the batch is used.

In: the encoded texts, masks and identities of samples. Out: `Arrays` by name, and the dataclass
`Batch` that holds them as tensors. Everything random is already in a batch, so a model's forward
pass is deterministic apart from its dropout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from data_pipeline.masking import Masks
from data_pipeline.randomness import fold, generator_with_key, hash_key
from data_pipeline.sample import Kind
from data_pipeline.text import Encoding, Tokenizer

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PAD_TO = 8  # text widths are multiples of this, which tensor cores need
Arrays = dict[str, np.ndarray[Any, Any]]


@dataclass
class Batch:
    """One micro-batch, on the CPU until `to` moves it.

    Shapes use B samples, N patches of an image or frame, T tokens, and g samples per matching
    group. Flat positions are b * T + t for tokens and b * N + n for patches, in ascending order.
    Clips have F frames, and their patches are tubes: the same positions in every frame. A row may
    have no targets of masked language modeling.
    """

    keys: list[str]
    pixels: Tensor  # uint8 (B, H, W, 3) images, (B, F, H, W, 3) clips or (B, 2, H, W, 3) pairs
    text_ids: Tensor  # int64 (B, T)
    text_mask: Tensor  # int64 (B, T), 1 where there is a token
    masked_text_ids: Tensor  # int64 (B, T)
    masked_tokens: Tensor  # int64 (Mt,) flat positions that masked_text_ids hides
    mlm_ids: Tensor  # int64 (B, T)
    mlm_positions: Tensor  # int64 (Mm,) flat positions to predict
    mlm_labels: Tensor  # int64 (Mm,) the token ids to predict
    keep_patches: Tensor  # int64 (B, K) patches that the dropped view keeps, ascending
    masked_patches: Tensor  # int64 (Mp,) flat positions, the same number in every sample
    itm_labels: Tensor  # int64 (B,) 1 for rows that keep their image, 0 for those that get another
    itm_noise: Tensor  # float32 (B, g) Gumbel; column j is the j-th sample of the row's group
    # Hashes of (source, image_id) and of the caption: rows that agree in either are duplicates.
    identity: Tensor  # int64 (B, 2)
    # Views of other samples of the same sources, one for each row with label 0, in the order of the
    # rows. Every micro-batch has B / g * (g - g // 2) of them. None if the negatives are images of
    # the group.
    negative_pixels: Tensor | None = None  # uint8, shaped as pixels
    # Rows of masked_patches and masked_tokens that serve as negatives of local completion. None if
    # all do.
    negative_patches: Tensor | None = None  # int64 (k,) the same number for every sample
    negative_tokens: Tensor | None = None  # int64 (k,) at most as many as a sample has masked
    # Soft targets of questions. None if the texts are captions.
    targets: Tensor | None = None  # float32 (B, labels)
    # True if the pixels are pairs of images, which have the shape of clips of two frames.
    pairs: bool = False

    @property
    def kind(self) -> Kind:
        """What the pixels are: images, clips or pairs of images."""
        if self.pairs:
            return "pair"
        return "image" if self.pixels.ndim == 4 else "video"

    @classmethod
    def of(
        cls, keys: Sequence[str], pixels: np.ndarray[Any, Any], arrays: Arrays, pairs: bool = False
    ) -> Batch:
        """Make tensors that share the memory of the arrays.

        Pixels beyond the number of keys are those of negatives.
        """
        # Imported here, because worker processes import this module and must not load torch.
        import torch

        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if len(pixels) > len(keys):
            tensors["negative_pixels"] = torch.from_numpy(pixels[len(keys) :])
        return cls(list(keys), torch.from_numpy(pixels[: len(keys)]), **tensors, pairs=pairs)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Copy all tensors to a device."""
        moved: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in ("keys", "pairs") and value is not None:
                moved[field.name] = value.to(device, non_blocking=non_blocking)
        return replace(self, **moved)


def collate(
    encodings: Sequence[Encoding],
    masks: Sequence[Masks],
    *,
    patches: int,
    max_length: int,
    tokenizer: Tokenizer,
) -> Arrays:
    """Return the text and mask arrays of a batch.

    They are as wide as the longest text, padded to a multiple of 8 but not beyond `max_length`.
    """
    rows, longest = len(encodings), max(len(encoding.ids) for encoding in encodings)
    # Trimmed to the longest text, because most captions are much shorter than the maximum.
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
    arrays = {
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
    patch_rows, token_rows = [], []
    first_patch, first_token = 0, 0
    for mask in masks:
        # Negatives are sampled for all samples or for none.
        if mask.negative_patches is not None and mask.negative_tokens is not None:
            patch_rows.append(first_patch + mask.negative_patches)
            token_rows.append(first_token + mask.negative_tokens)
        first_patch += len(mask.masked_patches)
        first_token += len(mask.masked_tokens)
    if patch_rows:
        arrays["negative_patches"] = np.concatenate(patch_rows)
        arrays["negative_tokens"] = np.concatenate(token_rows)
    return arrays


def identities(sources: Sequence[str], image_ids: Sequence[str], captions: Sequence[str]) -> Arrays:
    """Return the identity of each sample, int64 (samples, 2).

    These are hashes of (source, image_id) and of the caption that was drawn.
    """
    hashes = []
    for source, image_id, caption in zip(sources, image_ids, captions, strict=True):
        hashes.append([_hash_of_text(f"{source}\0{image_id}"), _hash_of_text(caption)])
    return {"identity": np.array(hashes, dtype=np.uint64).view(np.int64)}


def _hash_of_text(text: str) -> int:
    # JSON can escape half of a surrogate pair, which UTF-8 would refuse in an image_id.
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))


def positives(group: int) -> int:
    """Return how many rows of a matching group keep their own image."""
    return group // 2


def matching_arrays(seed: int, step: int, first_group: int, groups: int, size: int) -> Arrays:
    """Draw image-text matching labels (groups * size,) and Gumbel noise (groups * size, size).

    They are keyed by the number of the group in the global batch, so they do not depend on how the
    batch is divided. Exactly half of a group, rounded down, are positives.
    """
    key = hash_key(seed, "matching")
    labels = np.zeros((groups, size), dtype=np.int64)
    noise = np.empty((groups, size, size), dtype=np.float32)
    for number in range(groups):
        words = fold(key, step, first_group + number)
        random = generator_with_key(int(words[0]))
        # Only `random` is used, whose stream numpy has never changed.
        labels[number, np.argsort(random.random(size), kind="stable")[: positives(size)]] = 1
        # random() may return 0, whose logarithm would be infinite.
        uniform = np.maximum(random.random((size, size)), np.finfo(np.float64).tiny)
        noise[number] = -np.log(-np.log(uniform))
    return {"itm_labels": labels.reshape(-1), "itm_noise": noise.reshape(-1, size)}


def _flat(positions: Sequence[np.ndarray[Any, Any]], width: int) -> np.ndarray[Any, Any]:
    """Turn positions inside each sample into positions in the whole batch."""
    return np.concatenate([row * width + inside for row, inside in enumerate(positions)])
