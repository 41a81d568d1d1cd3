"""A whole training step beside the same mathematics executed as the authors' release executes it, samples per second.

    python -m benchmarks.step [--batch 4] [--rounds 3] [--precision fp32|bf16] [--negatives
    hard|dataset] [--tiny]

CLIP ViT-B/16 (11 blocks) at 288 pixels, RoBERTa base, 6 fusion layers, dropout on, AdamW; ours
trims texts to the longest of the batch, theirs pads to 50 and computes every state. Rounds
alternate; medians and their ratio are printed beside the ratio of counted operations. On a GPU
theirs runs eager attention in fp16 (as released), ours `--precision`.
"""

import argparse
import copy
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, RobertaConfig

from benchmarks.unshared import unshared_features
from data_pipeline.collate import Batch
from pretrain.config import ObjectiveConfig, OptimizerConfig
from pretrain.model import GLSCLConfig, GLSCLModel
from pretrain.optim import build_optimizer
from pretrain.planning.plan import flop_counter, step_parts
from pretrain.task import PretrainTask
from pretrain.views import PretrainFeatures

LENGTH = 50  # tokens that the authors pad to
SHORTEST, LONGEST = (
    10,
    20,
)  # tokens of a caption here, special tokens included: COCO's are like that


def sizes(tiny: bool) -> GLSCLConfig:
    """Give the published sizes, or small ones to try the script."""
    if not tiny:
        return GLSCLConfig()
    tower = {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    }
    return GLSCLConfig(
        vision_config=CLIPVisionConfig(**tower, patch_size=16, image_size=96),
        text_config=RobertaConfig(
            **tower, vocab_size=1000, max_position_embeddings=64, type_vocab_size=1
        ),
        **{
            "hidden_size": 128,
            "fusion_layers": 2,
            "fusion_heads": 4,
            "fusion_intermediate_size": 512,
        },
    )


def random_batch(config: GLSCLConfig, size: int, dataset_negatives: bool, seed: int = 0) -> Batch:
    """One batch as the loader makes it, of random pixels and words."""
    generator = torch.Generator().manual_seed(seed)
    side, words = config.image_size, config.text_config.vocab_size
    count = (side // config.vision_config.patch_size) ** 2
    lengths = torch.linspace(SHORTEST, LONGEST, size).round().int().tolist()
    width = -(-max(lengths) // 8) * 8

    def some(total: int, wanted: int) -> Tensor:
        return torch.randperm(total, generator=generator)[:wanted].sort().values

    ids = torch.ones(size, width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(4, words - 1, (length,), generator=generator)
        ids[row, 0], ids[row, length - 1] = 0, 2
        mask[row, :length] = 1
    tokens = [
        row * width + 1 + some(n - 2, int((n - 2) * 0.4) + 1) for row, n in enumerate(lengths)
    ]
    predicted = [
        row * width + 1 + some(n - 2, max(1, round((n - 2) * 0.15)))
        for row, n in enumerate(lengths)
    ]
    masked_tokens, mlm_positions = torch.cat(tokens), torch.cat(predicted)

    def masked(positions: Tensor) -> Tensor:
        return ids.flatten().index_fill(0, positions, words - 1).view_as(ids)

    def pixels(number: int) -> Tensor:
        return torch.randint(
            0, 256, (number, side, side, 3), dtype=torch.uint8, generator=generator
        )

    labels = torch.arange(size) % 2
    return Batch(
        keys=[str(row) for row in range(size)],
        pixels=pixels(size),
        text_ids=ids,
        text_mask=mask,
        masked_text_ids=masked(masked_tokens),
        masked_tokens=masked_tokens,
        mlm_ids=masked(mlm_positions),
        mlm_positions=mlm_positions,
        mlm_labels=ids.flatten()[mlm_positions],
        keep_patches=torch.stack([some(count, int(count * 0.2)) for _ in range(size)]),
        masked_patches=torch.cat(
            [row * count + some(count, int(count * 0.3)) for row in range(size)]
        ),
        itm_labels=labels,
        itm_noise=torch.zeros(size, size),
        identity=torch.arange(2 * size).view(size, 2),
        negative_pixels=pixels(int((labels == 0).sum())) if dataset_negatives else None,
    )


def measure(options: argparse.Namespace) -> None:
    """Time both sides in turn and print what came out."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config, objectives = sizes(options.tiny), ObjectiveConfig(matching_negatives=options.negatives)
    batch = random_batch(config, options.batch, options.negatives == "dataset").to(device)
    task = PretrainTask(objectives)
    torch.manual_seed(0)
    ours = GLSCLModel(config).to(device).train()
    theirs = ours
    if (
        device == "cuda"
    ):  # a copy: transformers writes the choice of attention into the configuration
        theirs = (
            GLSCLModel._from_config(copy.deepcopy(config), attn_implementation="eager")
            .to(device)
            .train()
        )
    half = {"fp32": None, "bf16": torch.bfloat16}[options.precision]
    sides: dict[
        str, tuple[GLSCLModel, torch.dtype | None, Callable[[GLSCLModel], PretrainFeatures]]
    ] = {
        "this step": (ours, half, lambda model: task.features(model, batch)),
        "as released": (
            theirs,
            torch.float16 if device == "cuda" else half if options.same_precision else None,
            lambda model: unshared_features(model, batch, objectives, LENGTH),
        ),
    }
    optimizers = {
        name: build_optimizer(model, OptimizerConfig(lr=1e-6))
        for name, (model, _, _) in sides.items()
    }

    def step(name: str) -> None:
        model, precision, features = sides[name]
        optimizers[name].zero_grad()
        with torch.autocast(device, precision or torch.bfloat16, enabled=precision is not None):
            found = features(model)
        task.losses(found).total.backward()
        optimizers[name].step()

    operations, times = {}, {name: [] for name in sides}
    for name in sides:
        with flop_counter() as counter:  # warms up too
            step(name)
        operations[name] = counter.get_total_flops() / options.batch
    for _ in range(options.rounds):
        for name in sides:
            times[name].append(seconds(lambda name=name: step(name), device))
    report(options, device, batch, sides, operations, times)
    by_part(ours, batch, objectives, device, half)


def seconds(work: Callable[[], object], device: str) -> float:
    """Wall time of one call."""
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def report(options, device, batch, sides, operations, times) -> None:
    """Print both sides, their ratio, and the ratio of operations."""
    where = (
        torch.cuda.get_device_name()
        if device == "cuda"
        else f"{platform.processor() or platform.machine()}"
    )
    lengths = batch.text_mask.sum(1)
    print(
        f"{where}, {torch.get_num_threads()} threads, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"
    )
    print(
        f"batch {options.batch}, texts of {lengths.min()} to {lengths.max()} tokens, padded to "
        f"{batch.text_ids.shape[1]} (this step) and {LENGTH} (as released), {options.negatives} negatives"
    )
    print(
        f"{'':14}{'precision':>10}{'GFLOP/sample':>14}{'s/step (median)':>17}{'all rounds':>30}{'samples/s':>11}"
    )
    for name, (_, precision, _) in sides.items():
        median = statistics.median(times[name])
        rounds = " ".join(f"{value:.2f}" for value in times[name])
        kind = str(precision or torch.float32).removeprefix("torch.")
        print(
            f"{name:14}{kind:>10}{operations[name] / 1e9:14.1f}{median:17.2f}{rounds:>30}{options.batch / median:11.3f}"
        )
    counted = operations["as released"] / operations["this step"]
    timed = statistics.median(times["as released"]) / statistics.median(times["this step"])
    print(
        f"ratio of operations {counted:.2f}, of times {timed:.2f}: {100 * timed / counted:.0f} % of the former"
    )
    if device == "cuda":
        achieved = operations["this step"] * options.batch / statistics.median(times["this step"])
        share = f", MFU {achieved / 1e10 / options.peak:.0f} %" if options.peak else ""
        print(f"{achieved / 1e12:.1f} TFLOP/s{share}")


def by_part(
    model: GLSCLModel, batch: Batch, objectives: ObjectiveConfig, device: str, half
) -> None:
    """Print the forward time of every view, pass and head alone."""
    print(
        f"\n{'forward of this step, by part':44}{'GFLOP/sample':>14}{'s/sample':>10}{'GFLOP/s':>9}"
    )
    with torch.no_grad(), torch.autocast(device, half or torch.bfloat16, enabled=half is not None):
        for name, part in step_parts(model, batch, objectives).items():
            with flop_counter() as counter:
                part()
            count = counter.get_total_flops() / len(batch.keys)
            taken = min(seconds(part, device) for _ in range(2)) / len(batch.keys)
            print(f"{name:44}{count / 1e9:14.2f}{taken:10.3f}{count / taken / 1e9:9.0f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--precision", choices=("fp32", "bf16"), help="of this step; default: fp32, on a GPU bf16"
    )
    parser.add_argument(
        "--same-precision", action="store_true", help="on a CPU, the other side in --precision too"
    )
    parser.add_argument(
        "--peak", type=float, help="TFLOP/s of the GPU in that precision, to print MFU"
    )
    parser.add_argument("--negatives", choices=("hard", "dataset"), default="hard")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try this script")
    given = parser.parse_args()
    given.precision = given.precision or ("bf16" if torch.cuda.is_available() else "fp32")
    measure(given)
