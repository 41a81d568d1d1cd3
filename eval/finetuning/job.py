"""A fine-tuning run for the loop: the pre-trained model with another head, the task, and what is read."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError, UsageError
from data_pipeline.questions import QuestionConfig
from data_pipeline.shards.manifest import Manifest
from data_pipeline.text import Tokenizer
from eval.finetuning.classification import ClassificationTask
from eval.finetuning.config import FinetuneConfig
from eval.finetuning.retrieval import RetrievalTask
from eval.questions.vocabulary import Vocabulary, read_questions
from pretrain.build import adapt_model
from pretrain.job import check_validation
from pretrain.model import GLSCLModel
from pretrain.task import Task

ANSWERS = "answers.json"  # the vocabulary, in the run folder
STATEMENTS = ("False", "True")
TRIED = 1000  # questions of each data set, of which a given vocabulary must know an answer


class Finetuning:
    """A run of one task; `vocabulary` holds the answers of vqa once the model is built."""

    def __init__(self, config: FinetuneConfig):
        self.config = config
        self.vocabulary: Vocabulary | None = None

    def build(self, tokenizer: Tokenizer, checkpoint: Path | None) -> GLSCLModel:
        """Take the model of `init_from`, or of the checkpoint, with the classifier that the task needs."""
        config = self.config
        if config.task == "vqa":
            self.vocabulary = self._answers(checkpoint is not None)
        model = adapt_model(
            checkpoint or str(config.init_from),
            tokenizer,
            image_size=config.image_size,
            max_text_length=config.data.max_text_length,
            frames=config.frames,
            labels=self._labels,
            images=2 if config.task == "nlvr2" else 1,
        )
        model.checkpoint_activations(config.checkpoint_activations)
        unused: tuple[str, ...] = (
            RetrievalTask.unused if config.task == "retrieval" else ClassificationTask.unused
        )
        if not config.frames:
            unused += ("temporal_embedding",)
        for name, parameter in model.named_parameters():
            if name.startswith(unused):
                parameter.requires_grad_(False)
        return model

    def task(self, tokenizer: Tokenizer, model: GLSCLModel) -> Task:
        """Make the task; refuses a validation split that holds the training data, does not fit, or is unusable."""
        config = self.config
        if config.validation:
            self._check_validation(Path(config.validation.path), model)
        if config.task == "retrieval":
            size = config.data.video.image_size if config.frames and config.data.video else None
            return RetrievalTask(config.validation, tokenizer, size)
        return ClassificationTask(
            config.validation, tokenizer, self._labels, 2 if config.task == "nlvr2" else 1
        )

    def reading(self) -> dict[str, Any]:
        """Questions as texts, pairs as pictures, where the task is about them."""
        if self.config.task == "retrieval":
            return {}
        if self.vocabulary is not None:
            labels = self.vocabulary.label_table()
            return {"questions": QuestionConfig(labels, len(self._labels), "vqa")}
        statements = tuple((statement, label) for label, statement in enumerate(STATEMENTS))
        return {"questions": QuestionConfig(statements, len(STATEMENTS), "share"), "pairs": True}

    def record(self, folder: Path) -> None:
        """Write the vocabulary, which is the run's from now on."""
        if self.vocabulary is not None:
            self.vocabulary.save(folder / ANSWERS)

    @property
    def _labels(self) -> tuple[str, ...]:
        if self.config.task == "nlvr2":
            return STATEMENTS
        return self.vocabulary.labels if self.vocabulary is not None else ()

    def _answers(self, resumed: bool) -> Vocabulary:
        """Vocabulary of the run where it has one, the given one, or that of the training data."""
        config = self.config
        if resumed:
            return Vocabulary.load(Path(config.run) / ANSWERS)
        folders = [folder for mixture in config.mixtures.values() for folder in mixture.dirs]
        if config.answers is None:
            return Vocabulary.build(folders)
        given = Vocabulary.load(config.answers)
        known = dict(given.label_table())
        for folder in folders:
            tried = islice(read_questions(Manifest.load(folder), strict=False), TRIED)
            if any(answer in known for _, question in tried for answer in question.answers):
                return given
        raise DataError(
            f"{config.answers} has none of the answers to the first {TRIED:,} questions of {', '.join(folders)}: give "
            "the vocabulary of like data, or leave answers out to make one of these"
        )

    def _check_validation(self, path: Path, model: GLSCLModel) -> None:
        config = self.config
        assert config.validation is not None
        if config.task != "retrieval" and config.validation.frames is not None:
            raise UsageError(
                f"validation.frames is for retrieval on clips, the task is {config.task}"
            )
        validated = Manifest.load(path)
        for mixture in config.mixtures.values():
            for folder in mixture.dirs:
                if Manifest.load(folder).digest == validated.digest:
                    raise DataError(
                        f"validation.path {path} holds the training data of {folder}: name another split"
                    )
        if config.task == "nlvr2":
            validated.check_kind("pair")
        else:
            check_validation(config.validation, model)
        if kept := validated.source.get("kept_unreadable"):
            raise DataError(
                f"validation.path {path} holds {len(kept):,} unreadable samples (the first is {kept[0]['key']}), which "
                "cannot be validated on: import it with --unreadable leave-out"
            )
        if config.task != "retrieval":
            questions = read_questions(validated, config.validation.limit)
            if not any(question.answers for _, question in questions):
                raise DataError(
                    f"{path} holds no question with an answer: nothing can be validated on it"
                )
