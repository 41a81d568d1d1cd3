"""Few-shot classification: classes that a few pictures show, each method on the same episodes as all the others.

In: a model and labelled pictures, of which those with exactly one label count; base classes that
heads are trained on and validation classes that settings are chosen on, where there are any.
Pictures are encoded once. Out: accuracies with a closed-world and an open-world interval, paired
differences, and the lists of episodes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from data_pipeline.shards.manifest import Manifest
from eval.encoding.encoders import Encoder, load_encoder
from eval.encoding.prompts import checked_templates
from eval.results.run_stage import Measured
from eval.stages.few_shot.episodes import Episode

from . import summary
from .baselines import Method
from .episode_lists import Lists, drawn_lists, given_lists, write_lists
from .episode_tokens import EpisodeTokens
from .gliml import GLIMLHead
from .inference import World, cost, recognise
from .methods import VALIDATION_EPISODES, Form, make, usable
from .options import Options
from .scores import GLIML, metrics
from .splits import Split, described, load_split, refuse_shared_classes, shared_pictures

# Episodes of each form whose images and patch weights the records hold, for the report.
_SHOWN = 3


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
    templates = checked_templates(options.templates)
    encoder = load_encoder(options.model, options.precision, options.cache)
    names, left_out = usable(
        options.methods,
        joint=encoder.joint,
        base=options.base is not None,
        val=options.val is not None,
        mode=options.mode,
    )
    manifests = {"data": manifest}
    if options.base is not None:
        manifests["base"] = Manifest.load(options.base)
    if options.val is not None:
        manifests["val"] = Manifest.load(options.val)
    started = time.perf_counter()
    splits = {}
    for name, each in manifests.items():
        splits[name] = load_split(
            encoder,
            each,
            f"--{name}",
            templates=templates,
            pool_grid=options.pool_grid,
            limit=options.limit,
            batch_size=options.batch_size,
        )
    refuse_shared_classes(splits)
    encoded, novel = time.perf_counter(), splits["data"]
    if options.episode_list:
        lists = given_lists(options.episode_list, novel, options.seed)
    else:
        lists = drawn_lists(
            novel, options.way, options.shot, options.queries, options.episodes, options.seed
        )
    records: list[dict[str, Any]] = []
    heads: dict[str, dict[str, Any]] = {}
    timing = {"encoding_s": encoded - started}
    flags = shared_pictures(splits)
    flags += [f"left_out/{name}: {reason}" for name, reason in left_out.items()]
    for both in lists:
        measured = _measure_form(both, names, splits, options, encoder)
        records += measured.lines
        heads |= measured.heads
        timing |= measured.timing
        flags += measured.flags
    computed = metrics(records)
    chosen_by = None
    if options.val is not None:
        chosen_by = f"{VALIDATION_EPISODES} episodes of validation classes"
    return Measured(
        records=records,
        protocol={
            "name": "few-shot classification",
            "methods": names,
            "mode": options.mode,
            "interplay": options.interplay,
            "epochs": options.epochs,
            "episodes": {both.name: both.described() for both in lists},
            "seed": options.seed,
            "chosen_by": chosen_by,
            "templates": list(templates) if encoder.joint else None,
            "patches": list(novel.world.tokens.grid),
            "ties": "the first class",
            "precision": options.precision,
            "intervals": "Student t over episodes; closed_world: they share pictures, "
            "open_world: they share none",
        },
        model={**encoder.description, "heads": heads},
        data=described(splits),
        flags=flags + summary.flags(computed),
        timing=timing,
        device=str(encoder.device),
        metrics=computed,
        write_more=lambda out: write_lists(out, lists),
    )


@dataclass(frozen=True)
class _MeasuredForm:
    """What one form of episodes gave: records, and by method how it was set up and how long it took."""

    lines: list[dict[str, Any]]
    heads: dict[str, dict[str, Any]]
    timing: dict[str, float]
    flags: list[str]


def _measure_form(
    both: Lists,
    names: Sequence[str],
    splits: Mapping[str, Split],
    options: Options,
    encoder: Encoder,
) -> _MeasuredForm:
    form = Form(
        both.closed.way,
        both.closed.shot,
        both.closed.queries,
        seed=options.seed,
        mode=options.mode,
        epochs=options.epochs,
        interplay=options.interplay,
    )
    measured = _MeasuredForm(_lines(both), {}, {}, [])
    if len(both.apart.episodes) < 2:
        measured.flags.append(
            f"no_open_world_interval/{both.name}: the data allow no two disjoint episodes"
        )
    shown = both.closed.episodes[:_SHOWN]
    for name in names:
        label, started = f"{both.name}/{name}", time.perf_counter()
        ready = make(name, splits, form, encoder)
        prepared = time.perf_counter()
        found = [
            recognise(ready.method, ready.world, one.episodes, label)
            for one in both.by_kind().values()
        ]
        measured.timing[f"preparing_s/{label}"] = prepared - started
        measured.timing[f"episodes_per_s/{label}"] = len(measured.lines) / (
            time.perf_counter() - prepared
        )
        predicted = [row for one in found for row in one.predicted.tolist()]
        for line, own in zip(measured.lines, predicted, strict=True):
            line["predicted"][name] = own
        measured.heads[label] = cost(ready.method, ready.world, shown[0]) | ready.settings
        if all(one.constant for one in found):
            measured.flags.append(f"degenerate_scores/{label}")
        if name == next((one for one in GLIML if one in names), None):
            _explain(ready.method, ready.world, shown, measured.lines)
    _show(splits["data"].world.tokens.keys, shown, measured.lines)
    return measured


def _lines(both: Lists) -> list[dict[str, Any]]:
    """Make the record of every episode, without predictions."""
    return [
        {"query": f"{both.name}/{number}", "kind": kind, "way": listed.way, "shot": listed.shot}
        | {"classes": list(episode.classes), "predicted": {}}
        for kind, listed in both.by_kind().items()
        for number, episode in enumerate(listed.episodes)
    ]


def _show(keys: Sequence[str], episodes: Sequence[Episode], lines: list[dict[str, Any]]) -> None:
    """Name the pictures of the first episodes, which the report shows."""
    for line, episode in zip(lines, episodes, strict=False):
        line |= {
            f"{part}_pictures": [keys[row] for row in getattr(episode, part)]
            for part in ("support", "query")
        }


def _explain(
    method: Method, world: World, episodes: Sequence[Episode], lines: list[dict[str, Any]]
) -> None:
    """Keep what GLIML weighs the patches of the first episodes with, support and then queries."""
    assert isinstance(method, GLIMLHead)
    if method.interplay.mode != "gated":  # all patches weigh the same
        return
    for line, episode in zip(lines, episodes, strict=False):
        support, query = (
            EpisodeTokens.of(world.tokens, rows) for rows in (episode.support, episode.query)
        )
        found = method.explain(support, query)
        weights = torch.cat([found.support_weights, found.query_weights])
        line["weights"] = np.round(weights.numpy().astype(np.float64), 5).tolist()
