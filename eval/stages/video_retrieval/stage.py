"""Video-text retrieval on evenly spaced frames of each video.

In: a model of videos, and a data set whose videos have one or more captions. Out: the metrics of
image-text retrieval. The first and the last frame of a video are among the sampled ones; if only
one is sampled, it is the middle one, and a video with fewer frames repeats some. A video that
cannot be read is listed and its queries count as missed.
"""

from __future__ import annotations

import time

from data_pipeline.shards.manifest import Manifest
from eval.encoding.features import encode_images, load
from eval.results.run_stage import Measured
from eval.stages.retrieval.stage import metrics, rank_both_ways

from .options import Options

__all__ = ["measure", "metrics"]


def measure(options: Options, manifest: Manifest) -> Measured:
    """Rank a data set's videos for its captions, and its captions for its videos.

    Raises
    ------
    UsageError
        If the model cannot encode that many frames.
    NumericsError
        If a score is not finite.
    """
    loaded = load(options.model, options.precision, options.cache)
    started = time.perf_counter()
    # Published clips of web videos go missing or are cut off: one must not stop an evaluation.
    videos = encode_images(
        loaded,
        manifest,
        batch_size=options.batch_size,
        limit=options.limit,
        frames=options.frames,
        skip_unreadable=True,
    )
    measured = rank_both_ways("video", options, loaded, videos, started)
    measured.protocol |= {
        "frames": options.frames,
        "sampling": "evenly spaced, first and last among them; short videos repeat frames",
    }
    return measured
