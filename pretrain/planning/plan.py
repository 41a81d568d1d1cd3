"""Plan a run without training: parameters, operations, memory per rank, and what it reads.

The model runs on fake tensors (no memory, no arithmetic) under torch's FLOP counter, so that the
counts come from the code that trains and not from formulas that may drift away from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from data_pipeline.collate import PAD_TO, Batch
from data_pipeline.errors import DataError, UsageError
from data_pipeline.loader import matching_group
from data_pipeline.order import check_lanes, default_lanes
from data_pipeline.positions import Division, open_order
from data_pipeline.sample import Kind
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.store import Store
from data_pipeline.text import Tokenizer
from pretrain.build import model_config
from pretrain.config import Mixture, ObjectiveConfig, RunConfig
from pretrain.model import GLSCLConfig, GLSCLModel
from pretrain.model.fusion import Need
from pretrain.model.modeling import Side
from pretrain.model.vision import Patches
from pretrain.parallel import DEFAULT_ENGINE
from pretrain.parallel.engines import engine_class
from pretrain.task import PretrainTask
from pretrain.utilization import flop_counter
from pretrain.views import similarity

from .memory import step_memory

SIMULATED = 100  # steps whose reads are simulated
SAMPLED = 1024  # samples whose captions estimate the length of texts


@dataclass(frozen=True)
class KindPlan:
    """Costs of one kind of samples, images or videos.

    Operations are floating-point operations per sample; a multiplication and an addition count as
    two.
    """

    batch: int
    """Samples per step, over all ranks."""
    micro_batch: int
    """Samples that go through the model at once on a rank."""
    text_tokens: float
    """Mean padded length of the texts of a micro-batch."""
    mean_tokens: float
    """Mean length of a text without padding."""
    forward: dict[str, float]
    """Operations of the forward pass, by view, pass and head."""
    step: float
    """Operations of forward and backward together, losses included."""
    activations: int
    """Bytes that a step takes on a rank beside weights, gradients and moments."""
    epoch_samples: int | None
    """Samples of an epoch; None: the data are not on this machine."""


@dataclass(frozen=True)
class Plan:
    """Costs of a run on `world` ranks."""

    world: int
    engine: str
    steps: int
    parameters: int
    parameter_bytes: int
    """Bytes per rank of weights, gradients and AdamW's two moments, all float32."""
    kinds: dict[str, KindPlan]
    read: list[str]

    @property
    def memory(self) -> int:
        """Bytes per rank: parameters with moments, and the activations of the larger kind."""
        return self.parameter_bytes + max(kind.activations for kind in self.kinds.values())

    @property
    def step_flops(self) -> float:
        """Operations of one step on all ranks."""
        return sum(kind.step * kind.batch for kind in self.kinds.values())

    def device_hours(self, peak: float, mfu: float) -> float:
        """Hours of all devices together at `mfu` (0 to 1) of `peak` operations per second each."""
        return self.step_flops * self.steps / (peak * mfu) / 3600

    def table(self) -> str:
        """Format everything as text for a person."""
        lines = [
            f"{self.parameters / 1e6:.1f} million trained parameters",
            f"memory per rank: {self.memory / 1e9:.3g} GB ({self.parameter_bytes / 1e9:.2g} GB of "
            "weights, gradients and moments, the rest activations), plus what the process and its "
            "allocator take",
            f"{self.steps:,} steps of {self.step_flops / 1e12:,.3g} TFLOP on {self.world} rank(s), "
            f"{self.engine}: {self.step_flops * self.steps:.2g} FLOP",
        ]
        for name, kind in self.kinds.items():
            samples = kind.batch * self.steps
            epochs = f" ({samples / kind.epoch_samples:.1f} epochs)" if kind.epoch_samples else ""
            lines += [
                "",
                f"{name}: {kind.batch:,} per step, {kind.micro_batch} at once on a rank; "
                f"{samples:,} samples{epochs}, about {samples * kind.mean_tokens:,.0f} tokens of "
                f"text, padded to {kind.text_tokens:.1f} on average",
                f"  {'GFLOP per sample':44}{'forward':>10}",
                *(f"  {part:44}{flops / 1e9:10.4g}" for part, flops in kind.forward.items()),
                f"  {'forward':44}{sum(kind.forward.values()) / 1e9:10.4g}",
                f"  {'forward and backward':44}{kind.step / 1e9:10.4g}",
            ]
        return "\n".join([*lines, "", "reads:", *(f"  {line}" for line in self.read)])


def plan(config: RunConfig, world: int = 1, engine: str = DEFAULT_ENGINE) -> Plan:
    """Plan a run on `world` ranks of an engine (a key of `pretrain.parallel.ENGINES`).

    With exact accumulation over several micro-batches, the operations of a step include the second
    forward pass. Data sets that are not on this machine are only named. Raises UsageError for sizes
    and divisions that do not fit together, DataError for data of another kind.
    """
    tokenizer = Tokenizer.load(config.data.tokenizer)
    sizes = model_config(config.model, tokenizer, config.data.max_text_length, config.frames)
    kinds: dict[str, KindPlan] = {}
    read = [f"tokenizer {config.data.tokenizer}"]
    for kind, mixture in config.mixtures.items():
        batch = mixture.global_batch
        division = Division(batch, world, 0, config.micro_batches)
        matching_group(division, mixture.group)
        check_lanes(default_lanes(batch) if mixture.lanes is None else mixture.lanes, batch)
        captions, samples, lines = _captions(mixture, kind)
        read += lines
        if samples is not None:
            read.append(_simulate(config, mixture, division))
        length, tokens = _text_length(
            captions, tokenizer, config.data.max_text_length, division.micro_batch
        )
        kinds[kind] = _cost(config, sizes, kind, division, length, tokens, samples)
    with FakeTensorMode():
        parameters = sum(p.numel() for p in GLSCLModel(sizes).parameters() if p.requires_grad)
    averaged = config.optimizer.ema is not None
    whole, divided = engine_class(engine).parameter_bytes(engine, averaged)
    return Plan(
        world,
        engine,
        config.steps,
        parameters,
        round(parameters * (whole + divided / world)),
        kinds,
        read,
    )


def _captions(mixture: Mixture, kind: Kind) -> tuple[list[str], int | None, list[str]]:
    """Read captions, the number of samples of an epoch, and a line of text per data set.

    A data set that is not on this machine has only its line, and leaves the number unknown.
    """
    captions: list[str] = []
    samples, lines, all_here = 0, [], True
    for folder in mixture.dirs:
        try:
            manifest = Manifest.load(folder)
        except DataError as error:
            lines.append(f"{folder}: not read here ({error})")
            all_here = False
            continue
        manifest.check_kind(kind)
        samples += manifest.samples
        size = sum(shard.bytes for shard in manifest.shards)
        lines.append(
            f"{folder}: {manifest.samples:,} samples in {len(manifest.shards):,} shards, "
            f"{size / 1e9:.3g} GB"
        )
        store = Store([manifest])
        count = min(SAMPLED // len(mixture.dirs) + 1, manifest.samples)
        # Spread over the whole data set, whose parts may come from different sources.
        for number in range(count):
            captions += store.captions(0, number * manifest.samples // count)[:1]
        store.close()
    return captions, samples if all_here else None, lines


def _simulate(config: RunConfig, mixture: Mixture, division: Division) -> str:
    """Describe over how many shards the reads of a rank are spread in the first steps."""
    manifests, batch = [Manifest.load(folder) for folder in mixture.dirs], mixture.global_batch
    order = open_order(
        manifests,
        seed=config.seed,
        global_batch=batch,
        lanes=mixture.lanes,
        weights=mixture.weights,
    )
    # Of each data set: the number of samples up to the end of each shard, which finds a sample's
    # shard. Shards are numbered through all data sets, from `first` on in each.
    ends = []
    for manifest in manifests:
        ends.append(np.cumsum([shard.samples for shard in manifest.shards]))
    first = np.cumsum([0, *map(len, ends)])
    shards, steps = [], min(config.steps, SIMULATED)
    for step in range(steps):
        draws = order.step(step, batch)
        shard = np.empty(batch, dtype=np.int64)
        for number, source_ends in enumerate(ends):
            drawn = draws.source == number
            of_source = np.searchsorted(source_ends, draws.sample[drawn], side="right")
            shard[drawn] = first[number] + of_source
        shards.append(shard.reshape(division.world, -1))
    counts = [len(np.unique(rank_shards)) for rank_shards in np.concatenate(shards, axis=1)]
    return (
        f"order of {steps} steps on {division.world:,} rank(s): a rank reads "
        f"{batch // division.world} samples a step, from {sum(counts) / len(counts):.1f} "
        f"(at most {max(counts)}) of {first[-1]:,} shards"
    )


def _text_length(
    captions: list[str], tokenizer: Tokenizer, longest: int, rows: int
) -> tuple[float, int]:
    """Estimate the mean padded length of micro-batches of `rows` texts, and the mean length.

    Without captions, both are the longest length.
    """
    if not captions:
        return longest, longest
    lengths = [len(encoding.ids) for encoding in tokenizer.encode(captions, longest)]
    padded = []
    # Whole micro-batches only, unless there is not even one.
    for start in range(0, max(1, len(lengths) - rows + 1), rows):
        longest_row = max(lengths[start : start + rows])
        padded.append(min(longest, math.ceil(longest_row / PAD_TO) * PAD_TO))
    return sum(padded) / len(padded), round(sum(lengths) / len(lengths))


def _cost(
    config: RunConfig,
    sizes: GLSCLConfig,
    kind: str,
    division: Division,
    length: float,
    tokens: int,
    samples: int | None,
) -> KindPlan:
    rows = division.micro_batch
    task = PretrainTask(config.objectives)
    with FakeTensorMode():
        model = GLSCLModel(sizes)
        model.checkpoint_activations(config.model.checkpoint_activations)
        batch = _fake_batch(config, sizes, kind, rows, round(length), min(tokens, round(length)))
        forward = {}
        for name, part in step_parts(model, batch, config.objectives).items():
            forward[name] = _count(part) / rows
        half = torch.autocast("cpu", torch.bfloat16, enabled=config.precision != "fp32")
        with half, flop_counter() as counter:
            total = task.forward(model, batch).total
        whole = counter.get_total_flops() / rows
        forward["losses"] = whole - sum(forward.values())
        step = whole + _count(total.backward) / rows
        if config.accumulates_exactly:
            step += whole  # the second forward pass
        with half:
            memory = step_memory(
                task, model, batch, config.micro_batches, config.accumulates_exactly, division.world
            )
    return KindPlan(division.global_batch, rows, length, tokens, forward, step, memory, samples)


def _count(part: Callable[[], Any]) -> float:
    with flop_counter() as counter:
        part()
    return float(counter.get_total_flops())


def _fake_batch(
    config: RunConfig, sizes: GLSCLConfig, kind: str, rows: int, width: int, tokens: int
) -> Batch:
    """Make a batch with the loader's shapes, for texts of `tokens` tokens padded to `width`."""
    masking, objectives, video = config.data.masking, config.objectives, config.data.video
    side = sizes.image_size
    frames: tuple[int, ...] = ()
    if kind == "video" and video:
        side, frames = video.image_size or side, (video.frames,)
    patch = sizes.vision_config.patch_size
    if side % patch:
        raise UsageError(f"patches of {patch} pixels do not fill an image of {side} pixels")
    count = (side // patch) ** 2
    group = (video.group if kind == "video" and video else config.data.group) or 2
    # Masked words per text, as `masking.py` counts them: the two special tokens are never masked.
    hidden = int((tokens - 2) * masking.text) + 1
    predicted = max(1, round((tokens - 2) * masking.mlm))

    def whole(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.int64)

    negative_pixels = negative_patches = negative_tokens = None
    if objectives.matching_negatives == "dataset":
        # Half of each group keeps its image; the others get one of the data set.
        negatives = rows - rows // group * (group // 2)
        negative_pixels = torch.zeros((negatives, *frames, side, side, 3), dtype=torch.uint8)
    if objectives.samples_negatives:
        chosen = objectives.sampled_negatives
        negative_patches = whole(rows * min(chosen, masking.masked(count)))
        negative_tokens = whole(rows * min(chosen, hidden))
    return Batch(
        keys=[""] * rows,
        pixels=torch.zeros((rows, *frames, side, side, 3), dtype=torch.uint8),
        text_ids=whole(rows, width),
        text_mask=whole(rows, width),
        masked_text_ids=whole(rows, width),
        masked_tokens=whole(rows * hidden),
        mlm_ids=whole(rows, width),
        mlm_positions=whole(rows * predicted),
        mlm_labels=whole(rows * predicted),
        keep_patches=whole(rows, masking.kept(count)),
        masked_patches=whole(rows * masking.masked(count)),
        itm_labels=whole(rows),
        itm_noise=torch.zeros(rows, group),
        identity=whole(rows, 2),
        negative_pixels=negative_pixels,
        negative_patches=negative_patches,
        negative_tokens=negative_tokens,
    )


def step_parts(
    model: GLSCLModel, batch: Batch, objectives: ObjectiveConfig
) -> dict[str, Callable[[], Any]]:
    """List functions that run the forward pass of each view, pass and head.

    A view includes the first self-attention, which its pairs share.
    """
    size, mask = len(batch.pixels), batch.text_mask
    frames = batch.pixels.shape[1] if batch.kind == "video" else 1
    patches = model.embed_patches(batch.pixels)
    image_tokens = model.encode_patches(patches)
    text_tokens = model.encode_text(batch.text_ids, mask)
    image, text = model.image_side(image_tokens), model.text_side(text_tokens, mask)
    dropped = model.image_side(model.encode_patches(patches, batch.keep_patches))
    classes = torch.zeros((size, frames), dtype=torch.int64)
    hidden = torch.zeros((size, frames * (len(batch.masked_patches) // size)), dtype=torch.int64)
    completed = torch.cat([classes, hidden], dim=1)
    words = text_tokens.flatten(0, 1)[batch.mlm_positions]
    crossed = objectives.completion_targets == "crossed"

    def encode(keep_patches: Tensor | None = None, embedded: Patches | None = None) -> None:
        embedded = embedded or model.embed_patches(batch.pixels)
        model.image_side(model.encode_patches(embedded, keep_patches))

    def encode_texts() -> None:
        for _ in range(3):
            model.text_side(model.encode_text(batch.text_ids, mask), mask)

    def fuse(other: Side, text_need: Need, image_need: Need) -> None:
        model.fuse_pairs(text, mask, other, [(text_need, image_need)])

    def heads() -> None:
        contrastive_text = model.contrastive_text(text_tokens)
        contrastive_image = model.contrastive_image(image_tokens, frames)
        if objectives.matching_negatives == "hard":
            similarity(contrastive_text, contrastive_image, model.temperature)
        model.match(model.pool(text_tokens, image_tokens[:, :frames]))

    parts: dict[str, Callable[[], Any]] = {
        "view: image": encode,
        "view: token-masked image": partial(encode, embedded=patches),
        "view: dropped image": partial(encode, batch.keep_patches, patches),
        "view: text, masked text, MLM text": encode_texts,
        "pass: dropped image, text": partial(fuse, dropped, "all" if crossed else "none", classes),
        "pass: image, masked text": partial(fuse, image, "all", completed if crossed else "none"),
        "pass: token-masked image, text": partial(fuse, image, "none", hidden),
        "pass: image, MLM text": partial(fuse, image, "all", "none"),
        "pass: matched image, text": partial(fuse, image, classes[:, :1], classes),
        "head: masked language": lambda: model.masked_language_head(words),
        "heads: contrast, matching": heads,
    }
    if not crossed:
        parts["pass: image, text"] = partial(fuse, image, "all", completed)
    negatives = batch.negative_pixels
    if negatives is not None:
        parts["view: negative images"] = lambda: model.image_side(model.encode_image(negatives))
    return parts
