"""Classification as a task: answer a question about an image (VQA), or judge a statement (NLVR2).

The fused states of a text and its image, or its two images, go through the classifier. Losses are
METER's: for answers, binary cross-entropy with soft targets, summed over the labels; for
statements, cross-entropy. Both are means over samples, so that no micro-batch or rank needs another
one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
    """Input of the loss."""

    logits: Tensor  # (batch, labels)
    targets: Tensor  # (batch, labels), soft
    temperature: Tensor  # (1,), not learned here; the loop logs it


def classify(model: GLSCLModel, pixels: Tensor, text_ids: Tensor, text_mask: Tensor) -> Tensor:
    """Compute logits (texts, labels) of texts with their images.

    Parameters
    ----------
    model : GLSCLModel
        A model with a classifier; its `classifier_images` says how many images a text has.
    pixels : Tensor
        Bytes (texts, height, width, 3), or (texts, 2, height, width, 3) for two images.
    text_ids, text_mask : Tensor
        (texts, tokens).
    """
    images_of_texts = pixels.unbind(1) if model.config.classifier_images == 2 else (pixels,)
    text = model.text_side(model.encode_text(text_ids, text_mask), text_mask)
    # One call of the tower for both images, and one of the fusion encoder for both pairs.
    encoded = model.encode_image(torch.cat(images_of_texts)).chunk(len(images_of_texts))
    images = [model.image_side(tokens, second=number > 0) for number, tokens in enumerate(encoded)]
    return model.classify(model.pool_with_images(text, text_mask, images))


class ClassificationTask:
    """Answers to questions about an image, or the truth of statements about two images."""

    loss_names = ("classification",)
    contrasts = False
    depends_on_ranks = False
    temperature_bounds = None
    best = "accuracy"
    unused = (
        *("masked_language_head.", "visual_mask_token", "matching_head."),
        *("contrastive_text_head.", "contrastive_image_head.", "temperature", "temporal_embedding"),
    )
    """Prefixes of the names of parameters that the loss does not reach."""

    def __init__(
        self,
        validation: ValidationConfig | None,
        tokenizer: Tokenizer,
        labels: Sequence[str],
        images: int,
    ):
        self.validation, self.tokenizer = validation, tokenizer
        self.labels, self.images = labels, images

    def counts(self, batches: list[Batch]) -> list[None]:
        """Return no counts: every rank has the same number of rows."""
        return [None] * len(batches)

    def features(self, model: GLSCLModel, batch: Batch) -> ClassificationFeatures:
        """Classify every text with its images."""
        assert batch.targets is not None
        logits = classify(model, batch.pixels, batch.text_ids, batch.text_mask)
        return ClassificationFeatures(logits, batch.targets, model.temperature.detach().clone())

    def similarity_losses(
        self, features: ClassificationFeatures, counts: None = None
    ) -> dict[str, Tensor]:
        """Return no losses: samples are not compared."""
        return {}

    def pair_losses(
        self, features: ClassificationFeatures, counts: None = None
    ) -> dict[str, Tensor]:
        """Compute the mean loss over samples; see the top of this file."""
        with torch.autocast(features.logits.device.type, enabled=False):
            logits, targets = at_least_float32(features.logits), features.targets
            if self.images == 2:
                return {"classification": F.cross_entropy(logits, targets.to(logits.dtype))}
            loss = F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype))
            # torch averages over the labels too; METER sums over them.
            return {"classification": loss * targets.shape[1]}

    def weighted(self, losses: dict[str, Tensor]) -> Tensor:
        """Return the only loss."""
        return losses["classification"]

    def contrasted(self, features: ClassificationFeatures) -> dict[str, Tensor]:
        """Name no features: samples are not compared."""
        return {}

    def with_contrasted(
        self, features: ClassificationFeatures, values: Mapping[str, Tensor]
    ) -> ClassificationFeatures:
        """Replace named features."""
        return features._replace(**values)

    def join(
        self, parts: Sequence[ClassificationFeatures], counts: Sequence[Any]
    ) -> tuple[Any, None]:
        """Return any micro-batch: no loss reads several of them."""
        return parts[0], None

    def predict(
        self, model: GLSCLModel, pixels: Tensor, text_ids: Tensor, text_mask: Tensor
    ) -> Tensor:
        """Return the most likely label (texts,), -1 where the logits are not finite."""
        logits = classify(model, pixels, text_ids, text_mask)
        return logits.argmax(1).where(logits.isfinite().all(1), -1)

    @torch.no_grad()
    def validate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Measure accuracy on the validation split in percent.

        Answers are scored by the official VQA accuracy (2021), statements by plain accuracy. Each
        sample is read by one rank. Raises DataError if no question has an answer, and NumericsError
        on all ranks if any logits are not finite.
        """
        config = self.validation
        assert config is not None
        longest, size = model_config(model).max_text_length, model_config(model).image_size
        shape = (2, size, size, 3) if self.images == 2 else (size, size, 3)
        scores: list[float] = []
        broken = 0
        chunks = self._question_chunks(config, size)
        while True:
            chunk = next(chunks, None)
            if not any(gather_counts([int(chunk is not None)])[0]):
                break
            # A sharded engine waits in every forward pass for all ranks: a rank without questions
            # runs one on a black image.
            pixels, questions = chunk or (torch.zeros(1, *shape, dtype=torch.uint8), [])
            texts = [q.question for q in questions] or ["?"]
            ids, mask = encode(self.tokenizer, texts, longest, device)
            predicted = model("predict", pixels.to(device), ids, mask)[: len(questions)].tolist()
            broken += predicted.count(-1)
            for label, question in zip(predicted, questions, strict=True):
                scores.append(self._score(self.labels[label], question))
        sums = torch.tensor(
            [[sum(scores), len(scores), broken]], dtype=torch.float64, device=device
        )
        correct, answered, broken = gather_rows(sums).sum(0).tolist()
        if not answered:
            raise DataError(
                f"{config.path} holds no question with an answer: it cannot be used for validation"
            )
        if broken:
            raise NumericsError(
                f"the classifier's scores are not finite for {broken:.0f} of {answered:.0f} "
                f"questions of {config.path}: go back to an earlier checkpoint, with a smaller "
                "learning rate"
            )
        return {"accuracy": 100 * correct / answered}

    def _question_chunks(
        self, config: ValidationConfig, size: int
    ) -> Iterator[tuple[Tensor, list[Question]]]:
        """Yield this rank's questions that have answers, with the images of each.

        A chunk holds at most `batch_size` questions: one image may have many.
        """
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
            rows: list[int] = []
            questions: list[Question] = []
            for row, sample in enumerate(batch.samples):
                answered = [question for question in sample.questions if question.answers]
                rows += [row] * len(answered)
                questions += answered
            for start in range(0, len(questions), config.batch_size):
                chunk = slice(start, start + config.batch_size)
                yield batch.pixels[rows[chunk]], questions[chunk]

    def _score(self, label: str, question: Question) -> float:
        if self.images == 2:
            return float(label == question.answers[0])
        return accuracy(label, question.answers)
