"""Losses of this rank's rows, averaged over ranks as training averages; for test_nce_ranks.

Writes the mean over ranks of each loss and of each gradient, those of features put back in the
order of all rows. That is what a data-parallel wrapper makes of parameters in front of them.
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
    """The published gather: every rank gets all rows, and keeps of their gradient only its own slice, unsummed."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def authors_nce(p: Tensor, q: Tensor, temperature: Tensor) -> Tensor:
    """The loss of all rows, computed whole on every rank."""
    p, q = (AuthorsGather.apply(F.normalize(side, dim=1)) for side in (p, q))
    similarity = p @ q.T / temperature
    own = torch.arange(len(p))
    return F.cross_entropy(similarity, own) + F.cross_entropy(similarity.T, own)


class Case(NamedTuple):
    """A loss, the tensors that learn, and the rest of its arguments."""

    loss: Callable[..., Tensor]
    leaves: tuple[str, ...]
    options: dict[str, Any]


def cases(rows: dict[str, Tensor], counts: list[int], chosen_counts: list[int]) -> dict[str, Case]:
    """Every loss that looks across ranks, on this rank's part of the rows."""
    pair, ids = ("p", "q", "temperature"), rows["ids"]
    chosen = rows["drawn"].nonzero()[:, 0]
    found = {
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
        found["nce without counts"] = Case(nce, pair, {})
        found["intra_modal"] = Case(intra_modal_loss, pair, {"ids": ids})
        if len(counts) > 1:
            found["authors"] = Case(authors_nce, pair, {})
    return found


def averaged(rows: dict[str, Tensor], counts: list[int], rank: int) -> dict[str, Tensor]:
    """Mean over ranks of every loss and of its gradients."""
    first = sum(counts[:rank])
    own = slice(first, first + counts[rank])
    part = {name: value if name == "temperature" else value[own] for name, value in rows.items()}
    found = {}
    chosen_counts = [int(drawn.sum()) for drawn in rows["drawn"].split(counts)]
    for name, case in cases(part, counts, chosen_counts).items():
        leaves = {leaf: part[leaf].clone().requires_grad_() for leaf in case.leaves}
        value = case.loss(*leaves.values(), **case.options)
        value.backward()
        found[name] = value.detach().clone()
        for leaf, tensor in leaves.items():
            whole = torch.zeros_like(rows[leaf])
            whole[... if leaf == "temperature" else own] = tensor.grad
            found[f"{name}: {leaf}"] = whole
    for value in found.values():
        if len(counts) > 1:
            dist.all_reduce(value)
        value /= len(counts)
    return found


def save_averages(source: Path, out: Path) -> None:
    """Compute every case of the file `source` on this rank; rank 0 writes the list of results."""
    dist.init_process_group("gloo")
    given = torch.load(source, weights_only=True)
    result = [averaged(given["rows"], counts, dist.get_rank()) for counts in given["counts"]]
    if dist.get_rank() == 0:
        torch.save(result, out)
