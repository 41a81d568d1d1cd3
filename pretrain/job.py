"""What a training run is about: the model it starts from, its task, and what it reads of the samples.

The loop knows runs only through `Job`; pre-training is one, fine-tuning another.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError
from safetensors.torch import load_file

from data_pipeline.errors import DataError, UsageError
from data_pipeline.shards.manifest import Manifest
from data_pipeline.text import Tokenizer

from .build import build_model, load_weights
from .config import RunConfig, TrainingConfig, ValidationConfig
from .model import GLSCLModel
from .run.checkpoint import model_folder
from .task import PretrainTask, Task


class Job(Protocol):
    """What the loop asks of a run, in this order; every rank asks."""

    @property
    def config(self) -> TrainingConfig:
        """Everything that the run depends on."""

    def build(self, tokenizer: Tokenizer, checkpoint: Path | None) -> GLSCLModel:
        """Build the model as it stands before the first step; the weights of `checkpoint`, if any, come later.

        Random weights come from torch's global generator. Parameters that the task never uses are
        frozen.
        """

    def task(self, tokenizer: Tokenizer, model: GLSCLModel) -> Task:
        """Make the task; raises what would otherwise stop the run at its first validation."""

    def reading(self) -> dict[str, Any]:
        """Arguments of `open_loader` beside those that all runs have."""

    def record(self, folder: Path) -> None:
        """Write into the run folder what else belongs there; rank 0 alone is asked, once the run is accepted."""


class Pretraining:
    """A run of `PretrainTask`, from random weights, published towers or another model."""

    def __init__(self, config: RunConfig):
        self.config = config

    def build(self, tokenizer: Tokenizer, checkpoint: Path | None) -> GLSCLModel:
        """Build the configured sizes; without a checkpoint, with the weights that `init_from` names."""
        config = self.config
        model = build_model(config.model, tokenizer, config.data.max_text_length, config.frames)
        model.checkpoint_activations(config.model.checkpoint_activations)
        if config.init_from and checkpoint is None:
            try:
                load_weights(model, load_file(model_folder(config.init_from) / "model.safetensors"))
            except (SafetensorError, OSError) as error:
                raise DataError(f"--init-from {config.init_from}: {error}") from None
        return model

    def task(self, tokenizer: Tokenizer, model: GLSCLModel) -> PretrainTask:
        """Make the task with the configured objectives; clips are validated at the size that they are trained at."""
        config = self.config
        clips = config.validation is not None and config.validation.frames is not None
        size = config.data.video.image_size if clips and config.data.video else None
        if config.validation:
            check_validation(config.validation, model)
        return PretrainTask(config.objectives, config.validation, tokenizer, size)

    def reading(self) -> dict[str, Any]:
        """Negatives that the objectives want of the loader."""
        objectives = self.config.objectives
        return {
            "dataset_negatives": objectives.matching_negatives == "dataset",
            "local_negatives": objectives.sampled_negatives
            if objectives.samples_negatives
            else None,
        }

    def record(self, folder: Path) -> None:
        """Nothing: the configuration says everything."""


def check_validation(config: ValidationConfig, model: GLSCLModel) -> None:
    """Raise DataError or UsageError where a validation split of pictures or clips does not fit the model."""
    Manifest.load(config.path).check_kind("image" if config.frames is None else "video")
    longest = model.config.max_frames
    if config.frames and config.frames > longest:
        has = f"has {longest} temporal embeddings" if longest else "takes pictures only"
        raise UsageError(f"validation.frames is {config.frames}, but the model {has}")
