"""Zero-shot classification: which class's name, put into sentences, is closest to the image.

In: a model, and a data set whose samples have one of several `labels`, the names of classes. The
feature of a class is the mean of the features of its sentences, each of length one (CLIP's prompt
ensemble); the contrastive score decides. Generated scenes with a single object are labelled by its
colour and shape. Out: top-1 and top-5 accuracy, over all images and by class.
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
from eval.results.intervals import mean_metric, mean_of_means_interval
from eval.results.run_stage import Measured
from eval.results.schema import Metric
from pretrain.ranking import Ranks, ranks, score_blocks, unit_features

from .options import Options
from .records import ZeroShotRecord

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
    rows: list[int] = []
    labels: list[str] = []
    for row, (key, annotation) in enumerate(zip(images.keys, images.annotations, strict=True)):
        label = label_of(key, annotation)
        if label is not None:
            rows.append(row)
            labels.append(label)
    if not rows:
        raise DataError(
            f'{options.data} has no sample with exactly one of "labels", which classification needs'
        )
    # Before texts are encoded: it refuses labels that are not among the given classes.
    names = _names(labels, options.classes)
    features = class_features(loaded, names, templates, batch_size=options.batch_size)
    keys = [images.keys[row] for row in rows]
    records, degenerate = _classify(
        images.features[images.row[rows]], keys, labels, features, names
    )
    return Measured(
        records=records,
        protocol={
            "name": "zero-shot classification",
            "templates": list(templates),
            "ensemble": "mean of the sentences' features, each of length one",
            "classes": "those that label an image" if options.classes is None else "given",
            "ties": "expected value",
            "score_dtype": "float32",
            "precision": options.precision,
            "intervals": "Wilson score for proportions, else percentile bootstrap; over images",
        },
        model=loaded.description,
        data={
            "images": len(rows),
            "without_one_label": len(images.keys) - len(rows),
            "classes": names,
        },
        flags=["degenerate_scores"] if degenerate else [],
        device=str(loaded.device),
    )


def _classify(
    image_features: NDArray[np.float32],
    keys: Sequence[str],
    labels: Sequence[str],
    features: NDArray[np.float32],
    names: Sequence[str],
) -> tuple[list[ZeroShotRecord], bool]:
    """Rank all classes for every image; return records and whether all classes score the same."""
    column = {name: number for number, name in enumerate(names)}
    positives = np.array([column[label] for label in labels])
    records: list[ZeroShotRecord] = []
    degenerate = True
    blocks = score_blocks(image_features, features, query_ids=keys, candidate_ids=names)
    for start, scores in blocks:
        ranked = ranks(scores, positives[start : start + len(scores)])
        degenerate = degenerate and ranked.degenerate
        best = np.argsort(-scores, axis=1, kind="stable")[:, :TOP]
        for row in range(len(scores)):
            query = start + row
            records.append(
                {
                    "query": keys[query],
                    "image": keys[query],
                    "label": labels[query],
                    "candidates": len(names),
                    "above": int(ranked.above[row]),
                    "tied": int(ranked.tied[row]),
                    "top": [(names[number], float(scores[row, number])) for number in best[row]],
                }
            )
    return records, degenerate


def label_of(key: str, annotation: dict[str, Any]) -> str | None:
    """Return the class of an image: its only label, or None if it does not have exactly one.

    The label of a generated scene is the colour and shape of its only object. Raises DataError for
    labels that are not a list of names.
    """
    if is_scene(annotation):
        # The labels of a scene are shapes alone, which its captions hardly ever name without a
        # colour.
        objects = annotation["scene"]["objects"]
        return _only([f"{item['colour']} {item['shape']}" for item in objects])
    labels = annotation.get("labels", [])
    if not isinstance(labels, list) or not all(_is_name(label) for label in labels):
        raise DataError(f'sample {key}: "labels" must be a list of names, not {labels!r}')
    return _only(labels)


def _is_name(label: Any) -> bool:
    return isinstance(label, str) and bool(label.strip())


def _only(labels: Sequence[str]) -> str | None:
    return labels[0] if len(labels) == 1 else None


def _names(labels: Sequence[str], given: Sequence[str] | None) -> list[str]:
    """Return the names of all classes, and check that given ones hold every label."""
    if given is None:
        return sorted(set(labels))
    if len(set(given)) != len(given):
        raise UsageError("classes names a class twice")
    unknown = sorted(set(labels) - set(given))
    if unknown:
        raise UsageError(
            f"classes does not name {unknown[0]!r}, which labels an image "
            f"({len(unknown)} such labels)"
        )
    return list(given)


def class_features(
    loaded: LoadedModel, names: Sequence[str], templates: Sequence[str], *, batch_size: int = 64
) -> NDArray[np.float32]:
    """Return unit features (classes, projection) of the classes' names: means over templates."""
    texts = encode_texts(loaded, class_sentences(names, templates), batch_size=batch_size)
    by_class = texts.features[texts.row].reshape(len(names), len(templates), -1)
    # float64, so that the mean of float32 features is not rounded once more.
    return unit_features(by_class.astype(np.float64).mean(axis=1), names)


def metrics(records: Iterable[ZeroShotRecord]) -> list[Metric]:
    """Compute every metric from the lines of `samples.jsonl`.

    They are `top1` and, if there are more than five classes, `top5`; `mean_per_class`, in which
    every class has the same weight; and `class/NAME`.
    """
    lines = list(records)
    above = np.array([line["above"] for line in lines], dtype=np.int64)
    tied = np.array([line["tied"] for line in lines], dtype=np.int64)
    # Each image has one right class.
    ranked = Ranks(above, tied, np.ones_like(tied), candidates=lines[0]["candidates"])
    keys = [line["image"] for line in lines]
    right, chance = 100 * ranked.hits(1), 100 / ranked.candidates
    computed = [mean_metric("top1", right, keys, chance=chance)]
    if ranked.candidates > TOP:
        # With five classes or fewer the right one is always among the five best.
        in_top = 100 * ranked.hits(TOP)
        computed.append(mean_metric(f"top{TOP}", in_top, keys, chance=TOP * chance))
    labels, group = np.unique([line["label"] for line in lines], return_inverse=True)
    computed.append(
        Metric(
            name="mean_per_class",
            value=float((np.bincount(group, right) / np.bincount(group)).mean()),
            unit="percent",
            # Images are resampled, not classes: the classes are all there are.
            ci95=mean_of_means_interval(right, group.tolist(), keys, scale=100.0),
            n=len(labels),
            clusters=len(set(keys)),
            chance=chance,
        )
    )
    for number, label in enumerate(labels):
        rows = np.flatnonzero(group == number)
        images = [keys[row] for row in rows]
        computed.append(mean_metric(f"class/{label}", right[rows], images, chance=chance))
    return computed
