"""Recognise pictures by examples: a folder with a few pictures of each class instead of a trained classifier.

In: pictures, a folder with one folder of pictures a class, a model. Out: for each picture the
probability of each class by ProtoNet and by GLIML without training. They are softmaxes of scores
that nobody calibrated: an order, not odds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data_pipeline.augment import write_evaluation_view
from data_pipeline.decode import Pixels
from data_pipeline.errors import DataError, NumericsError, UsageError
from data_pipeline.sample import IMAGE_EXTENSIONS, BadSample
from eval.encoding.encoders import Encoder, load_encoder
from eval.encoding.labelled_images import pool_patches
from eval.stages.few_shot.baselines import Method, Proto
from eval.stages.few_shot.episode_tokens import EpisodeTokens
from eval.stages.few_shot.gliml import GLIMLHead

POOL_GRID = 7
_AT_ONCE = 32


@dataclass(frozen=True)
class Prediction:
    """Of one picture, by method: the best class, and the probability of every class."""

    picture: str
    best: dict[str, str]
    probabilities: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Predictions:
    """Predictions of pictures; ``support`` counts the examples of each class."""

    support: dict[str, int]
    pictures: list[Prediction]


@torch.no_grad()
def predict(pictures: Sequence[Path | str], support: Path | str, model: Path | str) -> Predictions:
    """Classify picture files by the examples in a folder.

    Parameters
    ----------
    pictures
        JPEG, PNG or WebP files.
    support
        Folder with one folder of such files for each class; the folder's name is the class's.
    model
        Whatever `load_encoder` loads.

    Raises
    ------
    UsageError
        If there is no such model or folder.
    DataError
        If there are fewer than two classes, one is empty, or a picture cannot be read.
    NumericsError
        If a score is not finite.
    """
    examples = _examples(Path(support))
    encoder = load_encoder(model)
    files = [file for several in examples.values() for file in several]
    own = torch.arange(len(examples)).repeat_interleave(
        torch.tensor([len(several) for several in examples.values()])
    )
    # First the pictures, which may be mistyped: there may be many examples to encode.
    asked, shown = (
        _encoded(encoder, some) for some in ([Path(picture) for picture in pictures], files)
    )
    patches, width = shown.patch.shape[1:]
    methods: dict[str, Method] = {"proto": Proto(), "gliml_untrained": GLIMLHead(width, patches)}
    tables = {
        name: each.logits(shown, own, asked, len(examples)).softmax(dim=-1)
        for name, each in methods.items()
    }
    if not all(torch.isfinite(table).all() for table in tables.values()):
        raise NumericsError("scores are not finite: the model's weights are broken")
    names = list(examples)
    return Predictions(
        support={name: len(several) for name, several in examples.items()},
        pictures=[
            Prediction(
                picture=str(picture),
                best={name: names[int(table[row].argmax())] for name, table in tables.items()},
                probabilities={
                    name: dict(zip(names, table[row].tolist(), strict=True))
                    for name, table in tables.items()
                },
            )
            for row, picture in enumerate(pictures)
        ],
    )


def table(found: Predictions) -> str:
    """Write predictions for a terminal: of each picture and method the three most probable classes."""
    lines = []
    for one in found.pictures:
        lines.append(one.picture)
        for method, shares in one.probabilities.items():
            best = sorted(shares.items(), key=lambda item: -item[1])[:3]
            lines.append(
                f"  {method}: " + ", ".join(f"{name} {100 * share:.1f} %" for name, share in best)
            )
    lines.append(
        f"from {sum(found.support.values())} examples of {len(found.support)} classes; not calibrated"
    )
    return "\n".join(lines)


def _examples(folder: Path) -> dict[str, list[Path]]:
    if not folder.is_dir():
        raise UsageError(
            f"{folder} is not a folder: --support names one that holds a folder of pictures for each class"
        )
    classes = sorted(
        each for each in folder.iterdir() if each.is_dir() and not each.name.startswith(".")
    )
    if len(classes) < 2:
        raise DataError(
            f"{folder} holds {len(classes)} folders of examples: recognition needs at least two classes"
        )
    found = {}
    for each in classes:
        files = sorted(
            file for file in each.iterdir() if file.is_file() and not file.name.startswith(".")
        )
        if not files:
            raise DataError(
                f"{each} holds no picture: add an example of the class, or remove the folder"
            )
        wrong = [file for file in files if file.suffix.lower().lstrip(".") not in IMAGE_EXTENSIONS]
        if wrong:
            raise DataError(
                f"{wrong[0]} is no {'|'.join(IMAGE_EXTENSIONS)} file: take it out of the examples"
            )
        found[each.name] = files
    return found


def _encoded(encoder: Encoder, files: Sequence[Path]) -> EpisodeTokens:
    size, side = encoder.image_size, min(POOL_GRID, *encoder.grid)
    cls, patch = [], []
    for start in range(0, len(files), _AT_ONCE):
        some = files[start : start + _AT_ONCE]
        pixels = np.empty((len(some), size, size, 3), dtype=np.uint8)
        for place, file in enumerate(some):
            _read(file, pixels[place])
        tokens = encoder.encode(torch.from_numpy(pixels)).tokens.cpu()
        cls.append(tokens[:, 0])
        patch.append(pool_patches(tokens[:, 1:], encoder.grid, side))
    return EpisodeTokens(torch.cat(cls), torch.cat(patch))


def _read(file: Path, pixels: Pixels) -> None:
    try:
        write_evaluation_view(file.read_bytes(), pixels)
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from None
    except BadSample as error:
        raise DataError(f"{file}: {error}") from None
