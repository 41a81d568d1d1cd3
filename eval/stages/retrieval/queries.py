"""Both directions of a gallery: the queries of each, and the candidates that are ranked for them.

In: encoded images or videos and their captions. Out: a `Direction` for each side and fold, from
which `ranking_records.py` makes the records of `samples.jsonl`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.encoding.features import Images, Texts
from pretrain.ranking import score_blocks


@dataclass(frozen=True)
class Captions:
    """All captions in the order of their images.

    ``image`` (captions,) is the position of the image that each caption belongs to.
    """

    texts: list[str]
    ids: list[str]
    image: NDArray[np.int64]

    @classmethod
    def of(cls, images: Images) -> Captions:
        """List the captions of encoded images."""
        texts: list[str] = []
        ids: list[str] = []
        positions: list[int] = []
        for position, (key, captions) in enumerate(zip(images.keys, images.captions, strict=True)):
            texts += captions
            ids += [f"{key}#{number}" for number in range(len(captions))]
            positions += [position] * len(captions)
        return cls(texts, ids, np.array(positions, dtype=np.int64))


@dataclass(frozen=True)
class Direction:
    """Queries of one side and candidates of the other, within one fold.

    ``queries`` and ``candidates`` are positions in the whole test set; ``positives`` are positions
    among the candidates.
    """

    name: str
    fold: int
    queries: NDArray[np.int64]
    candidates: NDArray[np.int64]
    query_features: NDArray[np.float32]
    candidate_features: NDArray[np.float32]
    query_ids: list[str]
    candidate_ids: list[str]
    positives: list[NDArray[np.int64]]
    image_keys: list[str]
    """Key of the image that each query is, or belongs to."""
    texts: list[str] | None
    """The queries themselves, if they are captions."""

    def score_blocks(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield (first query, scores (rows, candidates)) of consecutive blocks of queries."""
        return score_blocks(
            self.query_features,
            self.candidate_features,
            query_ids=self.query_ids,
            candidate_ids=self.candidate_ids,
        )


def directions(
    media: str, images: Images, texts: Texts, captions: Captions, folds: int
) -> tuple[list[Direction], list[Direction]]:
    """Return the directions text-to-image and image-to-text, one of each per fold.

    Images are divided into ``folds`` consecutive parts, each with its own captions.
    """
    to_image, to_text = [], []
    # Equal images and equal texts are encoded once and share a row of features.
    image_features, text_features = images.features[images.row], texts.features[texts.row]
    for fold, image_rows in enumerate(np.array_split(np.arange(len(images.keys)), folds)):
        # Captions have the order of their images, so those of a fold are consecutive.
        first, last = np.searchsorted(captions.image, [image_rows[0], image_rows[-1] + 1])
        text_rows = np.arange(first, last)
        image_of = captions.image[text_rows] - image_rows[0]
        # The captions of the fold's image i are those from ends[i] up to ends[i + 1].
        ends = np.searchsorted(image_of, np.arange(len(image_rows) + 1))
        keys, ids = [images.keys[row] for row in image_rows], captions.ids[first:last]
        to_image.append(
            Direction(
                name=f"text_to_{media}",
                fold=fold,
                queries=text_rows,
                candidates=image_rows,
                query_features=text_features[text_rows],
                candidate_features=image_features[image_rows],
                query_ids=ids,
                candidate_ids=keys,
                positives=[np.array([position]) for position in image_of],
                image_keys=[keys[position] for position in image_of],
                texts=captions.texts[first:last],
            )
        )
        to_text.append(
            Direction(
                name=f"{media}_to_text",
                fold=fold,
                queries=image_rows,
                candidates=text_rows,
                query_features=image_features[image_rows],
                candidate_features=text_features[text_rows],
                query_ids=keys,
                candidate_ids=ids,
                positives=[np.arange(ends[i], ends[i + 1]) for i in range(len(image_rows))],
                image_keys=keys,
                texts=None,
            )
        )
    return to_image, to_text
