"""Everything a fine-tuning run depends on: the keys of every run, and the task to train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from data_pipeline.errors import UsageError
from data_pipeline.sample import Kind
from pretrain.config import Mixture, TrainingConfig
from pretrain.config_file import parse_config, read_values

# Captions that retrieval ranks for an image, its own among them; as published.
RANKED = 16


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainingConfig):
    """One fine-tuning run.

    `init_from` is required. `batch.image` counts image pairs where the task has two images.
    """

    task: Literal["vqa", "nlvr2", "retrieval"]
    answers: str | None = None
    """File with the answer vocabulary for vqa, such as `answers.json` of another run; None: the
    frequent answers of the training data."""
    image_size: int | None = None
    """Side of the images or frames in pixels; None: the model's. Position embeddings are
    interpolated."""
    checkpoint_activations: tuple[Literal["vision", "text", "fusion"], ...] = ()
    """Towers that compute their activations again in the backward pass: less memory, a third more
    work."""

    @property
    def free_on_resume(self) -> tuple[str, ...]:
        """Keys that may differ when a run resumes.

        Unlike in pre-training, not the validation data, which decide which checkpoint is best.
        """
        return (
            *(key for key in super().free_on_resume if key != "validation"),
            "validation.batch_size",
        )

    @property
    def mixtures(self) -> dict[Kind, Mixture]:
        """What the run reads of each kind.

        NLVR2 reads image pairs; retrieval reads groups of 16 unless the configuration sets another
        size.
        """
        mixtures = super().mixtures
        if self.task == "nlvr2":
            return {"pair": mixtures["image"]}
        if self.task == "retrieval":
            for kind, mixture in mixtures.items():
                mixtures[kind] = replace(mixture, group=mixture.group or RANKED)
        return mixtures

    def __post_init__(self) -> None:
        """Raise UsageError for a run that cannot take a step, or validates on its training data."""
        super().__post_init__()
        if not self.init_from:
            raise UsageError(
                "init_from is missing: name the run, checkpoint or model folder to start from"
            )
        if self.answers is not None and self.task != "vqa":
            raise UsageError(f"answers are for vqa, the task is {self.task}")
        if self.batch.video and (self.batch.image or self.task != "retrieval"):
            raise UsageError("batch.video needs the task retrieval and batch.image 0")
        if self.image_size is not None and self.image_size < 1:
            raise UsageError(f"image_size must be at least 1, not {self.image_size}")
        if self.validation:
            # Resolved, to see through links and `..`; copies are found by their digest in `job.py`.
            validated = Path(self.validation.path).resolve()
            for mixture in self.mixtures.values():
                if validated in [Path(folder).resolve() for folder in mixture.dirs]:
                    raise UsageError(
                        f"validation.path {self.validation.path} is training data: "
                        "name another split"
                    )


def load_finetune_config(path: str | Path, overrides: Sequence[str] = ()) -> FinetuneConfig:
    """Read a YAML file with `--dotted.key value` pairs over it; raises UsageError."""
    values = read_values(path, overrides)
    config: FinetuneConfig = parse_config(FinetuneConfig, values, str(path))
    return config
