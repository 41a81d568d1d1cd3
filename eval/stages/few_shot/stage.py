"""Few-shot classification: all methods on the same episodes of new classes.

In: a model, labelled images (those with exactly one label are used), and optionally base classes to
train heads on and validation classes to choose settings on. Every image is encoded
once. Out: accuracies with a closed-world and an open-world interval, paired differences, and the
lists of episodes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from data_pipeline.shards.manifest import Manifest
from eval.encoding.encoders import Encoder, load_encoder
from eval.encoding.labelled_images import manifests_by_role
from eval.encoding.prompts import checked_templates
from eval.results.run_stage import Measured
from eval.stages.few_shot.episodes import Episode

from . import summary
from .baselines import Method
from .episode_lists import FormLists, drawn_lists, given_lists, write_lists
from .episode_tokens import EpisodeTokens
from .gliml import GLIMLHead
from .inference import World, classify, cost
from .methods import VALIDATION_EPISODES, Form, make, usable
from .options import Options
from .records import EpisodeRecord
from .scores import GLIML, metrics
from .splits import (
    Split,
    describe_splits,
    flag_shared_images,
    load_split,
    refuse_shared_classes,
)

__all__ = ["measure", "metrics", "table"]

# Number of episodes per form with images and patch weights in their records, for the report.
_SHOWN_EPISODES = 3

table = summary.table


def measure(options: Options, manifest: Manifest) -> Measured:
    """Classify images of new classes, each method on the same episodes.

    Raises
    ------
    UsageError
        If a method cannot run, or there are more ways than classes.
    DataError
        If data have no labels, a class has too few images, or two data sets share a class.
    NumericsError
        If tokens or scores are not finite.
    """
    # Wrong options are refused before the model is loaded.
    templates = checked_templates(options.templates)
    encoder = load_encoder(options.model, options.precision, options.cache)
    methods, left_out = usable(
        options.methods,
        joint=encoder.joint,
        base=options.base is not None,
        val=options.val is not None,
        mode=options.mode,
    )
    manifests = manifests_by_role(manifest, options.base, options.val)
    started = time.perf_counter()
    splits = {}
    for role, role_manifest in manifests.items():
        splits[role] = load_split(encoder, role_manifest, role, options, templates)
    # Classes are known only now: they are read together with the images.
    refuse_shared_classes(splits)
    data = splits["data"]
    timing = {"encoding_s": time.perf_counter() - started}
    if options.episode_list:
        lists = given_lists(options.episode_list, data, options.seed)
    else:
        lists = drawn_lists(data, options)
    records: list[EpisodeRecord] = []
    heads: dict[str, dict[str, Any]] = {}
    flags = flag_shared_images(splits)
    flags += [f"left_out/{method}: {reason}" for method, reason in left_out.items()]
    for form_lists in lists:
        measured = _measure_form(form_lists, methods, splits, options, encoder)
        records += measured.records
        heads |= measured.heads
        timing |= measured.timing
        flags += measured.flags
    computed = metrics(records)
    return Measured(
        records=records,
        protocol=_protocol(options, methods, lists, data, templates if encoder.joint else None),
        model={**encoder.description, "heads": heads},
        data=describe_splits(splits, options.limit),
        flags=flags + summary.flags(computed),
        timing=timing,
        device=str(encoder.device),
        metrics=computed,
        write_more=lambda out: write_lists(out, lists),
    )


def _protocol(
    options: Options,
    methods: Sequence[str],
    lists: Sequence[FormLists],
    data: Split,
    templates: Sequence[str] | None,
) -> dict[str, Any]:
    """Describe for result.json how the methods were measured."""
    chosen_by = None
    if options.val is not None:
        chosen_by = f"{VALIDATION_EPISODES} episodes of validation classes"
    return {
        "name": "few-shot classification",
        "methods": list(methods),
        "mode": options.mode,
        "interplay": options.interplay,
        "epochs": options.epochs,
        "episodes": {of_form.name: of_form.description() for of_form in lists},
        "seed": options.seed,
        "chosen_by": chosen_by,
        "templates": None if templates is None else list(templates),
        "patches": list(data.world.tokens.grid),
        "ties": "the first class",
        "precision": options.precision,
        "intervals": "Student t over episodes, Wilson for 0 and 100 %; closed_world: they "
        "share images, open_world: they share none",
    }


@dataclass(frozen=True)
class _MeasuredForm:
    """Records of one form of episodes; by method its settings and how long it took."""

    records: list[EpisodeRecord]
    heads: dict[str, dict[str, Any]] = field(default_factory=dict)
    timing: dict[str, float] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)


def _measure_form(
    lists: FormLists,
    methods: Sequence[str],
    splits: Mapping[str, Split],
    options: Options,
    encoder: Encoder,
) -> _MeasuredForm:
    form = Form(
        # A given list of episodes has a form of its own, which the options need not agree with.
        way=lists.closed_world.way,
        shot=lists.closed_world.shot,
        queries=lists.closed_world.queries,
        seed=options.seed,
        mode=options.mode,
        epochs=options.epochs,
        interplay=options.interplay,
    )
    measured = _MeasuredForm(_records_without_predictions(lists))
    if len(lists.open_world.episodes) < 2:
        measured.flags.append(
            f"no_open_world_interval/{lists.name}: the data allow no two disjoint episodes"
        )
    shown_episodes = lists.closed_world.episodes[:_SHOWN_EPISODES]
    # Trained GLIML if it runs, otherwise the untrained one.
    explained_method = next((name for name in GLIML if name in methods), None)
    for name in methods:
        label, started = f"{lists.name}/{name}", time.perf_counter()
        ready = make(name, splits, form, encoder)
        prepared = time.perf_counter()
        predicted: list[list[int]] = []
        always_constant = True
        for episode_list in lists.by_kind().values():
            predictions = classify(ready.method, ready.world, episode_list.episodes, label)
            predicted += predictions.predicted.tolist()
            always_constant = always_constant and predictions.constant
        classified = time.perf_counter()
        measured.timing[f"preparing_s/{label}"] = prepared - started
        measured.timing[f"episodes_per_s/{label}"] = len(predicted) / (classified - prepared)
        for record, answers in zip(measured.records, predicted, strict=True):
            record["predicted"][name] = answers
        measured.heads[label] = cost(ready.method, ready.world, shown_episodes[0]) | ready.settings
        if always_constant:
            measured.flags.append(f"degenerate_scores/{label}")
        if name == explained_method:
            _add_weights(ready.method, ready.world, shown_episodes, measured.records)
    _add_images(splits["data"].world.tokens.keys, shown_episodes, measured.records)
    return measured


def _records_without_predictions(lists: FormLists) -> list[EpisodeRecord]:
    records: list[EpisodeRecord] = []
    # The closed world comes first: the report shows the first records of a form.
    for kind, episode_list in lists.by_kind().items():
        for number, episode in enumerate(episode_list.episodes):
            records.append(
                {
                    "query": f"{lists.name}/{number}",
                    "kind": kind,
                    "way": episode_list.way,
                    "shot": episode_list.shot,
                    "classes": list(episode.classes),
                    "predicted": {},
                }
            )
    return records


def _add_images(
    keys: Sequence[str], episodes: Sequence[Episode], records: Sequence[EpisodeRecord]
) -> None:
    """Name the images of the first episodes, which the report shows."""
    for record, episode in zip(records, episodes, strict=False):
        record["support_pictures"] = [keys[row] for row in episode.support]
        record["query_pictures"] = [keys[row] for row in episode.query]


def _add_weights(
    method: Method, world: World, episodes: Sequence[Episode], records: Sequence[EpisodeRecord]
) -> None:
    """Record GLIML's weights of the patches in the first episodes, support and then queries."""
    assert isinstance(method, GLIMLHead)
    if method.interplay.mode != "gated":  # without the gate all patches have equal weights
        return
    for record, episode in zip(records, episodes, strict=False):
        support = EpisodeTokens.of(world.tokens, episode.support)
        query = EpisodeTokens.of(world.tokens, episode.query)
        explanation = method.explain(support, query)
        weights = torch.cat([explanation.support_weights, explanation.query_weights])
        # In float64, so that the rounded numbers are short in JSON.
        record["weights"] = np.round(weights.numpy().astype(np.float64), 5).tolist()
