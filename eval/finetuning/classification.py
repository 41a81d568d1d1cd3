"""Questions and statements as a task: fused pairs go through the classifier, with one picture (VQA) or two (NLVR2).

Losses are METER's: for answers binary cross-entropy with soft targets, summed over the labels; for
statements cross-entropy. Either is a mean over samples, so that no micro-batch or rank needs
another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_pipeline.collate import Batch
from data_pipeline.errors import DataError, NumericsError
from data_pipeline.loader import evaluation_batches
from data_pipeline.sample import Question
from data_pipeline.shards.manifest import Manifest
from data_pipeline.text import Tokenizer
from eval.metrics.vqa_accuracy import accuracy
from pretrain.config import ValidationConfig
from pretrain.model import GLSCLModel
from pretrain.objectives.tiles import at_least_float32
from pretrain.parallel.gather import gather_counts, gather_rows, rank, world_size
from pretrain.validation import encode, model_config


class ClassificationFeatures(NamedTuple):
    """What the loss reads."""

    logits: Tensor  # (batch, labels)
    targets: Tensor  # (batch, labels), soft
    temperature: Tensor  # (1,), which nothing here learns


def classify(model: GLSCLModel, pixels: Tensor, text_ids: Tensor, text_mask: Tensor) -> Tensor:
    """Logits (texts, labels) of texts with their picture, or with both pictures where `classifier_images` is 2.

    `pixels` are as many as the texts, (texts, [2,] height, width, 3) bytes; ids and mask are
    (texts, tokens).
    """
    pictures = pixels.unbind(1) if model.config.classifier_images == 2 else (pixels,)
    text = model.text_side(model.encode_text(text_ids, text_mask), text_mask)
    encoded = model.encode_image(torch.cat(pictures)).chunk(len(pictures))
    images = [model.image_side(tokens, second=number > 0) for number, tokens in enumerate(encoded)]
    return model.classify(model.pool_with_images(text, text_mask, images))


class ClassificationTask:
    """Answers to questions about a picture, or the truth of statements about two."""

    loss_names = ("classification",)
    contrasts = False
    depends_on_ranks = False
    temperature_bounds = None
    best = "accuracy"
    unused = (
        *("masked_language_head.", "visual_mask_token", "matching_head."),
        *("contrastive_text_head.", "contrastive_image_head.", "temperature", "temporal_embedding"),
    )
    """Parameters that the loss does not reach, by the start of their names."""

    def __init__(
        self,
        validation: ValidationConfig | None,
        tokenizer: Tokenizer,
        labels: Sequence[str],
        images: int,
    ):
        self.validation, self.tokenizer, self.labels, self.images = (
            validation,
            tokenizer,
            labels,
            images,
        )

    def counts(self, batches: list[Batch]) -> list[None]:
        """Nothing: every rank holds as many rows."""
        return [None] * len(batches)

    def features(self, model: GLSCLModel, batch: Batch) -> ClassificationFeatures:
        """Classify every text with its pictures."""
        assert batch.targets is not None
        logits = classify(model, batch.pixels, batch.text_ids, batch.text_mask)
        return ClassificationFeatures(logits, batch.targets, model.temperature.detach().clone())

    def similarity_losses(
        self, features: ClassificationFeatures, counts: None = None
    ) -> dict[str, Tensor]:
        """None: samples are not compared."""
        return {}

    def pair_losses(
        self, features: ClassificationFeatures, counts: None = None
    ) -> dict[str, Tensor]:
        """Binary cross-entropy, summed over labels, of answers; cross-entropy of statements; mean over samples."""
        with torch.autocast(features.logits.device.type, enabled=False):
            logits, targets = at_least_float32(features.logits), features.targets
            if self.images == 2:
                return {"classification": F.cross_entropy(logits, targets.to(logits.dtype))}
            loss = F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype))
            return {"classification": loss * targets.shape[1]}

    def weighted(self, parts: dict[str, Tensor]) -> Tensor:
        """Return the one loss."""
        return parts["classification"]

    def contrasted(self, features: ClassificationFeatures) -> list[Tensor]:
        """Nothing."""
        return []

    def with_contrasted(
        self, features: ClassificationFeatures, values: Sequence[Tensor]
    ) -> ClassificationFeatures:
        """Change nothing."""
        return features

    def join(
        self, parts: Sequence[ClassificationFeatures], counts: Sequence[Any]
    ) -> tuple[Any, None]:
        """Nothing is read of several micro-batches."""
        return parts[0], None

    def predict(
        self, model: GLSCLModel, pixels: Tensor, text_ids: Tensor, text_mask: Tensor
    ) -> Tensor:
        """Most likely label (texts,) of each text, -1 where the logits are not finite."""
        logits = classify(model, pixels, text_ids, text_mask)
        return logits.argmax(1).where(logits.isfinite().all(1), -1)

    @torch.no_grad()
    def validate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Accuracy on the validation split in percent: the official one (2021) of answers, plain that of statements.

        Each sample is read by one rank; a rank that has no more questions waits in idle forwards
        for the others. Raises DataError where no question has an answer, NumericsError on all ranks
        where logits of any are not finite.
        """
        config = self.validation
        assert config is not None
        longest, size = model_config(model).max_text_length, model_config(model).image_size
        shape = (2, size, size, 3) if self.images == 2 else (size, size, 3)
        scores: list[float] = []
        broken = 0
        mine = self._asked(config, size)
        while True:
            found = next(mine, None)
            if not any(gather_counts([int(found is not None)])[0]):
                break
            pixels, questions = found or (torch.zeros(1, *shape, dtype=torch.uint8), [])
            ids, mask = encode(
                self.tokenizer, [q.question for q in questions] or ["?"], longest, device
            )
            predicted = model("predict", pixels.to(device), ids, mask)[: len(questions)].tolist()
            broken += predicted.count(-1)
            scores += [
                self._score(self.labels[p], q) for p, q in zip(predicted, questions, strict=True)
            ]
        own = torch.tensor([[sum(scores), len(scores), broken]], dtype=torch.float64, device=device)
        correct, asked, broken = gather_rows(own).sum(0).tolist()
        if not asked:
            raise DataError(
                f"{config.path} holds no question with an answer: nothing can be validated on it"
            )
        if broken:
            raise NumericsError(
                f"the classifier's scores are not finite for {broken:.0f} of {asked:.0f} questions of {config.path}: "
                "go back to an earlier checkpoint, with a smaller learning rate"
            )
        return {"accuracy": 100 * correct / asked}

    def _asked(
        self, config: ValidationConfig, size: int
    ) -> Iterator[tuple[Tensor, list[Question]]]:
        """Yield the questions of this rank that have answers, at most `batch_size` at once, each with its pictures."""
        for batch in evaluation_batches(
            Manifest.load(config.path),
            size=size,
            batch_size=config.batch_size,
            rank=rank(),
            world=world_size(),
            limit=config.limit,
            pairs=self.images == 2,
            texts="questions",
        ):
            asked = [
                (row, q)
                for row, sample in enumerate(batch.samples)
                for q in sample.questions
                if q.answers
            ]
            for start in range(0, len(asked), config.batch_size):
                rows, questions = zip(*asked[start : start + config.batch_size], strict=True)
                yield batch.pixels[list(rows)], list(questions)

    def _score(self, label: str, question: Question) -> float:
        if self.images == 2:
            return float(label == question.answers[0])
        return accuracy(label, question.answers)
