"""Retrieval as a task: every picture is matched with all captions of its group, and contrasted with the whole batch.

The ranking loss is a softmax, over the captions of a group, of logit(match) - logit(no match),
which is the score that evaluation ranks by. The authors train a head of their own, initialised from
the row of the matching head that says match; with it, evaluation would need that head too.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    """What the losses read: one row per picture or clip, with its caption."""

    identity: Tensor  # (batch, 2), see Batch
    contrastive_text: Tensor  # (batch, projection)
    contrastive_image: Tensor  # (batch, projection)
    temperature: Tensor  # (1,)
    margins: Tensor  # (batch, group), of the picture with each caption of its group; -inf for other right captions


class RetrievalTask(ContrastiveRetrieval):
    """16-way ranking (the group's size) and contrast, on pictures or clips."""

    loss_names = ("ranking", "contrastive")
    contrasts = True
    depends_on_ranks = False
    temperature_bounds = (0.01, 0.5)
    best = "mean_recall"
    unused = ("masked_language_head.", "visual_mask_token")
    """Parameters that no loss of this task reaches, by the start of their names."""

    def counts(self, batches: list[Batch]) -> list[None]:
        """Nothing: every rank holds as many rows."""
        return [None] * len(batches)

    def features(self, model: GLSCLModel, batch: Batch) -> RetrievalFeatures:
        """Encode each side once, and fuse every picture with all captions of its group."""
        mask, (size, group) = batch.text_mask, batch.itm_noise.shape
        frames = batch.pixels.shape[1] if batch.kind == "video" else 1
        text_tokens, image_tokens = (
            model.encode_text(batch.text_ids, mask),
            model.encode_image(batch.pixels),
        )
        text, image = model.text_side(text_tokens, mask), model.image_side(image_tokens)
        rows = torch.arange(size, device=mask.device)
        members = (rows - rows % group)[:, None] + torch.arange(group, device=mask.device)
        of_text = members.flatten()
        classes = torch.arange(frames, device=mask.device).expand(size * group, -1)
        [states] = model.fuse_pairs(
            text[of_text],
            mask[of_text],
            image[rows.repeat_interleave(group)],
            [(classes[:, :1], classes)],
        )
        logits = at_least_float32(model.match(model.pool(*states)))
        also_right = (batch.identity[members] == batch.identity[:, None]).any(2) & (
            members != rows[:, None]
        )
        margins = (
            (logits[:, 1] - logits[:, 0]).view(size, group).masked_fill(also_right, -torch.inf)
        )
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
        """Contrast over the global batch, both directions."""
        f = features
        loss = contrastive_loss(
            f.contrastive_text, f.contrastive_image, f.temperature, ids=f.identity
        )
        return {"contrastive": loss}

    def pair_losses(self, features: RetrievalFeatures, counts: None = None) -> dict[str, Tensor]:
        """Cross-entropy of the own caption among those of the group."""
        size, group = features.margins.shape
        own = torch.arange(size, device=features.margins.device) % group
        with torch.autocast(features.margins.device.type, enabled=False):
            return {"ranking": F.cross_entropy(features.margins, own)}

    def weighted(self, parts: dict[str, Tensor]) -> Tensor:
        """Sum of the losses."""
        return torch.stack([value.reshape(()) for value in parts.values()]).sum()

    def contrasted(self, features: RetrievalFeatures) -> list[Tensor]:
        """Contrastive features and the temperature."""
        return [features.contrastive_text, features.contrastive_image, features.temperature]

    def with_contrasted(
        self, features: RetrievalFeatures, values: Sequence[Tensor]
    ) -> RetrievalFeatures:
        """Put other tensors in their places."""
        text, image, temperature = values
        return features._replace(
            contrastive_text=text, contrastive_image=image, temperature=temperature
        )

    def join(
        self, parts: Sequence[RetrievalFeatures], counts: Sequence[Any]
    ) -> tuple[RetrievalFeatures, None]:
        """Join the rows that are contrasted."""
        names = ("identity", "contrastive_text", "contrastive_image")
        return parts[0]._replace(
            **{n: torch.cat([getattr(part, n) for part in parts]) for n in names}
        ), None

    def validate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Recalls of the contrastive score on the validation split, in percent, and their mean."""
        recalls = super().validate(model, device)
        return recalls | {"mean_recall": sum(recalls.values()) / len(recalls)}
