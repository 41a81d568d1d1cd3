"""Samples -> one batch: numpy arrays in whichever process reads, a dataclass of tensors where the batch is used.

Everything random is already in a batch, so that a model's forward is deterministic apart from its
dropout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from data_pipeline.masking import Masks
from data_pipeline.order import fold, hash_key
from data_pipeline.randomness import generator_with_key
from data_pipeline.sample import Kind
from data_pipeline.text import Encoding, Tokenizer

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PAD_TO = 8
Arrays = dict[str, np.ndarray[Any, Any]]


@dataclass
class Batch:
    """One micro-batch, on the CPU until `to`: B samples, N patches of an image or frame, T tokens, g samples a group.

    Flat positions are b * T + t for tokens and b * N + n for patches, ascending. Clips have F
    frames; their patches are tubes: the same positions in every frame. A row may be without targets
    of masked language modelling.
    """

    keys: list[str]
    pixels: Tensor  # uint8 (B, H, W, 3) images, (B, F, H, W, 3) clips or (B, 2, H, W, 3) pairs
    text_ids: Tensor  # int64 (B, T)
    text_mask: Tensor  # int64 (B, T), 1 where there is a token
    masked_text_ids: Tensor  # int64 (B, T)
    masked_tokens: Tensor  # int64 (Mt,) flat positions that masked_text_ids hides
    mlm_ids: Tensor  # int64 (B, T)
    mlm_positions: Tensor  # int64 (Mm,) flat positions to predict
    mlm_labels: Tensor  # int64 (Mm,) what stands there
    keep_patches: Tensor  # int64 (B, K), patches that the dropped view keeps, ascending
    masked_patches: Tensor  # int64 (Mp,) flat positions, the same number in every sample
    itm_labels: Tensor  # int64 (B,), 1 keeps its image, 0 gets another
    itm_noise: Tensor  # float32 (B, g), Gumbel; column j is the j-th sample of the row's own group
    identity: Tensor  # int64 (B, 2), hashes of (source, image_id) and of the caption: rows equal in either are duplicates
    # Views of other samples of the same sources, one for each row with label 0, in the order of the
    # rows: as many in every micro-batch, B / g * (g - g // 2). None where the negatives are images
    # of the group.
    negative_pixels: Tensor | None = None  # uint8, as pixels
    # Rows of masked_patches and masked_tokens that serve as negatives of local completion. None
    # where all do.
    negative_patches: Tensor | None = None  # int64 (k,), the same number of every sample
    negative_tokens: Tensor | None = (
        None  # int64 (k,), of a sample at most as many as it has masked
    )
    # Soft targets of the questions that are the texts. None where the texts are captions.
    targets: Tensor | None = None  # float32 (B, labels)
    pairs: bool = False  # the pixels are pairs of images, which look like clips of two frames

    @property
    def kind(self) -> Kind:
        """What the pixels are: images, clips or pairs of images."""
        return "pair" if self.pairs else "image" if self.pixels.ndim == 4 else "video"

    @classmethod
    def of(
        cls, keys: Sequence[str], pixels: np.ndarray[Any, Any], arrays: Arrays, pairs: bool = False
    ) -> Batch:
        """Make the tensors; they share the memory of the arrays. Pixels beyond the keys' are those of negatives."""
        import torch  # only where batches are used: worker processes never import it

        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if len(pixels) > len(keys):
            tensors["negative_pixels"] = torch.from_numpy(pixels[len(keys) :])
        return cls(list(keys), torch.from_numpy(pixels[: len(keys)]), **tensors, pairs=pairs)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Copy all tensors to a device."""
        names = [field.name for field in fields(self) if field.name not in ("keys", "pairs")]
        tensors = {name: getattr(self, name) for name in names}
        moved: dict[str, Any] = {
            name: None if tensor is None else tensor.to(device, non_blocking=non_blocking)
            for name, tensor in tensors.items()
        }
        return replace(self, **moved)


def collate(
    encodings: Sequence[Encoding],
    masks: Sequence[Masks],
    *,
    patches: int,
    max_length: int,
    tokenizer: Tokenizer,
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
    for name, hidden in (
        ("negative_patches", "masked_patches"),
        ("negative_tokens", "masked_tokens"),
    ):
        chosen = [rows for mask in masks if (rows := getattr(mask, name)) is not None]
        if chosen:
            firsts = np.cumsum([0, *(len(getattr(mask, hidden)) for mask in masks[:-1])])
            arrays[name] = np.concatenate(
                [first + rows for first, rows in zip(firsts, chosen, strict=True)]
            )
    return arrays


def identities(sources: Sequence[str], image_ids: Sequence[str], captions: Sequence[str]) -> Arrays:
    """Identity of each sample, int64 (samples, 2): hashes of (source, image_id), and of the caption that was chosen."""
    texts = [
        (f"{source}\0{image_id}", text)
        for source, image_id, text in zip(sources, image_ids, captions, strict=True)
    ]
    # An image_id may hold what JSON can escape and UTF-8 cannot say.
    hashes = [
        [xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass")) for text in row]
        for row in texts
    ]
    return {"identity": np.array(hashes, dtype=np.uint64).view(np.int64)}


def positives(group: int) -> int:
    """Rows of a matching group that keep their own image."""
    return group // 2


def matching_arrays(seed: int, step: int, first_group: int, groups: int, size: int) -> Arrays:
    """Image-text matching labels (groups * size,) and Gumbel noise (groups * size, size).

    Keyed by the group's number in the global batch, so that no division of the batch appears in
    them. Exactly half of a group (rounded down) are positives.
    """
    key = hash_key(seed, "matching")
    labels = np.zeros((groups, size), dtype=np.int64)
    noise = np.empty((groups, size, size), dtype=np.float32)
    for number in range(groups):
        words = fold(key, step, first_group + number)
        random = generator_with_key(int(words[0]))
        labels[number, np.argsort(random.random(size), kind="stable")[: positives(size)]] = 1
        uniform = np.maximum(random.random((size, size)), np.finfo(np.float64).tiny)
        noise[number] = -np.log(-np.log(uniform))
    return {"itm_labels": labels.reshape(-1), "itm_noise": noise.reshape(-1, size)}


def _flat(positions: Sequence[np.ndarray[Any, Any]], width: int) -> np.ndarray[Any, Any]:
    """Positions inside each sample -> positions in the whole batch."""
    return np.concatenate([row * width + inside for row, inside in enumerate(positions)])
