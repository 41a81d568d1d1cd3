"""A whole training step, compared with the same mathematics executed as the authors' release does.

    python -m benchmarks.step [--batch 4] [--rounds 3] [--precision fp32|bf16]
    [--negatives hard|dataset] [--tiny]

Both train CLIP ViT-B/16 (11 blocks) at 288 pixels, RoBERTa base and 6 fusion layers, with dropout
and AdamW. This step trims texts to the longest of the batch; the release pads them to 50 tokens and
computes every state. On a GPU the release runs eager attention in fp16, as published, and this step
runs in `--precision`.

Rounds alternate. Prints the median seconds per step and samples per second of both, the ratio of
times beside the ratio of counted operations, and the forward time of this step's parts.
"""

import argparse
import copy
import platform
import statistics
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, RobertaConfig

from benchmarks.measurement import seconds, software
from benchmarks.unshared import unshared_features
from data_pipeline.collate import Batch
from pretrain.config import ObjectiveConfig, OptimizerConfig
from pretrain.model import GLSCLConfig, GLSCLModel
from pretrain.optim import build_optimizer
from pretrain.planning.plan import flop_counter, step_parts
from pretrain.task import PretrainTask
from pretrain.views import PretrainFeatures

LENGTH = 50  # tokens that the authors pad to
# Tokens per caption, special tokens included; COCO's captions are like that.
SHORTEST, LONGEST = 10, 20
SMALL_TOWER = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
SMALL_FUSION = {
    "hidden_size": 128,
    "fusion_layers": 2,
    "fusion_heads": 4,
    "fusion_intermediate_size": 512,
}
# Of autocast; None is float32 without it.
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}


class Side(NamedTuple):
    """One of the two executions; a precision of None is float32."""

    model: GLSCLModel
    precision: torch.dtype | None
    features: Callable[[GLSCLModel], PretrainFeatures]


def model_config(small: bool) -> GLSCLConfig:
    """Return the published sizes, or small ones that a CPU computes quickly."""
    if not small:
        return GLSCLConfig()
    return GLSCLConfig(
        vision_config=CLIPVisionConfig(**SMALL_TOWER, patch_size=16, image_size=96),
        text_config=RobertaConfig(
            **SMALL_TOWER, vocab_size=1000, max_position_embeddings=64, type_vocab_size=1
        ),
        **SMALL_FUSION,
    )


def random_batch(config: GLSCLConfig, size: int, dataset_negatives: bool, seed: int = 0) -> Batch:
    """Make one batch of `size` samples like the loader's, with random pixels and tokens."""
    generator = torch.Generator().manual_seed(seed)
    side, vocabulary = config.image_size, config.text_config.vocab_size
    patches = (side // config.vision_config.patch_size) ** 2
    lengths = torch.linspace(SHORTEST, LONGEST, size).round().int().tolist()
    width = -(-max(lengths) // 8) * 8  # the loader pads to a multiple of 8

    def choose(total: int, count: int) -> Tensor:
        return torch.randperm(total, generator=generator)[:count].sort().values

    ids = torch.ones(size, width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        # The first four ids and the last are special tokens.
        ids[row, :length] = torch.randint(4, vocabulary - 1, (length,), generator=generator)
        ids[row, 0], ids[row, length - 1] = 0, 2
        mask[row, :length] = 1
    # Positions are flat, and never those of the first and the last token of a text. The shares are
    # the defaults of training: 40 % of the tokens are masked for completion, 15 % are predicted.
    completion_rows, prediction_rows = [], []
    for row, length in enumerate(lengths):
        inner = length - 2
        completion_rows.append(row * width + 1 + choose(inner, int(inner * 0.4) + 1))
    for row, length in enumerate(lengths):
        inner = length - 2
        prediction_rows.append(row * width + 1 + choose(inner, max(1, round(inner * 0.15))))
    masked_tokens, mlm_positions = torch.cat(completion_rows), torch.cat(prediction_rows)

    def masked(positions: Tensor) -> Tensor:
        return ids.flatten().index_fill(0, positions, vocabulary - 1).view_as(ids)

    def random_pixels(images: int) -> Tensor:
        shape = (images, side, side, 3)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)

    pixels = random_pixels(size)
    # 20 % of the patches survive in the dropped view, 30 % are masked in the other.
    keep_patches = torch.stack([choose(patches, int(patches * 0.2)) for _ in range(size)])
    masked_rows = []
    for row in range(size):
        masked_rows.append(row * patches + choose(patches, int(patches * 0.3)))
    labels = torch.arange(size) % 2
    return Batch(
        keys=[str(row) for row in range(size)],
        pixels=pixels,
        text_ids=ids,
        text_mask=mask,
        masked_text_ids=masked(masked_tokens),
        masked_tokens=masked_tokens,
        mlm_ids=masked(mlm_positions),
        mlm_positions=mlm_positions,
        mlm_labels=ids.flatten()[mlm_positions],
        keep_patches=keep_patches,
        masked_patches=torch.cat(masked_rows),
        itm_labels=labels,
        itm_noise=torch.zeros(size, size),
        identity=torch.arange(2 * size).view(size, 2),
        negative_pixels=random_pixels(int((labels == 0).sum())) if dataset_negatives else None,
    )


def build_sides(
    config: GLSCLConfig, task: PretrainTask, batch: Batch, options: argparse.Namespace, device: str
) -> dict[str, Side]:
    """Build both executions with the same weights."""
    torch.manual_seed(0)
    model = GLSCLModel(config).to(device).train()
    precision = PRECISIONS[options.precision]
    released_model = model
    released_precision = precision if options.same_precision else None
    if device == "cuda":
        # A copy, because transformers writes the choice of attention into the configuration.
        eager = copy.deepcopy(config)
        released_model = GLSCLModel._from_config(eager, attn_implementation="eager")
        released_model = released_model.to(device).train()
        released_precision = torch.float16
    return {
        "this step": Side(model, precision, lambda model: task.features(model, batch)),
        "as released": Side(
            released_model,
            released_precision,
            lambda model: unshared_features(model, batch, task.config, LENGTH),
        ),
    }


def measure(options: argparse.Namespace) -> None:
    """Time both sides in turn and print the comparison."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = model_config(small=options.tiny)
    batch = random_batch(config, options.batch, options.negatives == "dataset").to(device)
    task = PretrainTask(ObjectiveConfig(matching_negatives=options.negatives))
    sides = build_sides(config, task, batch, options, device)
    optimizers = {}
    for name, side in sides.items():
        optimizers[name] = build_optimizer(side.model, OptimizerConfig(lr=1e-6))

    def step(name: str) -> None:
        model, precision, compute_features = sides[name]
        optimizers[name].zero_grad()
        with torch.autocast(device, precision or torch.bfloat16, enabled=precision is not None):
            features = compute_features(model)
        task.losses(features).total.backward()
        optimizers[name].step()

    operations: dict[str, float] = {}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for name in sides:
        # The counted step also warms up.
        with flop_counter() as counter:
            step(name)
        operations[name] = counter.get_total_flops() / options.batch
    for _ in range(options.rounds):
        for name in sides:
            times[name].append(seconds(partial(step, name)))
    print_comparison(options, device, batch, sides, operations, times)
    print_parts(sides["this step"], batch, task.config, device)


def print_comparison(
    options: argparse.Namespace,
    device: str,
    batch: Batch,
    sides: dict[str, Side],
    operations: dict[str, float],
    times: dict[str, list[float]],
) -> None:
    """Print both sides, the ratio of their times, and the ratio of their operations per sample."""
    machine = platform.processor() or platform.machine()
    if device == "cuda":
        machine = torch.cuda.get_device_name()
    lengths = batch.text_mask.sum(1)
    print(f"{machine}, {software()}")
    print(
        f"batch {options.batch}, texts of {lengths.min()} to {lengths.max()} tokens, "
        f"padded to {batch.text_ids.shape[1]} (this step) and {LENGTH} (as released), "
        f"{options.negatives} negatives"
    )
    print(f"{'':14}{'precision':>10}{'GFLOP/sample':>14}{'s/step (median)':>17}", end="")
    print(f"{'all rounds':>30}{'samples/s':>11}")
    medians = {}
    for name, side in sides.items():
        medians[name] = statistics.median(times[name])
        rounds = " ".join(f"{value:.2f}" for value in times[name])
        precision = str(side.precision or torch.float32).removeprefix("torch.")
        print(
            f"{name:14}{precision:>10}{operations[name] / 1e9:14.1f}{medians[name]:17.2f}", end=""
        )
        print(f"{rounds:>30}{options.batch / medians[name]:11.3f}")
    counted = operations["as released"] / operations["this step"]
    timed = medians["as released"] / medians["this step"]
    share = 100 * timed / counted
    print(f"ratio of operations {counted:.2f}, of times {timed:.2f}: {share:.0f} % of the former")
    if device == "cuda":
        achieved = operations["this step"] * options.batch / medians["this step"]
        utilization = f", MFU {achieved / 1e10 / options.peak:.0f} %" if options.peak else ""
        print(f"{achieved / 1e12:.1f} TFLOP/s{utilization}")


def print_parts(side: Side, batch: Batch, objectives: ObjectiveConfig, device: str) -> None:
    """Print the forward time of every view, pass and head alone."""
    print(f"\n{'forward of this step, by part':44}", end="")
    print(f"{'GFLOP/sample':>14}{'s/sample':>10}{'GFLOP/s':>9}")
    precision, samples = side.precision, len(batch.keys)
    autocast = torch.autocast(device, precision or torch.bfloat16, enabled=precision is not None)
    with torch.no_grad(), autocast:
        for name, part in step_parts(side.model, batch, objectives).items():
            with flop_counter() as counter:
                part()
            operations = counter.get_total_flops() / samples
            time = min(seconds(part), seconds(part)) / samples
            rate = operations / time / 1e9
            print(f"{name:44}{operations / 1e9:14.2f}{time:10.3f}{rate:9.0f}")


def main() -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--batch", type=int, default=4, help="samples per step (default: 4)")
    parser.add_argument("--rounds", type=int, default=3, help="timed steps per side (default: 3)")
    parser.add_argument(
        "--precision",
        choices=tuple(PRECISIONS),
        help="precision of this step (default: bf16 on a GPU, fp32 elsewhere)",
    )
    parser.add_argument(
        "--same-precision",
        action="store_true",
        help="on a CPU, run the release in --precision too",
    )
    parser.add_argument(
        "--peak", type=float, help="TFLOP/s of the GPU in that precision, to print MFU"
    )
    parser.add_argument(
        "--negatives",
        choices=("hard", "dataset"),
        default="hard",
        help="negatives of the matching loss (default: hard)",
    )
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try this script")
    options = parser.parse_args()
    if options.precision is None:
        options.precision = "bf16" if torch.cuda.is_available() else "fp32"
    measure(options)


if __name__ == "__main__":
    main()
