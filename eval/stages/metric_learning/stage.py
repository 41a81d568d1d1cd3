"""Zero-shot metric learning: train a descriptor on some classes, retrieve images of others.

In: a model, a data set of labelled images to train on, and a data set that shares no class with it
to evaluate on. Out: retrieval metrics of the trained head, of frozen descriptors and of the head's
ablations over several seeds, and how well fresh probes read the training classes from the features.
The tower stays frozen; the adversary's weight and the number of steps are chosen on held-out
training classes (A Metric Learning Reality Check, Musgrave et al., 2020).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.shards.manifest import Manifest
from eval.encoding.encoders import Encoder, equally_spaced, load_encoder
from eval.encoding.labelled_images import ImageTokens, encode_tokens
from eval.results.run_stage import Measured
from eval.results.schema import data_hash

from .comparison import Comparison
from .heads.parts import refuse_parts
from .local_reranking import unmoved
from .methods import Trained, seeded, trained_methods
from .options import Options
from .probes import MOST_CLASSES
from .protocols.ranking import rules
from .scores import metrics
from .selection import Selection, select_settings
from .splits import (
    counts,
    labels_in,
    learnt_from,
    measured_on,
    no_match_message,
    refuse_unlearnable,
    refuse_unmeasurable,
    shared_pictures,
)
from .summary import flags, summary, table
from .training import Settings

__all__ = ["WEIGHTS", "measure", "metrics", "table"]

WEIGHTS = (0.01, 0.3, 10.0)
"""Weights of the adversary that class folds choose from."""


def measure(options: Options, manifest: Manifest) -> Measured:
    """Train on `base`, then rank the images of `data` with every method.

    Raises
    ------
    UsageError
        If the tower lacks a block, or has fewer rows of patches than there are parts.
    DataError
        If `base` shares a class with `data` or `query`, there are too few classes or images of
        them, or a protocol lacks its annotations.
    NumericsError
        If a feature is not finite.
    """
    manifests = {"data": manifest, "base": Manifest.load(options.base)}
    if options.query is not None:
        manifests["query"] = Manifest.load(options.query)
    _refuse_labels(options, manifests)
    encoder = load_encoder(options.model, options.precision, options.cache)
    if options.parts:
        refuse_parts(options.parts, min(options.pool_grid, *encoder.grid))
    layers = options.layers or equally_spaced(encoder.depth)

    started = time.perf_counter()
    tokens = _encode(options, encoder, manifests, layers)
    learnt = learnt_from(tokens["base"])
    measured = {}
    for name in tokens:
        if name != "base":
            measured[name] = measured_on(tokens[name], options.protocol)
    encoded = time.perf_counter()

    comparison = Comparison(
        learnt,
        measured,
        options.protocol,
        options.ks,
        options.clusterings,
        options.rerank_k,
        encoder.device,
    )
    records = list(comparison.of_frozen(options.parts))
    # Where cameras or relevance decide what is right, labels could not show earlier that no query
    # has a match. Training would be for nothing.
    if not any("values" in record for record in records):
        raise DataError(no_match_message(options.data, options.limit))
    methods = trained_methods(
        options.head,
        learnt.layers[layers[0]].shape[-1],
        layers,
        embed_dim=options.embed_dim,
        per_layer_dim=options.per_layer_dim,
        parts=options.parts,
        adversary=options.adversary != "none",
    )
    selection = _select(options, encoder, learnt, methods[0])
    selected = time.perf_counter()

    records += comparison.of_trained(methods, selection, options.seeds)
    computed = metrics(records)
    finished = time.perf_counter()

    used = counts(tokens, {"base": learnt, **measured})
    sets = {}
    for name, numbers in used.items():
        sets[name] = _identify(options, name, manifests[name]) | numbers
    heads = {
        "summary": summary(computed),
        "layers": list(layers),
        "training": asdict(selection.chosen),
        "tried": selection.table,
    }
    return Measured(
        records=records,
        protocol=_protocol(options, probed_classes=min(MOST_CLASSES, used["base"]["classes"])),
        model=encoder.description | {"heads": heads},
        data={
            "images": used["data"]["pictures"],
            "sets": sets,
        },
        flags=flags(computed)
        + unmoved(records, tokens["data"].grid)
        + shared_pictures(learnt, measured.values()),
        timing={
            "encode_s": encoded - started,
            "select_s": selected - encoded,
            "train_and_rank_s": finished - selected,
        },
        device=str(encoder.device),
        metrics=computed,
    )


def _refuse_labels(options: Options, manifests: Mapping[str, Manifest]) -> None:
    """Raise DataError for labels that cannot work: reading them is quick, encoding is not."""
    labels = {}
    for name, manifest in manifests.items():
        labels[name] = labels_in(manifest, _limit(options, name))
    refuse_unlearnable(labels["base"], options.folds, options.seeds[0])
    roots = {name: manifest.root for name, manifest in manifests.items()}
    refuse_unmeasurable(labels, roots, options.protocol, options.limit)


def _limit(options: Options, name: str) -> int | None:
    """Return how many images of a set are read: `--limit` is for evaluation, not training."""
    return None if name == "base" else options.limit


def _encode(
    options: Options,
    encoder: Encoder,
    manifests: Mapping[str, Manifest],
    layers: Sequence[int],
) -> dict[str, ImageTokens]:
    tokens = {}
    for name, manifest in manifests.items():
        tokens[name] = encode_tokens(
            encoder,
            manifest,
            layers=layers,
            pool_grid=options.pool_grid,
            limit=_limit(options, name),
            batch_size=options.batch_size,
        )
    return tokens


def _select(options: Options, encoder: Encoder, learnt: ImageTokens, head: Trained) -> Selection:
    """Choose the adversary's weight and the number of steps on held-out training classes."""
    settings = Settings(
        loss=options.loss,
        adversary=options.adversary,
        strength=options.lam or 0.0,
        steps=options.steps,
        seed=options.seeds[0],
    )
    return select_settings(
        lambda seed: seeded(head.build, seed, encoder.device),
        learnt.layers,
        learnt.grid,
        [names[0] for names in learnt.labels],
        settings,
        WEIGHTS if options.lam is None else [options.lam],
        options.folds,
    )


def _protocol(options: Options, probed_classes: int) -> dict[str, Any]:
    lam: float | str
    if options.lam is None:
        lam = "chosen of " + ", ".join(f"{weight:g}" for weight in WEIGHTS)
    else:
        lam = options.lam
    return {
        "name": "zero-shot metric learning",
        "protocol": options.protocol,
        **rules(options.protocol),
        "head": options.head,
        "loss": options.loss,
        "adversary": options.adversary,
        "lam": lam,
        "layers": "equally spaced" if options.layers is None else list(options.layers),
        "pool_grid": options.pool_grid,
        "embed_dim": options.embed_dim,
        "per_layer_dim": options.per_layer_dim,
        "steps": options.steps,
        "parts": options.parts,
        "rerank_k": options.rerank_k,
        "tower": "frozen",
        "selection": {
            "folds": options.folds,
            "by": "MAP@R of the head on held-out training classes",
        },
        "ablations": "last_layer_only and no_attention train with the weight and the step chosen "
        "for the head",
        "seeds": list(options.seeds),
        "probed_classes": probed_classes,
        "precision": options.precision,
        "intervals": "ci95 and classes: Wilson score for proportions, else percentile bootstrap; "
        "over classes. seeds: Student t over trainings",
    }


def _identify(options: Options, name: str, manifest: Manifest) -> dict[str, str]:
    return {"path": str(manifest.root), "hash": data_hash(manifest, _limit(options, name))}
