"""Answer questions about images, or statements about pairs of images, with a model's classifier.

In: a model with a classifier, and a data set with questions. Out: one answer per question. A
question belongs to one sample, so that a block of samples is encoded (each image and each text
once), fused and dropped; the cache (see `eval/encoding/cache.py`) keeps only the answers. The
blocks do not depend on the number of processes, which share them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.augment import write_evaluation_pixels
from data_pipeline.errors import DataError, NumericsError, UsageError
from data_pipeline.sample import BadSample, Kind, Question
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.store import Store
from eval.encoding.cache import Block, encoded_blocks, joined
from eval.encoding.features import (
    UNREADABLE,
    LoadedModel,
    block_ranges,
    padded_texts,
    processes,
    token_ids,
)
from eval.encoding.matching_scores import TOKENS_AT_ONCE
from eval.questions.vocabulary import questions_of
from pretrain.model.modeling import Side


@dataclass(frozen=True)
class Answer:
    """A model's answer to one question about the sample ``key``.

    ``label`` has the highest logit, ``score``; of equal logits, the first counts. If the image
    cannot be read, ``problem`` says why, and both are None.
    """

    key: str
    question: Question
    label: int | None
    score: float | None
    problem: str = ""


def answer_questions(
    loaded: LoadedModel, manifest: Manifest, *, limit: int | None = None, batch_size: int = 64
) -> list[Answer]:
    """Answer every question of the first ``limit`` samples (default: all); sort by question id.

    ``batch_size`` samples are encoded at once. The model decides whether samples must be images or
    pairs of images.

    Raises
    ------
    UsageError
        If the model has no classifier.
    DataError
        If a sample is damaged or has no questions, or two questions share an id. An image that
        cannot be decoded is not an error: its answers record the problem.
    NumericsError
        If a logit is not finite; the message names the sample.
    """
    if not loaded.model.config.classifier_labels:
        raise UsageError(
            f"the model {loaded.description['path']} has no classifier: "
            "fine-tune it on questions first"
        )
    manifest.check_kind(_kind(loaded))
    total = manifest.samples if limit is None else min(limit, manifest.samples)
    with closing(Store([manifest])) as store:
        questions: list[tuple[int, Question]] = []
        for number in range(total):
            for question in questions_of(store, number):
                questions.append((number, question))
        keys = [store.key(0, number) for number in range(total)]
        # Before anything is encoded, which takes minutes.
        check_ids([question.id for _, question in questions], str(manifest.root))
        ranges = block_ranges(total, batch_size)
        # This file is not part of the model's identity, but a change of it may change answers.
        code = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
        block_keys = []
        for numbers in ranges:
            samples = [numbers.start, numbers.stop]
            block_keys.append({"answers": manifest.digest, "code": code, "samples": samples})

        def compute(number: int) -> Block:
            return _answer_block(loaded, store, ranges[number])

        blocks = encoded_blocks(processes(), loaded.cache, loaded.identity(), block_keys, compute)
    labels = joined(blocks, "labels").tolist()
    scores = joined(blocks, "scores").tolist()
    problems: dict[int, str] = {}
    for block in blocks:
        problems |= {item["sample"]: item["problem"] for item in block.items}
    answers = []
    for (number, question), label, score in zip(questions, labels, scores, strict=True):
        if number in problems:
            answers.append(Answer(keys[number], question, None, None, problems[number]))
        else:
            answers.append(Answer(keys[number], question, label, score))
    # Numbers before texts, which cannot be compared with each other.
    answers.sort(key=lambda answer: (isinstance(answer.question.id, str), answer.question.id))
    return answers


def check_ids(ids: Sequence[str | int], where: str) -> None:
    """Raise DataError if there are no questions, or if two of them share an id."""
    if not ids:
        raise DataError(f"{where} holds no sample to evaluate on")
    twice = [question_id for question_id, count in Counter(ids).items() if count > 1]
    if twice:
        raise DataError(
            f"{where}: {len(twice)} question ids occur more than once, the first is {twice[0]!r}"
        )


def _kind(loaded: LoadedModel) -> Kind:
    return "image" if loaded.model.config.classifier_images == 1 else "pair"


@torch.inference_mode()
def _answer_block(loaded: LoadedModel, store: Store, numbers: Sequence[int]) -> Block:
    """Answer the questions of some samples; list the samples that cannot be read."""
    size, kind = loaded.model.config.image_size, _kind(loaded)
    pixels = np.empty((len(numbers), 1 if kind == "image" else 2, size, size, 3), dtype=np.uint8)
    texts: list[str] = []
    rows: list[int] = []
    problems = []
    for row, number in enumerate(numbers):
        try:
            sample = store.read(0, number, kind, "questions")
            write_evaluation_pixels(sample, pixels[row, 0] if kind == "image" else pixels[row])
        except BadSample as error:
            if error.reason not in UNREADABLE:
                key = store.key(0, number)
                raise DataError(f"sample {key} cannot be evaluated: {error}") from error
            problems.append({"sample": number, "problem": str(error)})
            # A black image, so that every question has a row; its answers are dropped later.
            pixels[row] = 0
        for question in questions_of(store, number):
            texts.append(question.question)
            rows.append(row)
    logits = _logits(loaded, torch.from_numpy(pixels), torch.tensor(rows), texts)
    bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(bad):
        key = store.key(0, numbers[rows[bad[0]]])
        raise NumericsError(
            f"the classifier's scores are not finite for {len(bad)} of {len(rows)} questions: {key}"
        )
    # numpy, which returns the first of equal logits; torch does not promise that.
    labels = logits.argmax(axis=1)
    scores = np.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    return Block({"labels": torch.from_numpy(labels), "scores": torch.from_numpy(scores)}, problems)


def _logits(
    loaded: LoadedModel, pixels: Tensor, rows: Tensor, texts: Sequence[str]
) -> NDArray[np.float32]:
    """Return logits (texts, labels) of texts about rows of pixels (samples, images, size, size, 3).

    ``rows`` (texts,) is the sample of each text.
    """
    model, device = loaded.model, loaded.device
    # Many images share a question, so that each text is encoded once.
    distinct = sorted(set(texts))
    row_of_text = {text: row for row, text in enumerate(distinct)}
    text_rows = torch.tensor([row_of_text[text] for text in texts])
    padded, mask = padded_texts(loaded, token_ids(loaded, distinct))
    lengths = mask.sum(1)
    padded, mask = padded.to(device), mask.to(device)
    image_sides = []
    with loaded.autocast():
        for number, images in enumerate(pixels.unbind(1)):
            tokens = model.encode_image(model.normalize(images.to(device)))
            image_sides.append(model.image_side(tokens, second=number == 1))
        text_side = model.text_side(model.encode_text(padded, mask), mask)
    logits = torch.empty(len(texts), len(model.config.classifier_labels))
    # Sorted by length, because a chunk is cut to its longest text.
    order = torch.argsort(lengths[text_rows], stable=True)
    tokens_per_pair = padded.shape[1] + image_sides[0].tokens.shape[1]
    for part in order.split(max(1, TOKENS_AT_ONCE // tokens_per_pair)):
        chosen, longest = text_rows[part].to(device), int(lengths[text_rows[part]].max())
        text = Side(text_side.tokens[chosen, :longest], text_side.attended[chosen, :longest])
        with loaded.autocast():
            sides = [side[rows[part].to(device)] for side in image_sides]
            pooled = model.pool_with_images(text, mask[chosen, :longest], sides)
        # The classifier runs in float32, outside of autocast.
        logits[part] = model.classify(pooled.float()).cpu()
    return logits.numpy()
