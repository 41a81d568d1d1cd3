"""Options of video-text retrieval."""

from __future__ import annotations

from dataclasses import dataclass

from eval.results.options import option
from eval.stages.retrieval.options import RankingOptions


@dataclass(frozen=True, kw_only=True)
class Options(RankingOptions):
    """What `glscl eval video-retrieval` takes."""

    stage = "video-retrieval"
    about = "video-text retrieval on evenly spaced frames of each video"
    example = (
        "glscl eval video-retrieval --model runs/video --data data/clips "
        "--out runs/video/retrieval --frames 4"
    )

    frames: int = option(4, help="frames sampled from each video", metavar="N", at_least=1)
    batch_size: int = option(
        16, help="videos encoded at once; does not change the result", metavar="N", at_least=1
    )
