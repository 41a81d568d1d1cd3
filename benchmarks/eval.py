"""What retrieval costs: exact ranking, and re-ranking compared with scoring every pair.

    python -m benchmarks.eval [--images 500] [--k 32] [--part 10] [--precision fp32|bf16] [--base]
    [--tiny]

First, 5,000 x 25,000 features of width 512 are ranked in both directions, each in a separate
process: seconds, and memory above that of the interpreter, features included.

Then a random model retrieves generated images with five captions each, in three ways: the stage
with re-ranking of k candidates in both directions; every pair on cached towers; and every pair with
both towers run again, as the authors evaluate. The last two are extrapolated from every PARTth
image with all captions, and from a few of those pairs: the work of a pair does not depend on other
pairs. Towers are small, so that a CPU computes them quickly; `--base` takes the published sizes.

Last, on a gallery of at most k candidates, the recalls of the stage are printed beside those of all
pairs scored by the plain model: they must be equal.
"""

import argparse
import json
import tempfile
import time
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from benchmarks.measurement import process_memory, run_alone, software
from benchmarks.step import model_config
from pretrain.ranking import ranks, ranks_of_features

# The other packages are imported where they are used, because the processes that only rank, and
# whose memory is measured, do not need them.

CAPTIONS = 5  # per image
DIRECTIONS = ("image_to_text", "text_to_image")
PAIRS_AT_ONCE = 32  # where both towers run again
COVERED_IMAGES = 40


def rank_features(images: int, width: int, direction: str) -> dict[str, float]:
    """Rank random features in one direction; return seconds and megabytes."""
    rng = np.random.default_rng(0)
    image_features = rng.standard_normal((images, width), dtype=np.float32)
    text_features = rng.standard_normal((CAPTIONS * images, width), dtype=np.float32)
    sides: Any
    if direction == "image_to_text":
        captions = [range(CAPTIONS * i, CAPTIONS * (i + 1)) for i in range(images)]
        sides = (image_features, text_features, captions)
    else:
        sides = (text_features, image_features, np.arange(len(text_features)) // CAPTIONS)
    # Features count as well: without them, this is what the interpreter holds.
    before = process_memory("VmRSS") - (image_features.nbytes + text_features.nbytes) / 1e6
    started = time.perf_counter()
    ranks_of_features(*sides)
    elapsed = time.perf_counter() - started
    return {"seconds": elapsed, "memory": process_memory("VmHWM") - before}


def print_ranking(images: int, width: int) -> None:
    """Print time and memory of exact ranking in both directions."""
    for direction in DIRECTIONS:
        words = ("--ranking", str(images), str(width), direction)
        measured = run_alone("benchmarks.eval", *words)
        title = f"{images:,} x {CAPTIONS * images:,} x {width}, {direction}"
        print(
            f"{title:>40}: {measured['seconds']:10.1f} s   {measured['memory']:6.0f} MB", flush=True
        )


def prepare(folder: Path, images: int, base: bool) -> tuple[Path, Path]:
    """Write a random model with its tokenizer, and a gallery; return both folders."""
    from data_pipeline.scenes.generate import generate
    from data_pipeline.text import train_tokenizer
    from pretrain.model import GLSCLModel, GLSCLProcessor

    generate(folder / "scenes", train=0, val=0, test=images, novel=0, size=96, seed=0, workers=2)
    train_tokenizer([folder / "scenes" / "test"], folder / "tokenizer", 600)
    torch.manual_seed(0)
    model = GLSCLModel(model_config(small=not base))
    # A fresh matching head gives nearly the same score to every pair.
    with torch.no_grad():
        model.matching_head.weight.normal_()
    model.save_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    GLSCLProcessor.build(model.config, tokenizer).save_pretrained(folder / "model")
    return folder / "model", folder / "scenes" / "test"


@torch.inference_mode()
def run_towers_again(
    loaded: Any, pixels: torch.Tensor, texts: list[str], pairs: list[tuple[int, int]]
) -> None:
    """Score pairs (image, text), each from its pixels and words."""
    model, tokenizer, device = loaded.model, loaded.tokenizer, loaded.device
    ids = []
    for encoding in tokenizer.encode(texts, model.config.max_text_length):
        ids.append(torch.tensor(encoding.ids))
    for start in range(0, len(pairs), PAIRS_AT_ONCE):
        image_rows, text_rows = zip(*pairs[start : start + PAIRS_AT_ONCE], strict=True)
        words = [ids[row] for row in text_rows]
        padded = torch.nn.utils.rnn.pad_sequence(words, True, tokenizer.pad_id)
        lengths = torch.tensor([len(row) for row in words])
        mask = (torch.arange(padded.shape[1]) < lengths[:, None]).long().to(device)
        with loaded.autocast():
            images = model.normalize(pixels[list(image_rows)].to(device))
            image_tokens = model.encode_image(images)
            text_tokens = model.encode_text(padded.to(device), mask)
            pooled = model.fuse(text_tokens, mask, image_tokens).pooled
        # Copied to the CPU, so that a GPU has finished when the time is taken.
        model.match(pooled.float()).cpu()


def compare_with_all_pairs(model: Path, data: Path, options: argparse.Namespace) -> None:
    """Print the seconds of the three ways and their ratios."""
    from data_pipeline.loader import evaluation_batches
    from data_pipeline.shards.manifest import Manifest
    from eval.encoding.features import encode_images, encode_texts, load
    from eval.encoding.matching_scores import match_margins
    from eval.stages import retrieval

    loaded, manifest = load(model, options.precision), Manifest.load(data)
    started = time.perf_counter()
    images = encode_images(loaded, manifest)
    captions = list(chain.from_iterable(images.captions))
    texts = encode_texts(loaded, captions)
    encoding = time.perf_counter() - started

    total = options.images * len(captions)
    part = max(1, min(options.part, options.images))
    sampled = []
    for text in range(len(captions)):
        for image in range(0, options.images, part):
            sampled.append((image, text))
    image_rows, text_rows = np.array(sampled).T
    started = time.perf_counter()
    match_margins(loaded, images, texts, image_rows, text_rows)
    # Towers run once for all pairs, fusion runs for each.
    cached = encoding + (time.perf_counter() - started) * total / len(sampled)

    size = loaded.model.config.image_size
    [batch] = evaluation_batches(manifest, size=size, batch_size=manifest.samples)
    few = sampled[:: part * 5]
    run_towers_again(loaded, batch.pixels, captions, few[:PAIRS_AT_ONCE])  # warms up
    started = time.perf_counter()
    run_towers_again(loaded, batch.pixels, captions, few)
    again = (time.perf_counter() - started) * total / len(few)

    with tempfile.TemporaryDirectory() as out:
        result = retrieval.evaluate(
            model, data, out, rerank_k=options.k, precision=options.precision
        )
    two_stages = result.timing["encode_s"] + result.timing["rank_s"]
    print(f"\n{options.images:,} x {len(captions):,}: {total:,} pairs ", end="")
    print(f"on {loaded.device}, {options.precision}")
    print(f"{f'two stages, k={options.k}':>40}: {two_stages:10.1f} s")
    for title, seconds in (
        (f"all pairs, cached towers (of {len(sampled):,})", cached),
        (f"all pairs, towers again (of {len(few):,})", again),
    ):
        print(f"{title:>40}: {seconds:10.1f} s   {seconds / two_stages:6.1f} x", flush=True)


@torch.inference_mode()
def compare_recalls(model: Path, data: Path, images_limit: int) -> None:
    """Print the recalls of two stages whose k covers everything, and of all pairs.

    All pairs are scored by the plain model, without the shortcuts of the stage.
    """
    from data_pipeline.shards.manifest import Manifest
    from eval.encoding.features import encode_images, encode_texts, load
    from eval.stages import retrieval

    loaded = load(model)
    images = encode_images(loaded, Manifest.load(data), limit=images_limit)
    captions = list(chain.from_iterable(images.captions))
    texts = encode_texts(loaded, captions)
    image_of_caption = np.repeat(np.arange(images_limit), CAPTIONS)
    image_tokens = images.tokens[images.row].to(loaded.device)
    scores = np.empty((len(captions), images_limit), dtype=np.float32)
    for number, row in enumerate(texts.row):
        tokens = texts.tokens[[row]].to(loaded.device).expand(images_limit, -1, -1)
        mask = texts.mask[[row]].to(loaded.device).expand(images_limit, -1)
        logits = loaded.model.match(loaded.model.fuse(tokens, mask, image_tokens).pooled).cpu()
        scores[number] = (logits[:, 1] - logits[:, 0]).numpy()
    captions_of_image = [np.flatnonzero(image_of_caption == i) for i in range(images_limit)]
    all_pairs = {
        "text_to_image": ranks(scores, image_of_caption),
        "image_to_text": ranks(scores.T, captions_of_image),
    }
    with tempfile.TemporaryDirectory() as out:
        result = retrieval.evaluate(
            model, data, out, rerank_k=len(captions), score="itm", limit=images_limit
        )
    print(f"\n{images_limit} x {len(captions)}, k covers all: two stages, all pairs")
    for direction, ranked in all_pairs.items():
        for k in (1, 5, 10):
            two_stages = result.metric(f"{direction}/reranked/R@{k}").value
            name = f"{direction}/R@{k}"
            print(f"{name:>22}: {two_stages:8.3f} {100 * ranked.recall(k):8.3f}")


def main() -> None:
    """Print all comparisons, or rank as the separate process."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.eval", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--images", type=int, default=500, help="gallery size (default: 500)")
    parser.add_argument("--k", type=int, default=32, help="candidates re-ranked (default: 32)")
    parser.add_argument(
        "--part", type=int, default=10, help="score every PARTth image with all captions"
    )
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--base", action="store_true", help="the published sizes, for a GPU")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to try this script")
    parser.add_argument(
        "--ranking", nargs=3, metavar=("IMAGES", "WIDTH", "DIRECTION"), help=argparse.SUPPRESS
    )
    options = parser.parse_args()
    if options.ranking:
        images, width, direction = options.ranking
        print(json.dumps(rank_features(int(images), int(width), direction)))
        return
    print(software())
    if options.tiny:
        options.images, options.k, options.part = 24, 4, 4
        print_ranking(100, 32)
    else:
        print_ranking(5000, 512)
    with tempfile.TemporaryDirectory() as name:
        model, data = prepare(Path(name), options.images, options.base)
        compare_with_all_pairs(model, data, options)
        compare_recalls(model, data, min(COVERED_IMAGES, options.images))


if __name__ == "__main__":
    main()
