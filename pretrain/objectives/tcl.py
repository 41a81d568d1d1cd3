"""Two optional terms of triple contrastive learning (TCL, arXiv 2202.10401).

TCL contrasts against a momentum encoder and a queue. This version needs neither: the other view of
a modality is the dropped or masked view of the same samples, encoded by the model itself, and the
negatives are the batches of all ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.parallel.gather import gather_rows, world_size

from .nce import nce
from .negatives import cross_entropy, log_sum, row_numbers
from .objective import Objective, duplicate_ids
from .tiles import unit

if TYPE_CHECKING:
    from pretrain.config import ObjectiveConfig
    from pretrain.counts import TokenCounts
    from pretrain.views import PretrainFeatures, Views


def intra_modal_loss(
    features: Tensor, other_view: Tensor, temperature: Tensor | float, ids: Tensor | None = None
) -> Tensor:
    """Contrast two views of one modality (batch, width); the mean of both directions.

    `ids` is int64 (batch, k) as in `nce`: rows that agree in any column are not negatives of each
    other.
    """
    return 0.5 * nce(features, other_view, temperature, ids=ids)


def global_local_loss(
    global_features: Tensor,
    local: Tensor,
    mask: Tensor,
    temperature: Tensor | float,
    counts: Sequence[int] | None = None,
    *,
    ids: Tensor | None = None,
) -> Tensor:
    """Contrast each sample's global vector with its own local features against all others' ones.

    -log(e^(g_i l_im / t) / (e^(g_i l_im / t) + sum over j != i and n of e^(g_i l_jn / t))),
    averaged over all real tokens (i, m). Locals are detached: only the global vector learns.

    Parameters
    ----------
    global_features : Tensor
        (batch, width), one vector per sample; normalized here.
    local : Tensor
        (batch, tokens, width), patches (TCL pools them to a coarse grid) or text tokens; normalized
        here.
    mask : Tensor
        (batch, tokens), 1 where a token is real, 0 for padding, which has no weight.
    temperature : Tensor or float
        Divides the cosine.
    counts : sequence of int, optional
        batch * tokens of each rank, whose texts may be padded to different lengths. None: all ranks
        have as many as this one.
    ids : Tensor, optional
        int64 (batch, k): locals of samples that agree in any column are not negatives either.

    Returns
    -------
    Tensor
        A scalar whose mean over ranks is the mean over the tokens of all ranks; log(1 + (N - 1) l)
        for N samples of l tokens where all vectors are equal.
    """
    batch, tokens, width = local.shape
    if global_features.shape != (batch, width) or mask.shape != (batch, tokens):
        shapes = f"{tuple(global_features.shape)}, {tuple(local.shape)} and {tuple(mask.shape)}"
        raise ValueError(
            f"global features, locals and mask have the shapes {shapes}, "
            "not (b, d), (b, n, d) and (b, n)"
        )
    real = mask.bool()
    # A sample's own locals agree with it in its row number and so are left out of its negatives.
    row_ids = row_numbers(global_features)
    if ids is not None:
        row_ids = torch.cat([row_ids, ids], dim=1)
    # One more id, -1 for every row: padding has it too and so is a negative of no row.
    row_ids = torch.cat([row_ids, torch.full_like(row_ids[:, :1], -1)], dim=1)
    padding = torch.where(real.flatten(), 0, -1)[:, None]
    column_ids = torch.cat([row_ids[:, :-1].repeat_interleave(tokens, dim=0), padding], dim=1)
    total = real.sum()
    if world_size() > 1:
        dist.all_reduce(total)
    with torch.autocast(local.device.type, enabled=False):
        locals_ = unit(local.detach())
        rows = unit(global_features) / temperature
        negatives = log_sum(
            rows,
            gather_rows(locals_.flatten(0, 1), counts),
            row_ids,
            gather_rows(column_ids, counts),
        )
        positive = (locals_ @ rows[:, :, None])[..., 0]
        losses = cross_entropy(positive, negatives[:, None]).masked_fill(~real, 0)
        # The mean over ranks of this share is the mean over the tokens of all ranks.
        return losses.sum() * (world_size() / total.clamp(min=1))


def _intra_modal(
    features: PretrainFeatures, config: ObjectiveConfig, counts: TokenCounts | None
) -> Tensor:
    f, views, ids = features, _views(features), duplicate_ids(features, config)
    image = intra_modal_loss(f.contrastive_image, views.dropped_image, f.temperature, ids)
    text = intra_modal_loss(f.contrastive_text, views.masked_text, f.temperature, ids)
    return 0.5 * (image + text)


def _intra_modal_columns(features: PretrainFeatures, config: ObjectiveConfig) -> list[Tensor]:
    # Both views of all ranks and their gradients.
    views = _views(features)
    return [views.dropped_image, views.masked_text] * 2


def _global_local(
    features: PretrainFeatures, config: ObjectiveConfig, counts: TokenCounts | None
) -> Tensor:
    f, views, ids = features, _views(features), duplicate_ids(features, config)
    every_patch = torch.ones_like(views.patches[..., 0])
    image = global_local_loss(
        f.contrastive_image, views.patches, every_patch, f.temperature, ids=ids
    )
    words = counts.words if counts else None
    text = global_local_loss(
        f.contrastive_text, views.words, views.word_mask, f.temperature, words, ids=ids
    )
    return 0.5 * (image + text)


def _global_local_columns(features: PretrainFeatures, config: ObjectiveConfig) -> list[Tensor]:
    # Locals are detached, so that no gradient is held beside them.
    views = _views(features)
    return [views.patches, views.words]


def _views(features: PretrainFeatures) -> Views:
    assert features.views is not None  # computed because the objectives below set `reads_views`
    return features.views


INTRA_MODAL = Objective(
    name="intra_modal",
    weight=0.0,
    loss=_intra_modal,
    contrasts=(
        "contrastive_text",
        "contrastive_image",
        "temperature",
        "views.dropped_image",
        "views.masked_text",
    ),
    columns=_intra_modal_columns,
    reads_views=True,
)

GLOBAL_LOCAL = Objective(
    name="global_local",
    weight=0.0,
    loss=_global_local,
    contrasts=("contrastive_text", "contrastive_image", "temperature"),
    columns=_global_local_columns,
    reads_views=True,
)
