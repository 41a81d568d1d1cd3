"""Video-text retrieval: retrieval over clips with any number of captions, on evenly spaced frames of each.

The first and the last frame are among them, of one frame it is the middle one, and a shorter clip
repeats some. A clip that cannot be read is listed; its queries count as missed. MSR-VTT 1k-A is one
caption a clip, others have many: the number is that of the data set, and stands in the result.
"""

from __future__ import annotations

import time
from pathlib import Path

from data_pipeline.shards.manifest import Manifest
from eval.encoding.features import encode_images, load
from eval.results.contamination import overlap
from eval.results.schema import Result
from eval.stages.retrieval.stage import check_options, metrics, retrieve

__all__ = ["evaluate", "metrics"]


def evaluate(
    model: Path | str,
    data: Path | str,
    out: Path | str,
    *,
    frames: int = 4,
    rerank_k: int = 16,
    score: str = "itm+sim",
    limit: int | None = None,
    batch_size: int = 16,
    precision: str = "fp32",
    cache: Path | str | None = None,
    train: Path | str | None = None,
) -> Result:
    """Evaluate retrieval of and by clips, ``frames`` of each; everything else is as for pictures.

    Raises
    ------
    UsageError, DataError, NumericsError
        For an unknown option, for missing or broken data, for scores that are not finite.
    """
    check_options(rerank_k, score)
    manifest = Manifest.load(data)
    known = overlap(manifest, model, train)
    loaded = load(model, precision, cache)
    started = time.perf_counter()
    images = encode_images(
        loaded, manifest, batch_size=batch_size, limit=limit, frames=frames, skip_unreadable=True
    )
    return retrieve(
        "video-retrieval",
        loaded,
        manifest,
        images,
        out,
        started,
        overlap=known,
        rerank_k=rerank_k,
        score=score,
        folds=1,
        batch_size=batch_size,
        protocol={
            "frames": frames,
            "sampling": "evenly spaced, first and last among them; short clips repeat frames",
        }
        | {"unreadable": "listed, missed as queries, no candidates"},
    )
