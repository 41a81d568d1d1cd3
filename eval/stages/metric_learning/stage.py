"""Zero-shot metric learning: learn a descriptor on some classes, and retrieve pictures of others with it.

In: a model, a data set of labelled pictures to learn from and one, without a class in common, to be measured on. Out:
retrieval metrics of the trained head beside frozen descriptors and the head without its parts, over several seeds, and
what fresh probes read of the training classes. The tower stays frozen; weights and steps are chosen on held-out
training classes (A Metric Learning Reality Check, Musgrave et al., 2020).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from data_pipeline.errors import DataError, UsageError
from data_pipeline.manifest import Manifest
from eval.encoders import equally_spaced, load_encoder
from eval.features import processes
from eval.overlap import flags as overlap_flags
from eval.overlap import overlap
from eval.schema import Result, data_flags, environment, write_result
from eval.tokens import ImageTokens, encode_tokens

from . import summary
from .adversary import Kind
from .local_reranking import LocalFeatures, by_inliers
from .methods import Head, Trained, frozen_descriptors, seeded, trained_methods
from .pictures import Pictures
from .probes import PROBES, leakage_probe
from .protocols import PROTOCOLS, Protocol, Reorder, records
from .scores import metrics
from .selection import choose
from .training import Settings, attention, embed, train_dml

WEIGHTS = (0.1, 1.0, 10.0)
"""Weights of the adversary that class folds choose from."""
DRAWN = 12
"""Pictures whose attention over patches is kept."""


def evaluate(
    model: Path | str,
    data: Path | str,
    out: Path | str,
    *,
    base: Path | str,
    query: Path | str | None = None,
    protocol: Protocol = "classes",
    head: Head = "gdfl",
    loss: str = "multi_similarity",
    adversary: Kind = "grl",
    lam: float | None = None,
    layers: Sequence[int] | None = None,
    pool_grid: int = 7,
    embed_dim: int = 512,
    per_layer_dim: int = 128,
    steps: int = 200,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    parts: int = 0,
    rerank_k: int = 0,
    folds: int = 4,
    ks: Sequence[int] = (1, 2, 4, 8),
    clusterings: int = 5,
    limit: int | None = None,
    batch_size: int = 64,
    precision: str = "fp32",
    cache: Path | str | None = None,
    train: Path | str | None = None,
) -> Result:
    """Learn on ``base``, retrieve in ``data``; write `result.json` and `samples.jsonl`.

    Parameters
    ----------
    model, data, out, limit, batch_size, precision, cache, train
        As of retrieval; the model may also be an export or a CLIP model of transformers.
    base
        Data set to learn from; none of its classes may be in ``data``.
    query
        Queries, where they are not the gallery ``data`` itself.
    protocol
        `classes`: every picture against all others; `query-gallery`, `re-identification`, `sysu-all`, `sysu-indoor`,
        `revisited`.
    head, loss, adversary
        What is trained: `gdfl`, `dolg`, `vitgal` or `parts`; a loss of `LOSSES`; `grl`, `ridge` or `none`.
    lam
        Weight of the adversary; by default the best of `WEIGHTS` on held-out classes.
    layers, pool_grid
        Blocks that are read (four, equally spaced), and the side of the grid that patches are averaged to.
    embed_dim, per_layer_dim
        Sizes of the descriptor and of each block's feature.
    steps, seeds
        Of a training, and how often it is repeated.
    parts
        Bands of patch rows of the part descriptors, which are left out without any.
    rerank_k
        How many of each query's best are put in order by local features too, as a further method (0: none).
    folds
        Parts of the training classes, each held out once to choose the weight and when to stop.
    ks, clusterings
        The K of R@K, and runs of k-means for NMI and AMI (0: none).

    Raises
    ------
    UsageError, DataError, NumericsError
        For an unknown option; for classes that are in both data sets, too few classes or pictures of them, missing
        camera ids; for features that are not finite.
    """
    _check(protocol, seeds, steps, ks, head, rerank_k)
    manifests = {"data": Manifest.load(data), "base": Manifest.load(base)}
    if query is not None:
        manifests["query"] = Manifest.load(query)
    known = overlap(manifests["data"], model, train)
    encoder = load_encoder(model, precision, cache)
    started = time.perf_counter()
    chosen = tuple(layers) if layers else equally_spaced(encoder.depth)
    tokens = {
        name: encode_tokens(
            encoder,
            manifest,
            layers=chosen,
            pool_grid=pool_grid,
            limit=None if name == "base" else limit,
            batch_size=batch_size,
        )
        for name, manifest in manifests.items()
    }
    measured = {name: _measured(each, protocol) for name, each in tokens.items() if name != "base"}
    learnt = _labelled(tokens["base"])
    for name, several in measured.items():
        _refuse_overlap(learnt, several, base, manifests[name].root)
    encoded = time.perf_counter()

    methods = trained_methods(
        head,
        learnt.layers[chosen[0]].shape[-1],
        chosen,
        embed_dim=embed_dim,
        per_layer_dim=per_layer_dim,
        parts=parts,
        adversary=adversary != "none",
    )
    settings = Settings(loss=loss, adversary=adversary, strength=lam or 0.0, steps=steps, seed=seeds[0])
    labels = [names[0] for names in learnt.labels]
    selection = choose(
        lambda seed: seeded(methods[0].build, seed, encoder.device),
        learnt.layers,
        learnt.grid,
        labels,
        settings,
        WEIGHTS if lam is None else [lam],
        folds,
    )
    selected = time.perf_counter()

    def ranked(
        name: str, seed: int | None, descriptors: dict[str, Any], reorder: Reorder | None = None
    ) -> list[dict[str, Any]]:
        pictures = {part: _pictures(each, descriptors[part]) for part, each in measured.items()}
        clusters = 0 if reorder else clusterings
        found = records(
            protocol,
            pictures["data"],
            pictures.get("query"),
            ks=ks,
            cluster_seeds=clusters,
            reorder=reorder,
            depth=rerank_k,
        )
        return [{"kind": "query", "method": name, "seed": seed} | line for line in found]

    lines = []
    frozen = {name: frozen_descriptors(each, parts) for name, each in measured.items()}
    for name in frozen["data"]:
        lines += ranked(name, None, {part: each[name] for part, each in frozen.items()})
    for method in methods:
        for seed in seeds:
            embedder = seeded(method.build, seed, encoder.device)
            own = replace(selection.chosen if method.adversary else selection.without, seed=seed)
            train_dml(embedder, learnt.layers, learnt.grid, np.unique(labels, return_inverse=True)[1], own)
            learned = {part: embed(embedder, each.layers, each.grid)[0] for part, each in measured.items()}
            lines += ranked(method.name, seed, learned)
            if rerank_k and method.name == head:
                locals_ = {part: _local_features(embedder, each) for part, each in measured.items()}
                reorder = by_inliers(locals_.get("query", locals_["data"]), locals_["data"])
                lines += ranked(f"{head}_reranked", seed, learned, reorder)
            if method.name in (head, "no_adversary"):
                lines += _probed(method, seed, embedder, learnt, labels)
            if method.name == head and seed == seeds[0]:
                lines += _attention(embedder, measured["data"])
    computed = metrics(lines)
    state = processes()
    result = Result(
        stage="metric-learning",
        protocol={
            "name": "zero-shot metric learning",
            "protocol": protocol,
            "summary": summary.summary(computed),
            "head": head,
            "layers": list(chosen),
            "tower": "frozen",
            "training": asdict(selection.chosen),
            "selection": {"folds": folds, "by": "MAP@R on held-out training classes", "tried": selection.table},
            "seeds": list(seeds),
            "parts": parts,
            "rerank_k": rerank_k,
            "precision": precision,
            "intervals": "ci95 and classes: percentile bootstrap over classes; seeds: Student t over trainings",
        },
        data={
            "path": str(data),
            "name": manifests["data"].name,
            "hash": f"sha256:{manifests['data'].digest}",
            "sets": {
                name: {"path": str(manifest.root), "hash": f"sha256:{manifest.digest}"}
                | {"pictures": len(used), "left_out": len(tokens[name]) - len(used)}
                | {"classes": len({names for names in used.labels if names})}
                for (name, manifest), used in zip(
                    manifests.items(), [{"base": learnt, **measured}[name] for name in manifests], strict=True
                )
            },
            "overlap": known,
        },
        model=encoder.description,
        environment=environment(state.num_processes, str(encoder.device)),
        metrics=computed,
        flags=summary.flags(computed)
        + _shared_pictures(learnt, measured)
        + overlap_flags(known)
        + data_flags(manifests["data"]),
        timing={
            "encode_s": encoded - started,
            "select_s": selected - encoded,
            "train_and_rank_s": time.perf_counter() - selected,
            "total_s": time.perf_counter() - started,
        },
    )
    if state.is_main_process:
        write_result(Path(out), result, lines)
    state.wait_for_everyone()
    return result


def _check(protocol: str, seeds: Sequence[int], steps: int, ks: Sequence[int], head: str, rerank_k: int) -> None:
    if protocol not in PROTOCOLS:
        raise UsageError(f"protocol is {protocol!r}, must be one of {', '.join(PROTOCOLS)}")
    if not seeds or len(set(seeds)) != len(seeds):
        raise UsageError("seeds must name one or more different numbers")
    if rerank_k and (head == "parts" or protocol.startswith("sysu")):
        raise UsageError("rerank_k needs a head with attention (gdfl, dolg, vitgal) and pictures of one modality")
    if steps < 1:
        raise UsageError("steps must be at least 1")
    if 1 not in ks or min(ks) < 1:
        raise UsageError("ks must hold 1, the K that methods are compared by, and no smaller number")


def _labelled(tokens: ImageTokens) -> ImageTokens:
    """Keep the pictures of exactly one class."""
    rows = [row for row, names in enumerate(tokens.labels) if len(names) == 1]
    if not rows:
        raise DataError('no picture to learn from has exactly one of "labels", the class that metric learning needs')
    return _rows(tokens, rows)


def _measured(tokens: ImageTokens, protocol: str) -> ImageTokens:
    """Keep the pictures that the protocol ranks: of one class, or also those of none, the distractors of a gallery."""
    allowed = (1,) if protocol == "classes" else (0, 1)
    rows = [row for row, names in enumerate(tokens.labels) if len(names) in allowed]
    if not rows:
        raise DataError('no picture to be measured on has exactly one of "labels", its class')
    return _rows(tokens, rows)


def _rows(tokens: ImageTokens, rows: list[int]) -> ImageTokens:
    if len(rows) == len(tokens):
        return tokens
    lists = {name: [getattr(tokens, name)[row] for row in rows] for name in ("keys", "labels", "annotations", "media")}
    return replace(
        tokens,
        **lists,
        cls=tokens.cls[rows],
        patch=tokens.patch[rows],
        proj=None if tokens.proj is None else tokens.proj[rows],
        layers={layer: each[rows] for layer, each in tokens.layers.items()},
    )


def _refuse_overlap(learnt: ImageTokens, measured: ImageTokens, base: Path | str, data: Path) -> None:
    names = sorted(
        {name for each in learnt.labels for name in each} & {name for each in measured.labels for name in each}
    )
    if names:
        shown = ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise DataError(f"{base} and {data} share the classes {shown}: unseen classes must not be learnt from")


def _shared_pictures(learnt: ImageTokens, measured: Mapping[str, ImageTokens]) -> list[str]:
    """Flag pictures that stand in both data sets byte for byte, as some published splits have them."""
    seen = set(learnt.media)
    shared = {media for each in measured.values() for media in each.media} & seen
    return [f"pictures_shared_with/base/{len(shared)}"] if shared else []


def _pictures(tokens: ImageTokens, embedding: Any) -> Pictures:
    return Pictures(tokens.keys, tokens.labels, tokens.annotations, embedding)


def _probed(
    method: Trained, seed: int, embedder: nn.Module, learnt: ImageTokens, labels: Sequence[str]
) -> Iterable[dict[str, Any]]:
    """Let fresh probes read the training classes from the general features of pictures they did not see."""
    general = embed(embedder, learnt.layers, learnt.grid)[1].numpy()
    for probe in PROBES:
        held, said = leakage_probe(general, np.asarray(labels), probe, seed=seed)
        for row, name in zip(np.flatnonzero(held).tolist(), said.tolist(), strict=True):
            about = {"kind": "probe", "method": method.name, "seed": seed, "probe": probe}
            yield about | {"query": learnt.keys[row], "label": labels[row], "said": name}


def _local_features(embedder: nn.Module, tokens: ImageTokens) -> LocalFeatures:
    """Return the patches of the last block that the embedder attends to, with its attention."""
    weights = attention(embedder, tokens.layers, tokens.grid)
    layer = max(weights)
    return LocalFeatures(tokens.layers[layer][:, 1:], weights[layer], tokens.grid)


def _attention(embedder: nn.Module, tokens: ImageTokens) -> Iterable[dict[str, Any]]:
    """Keep where each block looked in pictures that are evenly spread over the data set."""
    rows = sorted({number * len(tokens) // DRAWN for number in range(DRAWN)})
    weights = attention(embedder, {layer: each[rows] for layer, each in tokens.layers.items()}, tokens.grid)
    for place, row in enumerate(rows):
        looked = {str(layer): each[place].tolist() for layer, each in weights.items()}
        yield {"kind": "attention", "query": tokens.keys[row], "grid": list(tokens.grid), "weights": looked}
