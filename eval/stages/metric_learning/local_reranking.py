"""Re-ranking by local features: neighbours whose patches match in the same arrangement come first.

In: patches of queries and gallery with their attention. Out: a function that reorders the best
neighbours of a query by the number of patches that match both ways by cosine and agree with one
similarity transform of the grid. OpenCV's RANSAC has a fixed seed of its own (opencv issue 24835),
so the same patches always give the same number. Source: the geometric verification of ViTGaL, DELF
and others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .records import Record

# Patches: less than the distance of neighbours, more than the half patch of a finer shift.
TOLERANCE = 0.75
# Inliers: patches in random order reach up to 9, on grids of 6 x 6 to 24 x 24.
MINIMUM = 10
# A transform beyond these squeezes everything into few patches and explains any match.
SCALES = (0.5, 2.0)


@dataclass(frozen=True)
class LocalFeatures:
    """Patches of images: ``tokens`` (images, rows * columns, width), row by row.

    ``weights`` (images, rows * columns) are the attention to each patch; ``grid`` is (rows,
    columns).
    """

    tokens: Tensor
    weights: Tensor
    grid: tuple[int, int]

    def __post_init__(self) -> None:
        rows, columns = self.grid
        if self.tokens.shape[:2] != self.weights.shape or self.tokens.shape[1] != rows * columns:
            shapes = f"tokens {tuple(self.tokens.shape)} and weights {tuple(self.weights.shape)}"
            raise ValueError(f"{shapes} do not fit grids of {rows} x {columns}")

    def strongest(
        self, images: NDArray[np.intp], patches: int
    ) -> tuple[Tensor, NDArray[np.float32]]:
        """Return unit tokens (images, patches, width) of the most attended patches.

        Also returns their (column, row).
        """
        chosen = torch.from_numpy(np.asarray(images, dtype=np.int64))
        order = self.weights[chosen].float().argsort(dim=1, descending=True, stable=True)
        place = order[:, :patches]
        index = place[..., None].expand(-1, -1, self.tokens.shape[-1])
        tokens = self.tokens[chosen].float().gather(1, index)
        points = np.stack([place.numpy() % self.grid[1], place.numpy() // self.grid[1]], axis=-1)
        return F.normalize(tokens, dim=-1), points.astype(np.float32)


def by_inliers(
    query: LocalFeatures, gallery: LocalFeatures, *, patches: int = 64, minimum: int = MINIMUM
) -> Callable[[int, NDArray[np.intp]], NDArray[np.intp]]:
    """Return a function for the argument ``reorder`` of `protocols.ranking.rank_gallery`.

    Parameters
    ----------
    query, gallery
        Patches of the two sides, in the order of their images.
    patches
        How many patches of each image are matched, the most attended first.
    minimum
        Fewer inliers count as none. Images with equally many inliers keep their order.
    """

    def reorder(row: int, candidates: NDArray[np.intp]) -> NDArray[np.intp]:
        number = inliers(query, row, gallery, candidates, patches=patches)
        return candidates[np.argsort(-np.where(number < minimum, 0, number), kind="stable")]

    return reorder


def inliers(
    query: LocalFeatures,
    row: int,
    gallery: LocalFeatures,
    candidates: NDArray[np.intp],
    *,
    patches: int = 64,
) -> NDArray[np.int64]:
    """Count for each candidate the matches with query ``row`` that fit a similarity transform.

    Returns (candidates,).
    """
    if not len(candidates):
        return np.empty(0, dtype=np.int64)
    query_tokens, query_points = query.strongest(np.array([row]), patches)
    tokens, points = gallery.strongest(candidates, patches)
    similarity = torch.einsum("qd,cgd->cqg", query_tokens[0], tokens)
    # The best patch of the candidate for each of the query's (candidates, query's patches), and
    # the other way round (candidates, its patches): pairs that choose each other match.
    best_in_candidate = similarity.argmax(dim=2)
    best_in_query = similarity.argmax(dim=1)
    is_mutual = best_in_query.gather(1, best_in_candidate) == torch.arange(len(query_tokens[0]))
    numbers = []
    for number in range(len(candidates)):
        matched = is_mutual[number].numpy()
        partners = best_in_candidate[number].numpy()[matched]
        numbers.append(_consistent(query_points[0][matched], points[number][partners]))
    return np.array(numbers, dtype=np.int64)


def _consistent(source: NDArray[np.float32], target: NDArray[np.float32]) -> int:
    """Count the pairs of points that agree with one similarity transform."""
    if len(source) < 2:
        return 0
    transform, is_inlier = cv2.estimateAffinePartial2D(
        source, target, method=cv2.RANSAC, ransacReprojThreshold=TOLERANCE
    )
    if transform is None:
        return 0
    scale = np.hypot(transform[0, 0], transform[1, 0])
    if not SCALES[0] <= scale <= SCALES[1]:
        return 0
    return int(is_inlier.sum())


def unmoved(records: Iterable[Record], grid: tuple[int, int]) -> list[str]:
    """Flag re-ranking that changed no query's first neighbours and no value.

    ``records`` hold the queries of a method and of METHOD_reranked; ``grid`` is (rows, columns) of
    patches.
    """
    rankings: dict[str, dict[tuple[Any, ...], Any]] = {}
    for record in records:
        if record["kind"] == "query":
            identity = (record["seed"], record["query"], record["setting"])
            keys = [key for key, *_ in record["top"]]
            rankings.setdefault(record["method"], {})[identity] = (keys, record.get("values"))
    patches = grid[0] * grid[1]
    if patches < MINIMUM:
        why = f"the grid has too few patches ({patches}, and {MINIMUM} mutual matches are needed)"
    else:
        why = (
            f"no two images have {MINIMUM} mutual matches in one arrangement, and the grid has "
            f"{patches} patches"
        )
    flags = []
    for method, ranking in rankings.items():
        if method.endswith("_reranked"):
            before = rankings[method.removesuffix("_reranked")]
            if ranking == before:
                flags.append(f"{method}: 0 of {len(ranking)} rankings changed: {why}")
    return flags
