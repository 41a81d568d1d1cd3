"""Two terms of triple contrastive learning (TCL, arXiv 2202.10401), optional beside the five objectives.

TCL contrasts with a momentum encoder and a queue. Here there is neither: the other view of a
modality is the dropped or masked view of the same samples, encoded by the model itself, and the
negatives are the batches of all ranks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.parallel.gather import gather_rows, world_size

from .nce import nce
from .negatives import cross_entropy, log_sum, row_numbers
from .tiles import unit


def intra_modal_loss(
    features: Tensor, other_view: Tensor, temperature: Tensor | float, ids: Tensor | None = None
) -> Tensor:
    """Contrast two views of one modality (batch, width), mean of both directions, hard targets.

    `ids`, int64 (batch, k), as in `nce`: rows that agree in any column are not negatives of each
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
    """Contrast each sample's global vector with its own local features against those of all other samples.

    -log(e^(g_i l_im / t) / (e^(g_i l_im / t) + sum over j != i and n of e^(g_i l_jn / t))),
    averaged over all i, m that the masks leave. Locals are detached: only the global vector learns.

    Parameters
    ----------
    global_features : Tensor
        (batch, width), one vector a sample; normalised here.
    local : Tensor
        (batch, tokens, width), patches (TCL pools them to a coarse grid) or text tokens; normalised
        here.
    mask : Tensor
        (batch, tokens), 1 where a token is real; padding weighs nothing.
    temperature : Tensor or float
        Divides the cosine.
    counts : sequence of int, optional
        batch * tokens of each rank, where texts are trimmed to different lengths. None: all have as
        many.
    ids : Tensor, optional
        int64 (batch, k): the locals of samples that agree in any column are not negatives either.

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
            f"global features, locals and mask have the shapes {shapes}, not (b, d), (b, n, d), (b, n)"
        )
    real = mask.bool()
    row_ids = (
        row_numbers(global_features)
        if ids is None
        else torch.cat([row_numbers(global_features), ids], dim=1)
    )
    # A second number that nothing but padding shares with every row.
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
        own = (locals_ @ rows[:, :, None])[..., 0]
        losses = cross_entropy(own, negatives[:, None]).masked_fill(~real, 0)
        return losses.sum() * (world_size() / total.clamp(min=1))


def global_local_gap(
    global_features: Tensor, local: Tensor, mask: Tensor, temperature: Tensor | float
) -> Tensor:
    """How much a sample's global vector tells about its own local features, in nats; nothing is learnt.

    The loss of vectors that tell nothing, log(1 + (N - 1) l) for N samples of l tokens, less
    `global_local_loss`: a lower bound of their mutual information. Arguments are as there, and all
    the samples are here: ranks share nothing.

    Returns
    -------
    Tensor
        A scalar, 0 where all vectors are equal, below 0 where a sample is closer to the others'
        locals than to its own.
    """
    if world_size() > 1:
        raise ValueError(
            "the gap is of one process's samples: gather them and measure on a single one"
        )
    lengths = mask.bool().sum(dim=1).to(torch.float64)
    nothing = (lengths * torch.log1p(lengths.sum() - lengths)).sum() / lengths.sum().clamp(min=1)
    return nothing - global_local_loss(global_features, local, mask, temperature).detach()
