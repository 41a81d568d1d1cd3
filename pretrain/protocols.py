"""What the loop knows of the runs it trains: a job builds the model, a task computes its losses.

Pre-training is one job and one task (`job.py`, `task.py`); each fine-tuning is another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from data_pipeline.collate import Batch
from data_pipeline.text import Tokenizer

from .config import TrainingConfig
from .model import GLSCLModel


class Task(Protocol):
    """What the loop needs of a task.

    `features` may return any type that holds the contrastive `temperature` (1,). Losses are tensors
    by name; the mean of each over ranks is the loss of the global micro-batch.
    """

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Names of all losses that the task computes."""

    @property
    def contrasts(self) -> bool:
        """Whether a loss compares samples of several micro-batches.

        Only then does exact accumulation differ from the plain one.
        """

    @property
    def depends_on_ranks(self) -> bool:
        """Whether a loss or its gradient depends on how ranks divide the global batch."""

    @property
    def temperature_bounds(self) -> tuple[float, float] | None:
        """Bounds of the learned temperature; None: unbounded."""

    @property
    def best(self) -> str | None:
        """Validation metric whose highest value marks the best checkpoint; None: mark none."""

    def counts(self, batches: list[Batch]) -> list[Any]:
        """Agree with the other ranks on the row counts that normalize each micro-batch."""

    def features(self, model: GLSCLModel, batch: Batch) -> Any:
        """Compute everything the losses read; runs inside the wrapped model's forward."""

    def similarity_losses(self, features: Any, counts: Any = None) -> dict[str, Tensor]:
        """Compute the losses that compare a row with all others."""

    def pair_losses(self, features: Any, counts: Any = None) -> dict[str, Tensor]:
        """Compute the losses that need no other micro-batch."""

    def weighted(self, losses: dict[str, Tensor]) -> Tensor:
        """Sum losses by name, each with its weight."""

    def contrasted(self, features: Any) -> dict[str, Tensor]:
        """Name the features that the similarity losses send gradients to."""

    def with_contrasted(self, features: Any, values: Mapping[str, Tensor]) -> Any:
        """Replace the features that `contrasted` names, for the similarity losses alone.

        Raises ValueError for a name that the features do not have.
        """

    def join(self, parts: Sequence[Any], counts: Sequence[Any]) -> tuple[Any, Any]:
        """Join features and counts of micro-batches of one kind, for the similarity losses."""

    def validate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Measure the validation split; every rank returns the same metrics."""


class TaskModel(nn.Module):
    """The model with its task: every use of the weights is one forward that an engine can wrap."""

    def __init__(self, task: Task, model: GLSCLModel):
        super().__init__()
        self.task = task
        self.model = model

    def forward(self, function: str, *inputs: Any) -> Any:
        """Call `task.function(model, *inputs)`."""
        return getattr(self.task, function)(self.model, *inputs)


class Job(Protocol):
    """What the loop asks of a run, in this order, on every rank."""

    @property
    def config(self) -> TrainingConfig:
        """Everything that the run depends on."""

    def build(self, tokenizer: Tokenizer, checkpoint: Path | None) -> GLSCLModel:
        """Build the model of the first step; the loop loads the weights of `checkpoint` later.

        Random weights come from torch's global generator. Parameters that the task never uses are
        frozen.
        """

    def task(self, tokenizer: Tokenizer, model: GLSCLModel) -> Task:
        """Make the task; raises here what would otherwise stop the run at its first validation."""

    def reading(self) -> dict[str, Any]:
        """Arguments of `open_loader` that this run needs and others do not."""

    def record(self, folder: Path) -> None:
        """Add files to the run folder once the run is accepted; called on rank 0 only."""


class Stop(Protocol):
    """Says whether the run should stop after this step; `StopFlag` listens to signals."""

    @property
    def reason(self) -> str | None:
        """What asked the run to stop; None: nothing did."""
