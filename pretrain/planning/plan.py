"""What a run will cost, without training: parameters, operations by view and pass, memory of a rank, what is read.

The model is built and run on fake tensors (no memory, no arithmetic) under torch's FLOP counter, so
the counts are those of the code that trains, not of formulas beside it.
"""

from __future__ import annotations

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

SIMULATED = 100  # steps
SAMPLED = 1024  # samples whose captions say how long texts are


@dataclass(frozen=True)
class KindPlan:
    """One kind of samples (images or clips); operations are per sample, multiplications and additions counted apart."""

    batch: int
    micro_batch: int
    """Samples of a rank that go through the model at once."""
    text_tokens: float
    """Mean padded length of the texts of a micro-batch."""
    mean_tokens: float
    forward: dict[str, float]
    """By view, pass and head."""
    step: float
    """Forward and backward together, losses included."""
    activations: int
    """Bytes that a step takes of a rank beside weights, gradients and moments."""
    epoch_samples: int | None
    """None where the data are not on this machine."""


@dataclass(frozen=True)
class Plan:
    """Costs of a run on `world` ranks."""

    world: int
    engine: str
    steps: int
    parameters: int
    parameter_bytes: int
    """Of a rank: its share of weights, gradients and both moments of AdamW, all float32."""
    kinds: dict[str, KindPlan]
    read: list[str]

    @property
    def memory(self) -> int:
        """Bytes of a rank: parameters with their moments, and what a step of the larger kind keeps alive."""
        return self.parameter_bytes + max(kind.activations for kind in self.kinds.values())

    @property
    def step_flops(self) -> float:
        """Floating-point operations of one step on all ranks."""
        return sum(kind.step * kind.batch for kind in self.kinds.values())

    def device_hours(self, peak: float, mfu: float) -> float:
        """Hours of all devices together, where each does `mfu` (0 to 1) of `peak` operations a second."""
        return self.step_flops * self.steps / (peak * mfu) / 3600

    def table(self) -> str:
        """Everything as text for a person."""
        lines = [
            f"{self.parameters / 1e6:.1f} million trained parameters",
            f"memory of a rank: {self.memory / 1e9:.3g} GB ({self.parameter_bytes / 1e9:.2g} GB weights, gradients and "
            "moments; the rest what a step keeps alive), beside what the process and its allocator take",
            f"{self.steps:,} steps of {self.step_flops / 1e12:,.3g} TFLOP on {self.world} rank(s), {self.engine}: "
            f"{self.step_flops * self.steps:.2g} FLOP",
        ]
        for name, kind in self.kinds.items():
            samples = kind.batch * self.steps
            epochs = f" ({samples / kind.epoch_samples:.1f} epochs)" if kind.epoch_samples else ""
            lines += [
                "",
                f"{name}: {kind.batch:,} a step, {kind.micro_batch} at once on a rank; {samples:,} samples{epochs}, "
                f"about {samples * kind.mean_tokens:,.0f} tokens of text, padded to {kind.text_tokens:.1f} on average",
                f"  {'GFLOP per sample':44}{'forward':>10}",
                *(f"  {part:44}{flops / 1e9:10.4g}" for part, flops in kind.forward.items()),
                f"  {'forward':44}{sum(kind.forward.values()) / 1e9:10.4g}",
                f"  {'forward and backward':44}{kind.step / 1e9:10.4g}",
            ]
        return "\n".join([*lines, "", "reads:", *(f"  {line}" for line in self.read)])


def plan(config: RunConfig, world: int = 1, engine: str = DEFAULT_ENGINE) -> Plan:
    """Plan a run on `world` ranks of an engine (a key of `ENGINES`).

    With exact accumulation over several micro-batches, a step's operations hold the second forward
    pass. Raises UsageError for sizes that do not fit together and impossible divisions, DataError
    for data of another kind; data sets that are not here are only named.
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
    """Read some captions, the samples of an epoch, and a line per data set (only this of data that are elsewhere)."""
    captions: list[str] = []
    samples, lines, here = 0, [], True
    for folder in mixture.dirs:
        try:
            manifest = Manifest.load(folder)
        except DataError as error:
            lines.append(f"{folder}: not read here ({error})")
            here = False
            continue
        manifest.check_kind(kind)
        samples += manifest.samples
        size = sum(shard.bytes for shard in manifest.shards)
        lines.append(
            f"{folder}: {manifest.samples:,} samples in {len(manifest.shards):,} shards, {size / 1e9:.3g} GB"
        )
        store = Store([manifest])
        count = min(SAMPLED // len(mixture.dirs) + 1, manifest.samples)
        spread = [i * manifest.samples // count for i in range(count)]
        captions += [caption for i in spread for caption in store.captions(0, i)[:1]]
        store.close()
    return captions, samples if here else None, lines


def _simulate(config: RunConfig, mixture: Mixture, division: Division) -> str:
    """Walk through the order of the first steps on every rank and say how far a rank's reads are spread."""
    manifests, batch = [Manifest.load(folder) for folder in mixture.dirs], mixture.global_batch
    order = open_order(
        manifests,
        seed=config.seed,
        global_batch=batch,
        lanes=mixture.lanes,
        weights=mixture.weights,
    )
    ends = [np.cumsum([shard.samples for shard in manifest.shards]) for manifest in manifests]
    first = np.cumsum([0, *(len(of_source) for of_source in ends)])
    shards, steps = [], min(config.steps, SIMULATED)
    for step in range(steps):
        draws = order.step(step, batch)
        shard = np.empty(batch, dtype=np.int64)
        for number, of_source in enumerate(ends):
            here = draws.source == number
            shard[here] = first[number] + np.searchsorted(
                of_source, draws.sample[here], side="right"
            )
        shards.append(shard.reshape(division.world, -1))
    counts = [len(np.unique(of_rank)) for of_rank in np.concatenate(shards, axis=1)]
    return (
        f"order of {steps} steps on {division.world:,} rank(s): a rank reads {batch // division.world} samples a step, "
        f"from {sum(counts) / len(counts):.1f} (at most {max(counts)}) of {first[-1]:,} shards"
    )


def _text_length(
    captions: list[str], tokenizer: Tokenizer, longest: int, rows: int
) -> tuple[float, int]:
    """Mean padded length of micro-batches of `rows` texts, and mean tokens; the longest where there are no captions."""
    if not captions:
        return longest, longest
    lengths = [len(encoding.ids) for encoding in tokenizer.encode(captions, longest)]
    parts = [lengths[i : i + rows] for i in range(0, max(1, len(lengths) - rows + 1), rows)]
    padded = [min(longest, -(-max(part) // PAD_TO) * PAD_TO) for part in parts]
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
        forward = {
            name: _count(part) / rows
            for name, part in step_parts(model, batch, config.objectives).items()
        }
        half = torch.autocast("cpu", torch.bfloat16, enabled=config.precision != "fp32")
        with half, flop_counter() as counter:
            total = task.forward(model, batch).total
        whole = counter.get_total_flops() / rows
        forward["losses"] = whole - sum(forward.values())
        step = whole + _count(total.backward) / rows
        if config.accumulates_exactly:
            step += whole
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
    """Make a batch of the shapes that the loader makes, for texts of `tokens` tokens padded to `width`."""
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
    hidden = int((tokens - 2) * masking.text) + 1
    predicted = max(1, round((tokens - 2) * masking.mlm))

    def whole(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.int64)

    negatives = rows - rows // group * (group // 2)
    chosen = objectives.sampled_negatives if objectives.samples_negatives else None
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
        negative_pixels=torch.zeros((negatives, *frames, side, side, 3), dtype=torch.uint8)
        if objectives.matching_negatives == "dataset"
        else None,
        negative_patches=None
        if chosen is None
        else whole(rows * min(chosen, masking.masked(count))),
        negative_tokens=None if chosen is None else whole(rows * min(chosen, hidden)),
    )


def step_parts(
    model: GLSCLModel, batch: Batch, objectives: ObjectiveConfig
) -> dict[str, Callable[[], Any]]:
    """List the forward work of every view, pass and head; a view includes the self-attention that its pairs share."""
    size, mask = len(batch.pixels), batch.text_mask
    frames = batch.pixels.shape[1] if batch.kind == "video" else 1
    patches = model.embed_patches(batch.pixels)
    image_tokens, text_tokens = (
        model.encode_patches(patches),
        model.encode_text(batch.text_ids, mask),
    )
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

    def fuse(other: Side, text_need: Need, image_need: Need) -> None:
        model.fuse_pairs(text, mask, other, [(text_need, image_need)])

    def heads() -> None:
        features = (
            model.contrastive_text(text_tokens),
            model.contrastive_image(image_tokens, frames),
        )
        if objectives.matching_negatives == "hard":
            similarity(*features, model.temperature)
        model.match(model.pool(text_tokens, image_tokens[:, :frames]))

    parts: dict[str, Callable[[], Any]] = {
        "view: image": encode,
        "view: token-masked image": partial(encode, embedded=patches),
        "view: dropped image": partial(encode, batch.keep_patches, patches),
        "view: text, masked text, MLM text": lambda: [
            model.text_side(model.encode_text(batch.text_ids, mask), mask) for _ in range(3)
        ],
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
    if (negatives := batch.negative_pixels) is not None:
        parts["view: negative images"] = lambda: model.image_side(model.encode_image(negatives))
    return parts
