"""Which views are encoded once and which pairs are fused: three of each side, five pairs.

Image, dropped image and token-masked image share the patch embedding; views of equal shape go through a tower in one
call; the first self-attention of a side is computed once for all its pairs. Everything random stands in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from data_pipeline.collate import Batch
from pretrain.model import GLSCLModel
from pretrain.objectives.matching import choose_images


@dataclass
class PretrainFeatures:
    """What the five objectives read: one row per sample, or per masked position of this micro-batch."""

    contrastive_text: Tensor  # (batch, projection)
    contrastive_image: Tensor  # (batch, projection)
    temperature: Tensor  # (1,)
    matching_logits: Tensor  # (batch, 2)
    matching_labels: Tensor  # (batch,)
    masked_language_logits: Tensor  # (masked tokens, vocabulary)
    masked_language_labels: Tensor  # (masked tokens,)
    global_image: tuple[Tensor, Tensor]  # recovered and target, (batch, width) each
    global_text: tuple[Tensor, Tensor]
    local_image: tuple[Tensor, Tensor]  # (masked patches, width) each
    local_text: tuple[Tensor, Tensor]  # (masked text tokens, width) each


def pretrain_features(model: GLSCLModel, batch: Batch, hard_negatives: bool) -> PretrainFeatures:
    """Encode, fuse and apply every head for one micro-batch."""
    patches = model.embed_patches(batch.pixels)
    size, count, _ = patches.shape
    masked = torch.zeros(size * count, dtype=torch.bool, device=patches.device)
    masked[batch.masked_patches] = True
    image_tokens = model.encode_patches(torch.cat([patches, model.mask_patches(patches, masked.view(size, count))]))
    dropped = model.image_side(model.encode_patches(patches, batch.keep_patches))
    mask = batch.text_mask
    text_ids = torch.cat([batch.text_ids, batch.masked_text_ids, batch.mlm_ids])
    text_tokens = model.encode_text(text_ids, mask.repeat(3, 1))
    first, second, third = slice(0, size), slice(size, 2 * size), slice(2 * size, None)
    contrastive_text = model.contrastive_text(text_tokens[first])
    contrastive_image = model.contrastive_image(image_tokens[first])
    texts, images = model.text_side(text_tokens, mask.repeat(3, 1)), model.image_side(image_tokens)
    text, masked_text, mlm_text = texts[first], texts[second], texts[third]
    image, token_masked = images[first], images[second]

    similarity = _cosine(contrastive_text, contrastive_image) / model.temperature if hard_negatives else None
    chosen, matching_labels = choose_images(batch.itm_labels, batch.itm_noise, similarity)
    matched = image[chosen]

    # Five pairs; the last layer computes only what a loss reads.
    a_text, a_image = model.fuse_sides(text, mask, dropped, image_need="first")
    b_text, b_image = model.fuse_sides(masked_text, mask, image)
    _, c_image = model.fuse_sides(text, mask, token_masked, text_need="none")
    mlm_states, _ = model.fuse_sides(mlm_text, mask, image, image_need="none")
    matched_text, matched_image = model.fuse_sides(text, mask, matched, text_need="first", image_need="first")

    def patches_at(states: Tensor) -> Tensor:
        return states[:, 1:].flatten(0, 1)[batch.masked_patches]

    def tokens_at(states: Tensor, positions: Tensor) -> Tensor:
        return states.flatten(0, 1)[positions]

    return PretrainFeatures(
        contrastive_text=contrastive_text,
        contrastive_image=contrastive_image,
        temperature=model.temperature,
        matching_logits=model.match(model.pool(matched_text, matched_image)),
        matching_labels=matching_labels,
        masked_language_logits=model.masked_language_head(tokens_at(mlm_states, batch.mlm_positions)),
        masked_language_labels=batch.mlm_labels,
        global_image=(a_image[:, 0], b_image[:, 0]),
        global_text=(b_text[:, 0], a_text[:, 0]),
        local_image=(patches_at(c_image), patches_at(b_image)),
        local_text=(tokens_at(b_text, batch.masked_tokens), tokens_at(a_text, batch.masked_tokens)),
    )


@torch.no_grad()
def _cosine(text: Tensor, image: Tensor) -> Tensor:
    with torch.autocast(text.device.type, enabled=False):
        return F.normalize(text.float(), dim=-1) @ F.normalize(image.float(), dim=-1).T
