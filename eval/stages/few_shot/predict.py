"""Classify image files by examples: a folder with a few images of each class, and no training.

In: image files, a folder with one folder of examples per class, a model. Out: for each image the
probability of each class by ProtoNet and by GLIML without training. They are softmaxes of scores
that nobody calibrated: they rank the classes, they are not odds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

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
_IMAGES_AT_ONCE = 32
_SHOWN_CLASSES = 3


@dataclass(frozen=True)
class Prediction:
    """The best class of an image and the probability of every class, by method."""

    picture: str
    best: dict[str, str]
    probabilities: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Predictions:
    """Predictions of images; ``support`` counts the examples of each class."""

    support: dict[str, int]
    pictures: list[Prediction]


@torch.no_grad()
def predict(images: Sequence[Path | str], support: Path | str, model: Path | str) -> Predictions:
    """Classify image files by the examples in a folder.

    Parameters
    ----------
    images
        JPEG, PNG or WebP files.
    support
        Folder with one folder of such files for each class; a folder's name is its class.
    model
        Any model that `load_encoder` loads.

    Raises
    ------
    UsageError
        If there is no such model or folder.
    DataError
        If there are fewer than two classes, a class is empty, or an image cannot be read.
    NumericsError
        If a score is not finite.
    """
    examples = _list_examples(Path(support))
    encoder = load_encoder(model)
    # The images come before the examples: a mistyped name should not wait for many examples.
    query = _encode(encoder, [Path(image) for image in images])
    files: list[Path] = []
    for files_of_class in examples.values():
        files += files_of_class
    shown = _encode(encoder, files)
    counts = {name: len(files_of_class) for name, files_of_class in examples.items()}
    support_y = torch.arange(len(examples)).repeat_interleave(torch.tensor(list(counts.values())))
    patches, width = shown.patch.shape[1:]
    # The two methods that need neither base classes nor settings.
    methods: dict[str, Method] = {"proto": Proto(), "gliml_untrained": GLIMLHead(width, patches)}
    probabilities = {}
    for name, method in methods.items():
        logits = method.logits(shown, support_y, query, len(examples))
        if not torch.isfinite(logits).all():
            raise NumericsError("scores are not finite: the model's weights are broken")
        probabilities[name] = logits.softmax(dim=-1)
    classes = list(examples)
    predictions = []
    for row, image in enumerate(images):
        of_image = {name: values[row] for name, values in probabilities.items()}
        predictions.append(_prediction(str(image), of_image, classes))
    return Predictions(counts, predictions)


def table(predictions: Predictions) -> str:
    """Write the three most probable classes of each image by each method, for a terminal."""
    lines = []
    for prediction in predictions.pictures:
        lines.append(prediction.picture)
        for method, probabilities in prediction.probabilities.items():
            ranked = sorted(probabilities.items(), key=lambda item: -item[1])[:_SHOWN_CLASSES]
            shares = [f"{name} {100 * probability:.1f} %" for name, probability in ranked]
            lines.append(f"  {method}: {', '.join(shares)}")
    examples, classes = sum(predictions.support.values()), len(predictions.support)
    lines.append(f"from {examples} examples of {classes} classes; not calibrated")
    return "\n".join(lines)


def _prediction(
    picture: str, probabilities: Mapping[str, Tensor], classes: Sequence[str]
) -> Prediction:
    best, by_class = {}, {}
    for method, values in probabilities.items():
        best[method] = classes[int(values.argmax())]
        by_class[method] = dict(zip(classes, values.tolist(), strict=True))
    return Prediction(picture, best, by_class)


def _list_examples(folder: Path) -> dict[str, list[Path]]:
    """Return the files of each class, sorted; hidden files and folders are skipped."""
    if not folder.is_dir():
        raise UsageError(
            f"{folder} is not a folder: --support names one that holds a folder of images for "
            "each class"
        )
    class_folders = []
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not entry.name.startswith("."):
            class_folders.append(entry)
    if len(class_folders) < 2:
        raise DataError(
            f"{folder} holds {len(class_folders)} folders of examples: "
            "recognition needs at least two classes"
        )
    examples = {}
    for class_folder in class_folders:
        files = []
        for file in sorted(class_folder.iterdir()):
            if not file.is_file() or file.name.startswith("."):
                continue
            if file.suffix.lower().lstrip(".") not in IMAGE_EXTENSIONS:
                raise DataError(
                    f"{file} is not a {'|'.join(IMAGE_EXTENSIONS)} file: "
                    "take it out of the examples"
                )
            files.append(file)
        if not files:
            raise DataError(
                f"{class_folder} holds no image: add an example of the class, or remove the folder"
            )
        examples[class_folder.name] = files
    return examples


def _encode(encoder: Encoder, files: Sequence[Path]) -> EpisodeTokens:
    # A small model may have fewer patches than the grid.
    size, side = encoder.image_size, min(POOL_GRID, *encoder.grid)
    cls, patch = [], []
    for start in range(0, len(files), _IMAGES_AT_ONCE):
        batch = files[start : start + _IMAGES_AT_ONCE]
        pixels = np.empty((len(batch), size, size, 3), dtype=np.uint8)
        for place, file in enumerate(batch):
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
