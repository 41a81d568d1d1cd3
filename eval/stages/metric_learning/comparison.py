"""Every method on the same queries: the lines of `samples.jsonl`.

In: tokens of pictures to learn from and to be measured on, methods and their settings. Out: `query`
lines (one query of one method and seed), `probe` lines (what a fresh probe said of a held-out
training picture) and `attention` lines (where the head looked in a few pictures).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eval.encoding.labelled_images import ImageTokens

from .local_reranking import LocalFeatures, by_inliers
from .methods import Trained, frozen_descriptors, seeded
from .options import Protocol
from .probes import PROBES, leakage_probe
from .protocols.pictures import Pictures
from .protocols.records import Reorder, records
from .selection import Selection
from .training import attention, embed, train_dml

DRAWN = 12
"""Pictures whose attention over patches is kept."""
Line = dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """What is compared: ``measured`` holds `data` and, where queries are apart, `query`."""

    learnt: ImageTokens
    measured: Mapping[str, ImageTokens]
    protocol: Protocol
    ks: Sequence[int]
    clusterings: int
    rerank_k: int
    device: torch.device

    def of_frozen(self, parts: int) -> Iterator[Line]:
        """Yield the lines of the descriptors that need no training."""
        found = {name: frozen_descriptors(each, parts) for name, each in self.measured.items()}
        for method in found["data"]:
            yield from self._ranked(
                method, None, {name: each[method] for name, each in found.items()}
            )

    def of_trained(
        self, methods: Sequence[Trained], selection: Selection, seeds: Sequence[int]
    ) -> Iterator[Line]:
        """Train every method once a seed and yield its lines; the first method is the head."""
        labels = [names[0] for names in self.learnt.labels]
        classes = np.unique(labels, return_inverse=True)[1]
        for method in methods:
            for seed in seeds:
                embedder = seeded(method.build, seed, self.device)
                settings = replace(
                    selection.chosen if method.adversary else selection.without, seed=seed
                )
                train_dml(embedder, self.learnt.layers, self.learnt.grid, classes, settings)
                learnt = {
                    name: embed(embedder, each.layers, each.grid)[0]
                    for name, each in self.measured.items()
                }
                yield from self._ranked(method.name, seed, learnt)
                if method is methods[0] and self.rerank_k:
                    yield from self._ranked(
                        f"{method.name}_reranked", seed, learnt, self._reorder(embedder)
                    )
                if method is methods[0] and seed == seeds[0]:
                    yield from _looked(embedder, self.measured["data"])
                if method is methods[0] or method.name == "no_adversary":
                    yield from self._probed(method.name, seed, embedder, labels)

    def _ranked(
        self,
        method: str,
        seed: int | None,
        descriptors: Mapping[str, Tensor],
        reorder: Reorder | None = None,
    ) -> Iterator[Line]:
        pictures = {
            name: Pictures(each.keys, each.labels, each.annotations, descriptors[name])
            for name, each in self.measured.items()
        }
        found = records(
            self.protocol,
            pictures["data"],
            pictures.get("query"),
            ks=self.ks,
            cluster_seeds=0 if reorder else self.clusterings,
            reorder=reorder,
            depth=self.rerank_k,
        )
        for line in found:
            yield {"kind": "query", "method": method, "seed": seed} | line

    def _reorder(self, embedder: nn.Module) -> Reorder:
        """Order the best neighbours by the patches of the last block that the embedder attends to."""
        local = {}
        for name, each in self.measured.items():
            weights = attention(embedder, each.layers, each.grid)
            layer = max(weights)
            local[name] = LocalFeatures(each.layers[layer][:, 1:], weights[layer], each.grid)
        return by_inliers(local.get("query", local["data"]), local["data"])

    def _probed(
        self, method: str, seed: int, embedder: nn.Module, labels: Sequence[str]
    ) -> Iterator[Line]:
        """Let fresh probes read the training classes from the general features of pictures they did not see."""
        general = embed(embedder, self.learnt.layers, self.learnt.grid)[1].numpy()
        for probe in PROBES:
            held, said = leakage_probe(general, np.asarray(labels), probe, seed=seed)
            about = {"kind": "probe", "method": method, "seed": seed, "probe": probe}
            for row, name in zip(np.flatnonzero(held).tolist(), said.tolist(), strict=True):
                yield about | {"query": self.learnt.keys[row], "label": labels[row], "said": name}


def _looked(embedder: nn.Module, tokens: ImageTokens) -> Iterator[Line]:
    """Keep where each block looked in pictures that are evenly spread over the data set."""
    rows = sorted({number * len(tokens) // DRAWN for number in range(DRAWN)})
    weights = attention(
        embedder, {layer: each[rows] for layer, each in tokens.layers.items()}, tokens.grid
    )
    for place, row in enumerate(rows):
        looked = {str(layer): each[place].tolist() for layer, each in weights.items()}
        yield {
            "kind": "attention",
            "query": tokens.keys[row],
            "grid": list(tokens.grid),
            "weights": looked,
        }
