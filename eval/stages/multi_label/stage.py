"""Multi-label few-shot recognition: which new labels an image has, from a few images of each.

In: a model, labelled images, and for some methods base labels to learn from and validation labels
to choose on. Every draw takes some images of each label as support, and all other images are
queries. Out: average precision and F1 of the method and its baselines on the same draws, and paired
differences, with intervals over draws and over images.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from data_pipeline.errors import UsageError
from data_pipeline.shards.manifest import Manifest
from eval.encoding.encoders import Encoder, load_encoder
from eval.encoding.labelled_images import ImageTokens, encode_tokens, manifests_by_role
from eval.results.run_stage import Measured

from .calibration import EPISODES, calibrate
from .data_sets import describe_sets, labelled_sets
from .fitting import fit_classifier
from .joint_space import Labelled, Logistic
from .methods import ABOUT, NEEDS, SELECTIONS, Methods, Prepared, TipAdapter
from .options import Options
from .records import DrawRecord, metrics, record_of
from .sampler import MultiLabelEpisodeSampler
from .summary import flag_not_above, flag_uninformative, table

__all__ = ["measure", "metrics", "table"]

_TUNING_DRAWS = 5
# Logits of equal vectors may differ by this: a distance is the root of a rounded number.
_ROUNDING = 0.02
# The report shows the patches that these methods chose.
_SHOWN_METHODS = (*SELECTIONS, "text_similarity")


def measure(options: Options, manifest: Manifest) -> Measured:
    """Recognize the labels of images, each method on the same draws of support images.

    Raises
    ------
    UsageError
        If a method lacks the data sets that it needs, or the model has no joint space.
    DataError
        If data have no labels or a single one, a label has too few images or is in two data sets,
        no query of a draw has a label, or all base images have all labels.
    NumericsError
        If tokens are not finite.
    """
    # Wrong options are refused before the model is loaded.
    has_role = {"base": options.base is not None, "val": options.val is not None}
    names, left_out = _usable(options.methods, has_role)
    encoder = load_encoder(options.model, options.precision, options.cache)
    if not encoder.joint:
        raise UsageError(
            f"{options.model} has no space that images share with texts, in which labels are "
            "compared"
        )
    manifests = manifests_by_role(manifest, options.base, options.val)
    started = time.perf_counter()
    tokens = {}
    for role, role_manifest in manifests.items():
        tokens[role] = encode_tokens(
            encoder,
            role_manifest,
            pool_grid=options.pool_grid,
            limit=options.limit,
            batch_size=options.batch_size,
        )
    sets = labelled_sets(encoder, tokens, manifests, options.labels, options.filter)
    timing = {"encoding_s": time.perf_counter() - started}
    data = sets["data"]
    # Before anything is fitted: data that allow no draws are an error that needs no waiting.
    samplers = _samplers(data, options)
    started = time.perf_counter()
    methods, fitted = _fit_methods(encoder, sets, names, list(samplers), options)
    logistic: dict[int, dict[str, Logistic]] = {}
    if "base" in sets:
        for shot in samplers:
            logistic[shot] = calibrate(
                methods, names, sets["base"], options, labels=len(data.names), shot=shot
            )
    timing["fitting_s"] = time.perf_counter() - started
    records, prepared = [], Prepared.of(methods.model, data)
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
    flags += _flag_calibration(logistic, fitted, has_base=has_role["base"])
    flags += _flag_shared_images(tokens)
    flags += flag_uninformative(records) + flag_not_above(computed, list(samplers))
    return Measured(
        records=records,
        protocol=_protocol(options, names, list(samplers), grid),
        model={**encoder.description, "fitted": fitted},
        data=describe_sets(manifests, tokens, sets, options.limit),
        flags=flags,
        timing=timing,
        device=str(encoder.device),
        metrics=computed,
    )


def _protocol(
    options: Options, names: Sequence[str], shots: Sequence[int], grid: tuple[int, int]
) -> dict[str, Any]:
    """Describe for result.json how the methods were measured."""
    threshold = calibration = chosen_by = None
    if options.base is not None:
        threshold = "0.5, after a scale and a bias fitted to base labels"
        calibration = f"{EPISODES} episodes of as many base labels"
    if options.val is not None:
        chosen_by = "mAP on draws of validation labels"
    return {
        "name": "multi-label few-shot recognition",
        "methods": {name: ABOUT[name] for name in names},
        "shot": list(shots),
        "draws": options.draws,
        "seed": options.seed,
        "filter": options.filter,
        "queries": "all images of the labels that are neither support nor a copy of it",
        "init": options.init,
        "patches": {"grid": list(grid), "chosen": options.patches},
        "query_pool": options.query_pool,
        "threshold": threshold,
        "calibration": calibration,
        "chosen_by": chosen_by,
        "undefined": "labels that no query of a draw has are left out of that draw",
        "precision": options.precision,
        "intervals": "Student t over draws; `pictures`: infinitesimal jackknife over images, "
        "supports as drawn",
    }


def _fit_methods(
    encoder: Encoder,
    sets: Mapping[str, Labelled],
    names: Sequence[str],
    shots: Sequence[int],
    options: Options,
) -> tuple[Methods, dict[str, Any]]:
    """Fit the classifier and tune Tip-Adapter; return what was fitted, too."""
    classifier, fitted = fit_classifier(
        encoder, sets.get("base"), sets.get("val"), options, cross="cross" in names
    )
    adapters = {}
    if "tip_adapter_ml" in names:
        fitted["tip_adapter_ml"] = {}
        for shot in shots:
            adapter = TipAdapter.tuned(
                sets["val"], shot=shot, draws=_TUNING_DRAWS, seed=options.seed
            )
            adapters[shot] = adapter
            settings = {"alpha": adapter.alpha, "beta": adapter.beta}
            fitted["tip_adapter_ml"][f"{shot}shot"] = settings
    return Methods(classifier, adapters, k=options.patches, seed=options.seed), fitted


def _usable(
    requested: Sequence[str] | None, has_role: Mapping[str, bool]
) -> tuple[list[str], dict[str, str]]:
    """Return the methods to run, and why others are left out."""
    names = list(dict.fromkeys(ABOUT if requested is None else requested))
    if not names:
        raise UsageError(f"methods is empty: name some of {', '.join(ABOUT)}")
    unknown = [name for name in names if name not in ABOUT]
    if unknown:
        raise UsageError(f"unknown method {', '.join(unknown)}: choose from {', '.join(ABOUT)}")
    left_out = {}
    for name in names:
        missing = [f"--{role}" for role in NEEDS.get(name, ()) if not has_role[role]]
        if not missing:
            continue
        left_out[name] = f"needs {' and '.join(missing)}"
        # By default what can run runs; a method that was asked for must not be dropped silently.
        if requested is not None:
            raise UsageError(
                f"{name} needs {' and '.join(missing)}: it learns from base labels, and its "
                "settings are chosen on validation labels, never on those that are measured"
            )
    return [name for name in names if name not in left_out], left_out


def _samplers(data: Labelled, options: Options) -> dict[int, MultiLabelEpisodeSampler]:
    # By shot, so that a shot that is given twice is measured once.
    samplers = {}
    for shot in options.shot:
        samplers[shot] = MultiLabelEpisodeSampler(
            data.truth,
            data.names,
            shot=shot,
            draws=options.draws,
            seed=options.seed,
            media=data.media,
            name="--data",
        )
    return samplers


def _record(
    methods: Methods,
    names: Sequence[str],
    prepared: Prepared,
    sampler: MultiLabelEpisodeSampler,
    number: int,
    logistic: Mapping[str, Logistic] | None,
    grid: tuple[int, int],
) -> DrawRecord:
    """Run all methods on a draw."""
    draw, data = sampler[number], prepared.data
    scored = methods.scores(names, prepared, draw, shot=sampler.shot, number=number)
    scores, constant = {}, []
    for name, of_method in scored.items():
        # Judged before the scale, which could make any difference small.
        if of_method.scores.max() - of_method.scores.min() < _ROUNDING:
            constant.append(name)
        scores[name] = of_method.scores.double().numpy()
        if logistic is not None:
            scores[name] = logistic[name].scale * scores[name] + logistic[name].bias
    has_logits = logistic is not None
    record = record_of(sampler.shot, number, data.names, data.truth, draw.query, scores, has_logits)
    record["constant"] = constant
    record["support"] = [data.keys[row] for row in draw.support]
    if number == 0:  # the report shows the patches of one draw
        record["grid"] = list(grid)
        record["chosen"] = {}
        for name, of_method in scored.items():
            if name in _SHOWN_METHODS and of_method.chosen is not None:
                record["chosen"][name] = _patches_by_label(of_method.chosen, data.names)
    return record


def _patches_by_label(chosen: Tensor, names: Sequence[str]) -> list[dict[str, list[int]]]:
    """List the chosen patches (support images, labels, patches) of each image by label."""
    by_image = []
    for of_image in chosen:
        patches = {}
        for label, of_label in zip(names, of_image, strict=True):
            if of_label.any():
                patches[label] = of_label.nonzero().flatten().tolist()
        by_image.append(patches)
    return by_image


def _flag_calibration(
    logistic: Mapping[int, Mapping[str, Logistic]], fitted: Mapping[str, Any], *, has_base: bool
) -> list[str]:
    if not has_base:
        return ["uncalibrated: without --base there is no threshold, and P, R and F1 are left out"]
    flags = []
    if not fitted.get("scale_fitted", True):
        flags.append(
            "the mean of a base image's patches is not closer to its labels' texts than to others"
        )
    for shot, by_method in logistic.items():
        for name, of_method in by_method.items():
            if not of_method.fitted:
                flags.append(f"scores_say_nothing/{shot}shot/{name}: on base labels")
    return flags


def _flag_shared_images(tokens: Mapping[str, ImageTokens]) -> list[str]:
    """Flag measured images that are also in another data set."""
    measured = set(tokens["data"].media)
    flags = []
    for role in ("base", "val"):
        if role in tokens:
            shared = measured & set(tokens[role].media)
            if shared:
                flags.append(f"{len(shared)} images of --data are in --{role} too")
    return flags
