"""What is learnt from and what is measured: pictures that a protocol can use, and classes that must not be in both.

In: the tokens of whole data sets. Out: those of the pictures that count, errors and flags about what the sets share.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from data_pipeline.errors import DataError
from eval.tokens import ImageTokens


def learnt_from(tokens: ImageTokens) -> ImageTokens:
    """Keep the pictures of exactly one class; raises DataError where there is none."""
    rows = [row for row, names in enumerate(tokens.labels) if len(names) == 1]
    if not rows:
        raise DataError('no picture to learn from has exactly one of "labels", the class that metric learning needs')
    return _rows(tokens, rows)


def measured_on(tokens: ImageTokens, protocol: str) -> ImageTokens:
    """Keep the pictures that the protocol ranks: of one class, or also those of none, which a gallery may hold.

    Raises DataError where there is none.
    """
    allowed = (1,) if protocol == "classes" else (0, 1)
    rows = [row for row, names in enumerate(tokens.labels) if len(names) in allowed]
    if not rows:
        raise DataError('no picture to be measured on has exactly one of "labels", its class')
    return _rows(tokens, rows)


def refuse_shared_classes(learnt: ImageTokens, measured: ImageTokens, base: Path, data: Path) -> None:
    """Raise DataError, naming them, for classes that are learnt from and measured on."""
    names = sorted(_classes(learnt) & _classes(measured))
    if names:
        shown = ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise DataError(f"{base} and {data} share the classes {shown}: unseen classes must not be learnt from")


def shared_pictures(learnt: ImageTokens, measured: Iterable[ImageTokens]) -> list[str]:
    """Flag pictures that stand in both data sets byte for byte, as some published splits have them."""
    shared = {media for each in measured for media in each.media} & set(learnt.media)
    return [f"pictures_shared_with/base/{len(shared)}"] if shared else []


def counts(whole: Mapping[str, ImageTokens], used: Mapping[str, ImageTokens]) -> dict[str, dict[str, int]]:
    """Count for each data set pictures, classes, and the pictures that were left out."""
    return {
        name: {"pictures": len(each), "left_out": len(whole[name]) - len(each), "classes": len(_classes(each))}
        for name, each in used.items()
    }


def _classes(tokens: ImageTokens) -> set[str]:
    return {name for names in tokens.labels for name in names}


def _rows(tokens: ImageTokens, rows: Sequence[int]) -> ImageTokens:
    chosen = list(rows)
    return replace(
        tokens,
        keys=[tokens.keys[row] for row in chosen],
        labels=[tokens.labels[row] for row in chosen],
        annotations=[tokens.annotations[row] for row in chosen],
        media=[tokens.media[row] for row in chosen],
        cls=tokens.cls[chosen],
        patch=tokens.patch[chosen],
        proj=None if tokens.proj is None else tokens.proj[chosen],
        layers={layer: each[chosen] for layer, each in tokens.layers.items()},
    )
