"""Zero-shot metric learning: learn a descriptor on some classes, and retrieve pictures of others with it.

In: a model, a data set of labelled pictures to learn from and one, without a class in common, to be
measured on. Out: retrieval metrics of the trained head beside frozen descriptors and the head
without its parts, over several seeds, and what fresh probes read of the training classes. The tower
stays frozen; weights and steps are chosen on held-out training classes (A Metric Learning Reality
Check, Musgrave et al., 2020).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from data_pipeline.errors import DataError
from data_pipeline.shards.manifest import Manifest
from eval.encoding.encoders import equally_spaced, load_encoder
from eval.encoding.features import processes
from eval.encoding.labelled_images import encode_tokens
from eval.results.contamination import flags as overlap_flags
from eval.results.contamination import overlap
from eval.results.schema import Result, check_out, data_flags, environment, write_result

from . import summary
from .comparison import Comparison
from .heads.adversary import Kind
from .heads.parts import refuse_parts
from .local_reranking import unmoved
from .methods import Head, seeded, trained_methods
from .options import check_options
from .probes import MOST_CLASSES
from .protocols.records import Protocol, rules
from .scores import metrics
from .selection import choose
from .splits import (
    counts,
    labels_in,
    learnt_from,
    measured_on,
    nothing_right,
    refuse_unlearnable,
    refuse_unmeasurable,
    shared_pictures,
)
from .training import Settings

WEIGHTS = (0.01, 0.3, 10.0)
"""Weights of the adversary that class folds choose from."""


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
        `classes`: every picture against all others; `query-gallery`, `re-identification`,
        `sysu-all`, `sysu-indoor`, `revisited`.
    head, loss, adversary
        What is trained: `gdfl`, `dolg`, `vitgal` or `parts`; a loss of `LOSSES`; `grl`, `ridge` or
        `none`.
    lam
        Weight of the adversary; by default the best of `WEIGHTS` on held-out classes.
    layers, pool_grid
        Blocks that are read (four, equally spaced), and the side of the grid that patches are
        averaged to.
    embed_dim, per_layer_dim
        Sizes of the descriptor and of each block's feature.
    steps, seeds
        Of a training, and how often it is repeated.
    parts
        Bands of patch rows of the part descriptors, which are left out without any.
    rerank_k
        How many of each query's best are put in order by local features too, as a further method
        (0: none).
    folds
        Parts of the training classes, each held out once to choose the weight and when to stop.
    ks, clusterings
        The K of R@K, and runs of k-means for NMI and AMI (0: none).

    Raises
    ------
    UsageError, DataError, NumericsError
        For an unknown option; for classes that are in both data sets, too few classes or pictures
        of them, missing camera ids; for features that are not finite.
    """
    check_options(locals())
    check_out(out)
    manifests = {"data": Manifest.load(data), "base": Manifest.load(base)}
    if query is not None:
        manifests["query"] = Manifest.load(query)
    labels = {
        name: labels_in(each, None if name == "base" else limit) for name, each in manifests.items()
    }
    refuse_unlearnable(labels["base"], folds, seeds[0])
    refuse_unmeasurable(
        labels, {name: each.root for name, each in manifests.items()}, protocol, limit
    )
    known = overlap(manifests["data"], model, train)
    encoder = load_encoder(model, precision, cache)
    if parts:
        refuse_parts(parts, min(pool_grid, *encoder.grid))
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
    learnt = learnt_from(tokens["base"])
    measured = {
        name: measured_on(each, protocol) for name, each in tokens.items() if name != "base"
    }
    encoded = time.perf_counter()

    comparison = Comparison(learnt, measured, protocol, ks, clusterings, rerank_k, encoder.device)
    lines = list(comparison.of_frozen(parts))
    if not any("values" in line for line in lines):
        raise DataError(nothing_right(data, limit))
    methods = trained_methods(
        head,
        learnt.layers[chosen[0]].shape[-1],
        chosen,
        embed_dim=embed_dim,
        per_layer_dim=per_layer_dim,
        parts=parts,
        adversary=adversary != "none",
    )
    selection = choose(
        lambda seed: seeded(methods[0].build, seed, encoder.device),
        learnt.layers,
        learnt.grid,
        [names[0] for names in learnt.labels],
        Settings(loss=loss, adversary=adversary, strength=lam or 0.0, steps=steps, seed=seeds[0]),
        WEIGHTS if lam is None else [lam],
        folds,
    )
    selected = time.perf_counter()

    lines += comparison.of_trained(methods, selection, seeds)
    computed = metrics(lines)
    finished = time.perf_counter()
    state = processes()
    used = counts(tokens, {"base": learnt, **measured})
    result = Result(
        stage="metric-learning",
        protocol={
            "name": "zero-shot metric learning",
            "protocol": protocol,
            **rules(protocol),
            "head": head,
            "loss": loss,
            "adversary": adversary,
            "lam": "chosen of " + ", ".join(f"{weight:g}" for weight in WEIGHTS)
            if lam is None
            else lam,
            "layers": "equally spaced" if layers is None else list(layers),
            "pool_grid": pool_grid,
            "embed_dim": embed_dim,
            "per_layer_dim": per_layer_dim,
            "steps": steps,
            "parts": parts,
            "rerank_k": rerank_k,
            "tower": "frozen",
            "selection": {"folds": folds, "by": "MAP@R of the head on held-out training classes"},
            "ablations": "last_layer_only and no_attention train with the weight and the step chosen for the head",
            "seeds": list(seeds),
            "probed_classes": min(MOST_CLASSES, used["base"]["classes"]),
            "precision": precision,
            "intervals": "ci95 and classes: percentile bootstrap over classes; seeds: Student t over trainings",
        },
        data={
            "path": str(data),
            "name": manifests["data"].name,
            "hash": f"sha256:{manifests['data'].digest}",
            "images": used["data"]["pictures"],
            "sets": {
                name: {"path": str(manifest.root), "hash": f"sha256:{manifest.digest}"} | used[name]
                for name, manifest in manifests.items()
            },
            "overlap": known,
        },
        model=encoder.description
        | {
            "heads": {
                "summary": summary.summary(computed),
                "layers": list(chosen),
                "training": asdict(selection.chosen),
                "tried": selection.table,
            }
        },
        environment=environment(state.num_processes, str(encoder.device)),
        metrics=computed,
        flags=summary.flags(computed)
        + unmoved(lines, tokens["data"].grid)
        + shared_pictures(learnt, measured.values())
        + overlap_flags(known)
        + data_flags(manifests["data"]),
        timing={
            "encode_s": encoded - started,
            "select_s": selected - encoded,
            "train_and_rank_s": finished - selected,
            "total_s": finished - started,
        },
    )
    if state.is_main_process:
        write_result(Path(out), result, lines)
    state.wait_for_everyone()
    return result
