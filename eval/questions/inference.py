"""Questions about pictures or pairs of pictures through the classifier of a model, sample by sample of a data set.

A question belongs to one sample, so that a block of samples is encoded (each picture and each text
once), fused and forgotten; what a cache keeps (see `eval/encoding/cache.py`) are the answers.
Blocks are the same whatever the number of processes, which share them.
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
from eval.encoding.cache import Block, encoded_blocks
from eval.encoding.features import UNREADABLE, LoadedModel, processes
from eval.encoding.matching_scores import TOKENS_AT_ONCE
from eval.questions.vocabulary import questions_of
from pretrain.model.modeling import Side


@dataclass(frozen=True)
class Answer:
    """What a model says to one question about the sample ``key``.

    ``label`` is the one with the highest logit, ``score``, the first of equals. Where a picture
    cannot be read ``problem`` says why, and there is neither.
    """

    key: str
    question: Question
    label: int | None
    score: float | None
    problem: str = ""


def answer_questions(
    loaded: LoadedModel, manifest: Manifest, *, limit: int | None = None, batch_size: int = 64
) -> list[Answer]:
    """Answer every question of the first ``limit`` samples, of ``batch_size`` samples at once; sorted by question id.

    The model decides whether samples must be pictures or pairs.

    Raises
    ------
    UsageError
        If the model has no classifier.
    DataError
        If a sample is damaged or has no questions, or two questions share an id. A picture that
        cannot be decoded is no error: its answers say so.
    NumericsError
        If a logit is not finite; the message names the sample.
    """
    if not loaded.model.config.classifier_labels:
        raise UsageError(
            f"the model {loaded.description['path']} has no classifier: fine-tune it on questions first"
        )
    manifest.check_kind(_kind(loaded))
    total = manifest.samples if limit is None else min(limit, manifest.samples)
    with closing(Store([manifest])) as store:
        asked = [
            (number, question)
            for number in range(total)
            for question in questions_of(store, number)
        ]
        keys = [store.key(0, number) for number in range(total)]
        check_ids([question.id for _, question in asked], str(manifest.root))
        blocks = [
            range(start, min(start + batch_size, total)) for start in range(0, total, batch_size)
        ]
        code = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
        found = encoded_blocks(
            processes(),
            loaded.cache,
            loaded.identity(),
            [
                {"answers": manifest.digest, "code": code, "samples": [block.start, block.stop]}
                for block in blocks
            ],
            lambda number: _answer_block(loaded, store, blocks[number]),
        )
    labels = torch.cat([block.arrays["labels"] for block in found]).tolist()
    scores = torch.cat([block.arrays["scores"] for block in found]).tolist()
    problems: dict[int, str] = {
        item["sample"]: item["problem"] for block in found for item in block.items
    }
    answers = [
        Answer(keys[number], question, None, None, problems[number])
        if number in problems
        else Answer(keys[number], question, label, score)
        for (number, question), label, score in zip(asked, labels, scores, strict=True)
    ]
    return sorted(
        answers, key=lambda answer: (isinstance(answer.question.id, str), answer.question.id)
    )


def check_ids(asked: Sequence[str | int], where: str) -> None:
    """Check that there are questions, and that no two of them share an id.

    Raises
    ------
    DataError
        If not; the message names a question.
    """
    if not asked:
        raise DataError(f"{where} holds no sample to evaluate on")
    twice = [number for number, count in Counter(asked).items() if count > 1]
    if twice:
        raise DataError(
            f"{where}: {len(twice)} question ids are asked more than once, first {twice[0]!r}"
        )


def _kind(loaded: LoadedModel) -> Kind:
    return "image" if loaded.model.config.classifier_images == 1 else "pair"


@torch.inference_mode()
def _answer_block(loaded: LoadedModel, store: Store, numbers: Sequence[int]) -> Block:
    """Answer the questions of samples: label and score of each question, and the samples that cannot be read."""
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
                raise DataError(
                    f"sample {store.key(0, number)} cannot be evaluated: {error}"
                ) from error
            problems.append({"sample": number, "problem": str(error)})
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
    labels = logits.argmax(axis=1)  # the first of equals, which torch does not promise everywhere
    scores = np.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    return Block({"labels": torch.from_numpy(labels), "scores": torch.from_numpy(scores)}, problems)


def _logits(
    loaded: LoadedModel, pixels: Tensor, rows: Tensor, texts: Sequence[str]
) -> NDArray[np.float32]:
    """Score the labels (texts, labels) for texts about the rows of pixels (samples, images, size, size, 3)."""
    model, device = loaded.model, loaded.device
    distinct = sorted(set(texts))
    place = {text: row for row, text in enumerate(distinct)}
    chosen = torch.tensor([place[text] for text in texts])
    ids = [
        torch.tensor(e.ids) for e in loaded.tokenizer.encode(distinct, model.config.max_text_length)
    ]
    padded = torch.nn.utils.rnn.pad_sequence(
        ids, batch_first=True, padding_value=loaded.tokenizer.pad_id
    ).to(device)
    lengths = torch.tensor([len(row) for row in ids])
    mask = (torch.arange(padded.shape[1]) < lengths[:, None]).long().to(device)
    with loaded.autocast():
        views = [model.encode_image(model.normalize(view.to(device))) for view in pixels.unbind(1)]
        image_sides = [
            model.image_side(tokens, second=number == 1) for number, tokens in enumerate(views)
        ]
        text_side = model.text_side(model.encode_text(padded, mask), mask)
    logits = torch.empty(len(texts), len(model.config.classifier_labels))
    order = torch.argsort(lengths[chosen], stable=True)
    for part in order.split(max(1, TOKENS_AT_ONCE // (padded.shape[1] + views[0].shape[1]))):
        own, longest = chosen[part].to(device), int(lengths[chosen[part]].max())
        text = Side(text_side.tokens[own, :longest], text_side.attended[own, :longest])
        with loaded.autocast():
            images = [side[rows[part].to(device)] for side in image_sides]
            pooled = model.pool_with_images(text, mask[own, :longest], images)
        logits[part] = model.classify(pooled.float()).cpu()
    return logits.numpy()
