"""Few-shot classification: classes that a few pictures show, each method on the same episodes as all the others.

In: a model and labelled pictures, of which those with exactly one label count; base classes that heads are trained on
and validation classes that settings are chosen on, where there are any. Pictures are encoded once. Out: accuracies with
a closed-world and an open-world interval, paired differences, and the lists of episodes.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.errors import DataError, UsageError
from data_pipeline.manifest import Manifest
from eval.encoders import Encoder, load_encoder
from eval.episodes import Episode, EpisodeList, EpisodeSampler, read_episodes, write_episodes
from eval.features import processes
from eval.overlap import flags as overlap_flags
from eval.overlap import overlap
from eval.schema import Result, data_flags, environment, write_result
from eval.stages.zero_shot import TEMPLATES
from eval.statistics import paired_difference
from eval.tokens import ImageTokens, encode_tokens, label_features

from .methods import GLIML, Mode, Ready, make, usable
from .recognise import Recognised, World, cost, recognise
from .scores import KINDS, by_method, metrics

OPEN_QUERIES = 5  # of a class in a disjoint episode: fewer queries, hence more episodes; the expected accuracy is equal
VALIDATION_EPISODES = 300
_SHOWN = 3  # episodes of each form whose pictures the report shows


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
    epochs: int = 100,
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
        Data sets: what is measured, what heads are trained on, what settings and epochs are chosen on. No class may
        be in two of them.
    out, limit, batch_size, precision, cache, train
        As of retrieval; ``limit`` holds for each data set.
    way, shot, queries, episodes, seed
        Classes of an episode; support pictures of each (every number is an evaluation of its own); query pictures of
        each; episodes; what these are drawn by.
    methods
        Names (`METHODS`); by default all that can run, and the others are flagged.
    episode_list
        Files to take the episodes from instead of drawing them, as an evaluation writes them.
    mode
        Of GLIML: a head trained on frozen tokens, the encoder trained along, or no training.
    epochs
        Of training; the one that is best on validation classes is kept.
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
    templates = TEMPLATES if templates is None else templates
    for template in templates or [""]:
        if template.count("{}") != 1:
            raise UsageError(f"the template {template!r} must hold {{}} once, where the name of a class goes")
    if not shot and not episode_list:
        raise UsageError("shot names no number of support pictures")
    encoder = load_encoder(model, precision, cache)
    names, left_out = usable(methods, joint=encoder.joint, base=base is not None, val=val is not None, mode=mode)
    manifests = {"data": Manifest.load(data)}
    manifests |= {name: Manifest.load(path) for name, path in (("base", base), ("val", val)) if path is not None}
    started = time.perf_counter()
    worlds = {
        name: _world(encoder, manifest, templates, name, limit=limit, batch_size=batch_size, pool_grid=pool_grid)
        for name, manifest in manifests.items()
    }
    refuse_shared_classes(worlds)
    timing = {"encoding_s": time.perf_counter() - started}
    world, state = worlds["data"], processes()
    drawn = {"way": way, "queries": queries, "episodes": episodes, "seed": seed}
    lists = _given(episode_list, world) if episode_list else {}
    lists = _lists(world, Path(out), lists, shot, drawn, write=state.is_main_process)
    records: list[dict[str, Any]] = []
    heads: dict[str, dict[str, Any]] = {}
    flags: list[str] = []
    for form, (closed, apart) in lists.items():
        tuning = None
        if "val" in worlds:
            tuning = _validation(worlds["val"], closed.way, closed.shot, closed.queries, seed)
        lines = [_line(form, kind, number, some, episode, world)
                 for kind, some in zip(KINDS, (closed, apart), strict=True)
                 for number, episode in enumerate(some.episodes)]
        for name in names:
            started = time.perf_counter()
            ready = make(name, worlds, tuning, encoder=encoder, manifests=manifests, shot=closed.shot, mode=mode, epochs=epochs, seed=seed)
            timing[f"{form}/{name}/preparing_s"] = time.perf_counter() - started
            started = time.perf_counter()
            found = [recognise(ready.method, ready.world, some.episodes, name) for some in (closed, apart)]
            timing[f"{form}/{name}/episodes_per_s"] = len(lines) / (time.perf_counter() - started)
            for line, predicted in zip(lines, np.concatenate([one.predicted.tolist() for one in found]), strict=True):
                line["predicted"][name] = predicted
            if all(one.constant for one in found):
                flags.append(f"degenerate_scores/{form}/{name}")
    return None
