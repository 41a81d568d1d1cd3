"""Class names as text: put each name into sentences, and average the features of the sentences.

In: the names of classes, and templates with `{}` where a name goes. Out: one unit feature per class
in the space that images and texts share (the prompt ensemble of CLIP, arXiv:2103.00020, section
3.1.4).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from data_pipeline.errors import UsageError
from eval.encoding.encoders import Encoder
from pretrain.ranking import unit_features

TEMPLATES = (
    "{}",
    "a {}",
    "a photo of a {}",
    "a picture of a {}",
    "an image of a {}",
    "this shows a {}",
)


def checked_templates(given: Sequence[str] | None) -> Sequence[str]:
    """Return the given templates, or `TEMPLATES` by default.

    Raises UsageError for a template that does not contain `{}` exactly once.
    """
    templates = TEMPLATES if given is None else given
    # An empty list has no sentence, and is refused like a template without a place.
    for template in templates or [""]:
        if template.count("{}") != 1:
            raise UsageError(
                f"the template {template!r} must hold {{}} once, where the name of a class goes"
            )
    return templates


def class_sentences(names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Put every name into every template: all sentences of the first name, then of the next."""
    sentences = []
    for name in names:
        sentences += [template.replace("{}", name) for template in templates]
    return sentences


def label_features(
    encoder: Encoder, names: Sequence[str], templates: Sequence[str] = TEMPLATES
) -> Tensor:
    """Return unit features (classes, projection): the mean over the sentences of each class.

    Raises
    ------
    UsageError
        If images and texts do not share a space.
    NumericsError
        If a feature is not finite.
    """
    features = encoder.encode_texts(class_sentences(names, templates))
    by_class = features.reshape(len(names), len(templates), -1)
    # float64, so that the mean of float32 features is not rounded once more.
    return torch.from_numpy(unit_features(by_class.astype(np.float64).mean(axis=1), names))
