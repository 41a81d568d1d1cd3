"""Zero-shot classification: which class's name, put into sentences, is closest to the picture.

In: a model, and a data set whose samples have one of several `labels`, the names of classes. The
feature of a class is the mean of those of its sentences, each of length one (CLIP's prompt
ensemble); the contrastive score decides. Scenes with a single object are labelled by its colour and
shape. Out: top-1 and top-5 accuracy, over all and by class.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError, UsageError
from data_pipeline.scenes.truth import is_scene
from data_pipeline.shards.manifest import Manifest
from eval.encoding.features import LoadedModel, encode_images, encode_texts, load, processes
from eval.results.contamination import flags as overlap_flags
from eval.results.contamination import overlap
from eval.results.intervals import mean_interval, mean_of_means_interval
from eval.results.schema import Metric, Result, data_flags, environment, write_result
from pretrain.ranking import Ranks, ranks, score_blocks, unit_features

TEMPLATES = (
    "{}",
    "a {}",
    "a photo of a {}",
    "a picture of a {}",
    "an image of a {}",
    "this shows a {}",
)
TOP = 5


def evaluate(
    model: Path | str,
    data: Path | str,
    out: Path | str,
    *,
    templates: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    limit: int | None = None,
    batch_size: int = 64,
    precision: str = "fp32",
    cache: Path | str | None = None,
    train: Path | str | None = None,
) -> Result:
    """Classify the pictures of a data set by the names of classes; write `result.json` and `samples.jsonl`.

    Parameters
    ----------
    model, data, out, limit, batch_size, precision, cache, train
        As of retrieval.
    templates
        Sentences with `{}` where the name of a class goes; `TEMPLATES` by default.
    classes
        All names to choose from; those that label a picture by default.

    Raises
    ------
    UsageError, DataError, NumericsError
        For an unknown option, for data without labels, for features that are not finite.
    """
    templates = checked_templates(templates)
    manifest = Manifest.load(data)
    known = overlap(manifest, model, train)
    loaded = load(model, precision, cache)
    started = time.perf_counter()
    images = encode_images(loaded, manifest, batch_size=batch_size, limit=limit, captioned=False)
    labels = [
        label_of(key, annotation)
        for key, annotation in zip(images.keys, images.annotations, strict=True)
    ]
    rows = [row for row, label in enumerate(labels) if label is not None]
    if not rows:
        raise DataError(
            f'{data} has no sample with exactly one of "labels", which classification needs'
        )
    names = _names([label for label in labels if label is not None], classes)
    number = {name: column for column, name in enumerate(names)}
    positives = np.array([number[label] for label in labels if label is not None])
    features = class_features(loaded, names, templates, batch_size=batch_size)
    records, degenerate = [], True
    keys = [images.keys[row] for row in rows]
    blocks = score_blocks(
        images.features[images.row[rows]], features, query_ids=keys, candidate_ids=names
    )
    for start, scores in blocks:
        ranked = ranks(scores, positives[start : start + len(scores)])
        degenerate = degenerate and ranked.degenerate
        best = np.argsort(-scores, axis=1, kind="stable")[:, :TOP]
        for row, above in enumerate(ranked.above):
            key, true = keys[start + row], names[positives[start + row]]
            found = {"above": int(above), "tied": int(ranked.tied[row])}
            top = [[names[column], float(scores[row, column])] for column in best[row]]
            records.append(
                {
                    "query": key,
                    "image": key,
                    "label": true,
                    "candidates": len(names),
                    **found,
                    "top": top,
                }
            )
    state = processes()
    result = Result(
        stage="zero-shot",
        protocol={
            "name": "zero-shot classification",
            "templates": list(templates),
            "ensemble": "mean of the sentences' features, each of length one",
            "classes": "given" if classes is not None else "those that label a picture",
            "ties": "expected value",
            "score_dtype": "float32",
            "precision": precision,
            "intervals": "percentile bootstrap over pictures",
        },
        data={
            "path": str(data),
            "name": manifest.name,
            "hash": f"sha256:{manifest.digest}",
            "images": len(rows),
            "without_one_label": len(labels) - len(rows),
            "classes": names,
            "overlap": known,
        },
        model=loaded.description,
        environment=environment(state.num_processes, str(loaded.device)),
        metrics=metrics(records),
        flags=overlap_flags(known) + data_flags(manifest) + ["degenerate_scores"] * degenerate,
        timing={"total_s": time.perf_counter() - started},
    )
    if state.is_main_process:
        write_result(Path(out), result, records)
    state.wait_for_everyone()
    return result


def checked_templates(given: Sequence[str] | None) -> Sequence[str]:
    """Return the sentences, `TEMPLATES` by default; raises UsageError for one without a single `{}`."""
    templates = TEMPLATES if given is None else given
    for template in templates or [""]:
        if template.count("{}") != 1:
            raise UsageError(
                f"the template {template!r} must hold {{}} once, where the name of a class goes"
            )
    return templates


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
    texts = encode_texts(
        loaded,
        [template.replace("{}", name) for name in names for template in templates],
        batch_size=batch_size,
    )
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
