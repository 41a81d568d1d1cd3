"""Everything a run depends on, as dataclasses that `config_file.py` reads from YAML and options."""

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
    """One data set of the mixture: its folder and its share of the samples drawn."""

    path: str
    weight: float | None = None
    """Relative share. Set it for all data sets or for none; None: proportional to their sizes."""


@dataclass(frozen=True)
class BatchConfig:
    """Samples of each kind per optimizer step, over all ranks and micro-batches."""

    image: int = 256
    """Images; 0: none."""
    video: int = 0
    """Videos; 0: none."""

    @property
    def total(self) -> int:
        """Samples per step."""
        return self.image + self.video


@dataclass(frozen=True)
class VideoConfig:
    """The videos of a run, with a mixture and an order of their own.

    Tokenizer, masking and augmentation are those of the images.
    """

    train: tuple[SourceConfig, ...]
    frames: int = 4
    """Frames per video, one from each of as many equal segments."""
    image_size: int | None = None
    """Side of the frames in pixels; None: that of the images. Position embeddings are
    interpolated."""
    lanes: int | None = None
    group: int | None = None

    def __post_init__(self) -> None:
        """Raise UsageError for videos without frames or data."""
        if self.frames < 1:
            raise UsageError(f"data.video.frames must be at least 1, not {self.frames}")
        if self.image_size is not None and self.image_size < 1:
            raise UsageError(f"data.video.image_size must be at least 1, not {self.image_size}")
        _check_mixture("data.video.train", self.train)


@dataclass(frozen=True)
class DataConfig:
    """What the run reads, and how a sample becomes part of a batch."""

    tokenizer: str
    """Folder or hub name of a Hugging Face tokenizer, or a folder of `glscl data tokenizer`."""
    train: tuple[SourceConfig, ...] = ()
    """Data sets of images."""
    video: VideoConfig | None = None
    """Data sets of videos."""
    max_text_length: int = 50
    """Longest text in tokens, special tokens included; longer ones are cut."""
    workers: int = 2
    """Processes per rank that read and decode; 0: the training process does it."""
    lanes: int | None = None
    """Lanes of the sample order, fixed for the run; None: gcd(global batch, 64)."""
    group: int | None = None
    """Consecutive samples among which matching chooses its negatives; None: the smallest number
    above 1 that divides the batch, usually 2."""
    masking: MaskingConfig = MaskingConfig()
    augment: AugmentConfig = AugmentConfig()


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the model, or folders or hub names of towers whose weights it starts from."""

    vision: dict[str, Any] = field(default_factory=dict)
    """Fields of transformers' CLIPVisionConfig; `image_size` is the side of the training images."""
    text: dict[str, Any] = field(default_factory=dict)
    """Fields of transformers' RobertaConfig, or of the config that `model_type` names; the
    vocabulary is the tokenizer's."""
    vision_from: str | None = None
    """Folder or hub name of a CLIP or SigLIP model; `vision` then overrides its fields, such as
    num_hidden_layers: 11."""
    text_from: str | None = None
    """Folder or hub name of any text encoder of transformers."""
    fusion: dict[str, Any] = field(default_factory=dict)
    """Fields of GLSCLConfig, such as hidden_size, fusion_layers, fusion_heads, projection_dim and
    max_frames."""
    checkpoint_activations: tuple[Literal["vision", "text", "fusion"], ...] = ()
    """Towers that compute their activations again in the backward pass: less memory, a third more
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
    """Divides the cosine of the completion losses."""
    directions: Literal["sum", "mean"] = "sum"
    """How a completion loss combines its two directions."""
    completion_targets: Literal["crossed", "full"] = "crossed"
    """crossed: targets come from the pass that masks the other modality; full: from one more pass,
    in which nothing is masked."""
    global_image_negatives: Literal["global", "rank"] = "global"
    """global: samples of all ranks; rank: samples of this rank and micro-batch only."""
    global_text_negatives: Literal["global", "rank"] = "global"
    local_image_negatives: Literal["global", "rank", "sample"] = "global"
    """As above, for masked positions; sample: `sampled_negatives` positions of each sample of all
    ranks, drawn by the sample's key."""
    local_text_negatives: Literal["global", "rank", "sample"] = "global"
    sampled_negatives: int = 8
    """Masked positions of each sample that are negatives under `sample`."""
    duplicates: Literal["ignored", "negatives"] = "ignored"
    """Whether samples with the same image or the same caption are negatives of each other."""
    gradients: Literal["exact", "published"] = "exact"
    """published: losses over all ranks send 1/world of their gradient to the features, as the
    authors' gather does."""
    matching_negatives: Literal["hard", "random", "dataset"] = "hard"
    """hard: drawn from the group by the softmax of the contrastive similarity; random: drawn from
    the group evenly; dataset: drawn from the whole data set evenly, which costs another image per
    negative."""
    video_normalization: Literal["channels", "frames"] = "channels"
    """frames: the global image loss normalizes features of videos over the frames instead of the
    channels, a mistake in the published code."""
    temperature_bounds: tuple[float, float] | None = (0.01, 0.5)
    """Bounds of the learned temperature; None: unbounded."""

    @property
    def depends_on_ranks(self) -> bool:
        """Whether a loss or its gradient depends on how ranks divide the global batch."""
        negatives = (
            self.global_image_negatives,
            self.global_text_negatives,
            self.local_image_negatives,
            self.local_text_negatives,
        )
        return "rank" in negatives or self.gradients == "published"

    @property
    def samples_negatives(self) -> bool:
        """Whether a local loss contrasts with a sample of the masked positions."""
        return "sample" in (self.local_image_negatives, self.local_text_negatives)

    def __post_init__(self) -> None:
        """Raise UsageError for values with which no loss could be computed or learned."""
        if self.sampled_negatives < 1:
            raise UsageError("objectives.sampled_negatives must be at least 1")
        weights = {objective.name: objective.weight_in(self) for objective in OBJECTIVES}
        for name, weight in weights.items():
            _check_finite(f"objectives.{name}", weight)
        if not any(weights.values()):
            raise UsageError("objectives: every loss has weight 0, so nothing would be learned")
        if not 0 < self.completion_temperature < math.inf:
            raise UsageError("objectives.completion_temperature must be positive")
        bounds = self.temperature_bounds
        if bounds and not 0 < bounds[0] <= bounds[1] < math.inf:
            raise UsageError(
                f"objectives.temperature_bounds must be positive and ascending, not {bounds}"
            )


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, with a linear warm-up and a linear decay to 0 (glscl paper, section 4.1)."""

    lr: float = 2e-5
    """Highest learning rate."""
    fusion_multiplier: float = 5.0
    """Multiplies the learning rate of projections, fusion layers and poolers."""
    head_multiplier: float = 5.0
    """Multiplies the learning rate of the matching and masked-language heads and the classifier."""
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    weight_decay: float = 0.01
    decay: Literal["matrices", "published"] = "matrices"
    """matrices: weight decay spares vectors and scalars (norms, biases, the temperature);
    published: it spares only biases and the norms of text, fusion and masked-language head."""
    warmup: float = 0.1
    """Fraction of the steps in which the learning rate rises."""
    max_grad_norm: float | None = 1.0
    """Norm that longer gradients are clipped to; None: no clipping."""
    ema: float | None = None
    """Decay of a moving average of the weights, saved as `ema/` beside `model/`; None: keep no
    average."""

    def __post_init__(self) -> None:
        """Raise UsageError for values that AdamW cannot work with."""
        if not 0 <= self.warmup <= 1:
            raise UsageError(
                f"optimizer.warmup is a fraction of the steps, from 0 to 1, not {self.warmup}"
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
                "optimizer.max_grad_norm must be positive, or null for none, "
                f"not {self.max_grad_norm}"
            )


@dataclass(frozen=True)
class ValidationConfig:
    """A validation split, and how often a run measures its task on it."""

    path: str
    every: int = 1000
    """Steps between two validations; one more follows the last step."""
    limit: int | None = None
    """Validate on this number of samples, the first ones; None: on all of them."""
    batch_size: int = 64
    """Samples per rank and forward pass."""
    frames: int | None = None
    """Frames per video, if the split holds videos; None: it holds images."""

    def __post_init__(self) -> None:
        """Raise UsageError for values with which nothing would be validated."""
        if min(self.every, self.batch_size, 1 if self.limit is None else self.limit) < 1:
            raise UsageError(
                "validation.every, validation.batch_size and validation.limit must be at least 1"
            )
        if self.frames is not None and self.frames < 1:
            raise UsageError(
                "validation.frames must be at least 1, or left out to validate on images"
            )


@dataclass(frozen=True)
class CheckpointConfig:
    """How often a run writes a checkpoint, and how many it keeps."""

    every: int = 1000
    """Steps between two checkpoints."""
    keep: int = 3
    """Newest checkpoints that stay; the best one stays too."""

    def __post_init__(self) -> None:
        """Raise UsageError for values that would leave nothing to resume from."""
        if self.every < 1 or self.keep < 1:
            raise UsageError("checkpoint.every and checkpoint.keep must be at least 1")


@dataclass(frozen=True)
class LogConfig:
    """How often a run logs, and where."""

    every: int = 10
    """Steps between two rows of metrics.jsonl."""
    trackers: tuple[str, ...] = ()
    """accelerate's trackers that get the rows too, such as tensorboard, trackio or wandb."""

    def __post_init__(self) -> None:
        """Raise UsageError for an interval below one step."""
        if self.every < 1:
            raise UsageError("log.every must be at least 1")


@dataclass(frozen=True)
class Mixture:
    """What a run reads of one kind of samples: data sets, their shares, and their order."""

    dirs: tuple[str, ...]
    weights: tuple[float, ...] | None
    global_batch: int
    lanes: int | None
    group: int | None
    frames: int | None = None
    """Frames per video; None: images."""
    image_size: int | None = None
    """Side in pixels; None: that of the model's images."""


# Keys that may differ when a run resumes, because they do not change what it computes.
FREE_ON_RESUME = (
    "run",
    "world",
    "data.workers",
    "log",
    "checkpoint",
    "validation",
    "checkpoint_activations",
    "model.checkpoint_activations",
)


@dataclass(frozen=True)
class TrainingConfig:
    """What every training run depends on, in pre-training and in fine-tuning."""

    run: str
    """The run folder."""
    steps: int
    data: DataConfig
    seed: int = 0
    init_from: str | None = None
    """Run, checkpoint or model folder whose weights a new run starts from."""
    world: int | None = None
    """Number of ranks that must train; any other number is refused. None: as many as the launcher
    starts."""
    batch: BatchConfig = BatchConfig()
    micro_batches: int = 1
    """Micro-batches per step on each rank; more of them take less memory."""
    accumulation: Literal["exact", "plain"] = "exact"
    """exact: losses compare all samples of a step, which costs a second forward pass per
    micro-batch; plain: losses compare the samples of one micro-batch of all ranks."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    optimizer: OptimizerConfig = OptimizerConfig()
    validation: ValidationConfig | None = None
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()

    @property
    def free_on_resume(self) -> tuple[str, ...]:
        """Keys that may differ when a run resumes."""
        return FREE_ON_RESUME

    @property
    def mixtures(self) -> dict[Kind, Mixture]:
        """What the run reads of each kind that it takes, images before videos."""
        mixtures: dict[Kind, Mixture] = {}
        video = self.data.video
        if self.batch.image:
            mixtures["image"] = _mixture(self.data, self.batch.image)
        if self.batch.video and video:
            mixtures["video"] = _mixture(
                video, self.batch.video, frames=video.frames, image_size=video.image_size
            )
        return mixtures

    @property
    def accumulates_exactly(self) -> bool:
        """Whether a step may need two forward passes of each micro-batch."""
        return self.accumulation == "exact" and self.micro_batches > 1

    @property
    def frames(self) -> int:
        """Frames that the temporal table must hold; 0: the run takes no videos."""
        return self.data.video.frames if self.batch.video and self.data.video else 0

    def __post_init__(self) -> None:
        """Raise UsageError for a configuration that cannot take a step."""
        if self.steps < 1 or self.micro_batches < 1:
            raise UsageError("steps and micro_batches must be at least 1")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"seed must be at least 0 and below 2^63, not {self.seed}")
        if self.world is not None and self.world < 1:
            raise UsageError(f"world must be at least 1, not {self.world}")
        sizes = (self.batch.image, self.batch.video)
        # A single sample would have no negatives to be contrasted with.
        if 1 in sizes or min(sizes) < 0:
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
    """Other defaults for the keys that are left out; `published` reproduces the authors' release,
    right or wrong."""
    objectives: ObjectiveConfig = ObjectiveConfig()


def _mixture(data: DataConfig | VideoConfig, batch: int, **shape: int | None) -> Mixture:
    # `_check_mixture` has refused mixtures in which only some sources have a weight.
    weights = tuple(source.weight for source in data.train if source.weight is not None)
    return Mixture(
        tuple(s.path for s in data.train), weights or None, batch, data.lanes, data.group, **shape
    )


def _check_mixture(name: str, sources: Sequence[SourceConfig]) -> None:
    if not sources:
        raise UsageError(f"{name} names no data set")
    unweighted = [source.weight is None for source in sources]
    if any(unweighted) and not all(unweighted):
        raise UsageError(f"{name}: give every data set a weight, or none")
    for source in sources:
        if sum(other.path == source.path for other in sources) > 1:
            raise UsageError(
                f"{name}: {source.path} is listed twice; give it a larger weight instead"
            )


PRESETS: dict[str, dict[str, Any]] = {
    # What the authors' released code does (github IIGROUP/SCL, 88b174f), its mistakes included.
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
