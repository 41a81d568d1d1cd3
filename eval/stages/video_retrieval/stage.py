"""Video-text retrieval: evenly spaced frames of each video, which may have any number of captions.

The first and the last frame of a video are among them; of one frame it is the middle one, and a
video with fewer frames repeats some. A video that cannot be read is listed and its queries count as
missed. MSR-VTT 1k-A has one caption per video, other data sets have many; the result says how many.
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
        If the model does not take videos of so many frames.
    NumericsError
        If a score is not finite.
    """
    loaded = load(options.model, options.precision, options.cache)
    started = time.perf_counter()
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
        "sampling": "evenly spaced, first and last among them; short clips repeat frames",
        "unreadable": "listed, missed as queries, no candidates",
    }
    return measured
