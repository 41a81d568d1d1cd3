"""Fine-tuning as a job: a pre-trained model with a new head, its task, and what it reads."""

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
from pretrain.protocols import Task

ANSWERS = "answers.json"  # the answer vocabulary in the run folder
STATEMENTS = ("False", "True")  # labels of NLVR2
# A given vocabulary must know an answer to one of this number of questions of a data set.
TRIED = 1000


class Finetuning:
    """A run of one task; `build` sets `vocabulary`, the answers of vqa."""

    def __init__(self, config: FinetuneConfig):
        self.config = config
        self.vocabulary: Vocabulary | None = None

    def build(self, tokenizer: Tokenizer, checkpoint: Path | None) -> GLSCLModel:
        """Load the model of `init_from` or the checkpoint, and give it the task's classifier."""
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
        is_retrieval = config.task == "retrieval"
        unused: tuple[str, ...] = (RetrievalTask if is_retrieval else ClassificationTask).unused
        if not config.frames:
            unused += ("temporal_embedding",)
        # DDP would wait for gradients of parameters that no loss reaches.
        for name, parameter in model.named_parameters():
            if name.startswith(unused):
                parameter.requires_grad_(False)
        return model

    def task(self, tokenizer: Tokenizer, model: GLSCLModel) -> Task:
        """Make the task; raises UsageError or DataError for an unsuitable validation split."""
        config = self.config
        if config.validation:
            self._check_validation(Path(config.validation.path), model)
        if config.task == "retrieval":
            size = config.data.video.image_size if config.frames and config.data.video else None
            return RetrievalTask(config.validation, tokenizer, size)
        images = 2 if config.task == "nlvr2" else 1
        return ClassificationTask(config.validation, tokenizer, self._labels, images)

    def reading(self) -> dict[str, Any]:
        """Read questions or statements instead of captions, and image pairs for nlvr2."""
        if self.config.task == "retrieval":
            return {}
        if self.vocabulary is not None:
            labels = self.vocabulary.label_table()
            return {"questions": QuestionConfig(labels, len(self._labels), "vqa")}
        statements = tuple((statement, label) for label, statement in enumerate(STATEMENTS))
        return {"questions": QuestionConfig(statements, len(STATEMENTS), "share"), "pairs": True}

    def record(self, folder: Path) -> None:
        """Save the answer vocabulary; every resume of the run reads it from there."""
        if self.vocabulary is not None:
            self.vocabulary.save(folder / ANSWERS)

    @property
    def _labels(self) -> tuple[str, ...]:
        if self.config.task == "nlvr2":
            return STATEMENTS
        return self.vocabulary.labels if self.vocabulary is not None else ()

    def _answers(self, resumed: bool) -> Vocabulary:
        """Load the run's vocabulary if it is resumed, or the given one, or build one."""
        config = self.config
        if resumed:
            return Vocabulary.load(Path(config.run) / ANSWERS)
        folders = [folder for mixture in config.mixtures.values() for folder in mixture.dirs]
        if config.answers is None:
            return Vocabulary.build(folders)
        given = Vocabulary.load(config.answers)
        labels = dict(given.label_table())
        for folder in folders:
            questions = read_questions(Manifest.load(folder), strict=False)
            for _, question in islice(questions, TRIED):
                if any(answer in labels for answer in question.answers):
                    return given
        raise DataError(
            f"{config.answers} has none of the answers to the first {TRIED:,} questions of "
            f"{', '.join(folders)}: give a vocabulary made of similar data, or leave out `answers` "
            "to build one of the training data"
        )

    def _check_validation(self, path: Path, model: GLSCLModel) -> None:
        config = self.config
        assert config.validation is not None
        if config.task != "retrieval" and config.validation.frames is not None:
            raise UsageError(
                f"validation.frames is for retrieval on videos, the task is {config.task}"
            )
        validated = Manifest.load(path)
        for mixture in config.mixtures.values():
            for folder in mixture.dirs:
                # By digest, to recognize a copy of the training data under another path.
                if Manifest.load(folder).digest == validated.digest:
                    raise DataError(
                        f"validation.path {path} holds the training data of {folder}: "
                        "name another split"
                    )
        if config.task == "nlvr2":
            validated.check_kind("pair")
        else:
            check_validation(config.validation, model)
        unreadable = validated.source.get("kept_unreadable")
        if unreadable:
            raise DataError(
                f"validation.path {path} holds {len(unreadable):,} unreadable samples "
                f"(the first is {unreadable[0]['key']}), which cannot be scored: "
                "import it with --unreadable leave-out"
            )
        if config.task != "retrieval":
            questions = read_questions(validated, config.validation.limit)
            if not any(question.answers for _, question in questions):
                raise DataError(
                    f"{path} holds no question with an answer: it cannot be used for validation"
                )
