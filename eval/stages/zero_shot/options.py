"""Options of zero-shot classification."""

from __future__ import annotations

from dataclasses import dataclass

from eval.results.options import ModelOptions, option


@dataclass(frozen=True, kw_only=True)
class Options(ModelOptions):
    """What `glscl eval zero-shot` takes."""

    stage = "zero-shot"
    about = (
        "zero-shot classification: the class whose name, put into sentences, is closest to the "
        "image"
    )
    example = "glscl eval zero-shot --model runs/demo --data data/test --out runs/demo/zero-shot"

    templates: tuple[str, ...] | None = option(
        None, help='sentences such as "a photo of a {}" (default: six of them)', metavar="TEXT"
    )
    classes: tuple[str, ...] | None = option(
        None,
        help="names of all classes (default: the labels in the data set)",
        metavar="NAME",
    )
