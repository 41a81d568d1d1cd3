"""Zero-shot classification: which class's name, put into sentences, is closest to the picture.

In: a model, and a data set whose samples have one of several `labels`, the names of classes. The
feature of a class is the mean of those of its sentences, each of length one (CLIP's prompt
ensemble); the contrastive score decides. Scenes with a single object are labelled by its colour and
shape. Out: top-1 and top-5 accuracy, over all and by class.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError, UsageError
from data_pipeline.scenes.truth import is_scene
from data_pipeline.shards.manifest import Manifest
from eval.encoding.features import LoadedModel, encode_images, encode_texts, load
from eval.encoding.prompts import checked_templates, class_sentences
from eval.results.intervals import mean_interval, mean_of_means_interval
from eval.results.run_stage import Measured
from eval.results.schema import Metric
from pretrain.ranking import Ranks, ranks, score_blocks, unit_features

from .options import Options

TOP = 5


def measure(options: Options, manifest: Manifest) -> Measured:
    """Classify the images of a data set by the names of classes.

    Raises
    ------
    UsageError
        If a template has no place for a name, or a label is not among the given classes.
    DataError
        If no sample has exactly one label.
    NumericsError
        If a feature is not finite.
    """
    templates = checked_templates(options.templates)
    loaded = load(options.model, options.precision, options.cache)
    images = encode_images(
        loaded, manifest, batch_size=options.batch_size, limit=options.limit, captioned=False
    )
    labels = []
    for key, annotation in zip(images.keys, images.annotations, strict=True):
        labels.append(label_of(key, annotation))
    rows = [row for row, label in enumerate(labels) if label is not None]
    if not rows:
        raise DataError(
            f'{options.data} has no sample with exactly one of "labels", which classification needs'
        )
    names = _names([label for label in labels if label is not None], options.classes)
    number = {name: column for column, name in enumerate(names)}
    positives = np.array([number[label] for label in labels if label is not None])
    features = class_features(loaded, names, templates, batch_size=options.batch_size)
    records: list[dict[str, Any]] = []
    degenerate = True
    keys = [images.keys[row] for row in rows]
    blocks = score_blocks(
        images.features[images.row[rows]], features, query_ids=keys, candidate_ids=names
    )
    for start, scores in blocks:
        ranked = ranks(scores, positives[start : start + len(scores)])
        degenerate = degenerate and ranked.degenerate
        best = np.argsort(-scores, axis=1, kind="stable")[:, :TOP]
        for row, above in enumerate(ranked.above):
            key = keys[start + row]
            records.append(
                {
                    "query": key,
                    "image": key,
                    "label": names[positives[start + row]],
                    "candidates": len(names),
                    "above": int(above),
                    "tied": int(ranked.tied[row]),
                    "top": [[names[column], float(scores[row, column])] for column in best[row]],
                }
            )
    return Measured(
        records=records,
        protocol={
            "name": "zero-shot classification",
            "templates": list(templates),
            "ensemble": "mean of the sentences' features, each of length one",
            "classes": "those that label a picture" if options.classes is None else "given",
            "ties": "expected value",
            "score_dtype": "float32",
            "precision": options.precision,
            "intervals": "percentile bootstrap over pictures",
        },
        model=loaded.description,
        data={
            "images": len(rows),
            "without_one_label": len(labels) - len(rows),
            "classes": names,
        },
        flags=["degenerate_scores"] if degenerate else [],
        device=str(loaded.device),
    )


def label_of(key: str, annotation: dict[str, Any]) -> str | None:
    """Return a picture's class: its only label, of a scene what its only object is; None where there is no such one.

    Raises DataError for labels that are not a list of names.
    """
    if is_scene(
        annotation
    ):  # its labels are shapes alone, which its captions hardly ever name without a colour
        return _only(
            [f"{item['colour']} {item['shape']}" for item in annotation["scene"]["objects"]]
        )
    labels = annotation.get("labels", [])
    if not isinstance(labels, list) or not all(
        isinstance(label, str) and label.strip() for label in labels
    ):
        raise DataError(f'sample {key}: "labels" must be a list of names, not {labels!r}')
    return _only(labels)


def _only(labels: Sequence[str]) -> str | None:
    return labels[0] if len(labels) == 1 else None


def class_features(
    loaded: LoadedModel, names: Sequence[str], templates: Sequence[str], *, batch_size: int = 64
) -> NDArray[np.float32]:
    """Return unit features (classes, projection) of the classes' names: the mean over the templates."""
    texts = encode_texts(loaded, class_sentences(names, templates), batch_size=batch_size)
    several = texts.features[texts.row].reshape(len(names), len(templates), -1)
    return unit_features(several.astype(np.float64).mean(axis=1), names)


def metrics(records: Iterable[dict[str, Any]]) -> list[Metric]:
    """Compute every metric from the lines of `samples.jsonl`.

    `top1` and, with more classes than that, `top5`; `mean_per_class`, in which every class counts
    alike; `class/NAME`.
    """
    lines = list(records)
    above, tied = (
        np.array([line[name] for line in lines], dtype=np.int64) for name in ("above", "tied")
    )
    ranked = Ranks(above, tied, np.ones_like(tied), candidates=lines[0]["candidates"])
    labels, group = np.unique([line["label"] for line in lines], return_inverse=True)
    keys = [line["image"] for line in lines]
    right, chance = 100 * ranked.hits(1), 100 / ranked.candidates
    found = [_accuracy("top1", right, keys, chance)]
    if ranked.candidates > TOP:
        found.append(_accuracy(f"top{TOP}", 100 * ranked.hits(TOP), keys, TOP * chance))
    alike = float((np.bincount(group, right) / np.bincount(group)).mean())
    interval = mean_of_means_interval(right, group.tolist(), keys)
    found.append(
        Metric(
            name="mean_per_class",
            value=alike,
            unit="percent",
            ci95=interval,
            n=len(group),
            chance=chance,
        )
    )
    for number, label in enumerate(labels):
        rows = np.flatnonzero(group == number)
        found.append(_accuracy(f"class/{label}", right[rows], [keys[row] for row in rows], chance))
    return found


def _names(labels: Sequence[str], given: Sequence[str] | None) -> list[str]:
    if given is None:
        return sorted(set(labels))
    if len(set(given)) != len(given):
        raise UsageError("classes names one class twice")
    unknown = sorted(set(labels) - set(given))
    if unknown:
        raise UsageError(
            f"classes does not name {unknown[0]!r}, which labels a picture ({len(unknown)} such labels)"
        )
    return list(given)


def _accuracy(name: str, values: NDArray[np.float64], keys: Sequence[str], chance: float) -> Metric:
    interval = mean_interval(values, keys)
    return Metric(
        name=name,
        value=float(values.mean()),
        unit="percent",
        ci95=interval,
        n=len(values),
        chance=chance,
    )
