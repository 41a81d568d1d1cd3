"""Features of one micro-batch: encode three views of each side, fuse five pairs, apply the heads.

`pretrain_features` turns a batch into everything that the objectives read. Work is shared: image,
dropped image and token-masked image share the patch embedding; views of equal shape go through a
tower in one call, and pairs of equal shape through the fusion encoder; the first self-attention of
a side is computed once for all its pairs, and the last layer computes only what a loss reads. All
randomness comes with the batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from data_pipeline.collate import Batch
from pretrain.config import ObjectiveConfig
from pretrain.model import GLSCLModel
from pretrain.model.fusion import Need
from pretrain.model.modeling import Side
from pretrain.model.vision import Patches
from pretrain.objectives.matching import choose_images


class Completion(NamedTuple):
    """States of one modality, recovered from the other one and complete; rows match."""

    recovered: Tensor
    target: Tensor


class Views(NamedTuple):
    """Contrastive features of masked views, and of the patches and words of a sample."""

    dropped_image: Tensor  # (batch, projection)
    masked_text: Tensor  # (batch, projection)
    patches: Tensor  # (batch, frames * patches, projection)
    words: Tensor  # (batch, tokens - 1, projection)
    word_mask: Tensor  # (batch, tokens - 1)


class PretrainFeatures(NamedTuple):
    """What the objectives read: one row per sample, or one per masked position."""

    identity: Tensor  # (batch, 2), see Batch
    contrastive_text: Tensor  # (batch, projection)
    contrastive_image: Tensor  # (batch, projection)
    temperature: Tensor  # (1,)
    matching_logits: Tensor  # (batch, 2)
    matching_labels: Tensor  # (batch,)
    masked_language_logits: Tensor  # (masked tokens, vocabulary)
    masked_language_labels: Tensor  # (masked tokens,)
    global_image: Completion  # (batch, frames, width)
    global_text: Completion  # (batch, width)
    local_image: Completion  # (masked patches of all frames, width)
    local_text: Completion  # (masked tokens, width)
    patch_identity: Tensor  # (masked patches of all frames, 1), equal for one patch of one image
    token_identity: Tensor  # (masked tokens, 1), equal for one token of one caption
    negative_patches: Tensor | None  # rows of local_image that serve as negatives; None: all
    negative_tokens: Tensor | None
    views: Views | None  # None unless an objective reads them


def pretrain_features(
    model: GLSCLModel, batch: Batch, config: ObjectiveConfig, with_views: bool
) -> PretrainFeatures:
    """Encode, fuse and apply every head for one micro-batch of images or videos.

    `with_views` also computes `PretrainFeatures.views`, which only some objectives read.
    """
    patches = model.embed_patches(batch.pixels)
    size, count = len(batch.pixels), patches.values.shape[-2]
    frames = batch.pixels.shape[1] if batch.kind == "video" else 1
    # Images without dropped patches have the same shape, so that one call encodes them all: image,
    # token-masked image and, if they come from the data set, the negatives of matching.
    undropped = [patches, model.mask_patches(patches, _flags(batch.masked_patches, size, count))]
    if batch.negative_pixels is not None:
        undropped.append(model.embed_patches(batch.negative_pixels))
    image_tokens = model.encode_patches(Patches.cat(undropped))
    dropped_tokens = model.encode_patches(patches, batch.keep_patches)
    mask = batch.text_mask
    text_ids = torch.cat([batch.text_ids, batch.masked_text_ids, batch.mlm_ids])
    text_tokens = model.encode_text(text_ids, mask.repeat(3, 1))
    first, second, third = slice(0, size), slice(size, 2 * size), slice(2 * size, 3 * size)
    contrastive_text = model.contrastive_text(text_tokens[first])
    contrastive_image = model.contrastive_image(image_tokens[first], frames)

    texts = model.text_side(text_tokens, mask.repeat(3, 1))
    images = model.image_side(image_tokens)
    text, masked_text, mlm_text = texts[first], texts[second], texts[third]
    image, token_masked = images[first], images[second]
    hard = config.matching_negatives == "hard"
    logits = similarity(contrastive_text, contrastive_image, model.temperature) if hard else None
    rows, labels = _matched(batch, logits, config)
    matched = images[rows]

    # Positions that the last fusion layer must compute: class tokens come first, then patches.
    classes = torch.arange(frames, device=mask.device).expand(size, -1)
    hidden = _in_every_frame(batch.masked_patches, size, frames, count)
    completed: Need = torch.cat([classes, hidden], dim=1)
    crossed = config.completion_targets == "crossed"
    pairs: list[tuple[Side, Side, tuple[Need, Need]]] = [
        # B recovers texts, and completes images.
        (masked_text, image, ("all", completed if crossed else "none")),
        # C recovers patches.
        (text, token_masked, ("none", hidden)),
        # Masked language.
        (mlm_text, image, ("all", "none")),
        # Matching, which pools the class states.
        (text, matched, (classes[:, :1], classes)),
    ]
    if not crossed:
        # Completes both, with nothing masked.
        pairs.append((text, image, ("all", completed)))
    text_sides, image_sides, needs = zip(*pairs, strict=True)
    stacked = model.fuse_pairs(
        Side.cat(text_sides), mask.repeat(len(pairs), 1), Side.cat(image_sides), list(needs)
    )
    (b_text, b_image), (_, c_image), (mlm_states, _) = stacked[:3]
    matched_text, matched_image = stacked[3]
    # A recovers images, and completes texts. Dropped images are shorter, so that this pair cannot
    # be stacked with the others.
    dropped = model.image_side(dropped_tokens)
    ((a_text, a_image),) = model.fuse_pairs(
        text, mask, dropped, [("all" if crossed else "none", classes)]
    )
    full_text, full_image = (a_text, b_image) if crossed else stacked[4]

    tokens, width = batch.masked_tokens, mask.shape[1]
    features = PretrainFeatures(
        identity=batch.identity,
        contrastive_text=contrastive_text,
        contrastive_image=contrastive_image + _unused(model, batch),
        temperature=model.temperature.clone(),
        matching_logits=model.match(model.pool(matched_text, matched_image)),
        matching_labels=labels,
        masked_language_logits=model.masked_language_head(
            mlm_states.flatten(0, 1)[batch.mlm_positions]
        ),
        masked_language_labels=batch.mlm_labels,
        global_image=Completion(a_image, full_image[:, :frames]),
        global_text=Completion(b_text[:, 0], full_text[:, 0]),
        local_image=Completion(c_image.flatten(0, 1), full_image[:, frames:].flatten(0, 1)),
        local_text=Completion(b_text.flatten(0, 1)[tokens], full_text.flatten(0, 1)[tokens]),
        patch_identity=part_identity(batch.identity[:, :1], hidden),
        token_identity=part_identity(batch.identity[tokens // width, 1], tokens % width),
        negative_patches=_chosen_in_every_frame(batch, size, frames),
        negative_tokens=batch.negative_tokens,
        views=None,
    )
    if with_views:
        views = _views(model, image_tokens[first], dropped_tokens, text_tokens, mask, frames)
        features = features._replace(views=views)
    return features


def contrasted(features: PretrainFeatures, names: Iterable[str]) -> dict[str, Tensor]:
    """Look up features by dotted name, such as `global_image.recovered`."""
    return {name: attrgetter(name)(features) for name in names}


def with_contrasted(features: PretrainFeatures, values: Mapping[str, Tensor]) -> PretrainFeatures:
    """Replace features by dotted name; raises ValueError for a name that they do not have."""
    for name, value in values.items():
        try:
            features = _replaced(features, name.split("."), value)
        except AttributeError:
            raise ValueError(f"the features have no {name!r}, so it cannot be replaced") from None
    return features


def _replaced(record: Any, path: list[str], value: Tensor) -> Any:
    first, *rest = path
    old = getattr(record, first)
    return record._replace(**{first: _replaced(old, rest, value) if rest else value})


def join_features(parts: Sequence[PretrainFeatures]) -> PretrainFeatures:
    """Join the features that similarity losses read, of several micro-batches of one kind.

    Logits and labels stay those of the first micro-batch: no similarity loss reads them.
    """
    first = parts[0]

    def joined(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts])

    def completion(name: str) -> Completion:
        states = [getattr(part, name) for part in parts]
        return Completion(
            recovered=torch.cat([state.recovered for state in states]),
            target=torch.cat([state.target for state in states]),
        )

    def chosen(name: str, states: str) -> Tensor | None:
        if getattr(first, name) is None:
            return None
        # Row numbers of a micro-batch start at its first row among the joined states.
        rows, start = [], 0
        for part in parts:
            rows.append(getattr(part, name) + start)
            start += len(getattr(part, states).recovered)
        return torch.cat(rows)

    views = [part.views for part in parts if part.views is not None]
    return first._replace(
        identity=joined("identity"),
        contrastive_text=joined("contrastive_text"),
        contrastive_image=joined("contrastive_image"),
        global_image=completion("global_image"),
        global_text=completion("global_text"),
        local_image=completion("local_image"),
        local_text=completion("local_text"),
        patch_identity=joined("patch_identity"),
        token_identity=joined("token_identity"),
        negative_patches=chosen("negative_patches", "local_image"),
        negative_tokens=chosen("negative_tokens", "local_text"),
        views=_join_views(views) if views else None,
    )


def _join_views(parts: Sequence[Views]) -> Views:
    # Texts of each micro-batch are padded to its longest one.
    longest = max(view.words.shape[1] for view in parts)
    words, word_masks = [], []
    for view in parts:
        missing = longest - view.words.shape[1]
        words.append(F.pad(view.words, (0, 0, 0, missing)))
        word_masks.append(F.pad(view.word_mask, (0, missing)))
    return Views(
        dropped_image=torch.cat([view.dropped_image for view in parts]),
        masked_text=torch.cat([view.masked_text for view in parts]),
        patches=torch.cat([view.patches for view in parts]),
        words=torch.cat(words),
        word_mask=torch.cat(word_masks),
    )


def _flags(positions: Tensor, rows: int, width: int) -> Tensor:
    """Turn flat positions into a boolean (rows, width)."""
    flags = torch.zeros(rows * width, dtype=torch.bool, device=positions.device)
    return flags.index_fill(0, positions, True).view(rows, width)


def _in_every_frame(masked_patches: Tensor, size: int, frames: int, count: int) -> Tensor:
    """Locate the masked patches among the tokens of a sample: (batch, frames * masked)."""
    inside = (masked_patches % count).view(size, 1, -1)
    # The class tokens of all frames come first.
    first = torch.arange(frames, device=inside.device) * count + frames
    return (first[:, None] + inside).flatten(1)


def _chosen_in_every_frame(batch: Batch, size: int, frames: int) -> Tensor | None:
    """Repeat the negatives, rows of (sample, masked patch), as rows of (sample, frame, patch)."""
    if batch.negative_patches is None or frames == 1:
        return batch.negative_patches
    masked = len(batch.masked_patches) // size
    sample, inside = batch.negative_patches // masked, batch.negative_patches % masked
    frame = torch.arange(frames, device=inside.device)
    return ((sample[:, None] * frames + frame) * masked + inside[:, None]).flatten()


def part_identity(identity: Tensor, position: Tensor) -> Tensor:
    """Hash a sample's identity and a position in it, to int64 (n, 1); integers wrap around."""
    return (identity * 1_000_003 + position).reshape(-1, 1)


def _matched(batch: Batch, logits: Tensor | None, config: ObjectiveConfig) -> tuple[Tensor, Tensor]:
    """Choose the row of the encoded image that each text is paired with, and label the pairs."""
    labels = batch.itm_labels
    if batch.negative_pixels is None:
        identity = batch.identity if config.duplicates == "ignored" else None
        return choose_images(labels, batch.itm_noise, logits, identity)
    own_image = torch.arange(len(labels), device=labels.device)
    # The negatives follow the images and the masked images, in the order of the texts that get one.
    other = 2 * len(labels) + (1 - labels).cumsum(0) - 1
    return torch.where(labels.bool(), own_image, other), labels


def _unused(model: GLSCLModel, batch: Batch) -> Tensor | float:
    """Multiply the parameters that images do not use by 0, so that they get a gradient of 0.

    Otherwise a rank or step without videos would leave the others waiting for that gradient.
    """
    if model.temporal_embedding is None or batch.kind == "video":
        return 0.0
    return 0.0 * model.temporal_embedding.sum()


def _views(
    model: GLSCLModel, image: Tensor, dropped: Tensor, texts: Tensor, mask: Tensor, frames: int
) -> Views:
    size = len(image)
    return Views(
        dropped_image=model.contrastive_image(dropped, frames),
        masked_text=model.contrastive_text(texts[size : 2 * size]),
        patches=model.contrastive_image_head(image[:, frames:]),
        words=model.contrastive_text_head(texts[:size, 1:]),
        word_mask=mask[:, 1:],
    )


@torch.no_grad()
def similarity(text: Tensor, image: Tensor, temperature: Tensor) -> Tensor:
    """Compute contrastive logits (texts, images) of contrastive features, in float32."""
    with torch.autocast(text.device.type, enabled=False):
        text, image = F.normalize(text.float(), dim=-1), F.normalize(image.float(), dim=-1)
        return text @ image.T / temperature
