"""Everything a run depends on, as dataclasses; `config_file.py` reads them from YAML and the command line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, make_dataclass
from typing import Any, Literal

from data_pipeline.augment import AugmentConfig
from data_pipeline.errors import UsageError
from data_pipeline.masking import MaskingConfig
from data_pipeline.sample import Kind

from .objectives import OBJECTIVES


def _check_finite(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise UsageError(f"{name} must be a number of 0 or more, not {value}")


@dataclass(frozen=True)
class SourceConfig:
    """One data set of the mixture: its folder and its share of the draws."""

    path: str
    weight: float | None = None
    """Given for all data sets or for none; none: in proportion to their samples."""


@dataclass(frozen=True)
class BatchConfig:
    """Samples of each kind that one optimiser step takes, over all ranks and micro-batches."""

    image: int = 256
    """Pictures; 0: none."""
    video: int = 0
    """Clips; 0: none."""

    @property
    def total(self) -> int:
        """Samples of a step."""
        return self.image + self.video


@dataclass(frozen=True)
class VideoConfig:
    """The clips of a run: a mixture and an order of their own; tokenizer, masking and augmentation as for pictures."""

    train: tuple[SourceConfig, ...]
    frames: int = 4
    """Frames of a clip, one from each of as many equal segments."""
    image_size: int | None = None
    """Side of the frames; None: that of the pictures. Position embeddings are interpolated."""
    lanes: int | None = None
    group: int | None = None

    def __post_init__(self) -> None:
        """Raise UsageError for clips without frames or data."""
        if self.frames < 1:
            raise UsageError(f"data.video.frames must be at least 1, not {self.frames}")
        if self.image_size is not None and self.image_size < 1:
            raise UsageError(f"data.video.image_size must be at least 1, not {self.image_size}")
        _check_mixture("data.video.train", self.train)


@dataclass(frozen=True)
class DataConfig:
    """What is read and how a sample becomes part of a batch."""

    tokenizer: str
    """A Hugging Face tokenizer folder (or hub name), or one made by `glscl data tokenizer`."""
    train: tuple[SourceConfig, ...] = ()
    """Pictures."""
    video: VideoConfig | None = None
    max_text_length: int = 50
    workers: int = 2
    lanes: int | None = None
    """Lanes of the order; None: gcd(global batch, 64). Fixed for the run."""
    group: int | None = None
    """Samples in a row that lend each other negatives; None: the smallest that divides the batch,
    usually 2."""
    masking: MaskingConfig = MaskingConfig()
    augment: AugmentConfig = AugmentConfig()


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the model, or folders (or hub names) of towers whose weights it starts from."""

    vision: dict[str, Any] = field(default_factory=dict)
    """Fields of transformers' CLIPVisionConfig; `image_size` is the side of the training
    pictures."""
    text: dict[str, Any] = field(default_factory=dict)
    """Fields of transformers' RobertaConfig (or `model_type` of another); the vocabulary is the
    tokenizer's."""
    vision_from: str | None = None
    """A CLIP or SigLIP folder or hub name; `vision` then overrides fields, e.g. num_hidden_layers:
    11."""
    text_from: str | None = None
    """A folder or hub name of any text encoder of transformers."""
    fusion: dict[str, Any] = field(default_factory=dict)
    """Fields of GLSCLConfig: hidden_size, fusion_layers, fusion_heads, projection_dim, max_frames,
    ..."""
    checkpoint_activations: tuple[Literal["vision", "text", "fusion"], ...] = ()
    """Towers whose activations are computed again in the backward pass: less memory, a third more
    work."""


# One field per objective, with its default weight: `contrastive: float = 1.0` and so on.
_Weights: Any = make_dataclass(
    "_Weights",
    [(objective.name, float, objective.weight) for objective in OBJECTIVES],
    frozen=True,
)


@dataclass(frozen=True)
class ObjectiveConfig(_Weights):
    """Weights of the objectives, and what they contrast against (glscl paper, section 3.3).

    The keys and defaults of the weights are declared in `objectives/`. The other defaults make
    every loss a function of the global batch alone. Where the authors' release does something else,
    `preset: published` does it too.
    """

    completion_temperature: float = 0.03
    directions: Literal["sum", "mean"] = "sum"
    """Whether a completion loss is the sum or the mean of its two directions."""
    completion_targets: Literal["crossed", "full"] = "crossed"
    """crossed: targets come from the pass that masks the other modality; full: from one more pass
    of the whole pair."""
    global_image_negatives: Literal["global", "rank"] = "global"
    """global: samples of all ranks; rank: of this rank and micro-batch only."""
    global_text_negatives: Literal["global", "rank"] = "global"
    local_image_negatives: Literal["global", "rank", "sample"] = "global"
    """As above, of masked positions; sample: `sampled_negatives` of each sample of all ranks,
    chosen by its key."""
    local_text_negatives: Literal["global", "rank", "sample"] = "global"
    sampled_negatives: int = 8
    """Masked positions of each sample that serve as negatives where `sample` is chosen."""
    duplicates: Literal["ignored", "negatives"] = "ignored"
    """Whether samples of one image, or with one caption, count as negatives of each other."""
    gradients: Literal["exact", "published"] = "exact"
    """published: features of losses over all ranks get 1/world of their gradient, as the authors'
    gather gives them."""
    matching_negatives: Literal["hard", "random", "dataset"] = "hard"
    """hard: drawn from the softmax of the contrastive similarity within the group; random: evenly
    within it; dataset: evenly from the whole data set, which costs another image per negative."""
    video_normalization: Literal["channels", "frames"] = "channels"
    """frames: features of clips are normalised over the frames, as published (a mistake), in the
    global image loss."""
    temperature_bounds: tuple[float, float] | None = (0.01, 0.5)
    """Within which the learnt temperature stays."""

    @property
    def depends_on_ranks(self) -> bool:
        """Whether a loss or its gradient depends on how the global batch is divided over ranks."""
        negatives = (
            *(self.global_image_negatives, self.global_text_negatives),
            *(self.local_image_negatives, self.local_text_negatives),
        )
        return "rank" in negatives or self.gradients == "published"

    @property
    def samples_negatives(self) -> bool:
        """Whether a local loss contrasts against a sample of the masked positions."""
        return "sample" in (self.local_image_negatives, self.local_text_negatives)

    def __post_init__(self) -> None:
        """Raise UsageError for values with which nothing could be contrasted."""
        if self.sampled_negatives < 1:
            raise UsageError("objectives.sampled_negatives must be at least 1")
        weights = {objective.name: objective.weight_in(self) for objective in OBJECTIVES}
        for name, weight in weights.items():
            _check_finite(f"objectives.{name}", weight)
        if not any(weights.values()):
            raise UsageError("objectives: every loss has weight 0, so that nothing would be learnt")
        if not 0 < self.completion_temperature < math.inf:
            raise UsageError("objectives.completion_temperature must be positive")
        if (
            self.temperature_bounds
            and not 0 < self.temperature_bounds[0] <= self.temperature_bounds[1] < math.inf
        ):
            raise UsageError(
                f"objectives.temperature_bounds must rise and be positive, not {self.temperature_bounds}"
            )


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its schedule: linear warm-up, then linear decay to zero (glscl paper, section 4.1)."""

    lr: float = 2e-5
    fusion_multiplier: float = 5.0
    """Of the learning rate of projections, fusion layers and poolers."""
    head_multiplier: float = 5.0
    """Of the learning rate of the matching and masked-language heads and of the classifier."""
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    weight_decay: float = 0.01
    decay: Literal["matrices", "published"] = "matrices"
    """matrices: vectors and scalars (norms, biases, the temperature) are not decayed; published: of
    these only biases and the norms of text, fusion and the masked-language head are not."""
    warmup: float = 0.1
    """Share of the steps."""
    max_grad_norm: float | None = 1.0
    ema: float | None = None
    """Decay of a moving average of the weights, saved as `ema/` beside `model/`; None: none is
    kept."""

    def __post_init__(self) -> None:
        """Raise UsageError for values with which AdamW would not descend."""
        if not 0 <= self.warmup <= 1:
            raise UsageError(
                f"optimizer.warmup is a share of the steps, between 0 and 1, not {self.warmup}"
            )
        for name in ("lr", "fusion_multiplier", "head_multiplier", "weight_decay"):
            _check_finite(f"optimizer.{name}", getattr(self, name))
        if not (self.eps > 0 and all(0 <= beta < 1 for beta in self.betas)):
            raise UsageError(
                "optimizer.eps must be positive, optimizer.betas at least 0 and below 1"
            )
        if self.ema is not None and not 0 < self.ema < 1:
            raise UsageError(f"optimizer.ema must lie between 0 and 1, not {self.ema}")
        if self.max_grad_norm is not None and not 0 < self.max_grad_norm < math.inf:
            raise UsageError(
                f"optimizer.max_grad_norm must be positive, or null for none, not {self.max_grad_norm}"
            )


@dataclass(frozen=True)
class ValidationConfig:
    """A validation split, and how often the task is measured on it while training."""

    path: str
    every: int = 1000
    limit: int | None = None
    batch_size: int = 64
    frames: int | None = None
    """Frames of each clip, where the split holds clips; None: it holds pictures."""

    def __post_init__(self) -> None:
        """Raise UsageError for values with which nothing would be validated."""
        if min(self.every, self.batch_size, 1 if self.limit is None else self.limit) < 1:
            raise UsageError(
                "validation.every, validation.batch_size and validation.limit must be at least 1"
            )
        if self.frames is not None and self.frames < 1:
            raise UsageError(
                "validation.frames must be at least 1, or left out to validate on pictures"
            )


@dataclass(frozen=True)
class CheckpointConfig:
    """How often a checkpoint is written and how many stay."""

    every: int = 1000
    keep: int = 3

    def __post_init__(self) -> None:
        """Raise UsageError for values that would leave nothing to resume from."""
        if self.every < 1 or self.keep < 1:
            raise UsageError("checkpoint.every and checkpoint.keep must be at least 1")


@dataclass(frozen=True)
class LogConfig:
    """How often a row goes to metrics.jsonl, and accelerate trackers (tensorboard, trackio, wandb, ...) beside it."""

    every: int = 10
    trackers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise UsageError for an interval below one step."""
        if self.every < 1:
            raise UsageError("log.every must be at least 1")


@dataclass(frozen=True)
class Mixture:
    """What a run takes of one kind of samples: data sets, their shares, and their order."""

    dirs: tuple[str, ...]
    weights: tuple[float, ...] | None
    global_batch: int
    lanes: int | None
    group: int | None
    frames: int | None = None
    """Of a clip; None: pictures."""
    image_size: int | None = None
    """Side in pixels; None: that of the model's pictures."""


# May differ between the runs that share a folder; every other difference always changes what is
# computed.
FREE_ON_RESUME = (
    *("run", "world", "data.workers", "log", "checkpoint", "validation"),
    *("checkpoint_activations", "model.checkpoint_activations"),
)


@dataclass(frozen=True)
class TrainingConfig:
    """What every training run depends on, whatever it trains."""

    run: str
    """The run folder."""
    steps: int
    data: DataConfig
    seed: int = 0
    init_from: str | None = None
    """Run, checkpoint or model folder whose weights a fresh start takes."""
    world: int | None = None
    """Processes that must train; anything else is refused at start. None: as many as were
    launched."""
    batch: BatchConfig = BatchConfig()
    micro_batches: int = 1
    """Micro-batches a step on each rank: more of them take less memory."""
    accumulation: Literal["exact", "plain"] = "exact"
    """exact: losses contrast all samples of a step, for a second forward pass of each micro-batch;
    plain: those of one micro-batch of all ranks."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    optimizer: OptimizerConfig = OptimizerConfig()
    validation: ValidationConfig | None = None
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()

    @property
    def free_on_resume(self) -> tuple[str, ...]:
        """Keys that may differ between the starts of one run."""
        return FREE_ON_RESUME

    @property
    def mixtures(self) -> dict[Kind, Mixture]:
        """What is read of each kind that the run takes, pictures before clips."""
        found: dict[Kind, Mixture] = {}
        if self.batch.image:
            found["image"] = _mixture(self.data, self.batch.image)
        if self.batch.video and (video := self.data.video):
            found["video"] = _mixture(
                video, self.batch.video, frames=video.frames, image_size=video.image_size
            )
        return found

    @property
    def accumulates_exactly(self) -> bool:
        """Whether a step takes two forward passes of each micro-batch."""
        return self.accumulation == "exact" and self.micro_batches > 1

    @property
    def frames(self) -> int:
        """Frames that the temporal table must hold; 0: the run takes no clips."""
        return self.data.video.frames if self.batch.video and self.data.video else 0

    def __post_init__(self) -> None:
        """Raise UsageError for a run that cannot take a step."""
        if self.steps < 1 or self.micro_batches < 1:
            raise UsageError("steps and micro_batches must be at least 1")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"seed must be at least 0 and below 2^63, not {self.seed}")
        if self.world is not None and self.world < 1:
            raise UsageError(f"world must be at least 1, not {self.world}")
        if 1 in (self.batch.image, self.batch.video) or min(self.batch.image, self.batch.video) < 0:
            raise UsageError(
                "batch.image and batch.video must be 0 or at least 2: a sample needs negatives"
            )
        if not self.batch.total:
            raise UsageError("batch.image and batch.video are both 0")
        if self.batch.image:
            _check_mixture("data.train", self.data.train)
        if self.batch.video and self.data.video is None:
            raise UsageError(f"batch.video is {self.batch.video} but data.video is missing")


@dataclass(frozen=True)
class RunConfig(TrainingConfig):
    """One pre-training run."""

    model: ModelConfig = ModelConfig()
    preset: Literal["published"] | None = None
    """Values for every key that is not given: `published` reproduces the behaviour of the authors'
    release."""
    objectives: ObjectiveConfig = ObjectiveConfig()


def _mixture(data: DataConfig | VideoConfig, batch: int, **shape: int | None) -> Mixture:
    weights = tuple(source.weight for source in data.train if source.weight is not None)
    return Mixture(
        tuple(s.path for s in data.train), weights or None, batch, data.lanes, data.group, **shape
    )


def _check_mixture(name: str, sources: Sequence[SourceConfig]) -> None:
    if not sources:
        raise UsageError(f"{name} names no data set")
    if len({source.weight is None for source in sources}) > 1:
        raise UsageError(f"{name}: give every data set a weight, or none")
    for source in sources:
        if sum(other.path == source.path for other in sources) > 1:
            raise UsageError(
                f"{name}: {source.path} is there twice; give it a larger weight instead"
            )


PRESETS: dict[str, dict[str, Any]] = {
    # What the authors' released code does (github IIGROUP/SCL, 88b174f), right or wrong.
    "published": {
        "model": {"vision": {"num_hidden_layers": 11}},
        "data": {"masking": {"replacement": True, "mlm_unit": "token"}, "augment": {"flip": True}},
        "objectives": {
            "global_text_negatives": "rank",
            "local_image_negatives": "rank",
            "duplicates": "negatives",
            "gradients": "published",
            "matching_negatives": "dataset",
            "video_normalization": "frames",
            "temperature_bounds": None,
        },
        "optimizer": {"decay": "published", "max_grad_norm": None},
    }
}
