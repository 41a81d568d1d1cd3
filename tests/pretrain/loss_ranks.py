"""Losses of this rank's rows, averaged over ranks as training averages gradients.

test_nce_ranks runs `save_averages` on every rank. It saves the mean over ranks of each loss and
each gradient; gradients of features are in the order of all rows. A data-parallel wrapper would
give parameters before the features the same mean.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from pretrain.objectives.nce import nce
from pretrain.objectives.sampled import sampled_nce
from pretrain.objectives.tcl import global_local_loss, intra_modal_loss


class AuthorsGather(torch.autograd.Function):
    """The published gather: its backward keeps this rank's slice and does not sum over ranks."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def authors_nce(p: Tensor, q: Tensor, temperature: Tensor) -> Tensor:
    """InfoNCE over all rows, computed in full on every rank."""
    p, q = (AuthorsGather.apply(F.normalize(side, dim=1)) for side in (p, q))
    similarity = p @ q.T / temperature
    matches = torch.arange(len(p))
    return F.cross_entropy(similarity, matches) + F.cross_entropy(similarity.T, matches)


class Case(NamedTuple):
    """A loss, the tensors that learn, and its other arguments."""

    loss: Callable[..., Tensor]
    leaves: tuple[str, ...]
    options: dict[str, Any]


def cases(rows: dict[str, Tensor], counts: list[int], chosen_counts: list[int]) -> dict[str, Case]:
    """List every loss that compares rows of all ranks, on this rank's part of the rows."""
    pair, ids = ("p", "q", "temperature"), rows["ids"]
    chosen = rows["drawn"].nonzero()[:, 0]
    by_name = {
        "nce": Case(nce, pair, {"counts": counts}),
        "nce with ids": Case(nce, pair, {"counts": counts, "ids": ids}),
        "nce of this rank": Case(nce, pair, {"counts": counts, "ids": ids, "negatives": "rank"}),
        "nce published": Case(nce, pair, {"counts": counts, "gradients": "published"}),
        "sampled": Case(
            sampled_nce,
            pair,
            {"chosen": chosen, "counts": counts, "chosen_counts": chosen_counts, "ids": ids},
        ),
        "global_local": Case(
            lambda p, temperature, **more: global_local_loss(
                p, rows["local"], rows["mask"], temperature, **more
            ),
            ("p", "temperature"),
            {"counts": [count * rows["local"].shape[1] for count in counts]},
        ),
    }
    if len(set(counts)) == 1:
        by_name["nce without counts"] = Case(nce, pair, {})
        by_name["intra_modal"] = Case(intra_modal_loss, pair, {"ids": ids})
        if len(counts) > 1:
            by_name["authors"] = Case(authors_nce, pair, {})
    return by_name


def averaged(rows: dict[str, Tensor], counts: list[int], rank: int) -> dict[str, Tensor]:
    """Compute the mean over ranks of every loss and of its gradients."""
    first = sum(counts[:rank])
    local = slice(first, first + counts[rank])
    part = {name: value[local] for name, value in rows.items() if name != "temperature"}
    part["temperature"] = rows["temperature"]
    results = {}
    chosen_counts = [int(drawn.sum()) for drawn in rows["drawn"].split(counts)]
    for name, case in cases(part, counts, chosen_counts).items():
        leaves = {leaf: part[leaf].clone().requires_grad_() for leaf in case.leaves}
        value = case.loss(*leaves.values(), **case.options)
        value.backward()
        results[name] = value.detach().clone()
        for leaf, tensor in leaves.items():
            whole = torch.zeros_like(rows[leaf])
            whole[... if leaf == "temperature" else local] = tensor.grad
            results[f"{name}: {leaf}"] = whole
    for value in results.values():
        if len(counts) > 1:
            dist.all_reduce(value)
        value /= len(counts)
    return results


def save_averages(source: Path, out: Path) -> None:
    """Compute every case of the file `source` on this rank; rank 0 writes the list of results."""
    dist.init_process_group("gloo")
    given = torch.load(source, weights_only=True)
    result = [averaged(given["rows"], counts, dist.get_rank()) for counts in given["counts"]]
    if dist.get_rank() == 0:
        torch.save(result, out)
