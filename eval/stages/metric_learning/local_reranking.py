"""Re-ranking by local features: neighbours whose attended patches lie in the same arrangement come first.

In: patches with their attention of queries and gallery. Out: a function that orders the best
neighbours of a query by the number of patches, matched both ways by cosine, that one similarity
transform of the grid explains. OpenCV's RANSAC has a fixed seed of its own (opencv issue 24835):
the same patches always give the same number. Source: the geometric verification that ViTGaL, DELF
and others put behind their global descriptors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

TOLERANCE = 0.75  # patches: between neighbouring patches, and above the half patch that a finer shift can cost
MINIMUM = 10  # inliers: patches thrown into any order reach up to 9, on grids of 6 x 6 to 24 x 24
SCALES = (
    0.5,
    2.0,
)  # beyond, a transform squeezes everything into few patches and explains any match


@dataclass(frozen=True)
class LocalFeatures:
    """Patches of pictures: ``tokens`` (pictures, rows * columns, width) on ``grid`` (rows, columns), row by row.

    ``weights`` (pictures, rows * columns) say how much each patch is attended to.
    """

    tokens: Tensor
    weights: Tensor
    grid: tuple[int, int]

    def __post_init__(self) -> None:
        rows, columns = self.grid
        if self.tokens.shape[:2] != self.weights.shape or self.tokens.shape[1] != rows * columns:
            shapes = f"tokens {tuple(self.tokens.shape)} and weights {tuple(self.weights.shape)}"
            raise ValueError(f"{shapes} are no grids of {rows} x {columns}")

    def strongest(
        self, pictures: NDArray[np.intp], patches: int
    ) -> tuple[Tensor, NDArray[np.float32]]:
        """Return unit tokens (pictures, patches, width) of the most attended patches, and their (column, row)."""
        chosen = torch.from_numpy(np.asarray(pictures, dtype=np.int64))
        place = (
            self.weights[chosen].float().argsort(dim=1, descending=True, stable=True)[:, :patches]
        )
        tokens = (
            self.tokens[chosen]
            .float()
            .gather(1, place[..., None].expand(-1, -1, self.tokens.shape[-1]))
        )
        points = np.stack([place.numpy() % self.grid[1], place.numpy() // self.grid[1]], axis=-1)
        return F.normalize(tokens, dim=-1), points.astype(np.float32)


def by_inliers(
    query: LocalFeatures, gallery: LocalFeatures, *, patches: int = 64, minimum: int = MINIMUM
) -> Callable[[int, NDArray[np.intp]], NDArray[np.intp]]:
    """Return what :func:`eval.stages.metric_learning.protocols.records` takes as ``reorder``.

    Parameters
    ----------
    query, gallery
        Patches of the two sides, in the order of their pictures.
    patches
        How many of each picture are matched, the most attended first.
    minimum
        Fewer inliers than this are none. Pictures of as many inliers keep the order that they had.
    """

    def reorder(row: int, candidates: NDArray[np.intp]) -> NDArray[np.intp]:
        number = inliers(query, row, gallery, candidates, patches=patches)
        return candidates[np.argsort(-np.where(number < minimum, 0, number), kind="stable")]

    return reorder


def unmoved(lines: Iterable[Mapping[str, Any]], grid: tuple[int, int]) -> list[str]:
    """Flag re-ranking that left every query's first neighbours and every value as they were.

    ``lines`` are the `query` lines of a method and of METHOD_reranked, ``grid`` (rows, columns)
    that of the patches.
    """
    ranked: dict[str, dict[tuple[Any, ...], Any]] = {}
    for line in lines:
        if line["kind"] == "query":
            place = (line["seed"], line["query"], line["setting"])
            ranked.setdefault(line["method"], {})[place] = (
                [key for key, *_ in line["top"]],
                line.get("values"),
            )
    patches = grid[0] * grid[1]
    why = f"no two pictures have {MINIMUM} mutual matches in one arrangement, and the grid has {patches} patches"
    if patches < MINIMUM:
        why = f"the grid has too few patches ({patches}, and {MINIMUM} mutual matches are needed)"
    return [
        f"{method}: 0 of {len(several)} rankings changed: {why}"
        for method, several in ranked.items()
        if method.endswith("_reranked") and several == ranked[method.removesuffix("_reranked")]
    ]


def inliers(
    query: LocalFeatures,
    row: int,
    gallery: LocalFeatures,
    candidates: NDArray[np.intp],
    *,
    patches: int = 64,
) -> NDArray[np.int64]:
    """Return for each candidate (candidates,) how many matches with query ``row`` one similarity transform explains."""
    if not len(candidates):
        return np.empty(0, dtype=np.int64)
    own, from_points = query.strongest(np.array([row]), patches)
    theirs, to_points = gallery.strongest(candidates, patches)
    similarity = torch.einsum("qd,cgd->cqg", own[0], theirs)
    there, back = (
        similarity.argmax(dim=2),
        similarity.argmax(dim=1),
    )  # (candidates, query's), (candidates, theirs)
    mutual = back.gather(1, there) == torch.arange(len(own[0]))
    pairs = zip(mutual.numpy(), there.numpy(), to_points, strict=True)
    return np.array(
        [_consistent(from_points[0][same], points[to[same]]) for same, to, points in pairs],
        dtype=np.int64,
    )


def _consistent(source: NDArray[np.float32], target: NDArray[np.float32]) -> int:
    if len(source) < 2:
        return 0
    transform, kept = cv2.estimateAffinePartial2D(
        source, target, method=cv2.RANSAC, ransacReprojThreshold=TOLERANCE
    )
    if (
        transform is None
        or not SCALES[0] <= np.hypot(transform[0, 0], transform[1, 0]) <= SCALES[1]
    ):
        return 0
    return int(kept.sum())
