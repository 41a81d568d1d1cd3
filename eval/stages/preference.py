"""Whether the model prefers a true caption to one with two attributes exchanged or a relation reversed.

In: a model and a scenes split, whose graphs say which changed captions are false. Out: the share of
pairs in which the true caption scores higher, by the contrastive score and by the matching head;
ties count half, guessing reaches 50 %.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.scenes.truth import is_scene, swapped
from data_pipeline.shards.manifest import Manifest
from eval.encoding.features import Images, encode_images, encode_texts, load, processes
from eval.encoding.matching_scores import match_margins
from eval.results.contamination import flags as overlap_flags
from eval.results.contamination import overlap
from eval.results.intervals import mean_interval
from eval.results.schema import Metric, Result, data_flags, environment, write_result

SCORES = ("contrastive", "matching")
KINDS = ("attributes", "relation")


@dataclass(frozen=True)
class Choice:
    """A picture with a caption that is true of it and one that is not; ``kind`` says how the false one was made.

    ``query`` names it in the records (default: its number), ``picture`` what is resampled (default:
    the sample).
    """

    image: int
    true: str
    false: str
    kind: str
    query: str | None = None
    picture: str | None = None


def evaluate(
    model: Path | str,
    data: Path | str,
    out: Path | str,
    *,
    limit: int | None = None,
    batch_size: int = 64,
    precision: str = "fp32",
    cache: Path | str | None = None,
) -> Result:
    """Compare true and false captions over a scenes split; write `result.json` and `samples.jsonl` into ``out``.

    Options are those of retrieval.

    Raises
    ------
    UsageError, DataError, NumericsError
        For an unknown option, for data without scene graphs, for scores that are not finite.
    """
    return compare(
        model,
        data,
        out,
        stage="preference",
        protocol="true against changed caption",
        wanted="a split of generated scenes",
        choices_of=choices_of,
        metrics=metrics,
        limit=limit,
        batch_size=batch_size,
        precision=precision,
        cache=cache,
    )


def compare(
    model: Path | str,
    data: Path | str,
    out: Path | str,
    *,
    stage: str,
    protocol: str,
    wanted: str,
    choices_of: Callable[[Images], list[Choice]],
    metrics: Callable[[Iterable[dict[str, Any]]], list[Metric]],
    limit: int | None,
    batch_size: int,
    precision: str,
    cache: Path | str | None,
) -> Result:
    """Score the choices that ``choices_of`` finds in a data set and write the result of ``stage`` into ``out``.

    ``wanted`` says what data have such choices; other arguments and errors as of `evaluate`.
    """
    manifest = Manifest.load(data)
    known = overlap(manifest, model)
    loaded = load(model, precision, cache)
    started = time.perf_counter()
    images = encode_images(loaded, manifest, batch_size=batch_size, limit=limit)
    choices = choices_of(images)
    if not choices:
        raise DataError(f"{data} has no captions with a false counterpart: it must be {wanted}")
    captions = [choice.true for choice in choices] + [choice.false for choice in choices]
    image = np.tile([choice.image for choice in choices], 2)
    texts = encode_texts(loaded, captions, batch_size=batch_size)
    cosines = np.einsum(
        "ij,ij->i", images.features[images.row[image]], texts.features[texts.row], dtype=np.float64
    ).astype(np.float32)
    margins = match_margins(loaded, images, texts, image, np.arange(len(captions)))
    scores = {"contrastive": cosines.reshape(2, -1), "matching": margins.reshape(2, -1)}
    records = [
        {
            "query": number if choice.query is None else choice.query,
            "image": images.keys[choice.image],
        }
        | ({} if choice.picture is None else {"picture": choice.picture})
        | {"kind": choice.kind, "true": choice.true, "false": choice.false}
        | {name: [float(both[0, number]), float(both[1, number])] for name, both in scores.items()}
        for number, choice in enumerate(choices)
    ]
    state = processes()
    result = Result(
        stage=stage,
        protocol={
            "name": protocol,
            "ties": "half",
            "score_dtype": "float32",
            "precision": precision,
            "intervals": "percentile bootstrap over pictures",
        },
        data={
            "path": str(data),
            "name": manifest.name,
            "hash": f"sha256:{manifest.digest}",
            "images": len(images.keys),
            "pairs": len(choices),
            "overlap": known,
        },
        model=loaded.description,
        environment=environment(state.num_processes, str(loaded.device)),
        metrics=metrics(records),
        flags=overlap_flags(known)
        + data_flags(manifest)
        + [
            f"constant_scores/{name}"
            for name, both in scores.items()
            if np.ptp(both) <= 1e-6 * np.abs(both).max()
        ],
        timing={"total_s": time.perf_counter() - started},
    )
    if state.is_main_process:
        write_result(Path(out), result, records)
    state.wait_for_everyone()
    return result


def choices_of(images: Images) -> list[Choice]:
    """Pair every caption with its false counterpart, where it has one."""
    found = []
    for number, annotation in enumerate(images.annotations):
        if not is_scene(annotation):
            continue
        for which, true in enumerate(annotation["captions"]):
            false = swapped(annotation, which)
            if false is not None:
                found.append(Choice(number, true, false, _kind(true, false)))
    return found


def metrics(records: Iterable[dict[str, Any]]) -> list[Metric]:
    """Compute every metric from the lines of `samples.jsonl`: `SCORE/accuracy`, and `SCORE/accuracy/KIND`."""
    lines = list(records)
    found = []
    for score in SCORES:
        found.append(accuracy(f"{score}/accuracy", score, lines))
        for kind in KINDS:
            chosen = [line for line in lines if line["kind"] == kind]
            if chosen:
                found.append(accuracy(f"{score}/accuracy/{kind}", score, chosen))
    return found


def accuracy(name: str, score: str, lines: Sequence[dict[str, Any]]) -> Metric:
    """Share of the lines whose true caption scores higher, with ties as half and the two extremes as its bounds."""
    true, false = np.array([line[score] for line in lines]).T
    right = 100 * ((true > false) + 0.5 * (true == false))
    return Metric(
        name=name,
        value=float(right.mean()),
        unit="percent",
        ci95=mean_interval(right, [line.get("picture", line["image"]) for line in lines]),
        n=len(lines),
        chance=50.0,
        bounds=(100 * float((true > false).mean()), 100 * float((true >= false).mean())),
    )


def _kind(true: str, false: str) -> str:
    """Exchanged attributes only move words (but for a and an); a reversed relation changes one."""
    counts = [
        Counter(w for w in re.findall(r"\w+", text) if w not in ("a", "an"))
        for text in (true, false)
    ]
    return "attributes" if counts[0] == counts[1] else "relation"
