"""Cost of retrieval: exact ranking, and re-ranking compared with scoring every pair.

    python -m benchmarks.eval [--images 500] [--k 32] [--part 10] [--precision fp32|bf16] [--base]
    [--tiny]

First, 5,000 x 25,000 features of width 512 are ranked in both directions, each in its own process:
seconds, and memory above that of the interpreter. Then generated images with five captions each and
a random model (small towers for a CPU, or the published sizes with --base) are timed in three ways:
the whole stage with re-ranking of k in both directions; every pair on cached towers; every pair
with both towers computed again, as the authors evaluate. The last two are measured on every PARTth
image with all captions, and on a few of those pairs, and scaled up, because the cost of a pair does
not depend on the others. Last, on a smaller gallery that k covers, the metrics of re-ranking are
compared with those of all pairs by the plain model.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from benchmarks.memory import status
from benchmarks.step import sizes
from pretrain.ranking import ranks, ranks_of_features

CAPTIONS = 5


def ranking(images: int, width: int, direction: str) -> dict[str, float]:
    """Measure seconds and megabytes of one direction over random features."""
    rng = np.random.default_rng(0)
    image_features = rng.standard_normal((images, width), dtype=np.float32)
    text_features = rng.standard_normal((CAPTIONS * images, width), dtype=np.float32)
    captions_of = [range(CAPTIONS * i, CAPTIONS * (i + 1)) for i in range(images)]
    sides: Any = (image_features, text_features, captions_of)
    if direction == "text_to_image":
        sides = (text_features, image_features, np.arange(len(text_features)) // CAPTIONS)
    before = status("VmRSS") - (image_features.nbytes + text_features.nbytes) / 1e6
    started = time.perf_counter()
    ranks_of_features(*sides)
    return {"seconds": time.perf_counter() - started, "memory": status("VmHWM") - before}


def alone(*words: str) -> dict[str, float]:
    """Measure in a separate process."""
    command = [sys.executable, "-m", "benchmarks.eval", *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def prepare(folder: Path, images: int, base: bool) -> tuple[Path, Path]:
    """Write a gallery and a random model with its tokenizer."""
    from data_pipeline.scenes.generate import generate
    from data_pipeline.text import train_tokenizer
    from pretrain.model import GLSCLModel, GLSCLProcessor

    generate(folder / "scenes", train=0, val=0, test=images, novel=0, size=96, seed=0, workers=2)
    train_tokenizer([folder / "scenes" / "test"], folder / "tokenizer", 600)
    torch.manual_seed(0)
    model = GLSCLModel(sizes(tiny=not base))
    with torch.no_grad():  # a new head gives nearly the same score to every pair
        model.matching_head.weight.normal_()
    model.save_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    GLSCLProcessor.build(model.config, tokenizer).save_pretrained(folder / "model")
    return folder / "model", folder / "scenes" / "test"


@torch.inference_mode()
def towers_again(
    loaded: Any, pixels: torch.Tensor, texts: list[str], rows: list[tuple[int, int]], at_once: int
) -> None:
    """Score pairs (image, text), each from its pixels and words."""
    from eval.encoding.features import padded_texts

    encodings = loaded.tokenizer.encode(texts, loaded.model.config.max_text_length)
    ids = [torch.tensor(encoding.ids) for encoding in encodings]
    for start in range(0, len(rows), at_once):
        image, text = zip(*rows[start : start + at_once], strict=True)
        words, mask = padded_texts(loaded, [ids[row] for row in text])
        mask = mask.to(loaded.device)
        chosen = loaded.model.normalize(pixels[list(image)].to(loaded.device))
        with loaded.autocast():
            image_tokens = loaded.model.encode_image(chosen)
            text_tokens = loaded.model.encode_text(words.to(loaded.device), mask)
            pooled = loaded.model.fuse(text_tokens, mask, image_tokens).pooled
        loaded.model.match(pooled.float()).cpu()


def all_captions(images: Any) -> list[str]:
    """Return the captions of all images in order."""
    captions: list[str] = []
    for of_image in images.captions:
        captions += of_image
    return captions


def against_all_pairs(model: Path, data: Path, options: argparse.Namespace) -> None:
    """Print the seconds of all three ways and their ratios."""
    from data_pipeline.loader import evaluation_batches
    from data_pipeline.shards.manifest import Manifest
    from eval.encoding.features import encode_images, encode_texts, load
    from eval.encoding.matching_scores import match_margins
    from eval.stages import retrieval

    loaded, manifest = load(model, options.precision), Manifest.load(data)
    started = time.perf_counter()
    images = encode_images(loaded, manifest)
    captions = all_captions(images)
    texts = encode_texts(loaded, captions)
    towers = time.perf_counter() - started
    part = max(1, min(options.part, options.images))
    grid = np.meshgrid(np.arange(0, options.images, part), np.arange(len(captions)))
    every = np.stack(grid, axis=-1).reshape(-1, 2)
    started = time.perf_counter()
    match_margins(loaded, images, texts, every[:, 0], every[:, 1])
    total = options.images * len(captions)
    cached = towers + (time.perf_counter() - started) * total / len(every)

    (batch,) = evaluation_batches(
        manifest, size=loaded.model.config.image_size, batch_size=manifest.samples
    )
    few = [(int(i), int(t)) for i, t in every[:: part * 5]]
    towers_again(loaded, batch.pixels, captions, few[:32], 32)
    started = time.perf_counter()
    towers_again(loaded, batch.pixels, captions, few, 32)
    again = (time.perf_counter() - started) * total / len(few)

    with tempfile.TemporaryDirectory() as out:
        timing = retrieval.evaluate(
            model, data, out, rerank_k=options.k, precision=options.precision
        ).timing
    two = timing["encode_s"] + timing["rank_s"]
    print(f"\n{options.images:,} x {len(captions):,}: {total:,} pairs", end="")
    print(f" on {loaded.device}, {options.precision}")
    print(f"{'two stages, k=' + str(options.k):>40}: {two:10.1f} s")
    name = f"all pairs, cached towers (of {len(every):,})"
    print(f"{name:>40}: {cached:10.1f} s   {cached / two:6.1f} x")
    name = f"all pairs, towers again (of {len(few):,})"
    print(f"{name:>40}: {again:10.1f} s   {again / two:6.1f} x", flush=True)


@torch.inference_mode()
def covered(model: Path, data: Path, count: int) -> None:
    """Compare the metrics of re-ranking all candidates with those of all pairs, `count` images."""
    from data_pipeline.shards.manifest import Manifest
    from eval.encoding.features import encode_images, encode_texts, load
    from eval.stages import retrieval

    loaded = load(model)
    images = encode_images(loaded, Manifest.load(data), limit=count)
    captions = all_captions(images)
    texts = encode_texts(loaded, captions)
    owner = np.repeat(np.arange(count), CAPTIONS)
    scores = np.empty((len(captions), count), dtype=np.float32)
    for number, row in enumerate(texts.row):
        tokens, mask = texts.tokens[[row]].to(loaded.device), texts.mask[[row]].to(loaded.device)
        image_tokens = images.tokens[images.row].to(loaded.device)
        text_tokens, text_mask = tokens.expand(count, -1, -1), mask.expand(count, -1)
        fused = loaded.model.fuse(text_tokens, text_mask, image_tokens)
        logits = loaded.model.match(fused.pooled).cpu()
        scores[number] = (logits[:, 1] - logits[:, 0]).numpy()
    plain = {
        "text_to_image": ranks(scores, owner),
        "image_to_text": ranks(scores.T, [np.flatnonzero(owner == i) for i in range(count)]),
    }
    with tempfile.TemporaryDirectory() as out:
        result = retrieval.evaluate(
            model, data, out, rerank_k=len(captions), score="itm", limit=count
        )
    print(f"\n{count} x {len(captions)}, k covers all: two stages, all pairs")
    for name, ranked in plain.items():
        for k in (1, 5, 10):
            both = result.metric(f"{name}/reranked/R@{k}").value
            print(f"{name + f'/R@{k}':>22}: {both:8.3f} {100 * ranked.recall(k):8.3f}")


def main() -> None:
    """Run all benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--part", type=int, default=10)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--base", action="store_true", help="published sizes, for a GPU")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try the script")
    parser.add_argument(
        "--ranking", nargs=3, metavar=("IMAGES", "WIDTH", "DIRECTION"), help=argparse.SUPPRESS
    )
    options = parser.parse_args()
    if options.ranking:
        images, width, direction = options.ranking
        print(json.dumps(ranking(int(images), int(width), direction)))
        return
    if options.tiny:
        options.images, options.k, options.part = 24, 4, 4
    print(
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"
    )
    images, width = (100, 32) if options.tiny else (5000, 512)
    for direction in ("image_to_text", "text_to_image"):
        cost = alone("--ranking", str(images), str(width), direction)
        title = f"{images:,} x {CAPTIONS * images:,} x {width}, {direction}"
        print(f"{title:>40}: {cost['seconds']:10.1f} s   {cost['memory']:6.0f} MB", flush=True)
    with tempfile.TemporaryDirectory() as name:
        model, data = prepare(Path(name), options.images, options.base)
        against_all_pairs(model, data, options)
        covered(model, data, min(40, options.images))


if __name__ == "__main__":
    main()
