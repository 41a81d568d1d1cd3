"""Options of visual question answering."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import UsageError
from eval.results.options import ModelOptions, option


@dataclass(frozen=True, kw_only=True)
class Options(ModelOptions):
    """What `glscl eval vqa` takes."""

    stage = "vqa"
    about = (
        "visual question answering: the official accuracy, by type, and the vocabulary's ceiling"
    )
    example = (
        "glscl eval vqa --model runs/vqa --data data/val --out runs/vqa/val --prior runs/vqa/prior"
    )

    prior: Path | None = option(
        None,
        help="vqa-prior result on the same data, compared question by question",
        metavar="DIR",
    )
    submit: bool = option(False, help="also write submission.json for the test server")

    def __post_init__(self) -> None:
        """Raise UsageError for a submission that would not answer all questions."""
        if self.submit and self.limit is not None:
            raise UsageError("a submission must answer all questions: leave out limit, or submit")
