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
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_pipeline.errors import UsageError
from data_pipeline.shards.manifest import Manifest
from eval.encoding.encoders import Encoder, load_encoder
from eval.encoding.features import processes
from eval.results.contamination import flags as overlap_flags
from eval.results.contamination import overlap
from eval.results.schema import Result, check_out, data_flags, environment, write_result
from eval.stages.few_shot.episodes import Episode
from eval.stages.zero_shot.stage import checked_templates

from . import summary
from .baselines import Method
from .episode_lists import Lists, drawn_lists, given_lists, write_lists
from .episode_tokens import EpisodeTokens
from .gliml import GLIMLHead
from .inference import World, cost, recognise
from .methods import VALIDATION_EPISODES, Form, Interplay, make, usable
from .scores import GLIML, metrics
from .splits import Split, described, load_split, refuse_shared_classes, shared_pictures
from .training import Mode

_SHOWN = (
    3  # episodes of each form whose pictures and patch weights the records hold, for the report
)


def evaluate(
    model: Path | str,
    data: Path | str,
    out: Path | str,
    *,
    base: Path | str | None = None,
    val: Path | str | None = None,
    way: int = 5,
    shot: Sequence[int] = (1, 5),
    queries: int = 15,
    episodes: int = 1000,
    seed: int = 0,
    methods: Sequence[str] | None = None,
    episode_list: Sequence[Path | str] | None = None,
    mode: Mode = "frozen",
    interplay: Interplay = "gated",
    epochs: int = 20,
    pool_grid: int = 7,
    templates: Sequence[str] | None = None,
    limit: int | None = None,
    batch_size: int = 64,
    precision: str = "fp32",
    cache: Path | str | None = None,
    train: Path | str | None = None,
) -> Result:
    """Recognise the classes of a data set from few pictures; write `result.json`, `samples.jsonl` and episode lists.

    Parameters
    ----------
    model
        Whatever `load_encoder` loads.
    data, base, val
        Data sets: what is measured, what heads are trained on, what settings and epochs are chosen
        on. No class may be in two of them.
    out, limit, batch_size, precision, cache, train
        As of retrieval; ``limit`` holds for each data set.
    way, shot, queries, episodes, seed
        Classes of an episode; support pictures of each (every number is an evaluation of its own);
        query pictures of each; episodes; what they are drawn by.
    methods
        Names (`METHODS`); by default all that can run, and the others are flagged.
    episode_list
        Files to take the episodes from instead of drawing them, as an evaluation writes them.
    mode
        Of GLIML: a head trained on frozen tokens, the encoder trained with it, or no training.
    interplay
        Of GLIML: `gated` needs no training, `additive` adds a multiple of the global token that
        validation chooses.
    epochs
        Of training, each of 100 episodes; the one that is best on validation classes is kept.
    pool_grid
        Side of the grid that patches are averaged to.
    templates
        Sentences with `{}` for the name of a class, where names are used.

    Raises
    ------
    UsageError
        For an unknown option, for a method that cannot run, for more ways than classes.
    DataError
        For data without labels, a class with too few pictures, a class in two data sets.
    NumericsError
        For tokens or scores that are not finite.
    """
    templates = checked_templates(templates)
    if epochs < 1:
        raise UsageError(f"epochs must be at least 1, not {epochs}: the mode none trains nothing")
    check_out(out)
    encoder = load_encoder(model, precision, cache)
    names, left_out = usable(
        methods, joint=encoder.joint, base=base is not None, val=val is not None, mode=mode
    )
    manifests = {"data": Manifest.load(data)}
    manifests |= {
        name: Manifest.load(path)
        for name, path in (("base", base), ("val", val))
        if path is not None
    }
    known = overlap(manifests["data"], model, train)
    started = time.perf_counter()
    reading: dict[str, Any] = {
        "templates": templates,
        "pool_grid": pool_grid,
        "limit": limit,
        "batch_size": batch_size,
    }
    splits = {
        name: load_split(encoder, manifest, f"--{name}", **reading)
        for name, manifest in manifests.items()
    }
    refuse_shared_classes(splits)
    encoded, own = time.perf_counter(), splits["data"]
    if episode_list:
        lists = given_lists(episode_list, own, seed)
    else:
        lists = drawn_lists(own, way, shot, queries, episodes, seed)
    learning = {"seed": seed, "mode": mode, "epochs": epochs, "interplay": interplay}
    measured = [_measure(both, names, splits, learning, encoder) for both in lists]
    records = [line for one in measured for line in one.lines]
    computed, state = metrics(records), processes()
    result = Result(
        stage="few-shot",
        protocol={
            "name": "few-shot classification",
            "methods": names,
            "mode": mode,
            "interplay": interplay,
            "epochs": epochs,
            "episodes": {both.name: both.described() for both in lists},
            "seed": seed,
            "chosen_by": f"{VALIDATION_EPISODES} episodes of validation classes"
            if val is not None
            else None,
            "templates": list(templates) if encoder.joint else None,
            "patches": list(own.world.tokens.grid),
            "ties": "the first class",
            "precision": precision,
            "intervals": "Student t over episodes; closed_world: they share pictures, open_world: they share none",
        },
        data=described(splits, known),
        model={
            **encoder.description,
            "heads": {name: head for one in measured for name, head in one.heads.items()},
        },
        environment=environment(state.num_processes, str(encoder.device)),
        metrics=computed,
        flags=[
            *overlap_flags(known),
            *data_flags(own.manifest),
            *shared_pictures(splits),
            *(f"left_out/{name}: {reason}" for name, reason in left_out.items()),
            *(flag for one in measured for flag in one.flags),
            *summary.flags(computed),
        ],
        timing={"encoding_s": encoded - started}
        | {name: s for one in measured for name, s in one.timing.items()},
    )
    if state.is_main_process:
        write_lists(Path(out), lists)
        write_result(Path(out), result, records)
    state.wait_for_everyone()
    return result


@dataclass(frozen=True)
class _Measured:
    """What one form of episodes gave: records, and by method how it was set up and how long it took."""

    lines: list[dict[str, Any]]
    heads: dict[str, dict[str, Any]]
    timing: dict[str, float]
    flags: list[str]


def _measure(
    both: Lists,
    names: Sequence[str],
    splits: Mapping[str, Split],
    learning: dict[str, Any],
    encoder: Encoder,
) -> _Measured:
    form = Form(both.closed.way, both.closed.shot, both.closed.queries, **learning)
    measured = _Measured(_lines(both), {}, {}, [])
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
