"""Multi-label few-shot recognition: which of some new labels a picture has, from a few pictures of each.

In: a model, labelled pictures, and where methods need them base labels to learn from, validation
labels to choose on. Every draw takes some pictures of each label as support and asks for the labels
of all others. Out: average precision and F1 of the method beside its baselines on the same draws,
paired differences, both over draws and over pictures.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.errors import UsageError
from data_pipeline.shards.manifest import Manifest
from eval.encoding.encoders import load_encoder
from eval.encoding.features import processes
from eval.encoding.labelled_images import ImageTokens, encode_tokens
from eval.results.contamination import flags as overlap_flags
from eval.results.contamination import overlap
from eval.results.schema import Result, check_out, data_flags, environment, write_result

from .calibration import EPISODES, calibrated
from .data_sets import described, labelled_sets
from .fitting import fitted_classifier
from .joint_space import Logistic
from .label_sets import Filter
from .methods import ABOUT, NEEDS, SELECTIONS, Methods, Prepared, TipAdapter
from .model import QueryPool
from .records import metrics, record_of
from .sampler import MultiLabelEpisodeSampler
from .summary import not_above, silent

_TUNING_DRAWS = 5
_ROUNDING = (
    0.02  # by which logits of equal vectors may differ: a distance is a root of what is rounded
)


def evaluate(
    model: Path | str,
    data: Path | str,
    out: Path | str,
    *,
    base: Path | str | None = None,
    val: Path | str | None = None,
    labels: Path | str | None = None,
    shot: Sequence[int] = (1, 5),
    draws: int = 20,
    filter: Filter = "strict",
    methods: Sequence[str] | None = None,
    init: str = "vl_joint",
    patches: int = 9,
    query_pool: QueryPool = "mean",
    epochs: int = 8,
    pool_grid: int = 7,
    seed: int = 0,
    limit: int | None = None,
    batch_size: int = 64,
    precision: str = "fp32",
    cache: Path | str | None = None,
    train: Path | str | None = None,
) -> Result:
    """Recognise the labels of a data set from few pictures; write `result.json` and `samples.jsonl`.

    Parameters
    ----------
    model
        Whatever `load_encoder` loads, with a space that pictures share with texts.
    data, base, val
        Data sets: what is measured; what scales, biases and the cross-interaction learn from; what
        its epochs and Tip-Adapter's settings are chosen on. No label may be in two of them.
    out, limit, batch_size, precision, cache, train
        As of retrieval; ``limit`` holds for each data set.
    labels
        A list that restricts and orders labels (see `read_label_lists`); by default those that the
        data set was imported for, or all it has.
    shot, draws, seed
        Support pictures of each label (every number is an evaluation of its own), draws of them,
        and what they depend on.
    filter
        `strict` leaves out pictures with a label besides; `any` keeps them and ignores it.
    methods
        Names (`ABOUT`); by default all that can run, and the others are flagged.
    init
        `vl_joint`: the contrastive head maps patches, scale and bias are fitted to base labels;
        `learned`: linear maps of patches and texts are trained on base labels.
    patches
        How many a label chooses of a support picture.
    query_pool
        How a query's patches are compared (see `MLFSIC.predict`).
    epochs
        Of training the cross-interaction; the one that is best on validation labels is kept.
    pool_grid
        Side of the grid that patches are averaged to.

    Raises
    ------
    UsageError
        For an unknown option, for a method without the data sets that it needs, for a model without
        a joint space.
    DataError
        For data without labels or with a single one, a label with too few pictures, a label in two
        data sets, a draw that leaves nothing to find, base pictures that all have all labels.
    NumericsError
        For tokens that are not finite.
    """
    names, left_out = _usable(methods, {"base": base is not None, "val": val is not None})
    if init not in ("vl_joint", "learned"):
        raise UsageError(f"init is {init!r}, must be vl_joint or learned")
    if init == "learned" and base is None:
        raise UsageError("init learned trains on base labels: name their data set with --base")
    if patches < 1 or draws < 2 or epochs < 0 or seed < 0:
        raise UsageError("patches must be 1 or more, draws 2 or more, epochs and seed 0 or more")
    if not shot:
        raise UsageError("shot must name at least one number of support pictures")
    check_out(out)
    encoder = load_encoder(model, precision, cache)
    if not encoder.joint:
        raise UsageError(
            f"{model} has no space that pictures share with texts, which every label is compared in"
        )
    paths = {
        role: path
        for role, path in (("data", data), ("base", base), ("val", val))
        if path is not None
    }
    manifests = {role: Manifest.load(path) for role, path in paths.items()}
    known = overlap(manifests["data"], model, train)
    started = time.perf_counter()
    tokens = {
        role: encode_tokens(
            encoder, manifest, pool_grid=pool_grid, limit=limit, batch_size=batch_size
        )
        for role, manifest in manifests.items()
    }
    sets = labelled_sets(encoder, tokens, manifests, labels, filter)
    timing = {"encoding_s": time.perf_counter() - started}
    own, learn, judge = sets["data"], sets.get("base"), sets.get("val")
    samplers = {
        k: MultiLabelEpisodeSampler(
            own.truth, own.names, shot=k, draws=draws, seed=seed, media=own.media, name="--data"
        )
        for k in dict.fromkeys(shot)
    }
    started = time.perf_counter()
    classifier, said = fitted_classifier(
        encoder,
        learn,
        judge,
        init=init,
        query_pool=query_pool,
        patches=patches,
        cross="cross" in names,
        epochs=epochs,
        seed=seed,
    )
    adapters = {}
    if "tip_adapter_ml" in names:
        assert judge is not None
        adapters = {
            k: TipAdapter.tuned(judge, shot=k, draws=_TUNING_DRAWS, seed=seed) for k in samplers
        }
        said["tip_adapter_ml"] = {
            f"{k}shot": {"alpha": a.alpha, "beta": a.beta} for k, a in adapters.items()
        }
    every = Methods(classifier, adapters, k=patches, seed=seed)
    logistic: dict[int, dict[str, Logistic]] = {}
    if learn is not None:
        many = len(own.names)
        logistic = {
            k: calibrated(every, names, learn, labels=many, shot=k, keep=filter, seed=seed)
            for k in samplers
        }
    timing["fitting_s"] = time.perf_counter() - started
    records, prepared = [], Prepared.of(classifier, own)
    for k, sampler in samplers.items():
        started = time.perf_counter()
        for number in range(draws):
            records.append(
                _record(
                    every, names, prepared, sampler, number, logistic.get(k), tokens["data"].grid
                )
            )
        timing[f"draws_per_s/{k}shot"] = draws / (time.perf_counter() - started)
    flags = [f"left_out/{name}: {reason}" for name, reason in left_out.items()]
    measured = metrics(records)
    flags += (
        _flags(tokens, logistic, learn is not None, said)
        + silent(records)
        + not_above(measured, list(samplers))
    )
    state = processes()
    result = Result(
        stage="multi-label",
        protocol={
            "name": "multi-label few-shot recognition",
            "methods": {name: ABOUT[name] for name in names},
            "shot": list(samplers),
            "draws": draws,
            "seed": seed,
            "filter": filter,
            "queries": "all pictures of the labels that are neither support nor a copy of it",
            "init": init,
            "patches": {"grid": list(tokens["data"].grid), "chosen": patches},
            "query_pool": query_pool,
            "threshold": "0.5, after a scale and a bias fitted to base labels"
            if learn is not None
            else None,
            "calibration": f"{EPISODES} episodes of as many base labels"
            if learn is not None
            else None,
            "chosen_by": "mAP on draws of validation labels" if judge is not None else None,
            "undefined": "labels without a picture to find in a draw are left out of it",
            "precision": precision,
            "intervals": "Student t over draws; pictures: infinitesimal jackknife over pictures, supports as drawn",
        },
        data=described(paths, manifests, tokens, sets, known),
        model={**encoder.description, "fitted": said},
        environment=environment(state.num_processes, str(encoder.device)),
        metrics=measured,
        flags=overlap_flags(known) + data_flags(manifests["data"]) + flags,
        timing=timing,
    )
    if state.is_main_process:
        write_result(Path(out), result, records)
    state.wait_for_everyone()
    return result


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
