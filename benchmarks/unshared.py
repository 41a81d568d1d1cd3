"""A training step as the authors' release computes it, without shared views, for comparison.

It has six image passes, six text passes and five fusion passes, with texts padded to a fixed
length, all states of all layers, and the masked-language head on every position (objectives.py of
github.com/IIGROUP/SCL).
"""

from __future__ import annotations

import torch
from torch import Tensor

from data_pipeline.collate import Batch
from pretrain.config import ObjectiveConfig
from pretrain.model import GLSCLModel
from pretrain.model.modeling import Fused
from pretrain.objectives.matching import choose_images
from pretrain.views import Completion, PretrainFeatures, part_identity, similarity


def unshared_features(
    model: GLSCLModel, batch: Batch, config: ObjectiveConfig, length: int
) -> PretrainFeatures:
    """Compute the same features as `pretrain_features`, up to rounding.

    Texts are padded to `length`. The batch holds images or videos.
    """
    size, width = batch.text_ids.shape
    pad = int(model.config.text_config.pad_token_id)

    def padded(ids: Tensor, value: int) -> Tensor:
        return torch.nn.functional.pad(ids, (0, length - width), value=value)

    def moved(positions: Tensor) -> Tensor:
        return positions // width * length + positions % width

    mask = padded(batch.text_mask, 0)
    ids, mlm_ids = padded(batch.text_ids, pad), padded(batch.mlm_ids, pad)
    masked_ids = padded(batch.masked_text_ids, pad)
    count = (batch.pixels.shape[-2] // int(model.config.vision_config.patch_size)) ** 2
    frames = batch.pixels.shape[1] if batch.kind == "video" else 1
    hidden = torch.zeros(size * count, dtype=torch.bool, device=ids.device)
    hidden = hidden.index_fill(0, batch.masked_patches, True).view(size, count)

    def fuse(text_ids: Tensor, image: Tensor) -> Fused:
        return model.fuse(model.encode_text(text_ids, mask), mask, image, frames)

    # Contrast
    contrastive_text = model.contrastive_text(model.encode_text(ids, mask))
    contrastive_image = model.contrastive_image(model.encode_image(batch.pixels), frames)
    # Matching
    labels, pixels = batch.itm_labels, batch.pixels
    if batch.negative_pixels is None:
        identity = batch.identity if config.duplicates == "ignored" else None
        hard = similarity(contrastive_text, contrastive_image, model.temperature)
        chosen = hard if config.matching_negatives == "hard" else None
        rows, labels = choose_images(labels, batch.itm_noise, chosen, identity)
        pixels = pixels[rows]
    else:
        pixels = pixels.clone()
        pixels[labels == 0] = batch.negative_pixels
    matched = fuse(ids, model.encode_image(pixels))
    # Masked language
    predicted = model.masked_language_head(fuse(mlm_ids, model.encode_image(batch.pixels)).text)
    # Completion
    a = fuse(ids, model.encode_image(batch.pixels, keep_patches=batch.keep_patches))
    b = fuse(masked_ids, model.encode_image(batch.pixels))
    c = fuse(ids, model.encode_image(batch.pixels, masked_patches=hidden))

    every = frames * count
    rows = hidden.repeat(1, frames).flatten().nonzero()[:, 0]  # the same patches of every frame

    def patches_at(states: Tensor) -> Tensor:
        return states[:, frames:].flatten(0, 1)[rows]

    def tokens_at(states: Tensor) -> Tensor:
        return states.flatten(0, 1)[moved(batch.masked_tokens)]

    return PretrainFeatures(
        identity=batch.identity,
        contrastive_text=contrastive_text,
        contrastive_image=contrastive_image,
        temperature=model.temperature,
        matching_logits=model.match(matched.pooled),
        matching_labels=labels,
        masked_language_logits=predicted.flatten(0, 1)[moved(batch.mlm_positions)],
        masked_language_labels=batch.mlm_labels,
        global_image=Completion(a.image[:, :frames], b.image[:, :frames]),
        global_text=Completion(b.text[:, 0], a.text[:, 0]),
        local_image=Completion(patches_at(c.image), patches_at(b.image)),
        local_text=Completion(tokens_at(b.text), tokens_at(a.text)),
        patch_identity=part_identity(batch.identity[rows // every, 0], rows % every + frames),
        token_identity=part_identity(
            batch.identity[batch.masked_tokens // width, 1], batch.masked_tokens % width
        ),
        negative_patches=batch.negative_patches,
        negative_tokens=batch.negative_tokens,
        views=None,
    )
