"""Every method on the same queries: the lines of `samples.jsonl`.

In: tokens of images to train on and to measure on, methods and their settings. Out: `query` records
(one query of one method and seed), `probe` records (what a fresh probe says of a held-out training
image) and `attention` records (where the head looks in a few images).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from eval.encoding.labelled_images import ImageTokens

from .local_reranking import LocalFeatures, by_inliers
from .methods import Trained, frozen_descriptors, seeded
from .options import Protocol
from .probes import PROBES, leakage_probe
from .protocols.ranking import Reorder, rank_gallery
from .protocols.task import EmbeddedImages
from .records import AttentionRecord, ProbeRecord, QueryRecord, Record
from .selection import Selection
from .training import attention, embed, train_dml

SHOWN = 12
"""Images whose attention over patches is recorded."""


@dataclass(frozen=True)
class Comparison:
    """Data and protocol that all methods share.

    ``learnt`` are the images to train on; ``measured`` holds `data` and, if queries are separate,
    `query`.
    """

    learnt: ImageTokens
    measured: Mapping[str, ImageTokens]
    protocol: Protocol
    ks: Sequence[int]
    clusterings: int
    rerank_k: int
    device: torch.device

    def of_frozen(self, parts: int) -> Iterator[Record]:
        """Yield the records of the descriptors that need no training."""
        by_set = {name: frozen_descriptors(tokens, parts) for name, tokens in self.measured.items()}
        for method in by_set["data"]:
            descriptors = {name: by_method[method] for name, by_method in by_set.items()}
            yield from self._ranked(method, None, descriptors)

    def of_trained(
        self, methods: Sequence[Trained], selection: Selection, seeds: Sequence[int]
    ) -> Iterator[Record]:
        """Train every method once per seed and yield its records; the first method is the head."""
        head = methods[0]
        labels = [names[0] for names in self.learnt.labels]
        classes = np.unique(labels, return_inverse=True)[1]
        for method in methods:
            # Methods without an adversary train for as long as is best without one.
            settings = selection.chosen if method.adversary else selection.without
            for seed in seeds:
                # A seed gives all methods the same batches, so that they differ less by chance.
                embedder = seeded(method.build, seed, self.device)
                seeded_settings = replace(settings, seed=seed)
                train_dml(embedder, self.learnt.layers, self.learnt.grid, classes, seeded_settings)
                descriptors = {}
                for name, tokens in self.measured.items():
                    descriptors[name] = embed(embedder, tokens.layers, tokens.grid)[0]
                yield from self._ranked(method.name, seed, descriptors)
                if method is head and self.rerank_k:
                    reorder = self._reorder(embedder)
                    yield from self._ranked(f"{method.name}_reranked", seed, descriptors, reorder)
                if method is head and seed == seeds[0]:
                    yield from _attention_records(embedder, self.measured["data"])
                if method is head or method.name == "no_adversary":
                    yield from self._probed(method.name, seed, embedder, labels)

    def _ranked(
        self,
        method: str,
        seed: int | None,
        descriptors: Mapping[str, Tensor],
        reorder: Reorder | None = None,
    ) -> Iterator[QueryRecord]:
        images = {}
        for name, tokens in self.measured.items():
            images[name] = EmbeddedImages(
                tokens.keys, tokens.labels, tokens.annotations, descriptors[name]
            )
        ranked = rank_gallery(
            self.protocol,
            images["data"],
            images.get("query"),
            ks=self.ks,
            # Re-ranking does not move descriptors, so their clusters would be the same.
            cluster_seeds=0 if reorder else self.clusterings,
            reorder=reorder,
            depth=self.rerank_k,
        )
        for record in ranked:
            yield {"kind": "query", "method": method, "seed": seed, **record}

    def _reorder(self, embedder: nn.Module) -> Reorder:
        """Reorder neighbours by the attended patches of the last block that has attention."""
        local = {}
        for name, tokens in self.measured.items():
            weights = attention(embedder, tokens.layers, tokens.grid)
            layer = max(weights)
            patches = tokens.layers[layer][:, 1:]  # without the class token
            local[name] = LocalFeatures(patches, weights[layer], tokens.grid)
        return by_inliers(local.get("query", local["data"]), local["data"])

    def _probed(
        self, method: str, seed: int, embedder: nn.Module, labels: Sequence[str]
    ) -> Iterator[ProbeRecord]:
        """Let fresh probes predict the classes of training images they were not fitted on."""
        general = embed(embedder, self.learnt.layers, self.learnt.grid)[1].numpy()
        for probe in PROBES:
            held_out, predicted = leakage_probe(general, np.asarray(labels), probe, seed=seed)
            rows = np.flatnonzero(held_out).tolist()
            for row, prediction in zip(rows, predicted.tolist(), strict=True):
                yield {
                    "kind": "probe",
                    "method": method,
                    "seed": seed,
                    "probe": probe,
                    "query": self.learnt.keys[row],
                    "label": labels[row],
                    "said": prediction,
                }


def _attention_records(embedder: nn.Module, tokens: ImageTokens) -> Iterator[AttentionRecord]:
    """Record where each block looks in images that are evenly spread over the data set."""
    # A set, because a small data set has fewer images than are shown.
    rows = sorted({number * len(tokens) // SHOWN for number in range(SHOWN)})
    shown = {layer: of_layer[rows] for layer, of_layer in tokens.layers.items()}
    weights = attention(embedder, shown, tokens.grid)
    for place, row in enumerate(rows):
        yield {
            "kind": "attention",
            "query": tokens.keys[row],
            "grid": list(tokens.grid),
            "weights": {str(layer): each[place].tolist() for layer, each in weights.items()},
        }
