"""Speed of a training step, compared with the same mathematics as the authors' release computes it.

    python -m benchmarks.step [--batch 4] [--rounds 3] [--precision fp32|bf16] [--negatives
    hard|dataset] [--tiny]

CLIP ViT-B/16 (11 blocks) at 288 pixels, RoBERTa base, 6 fusion layers, dropout on, AdamW; ours
trims texts to the longest of the batch, theirs pads to 50 tokens and computes every state. Rounds
alternate; medians and their ratio are printed with the ratio of counted operations. On a GPU,
theirs uses eager attention in fp16 (as released), ours `--precision`.
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

LENGTH = 50  # tokens to which the authors pad
# Tokens of a caption, with special tokens, as in COCO.
SHORTEST, LONGEST = 10, 20


def sizes(tiny: bool) -> GLSCLConfig:
    """Return the published sizes, or small ones to try the script."""
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
    """Make a batch in the form of the loader, with random pixels and words."""
    generator = torch.Generator().manual_seed(seed)
    side, words = config.image_size, config.text_config.vocab_size
    count = (side // config.vision_config.patch_size) ** 2
    lengths = torch.linspace(SHORTEST, LONGEST, size).round().int().tolist()
    width = -(-max(lengths) // 8) * 8

    def some(total: int, count: int) -> Tensor:
        return torch.randperm(total, generator=generator)[:count].sort().values

    ids = torch.ones(size, width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(4, words - 1, (length,), generator=generator)
        ids[row, 0], ids[row, length - 1] = 0, 2
        mask[row, :length] = 1
    tokens, predicted = [], []
    for row, length in enumerate(lengths):
        words_of_text = length - 2  # without special tokens
        start = row * width + 1
        tokens.append(start + some(words_of_text, int(words_of_text * 0.4) + 1))
    for row, length in enumerate(lengths):
        start, words_of_text = row * width + 1, length - 2
        predicted.append(start + some(words_of_text, max(1, round(words_of_text * 0.15))))
    masked_tokens, mlm_positions = torch.cat(tokens), torch.cat(predicted)

    def masked(positions: Tensor) -> Tensor:
        return ids.flatten().index_fill(0, positions, words - 1).view_as(ids)

    def pixels(number: int) -> Tensor:
        shape = (number, side, side, 3)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)

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
        masked_patches=torch.cat([n * count + some(count, int(count * 0.3)) for n in range(size)]),
        itm_labels=labels,
        itm_noise=torch.zeros(size, size),
        identity=torch.arange(2 * size).view(size, 2),
        negative_pixels=pixels(int((labels == 0).sum())) if dataset_negatives else None,
    )


Side = tuple[GLSCLModel, torch.dtype | None, Callable[[GLSCLModel], PretrainFeatures]]


def measure(options: argparse.Namespace) -> None:
    """Time both sides in turn and print the results."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config, objectives = sizes(options.tiny), ObjectiveConfig(matching_negatives=options.negatives)
    batch = random_batch(config, options.batch, options.negatives == "dataset").to(device)
    task = PretrainTask(objectives)
    torch.manual_seed(0)
    ours = GLSCLModel(config).to(device).train()
    theirs = ours
    if device == "cuda":
        # A copy, because transformers writes the choice of attention into the configuration.
        own_config = copy.deepcopy(config)
        theirs = GLSCLModel._from_config(own_config, attn_implementation="eager")
        theirs = theirs.to(device).train()
    half = {"fp32": None, "bf16": torch.bfloat16}[options.precision]
    their_precision = half if options.same_precision else None
    if device == "cuda":
        their_precision = torch.float16

    def our_features(model: GLSCLModel) -> PretrainFeatures:
        return task.features(model, batch)

    def their_features(model: GLSCLModel) -> PretrainFeatures:
        return unshared_features(model, batch, objectives, LENGTH)

    sides: dict[str, Side] = {
        "this step": (ours, half, our_features),
        "as released": (theirs, their_precision, their_features),
    }
    optimizers = {}
    for name, (model, _, _) in sides.items():
        optimizers[name] = build_optimizer(model, OptimizerConfig(lr=1e-6))

    def step(name: str) -> None:
        model, precision, features = sides[name]
        optimizers[name].zero_grad()
        with torch.autocast(device, precision or torch.bfloat16, enabled=precision is not None):
            computed = features(model)
        task.losses(computed).total.backward()
        optimizers[name].step()

    operations, times = {}, {name: [] for name in sides}
    for name in sides:
        with flop_counter() as counter:  # also the warm-up
            step(name)
        operations[name] = counter.get_total_flops() / options.batch
    for _ in range(options.rounds):
        for name in sides:
            times[name].append(seconds(lambda name=name: step(name), device))
    report(options, device, batch, sides, operations, times)
    by_part(ours, batch, objectives, device, half)


def seconds(work: Callable[[], object], device: str) -> float:
    """Measure the wall time of one call."""
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def report(options, device, batch, sides, operations, times) -> None:
    """Print both sides, their ratio, and the ratio of operations."""
    where = platform.processor() or platform.machine()
    if device == "cuda":
        where = torch.cuda.get_device_name()
    lengths = batch.text_mask.sum(1)
    print(f"{where}, {torch.get_num_threads()} threads, torch {torch.__version__}, ", end="")
    print(time.strftime("%Y-%m-%d"))
    print(f"batch {options.batch}, texts of {lengths.min()} to {lengths.max()} tokens, ", end="")
    print(f"padded to {batch.text_ids.shape[1]} (this step) and {LENGTH} (as released), ", end="")
    print(f"{options.negatives} negatives")
    print(f"{'':14}{'precision':>10}{'GFLOP/sample':>14}{'s/step (median)':>17}", end="")
    print(f"{'all rounds':>30}{'samples/s':>11}")
    for name, (_, precision, _) in sides.items():
        median = statistics.median(times[name])
        rounds = " ".join(f"{value:.2f}" for value in times[name])
        kind = str(precision or torch.float32).removeprefix("torch.")
        print(f"{name:14}{kind:>10}{operations[name] / 1e9:14.1f}{median:17.2f}", end="")
        print(f"{rounds:>30}{options.batch / median:11.3f}")
    counted = operations["as released"] / operations["this step"]
    timed = statistics.median(times["as released"]) / statistics.median(times["this step"])
    print(f"ratio of operations {counted:.2f}, of times {timed:.2f}: ", end="")
    print(f"{100 * timed / counted:.0f} % of the former")
    if device == "cuda":
        achieved = operations["this step"] * options.batch / statistics.median(times["this step"])
        share = f", MFU {achieved / 1e10 / options.peak:.0f} %" if options.peak else ""
        print(f"{achieved / 1e12:.1f} TFLOP/s{share}")


def by_part(
    model: GLSCLModel, batch: Batch, objectives: ObjectiveConfig, device: str, half
) -> None:
    """Print the forward time of every view, pass and head by itself."""
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
        "--precision",
        choices=("fp32", "bf16"),
        help="precision of this step (default: fp32, on a GPU bf16)",
    )
    parser.add_argument(
        "--same-precision",
        action="store_true",
        help="on a CPU, use --precision for the other side too",
    )
    parser.add_argument(
        "--peak", type=float, help="peak TFLOP/s of the GPU in that precision, to print the MFU"
    )
    parser.add_argument("--negatives", choices=("hard", "dataset"), default="hard")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try this script")
    given = parser.parse_args()
    given.precision = given.precision or ("bf16" if torch.cuda.is_available() else "fp32")
    measure(given)
