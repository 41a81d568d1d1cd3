"""Multi-label few-shot recognition: which of some new labels a picture has, from a few pictures of each.

In: a model, labelled pictures, and where methods need them base labels to learn from, validation
labels to choose on. Every draw takes some pictures of each label as support and asks for the labels
of all others. Out: average precision and F1 of the method beside its baselines on the same draws,
paired differences, both over draws and over pictures.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipeline.errors import UsageError
from data_pipeline.shards.manifest import Manifest
from eval.encoding.encoders import load_encoder
from eval.encoding.labelled_images import ImageTokens, encode_tokens
from eval.results.run_stage import Measured

from .calibration import EPISODES, calibrated
from .data_sets import described, labelled_sets
from .fitting import fitted_classifier
from .joint_space import Logistic
from .methods import ABOUT, NEEDS, SELECTIONS, Methods, Prepared, TipAdapter
from .options import Options
from .records import metrics, record_of
from .sampler import MultiLabelEpisodeSampler
from .summary import not_above, silent, table

__all__ = ["measure", "metrics", "table"]

_TUNING_DRAWS = 5
# Logits of equal vectors may differ by so much: a distance is the root of what was rounded.
_ROUNDING = 0.02


def measure(options: Options, manifest: Manifest) -> Measured:
    """Recognise the labels of images, each method on the same draws of support images.

    Raises
    ------
    UsageError
        If a method lacks the data sets that it needs, or the model has no joint space.
    DataError
        If data have no labels or a single one, a label has too few images or is in two data sets,
        a draw leaves nothing to find, or all base images have all labels.
    NumericsError
        If tokens are not finite.
    """
    names, left_out = _usable(
        options.methods, {"base": options.base is not None, "val": options.val is not None}
    )
    encoder = load_encoder(options.model, options.precision, options.cache)
    if not encoder.joint:
        raise UsageError(
            f"{options.model} has no space that images share with texts, in which labels are compared"
        )
    manifests = {"data": manifest}
    if options.base is not None:
        manifests["base"] = Manifest.load(options.base)
    if options.val is not None:
        manifests["val"] = Manifest.load(options.val)
    started = time.perf_counter()
    tokens = {}
    for role, each in manifests.items():
        tokens[role] = encode_tokens(
            encoder,
            each,
            pool_grid=options.pool_grid,
            limit=options.limit,
            batch_size=options.batch_size,
        )
    sets = labelled_sets(encoder, tokens, manifests, options.labels, options.filter)
    timing = {"encoding_s": time.perf_counter() - started}
    novel, learn, judge = sets["data"], sets.get("base"), sets.get("val")
    samplers = {}
    for shot in dict.fromkeys(options.shot):
        samplers[shot] = MultiLabelEpisodeSampler(
            novel.truth,
            novel.names,
            shot=shot,
            draws=options.draws,
            seed=options.seed,
            media=novel.media,
            name="--data",
        )
    started = time.perf_counter()
    classifier, fitted = fitted_classifier(
        encoder,
        learn,
        judge,
        init=options.init,
        query_pool=options.query_pool,
        patches=options.patches,
        cross="cross" in names,
        epochs=options.epochs,
        seed=options.seed,
    )
    adapters = {}
    if "tip_adapter_ml" in names:
        assert judge is not None
        fitted["tip_adapter_ml"] = {}
        for shot in samplers:
            adapter = TipAdapter.tuned(judge, shot=shot, draws=_TUNING_DRAWS, seed=options.seed)
            adapters[shot] = adapter
            fitted["tip_adapter_ml"][f"{shot}shot"] = {
                "alpha": adapter.alpha,
                "beta": adapter.beta,
            }
    methods = Methods(classifier, adapters, k=options.patches, seed=options.seed)
    logistic: dict[int, dict[str, Logistic]] = {}
    if learn is not None:
        for shot in samplers:
            logistic[shot] = calibrated(
                methods,
                names,
                learn,
                labels=len(novel.names),
                shot=shot,
                keep=options.filter,
                seed=options.seed,
            )
    timing["fitting_s"] = time.perf_counter() - started
    records, prepared = [], Prepared.of(classifier, novel)
    grid = tokens["data"].grid
    for shot, sampler in samplers.items():
        started = time.perf_counter()
        for number in range(options.draws):
            records.append(
                _record(methods, names, prepared, sampler, number, logistic.get(shot), grid)
            )
        timing[f"draws_per_s/{shot}shot"] = options.draws / (time.perf_counter() - started)
    computed = metrics(records)
    flags = [f"left_out/{name}: {reason}" for name, reason in left_out.items()]
    flags += _flags(tokens, logistic, learn is not None, fitted)
    flags += silent(records) + not_above(computed, list(samplers))
    threshold = calibration = chosen_by = None
    if learn is not None:
        threshold = "0.5, after a scale and a bias fitted to base labels"
        calibration = f"{EPISODES} episodes of as many base labels"
    if judge is not None:
        chosen_by = "mAP on draws of validation labels"
    return Measured(
        records=records,
        protocol={
            "name": "multi-label few-shot recognition",
            "methods": {name: ABOUT[name] for name in names},
            "shot": list(samplers),
            "draws": options.draws,
            "seed": options.seed,
            "filter": options.filter,
            "queries": "all pictures of the labels that are neither support nor a copy of it",
            "init": options.init,
            "patches": {"grid": list(grid), "chosen": options.patches},
            "query_pool": options.query_pool,
            "threshold": threshold,
            "calibration": calibration,
            "chosen_by": chosen_by,
            "undefined": "labels without a picture to find in a draw are left out of it",
            "precision": options.precision,
            "intervals": "Student t over draws; pictures: infinitesimal jackknife over pictures, "
            "supports as drawn",
        },
        model={**encoder.description, "fitted": fitted},
        data=described(manifests, tokens, sets),
        flags=flags,
        timing=timing,
        device=str(encoder.device),
        metrics=computed,
    )


def _usable(
    methods: Sequence[str] | None, there: Mapping[str, bool]
) -> tuple[list[str], dict[str, str]]:
    """Return the methods to run, and why others cannot."""
    wanted = list(dict.fromkeys(ABOUT if methods is None else methods))
    unknown = [name for name in wanted if name not in ABOUT]
    if not wanted:
        raise UsageError(f"methods is empty: name some of {', '.join(ABOUT)}")
    if unknown:
        raise UsageError(f"unknown method {', '.join(unknown)}: choose of {', '.join(ABOUT)}")
    left_out = {}
    for name in wanted:
        missing = [f"--{role}" for role in NEEDS.get(name, ()) if not there[role]]
        if missing:
            left_out[name] = f"needs {' and '.join(missing)}"
            if methods is not None:
                raise UsageError(
                    f"{name} needs {' and '.join(missing)}: it learns from base labels, and its settings are chosen on "
                    "validation labels, never on those that are measured"
                )
    return [name for name in wanted if name not in left_out], left_out


def _record(
    methods: Methods,
    names: list[str],
    prepared: Prepared,
    sampler: MultiLabelEpisodeSampler,
    number: int,
    logistic: Mapping[str, Logistic] | None,
    grid: tuple[int, int],
) -> dict[str, Any]:
    draw, own = sampler[number], prepared.data
    found = methods.scores(names, prepared, draw, shot=sampler.shot, number=number)
    scores, constant = {}, []
    for name, (values, _) in found.items():
        scores[name] = values.double().numpy()
        if values.max() - values.min() < _ROUNDING:
            constant.append(name)
        if logistic is not None:
            scores[name] = logistic[name].scale * scores[name] + logistic[name].bias
    record = record_of(
        sampler.shot, number, own.names, own.truth, draw.query, scores, logistic is not None
    )
    record |= {"constant": constant, "support": [own.keys[row] for row in draw.support]}
    if number == 0:  # what the report draws
        record["grid"] = list(grid)
        shown = [
            name
            for name in names
            if name in (*SELECTIONS, "text_similarity") and found[name][1] is not None
        ]
        record["chosen"] = {name: _listed(found[name][1], own.names) for name in shown}
    return record


def _listed(chosen: Any, names: Sequence[str]) -> list[dict[str, list[int]]]:
    """List the chosen patches of each support picture by label."""
    return [
        {
            names[label]: picture[label].nonzero().flatten().tolist()
            for label in picture.any(1).nonzero().flatten()
        }
        for picture in chosen
    ]


def _flags(
    tokens: Mapping[str, ImageTokens],
    logistic: Mapping[int, Mapping[str, Logistic]],
    based: bool,
    said: Mapping[str, Any],
) -> list[str]:
    flags = (
        []
        if based
        else [
            "uncalibrated: without --base no threshold means anything, and P, R and F1 are left out"
        ]
    )
    if based and not said.get("scale_fitted", True):
        flags.append(
            "the mean of a base picture's patches is not closer to its labels' texts than to others"
        )
    flags += [
        f"scores_say_nothing/{k}shot/{name}: on base labels"
        for k in logistic
        for name, fitted in logistic[k].items()
        if not fitted.fitted
    ]
    own = set(tokens["data"].media)
    for role in ("base", "val"):
        shared = own & set(tokens[role].media) if role in tokens else set()
        flags += [f"{len(shared)} pictures of --data are in --{role} too"] if shared else []
    return flags
