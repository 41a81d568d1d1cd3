"""Retrieval as a task: rank the captions of a group for each image, and contrast the whole batch.

The ranking loss is a softmax over the captions of a group, whose score is logit(match) -
logit(no match), which evaluation ranks by. The authors train another head, initialized from the
matching head's row for a match; evaluation would then need that head too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_pipeline.collate import Batch
from pretrain.model import GLSCLModel
from pretrain.objectives.contrastive import contrastive_loss
from pretrain.objectives.tiles import at_least_float32
from pretrain.validation import ContrastiveRetrieval


class RetrievalFeatures(NamedTuple):
    """Input of the losses: one row per image or video, with its caption."""

    identity: Tensor  # (batch, 2), see Batch
    contrastive_text: Tensor  # (batch, projection)
    contrastive_image: Tensor  # (batch, projection)
    temperature: Tensor  # (1,)
    # (batch, group): logit(match) - logit(no match) of the image with each caption of its group;
    # -inf for the other captions that are right.
    margins: Tensor


class RetrievalTask(ContrastiveRetrieval):
    """Ranking within groups (of 16, unless configured) and contrast, on images or videos."""

    loss_names = ("ranking", "contrastive")
    contrasts = True
    depends_on_ranks = False
    temperature_bounds = (0.01, 0.5)
    best = "mean_recall"
    unused = ("masked_language_head.", "visual_mask_token")
    """Prefixes of the names of parameters that the losses do not reach."""

    def counts(self, batches: list[Batch]) -> list[None]:
        """Return no counts: every rank has the same number of rows."""
        return [None] * len(batches)

    def features(self, model: GLSCLModel, batch: Batch) -> RetrievalFeatures:
        """Encode each side once, and fuse every image with all captions of its group."""
        mask, (size, group) = batch.text_mask, batch.itm_noise.shape
        frames = batch.pixels.shape[1] if batch.kind == "video" else 1
        text_tokens = model.encode_text(batch.text_ids, mask)
        image_tokens = model.encode_image(batch.pixels)
        text, image = model.text_side(text_tokens, mask), model.image_side(image_tokens)
        rows = torch.arange(size, device=mask.device)
        # Row i holds the rows of the samples in the group of sample i.
        members = (rows - rows % group)[:, None] + torch.arange(group, device=mask.device)
        text_rows, image_rows = members.flatten(), rows.repeat_interleave(group)
        # Only the class states are pooled, so that the last layer computes only these.
        classes = torch.arange(frames, device=mask.device).expand(size * group, -1)
        [states] = model.fuse_pairs(
            text[text_rows], mask[text_rows], image[image_rows], [(classes[:, :1], classes)]
        )
        logits = at_least_float32(model.match(model.pool(*states)))
        # Captions of the same image, and equal captions, are right answers too: neither negatives
        # nor the target.
        agrees = (batch.identity[members] == batch.identity[:, None]).any(2)
        also_right = agrees & (members != rows[:, None])
        margins = (logits[:, 1] - logits[:, 0]).view(size, group)
        margins = margins.masked_fill(also_right, -torch.inf)
        return RetrievalFeatures(
            identity=batch.identity,
            contrastive_text=model.contrastive_text(text_tokens),
            contrastive_image=model.contrastive_image(image_tokens, frames),
            temperature=model.temperature.clone(),
            margins=margins,
        )

    def similarity_losses(
        self, features: RetrievalFeatures, counts: None = None
    ) -> dict[str, Tensor]:
        """Contrast texts and images over the global batch, in both directions."""
        loss = contrastive_loss(
            features.contrastive_text,
            features.contrastive_image,
            features.temperature,
            ids=features.identity,
        )
        return {"contrastive": loss}

    def pair_losses(self, features: RetrievalFeatures, counts: None = None) -> dict[str, Tensor]:
        """Compute the cross-entropy of an image's own caption among those of its group."""
        size, group = features.margins.shape
        # Position of a sample in its group, where its own caption stands.
        own_caption = torch.arange(size, device=features.margins.device) % group
        with torch.autocast(features.margins.device.type, enabled=False):
            return {"ranking": F.cross_entropy(features.margins, own_caption)}

    def weighted(self, losses: dict[str, Tensor]) -> Tensor:
        """Sum the losses, which have equal weights."""
        return torch.stack([value.reshape(()) for value in losses.values()]).sum()

    def contrasted(self, features: RetrievalFeatures) -> dict[str, Tensor]:
        """Name the features that the contrastive loss sends gradients to."""
        names = ("contrastive_text", "contrastive_image", "temperature")
        return {name: getattr(features, name) for name in names}

    def with_contrasted(
        self, features: RetrievalFeatures, values: Mapping[str, Tensor]
    ) -> RetrievalFeatures:
        """Replace named features; raises ValueError for an unknown name."""
        return features._replace(**values)

    def join(
        self, parts: Sequence[RetrievalFeatures], counts: Sequence[Any]
    ) -> tuple[RetrievalFeatures, None]:
        """Join the rows that the contrastive loss compares."""
        joined = {}
        for name in ("identity", "contrastive_text", "contrastive_image"):
            joined[name] = torch.cat([getattr(part, name) for part in parts])
        return parts[0]._replace(**joined), None

    def validate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Measure recalls of the contrastive score on the validation split, in percent."""
        recalls = super().validate(model, device)
        return recalls | {"mean_recall": sum(recalls.values()) / len(recalls)}
