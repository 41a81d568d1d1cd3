"""Pre-training as a job: the model it starts from, its task, and what it reads of the samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from data_pipeline.errors import DataError, UsageError
from data_pipeline.shards.manifest import Manifest
from data_pipeline.text import Tokenizer

from .build import build_model, load_weights
from .config import RunConfig, ValidationConfig
from .model import GLSCLModel
from .run.checkpoint import model_folder
from .task import PretrainTask


class Pretraining:
    """A run of `PretrainTask` from random weights, published towers or another model."""

    def __init__(self, config: RunConfig):
        self.config = config

    def build(self, tokenizer: Tokenizer, checkpoint: Path | None) -> GLSCLModel:
        """Build the configured sizes; without a checkpoint, load the weights of `init_from`."""
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
        """Make the task with the configured objectives.

        Videos are validated at the frame size that they are trained at.
        """
        config = self.config
        validates_videos = config.validation is not None and config.validation.frames is not None
        size = config.data.video.image_size if validates_videos and config.data.video else None
        if config.validation:
            check_validation(config.validation, model)
        return PretrainTask(config.objectives, config.validation, tokenizer, size)

    def reading(self) -> dict[str, Any]:
        """Ask the loader for the negatives that the objectives need."""
        objectives = self.config.objectives
        sampled = objectives.sampled_negatives if objectives.samples_negatives else None
        return {
            "dataset_negatives": objectives.matching_negatives == "dataset",
            "local_negatives": sampled,
        }

    def record(self, folder: Path) -> None:
        """Add no file: the configuration holds everything."""


def check_validation(config: ValidationConfig, model: GLSCLModel) -> None:
    """Raise DataError or UsageError if a validation split of images or videos does not fit."""
    Manifest.load(config.path).check_kind("image" if config.frames is None else "video")
    longest = model.config.max_frames
    if config.frames and config.frames > longest:
        limit = f"has {longest} temporal embeddings" if longest else "takes images only"
        raise UsageError(f"validation.frames is {config.frames}, but the model {limit}")
