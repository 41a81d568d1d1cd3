"""Whether k-means finds the classes again: normalised and adjusted mutual information of its clusters with labels.

In: embeddings and the number of classes. Out: the cluster of every item for several seeds, which a
result keeps, so that the two numbers can be computed again from it. Kept apart from the ranking
metrics because k-means is not exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score
from threadpoolctl import threadpool_limits


def kmeans_clusters(embeddings: Any, classes: int, *, seeds: int = 5) -> NDArray[np.int64]:
    """Return the clusters (seeds, items) of embeddings (items, width), scaled to length one; seeds are 0, 1, 2, ..."""
    values = (
        embeddings.detach().float().cpu().numpy() if hasattr(embeddings, "detach") else embeddings
    )
    rows = np.asarray(values, dtype=np.float32)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    # Threads add up centres in any order: one thread gives the same clusters again.
    with threadpool_limits(1):
        found = [
            KMeans(classes, n_init=1, random_state=seed).fit_predict(rows) for seed in range(seeds)
        ]
    return np.array(found, dtype=np.int64)


def mutual_information(labels: Sequence[Any], clusters: Sequence[Any]) -> tuple[float, float]:
    """Return NMI (arithmetic mean of the entropies) and AMI of labels and clusters, both (items,); 1 if they agree."""
    return float(normalized_mutual_info_score(labels, clusters)), float(
        adjusted_mutual_info_score(labels, clusters)
    )
