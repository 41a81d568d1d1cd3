"""Everything a fine-tuning depends on: what every run has, the task, and the model that it starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from data_pipeline.errors import UsageError
from data_pipeline.sample import Kind
from pretrain.config import Mixture, TrainingConfig
from pretrain.config_file import parse_config, read_values

RANKED = 16  # captions that a picture is ranked against in retrieval, its own among them


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainingConfig):
    """One fine-tuning run; `init_from` is required, `batch.image` counts pairs where the task is on pairs."""

    task: Literal["vqa", "nlvr2", "retrieval"]
    answers: str | None = None
    """A vocabulary for vqa, as `answers.json` of another run; None: the frequent answers of the
    training data."""
    image_size: int | None = None
    """Side of the pictures or frames; None: that of the model. Position embeddings are
    interpolated."""
    checkpoint_activations: tuple[Literal["vision", "text", "fusion"], ...] = ()
    """Towers whose activations are computed again in the backward pass: less memory, a third more
    work."""

    @property
    def free_on_resume(self) -> tuple[str, ...]:
        """Keys that may differ between the starts of one run: not the validation, which decides what is best."""
        return (
            *(key for key in super().free_on_resume if key != "validation"),
            "validation.batch_size",
        )

    @property
    def mixtures(self) -> dict[Kind, Mixture]:
        """What is read: of pairs where the task is on pairs, for retrieval in groups of 16 unless another is given."""
        found = super().mixtures
        if self.task == "nlvr2":
            return {"pair": found["image"]}
        if self.task == "retrieval":
            return {
                kind: replace(mixture, group=mixture.group or RANKED)
                for kind, mixture in found.items()
            }
        return found

    def __post_init__(self) -> None:
        """Raise UsageError for a run that cannot take a step, or that would be validated on what it is trained on."""
        super().__post_init__()
        if not self.init_from:
            raise UsageError(
                "init_from is missing: name the run, checkpoint or model folder to start from"
            )
        if self.answers is not None and self.task != "vqa":
            raise UsageError(f"answers are for vqa, the task is {self.task}")
        if self.batch.video and (self.batch.image or self.task != "retrieval"):
            raise UsageError("batch.video is for retrieval alone, and without pictures beside it")
        if self.image_size is not None and self.image_size < 1:
            raise UsageError(f"image_size must be at least 1, not {self.image_size}")
        if self.validation:
            validated = Path(self.validation.path).resolve()
            for mixture in self.mixtures.values():
                if validated in [Path(folder).resolve() for folder in mixture.dirs]:
                    raise UsageError(
                        f"validation.path {self.validation.path} is training data: name another split"
                    )


def load_finetune_config(path: str | Path, overrides: Sequence[str] = ()) -> FinetuneConfig:
    """Read a YAML file and apply `--dotted.key value` pairs; raises UsageError as `load_config` does."""
    found: FinetuneConfig = parse_config(FinetuneConfig, read_values(path, overrides), str(path))
    return found
