"""Whether k-means recovers the classes: mutual information of its clusters with the labels.

In: embeddings and the number of classes. Out: the cluster of every item for several seeds. A result
keeps them, so that normalized and adjusted mutual information can be computed again. Clustering is
separate from the ranking metrics because k-means is not exact.
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
    """Return the clusters (seeds, items) of embeddings (items, width), scaled to length one.

    Seeds are 0, 1, 2, ...
    """
    if hasattr(embeddings, "detach"):
        embeddings = embeddings.detach().float().cpu().numpy()
    rows = np.asarray(embeddings, dtype=np.float32)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    runs = []
    # Threads add up centres in any order; one thread always gives the same clusters.
    with threadpool_limits(1):
        for seed in range(seeds):
            runs.append(KMeans(classes, n_init=1, random_state=seed).fit_predict(rows))
    return np.array(runs, dtype=np.int64)


def mutual_information(labels: Sequence[Any], clusters: Sequence[Any]) -> tuple[float, float]:
    """Return NMI and AMI of labels and clusters, both (items,); 1 if they agree.

    NMI divides by the arithmetic mean of the entropies.
    """
    nmi = float(normalized_mutual_info_score(labels, clusters))
    ami = float(adjusted_mutual_info_score(labels, clusters))
    return nmi, ami
