"""What retrieval costs: exact ranking, and two stages beside scoring every pair.

    python -m benchmarks.eval [--pictures 500] [--k 32] [--part 10] [--precision fp32|bf16] [--base]
    [--tiny]

First 5,000 x 25,000 features of 512 are ranked in both directions, each in a process of its own:
seconds, and memory over what the interpreter holds. Then generated pictures with five captions each
and a random model (small towers, so that a CPU can do it; --base: the published sizes): the whole
stage with re-ranking of k, in both directions; every pair on cached towers; every pair with both
towers run again for it, as the authors evaluate. The last two are measured on every PARTth picture
with all captions, and on few of those pairs, and multiplied: the work of a pair does not depend on
the others. Last, on a smaller gallery that k covers, the metrics of two stages beside all pairs by
the plain model.
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

from benchmarks.nce import status
from benchmarks.step import sizes
from pretrain.ranking import ranks, ranks_of_features

CAPTIONS = 5


def ranking(images: int, width: int, direction: str) -> dict[str, float]:
    """Seconds and megabytes of one direction over random features."""
    rng = np.random.default_rng(0)
    pictures, texts = (
        rng.standard_normal((n, width), dtype=np.float32) for n in (images, CAPTIONS * images)
    )
    own = [range(CAPTIONS * i, CAPTIONS * (i + 1)) for i in range(images)]
    sides: Any = (
        (pictures, texts, own)
        if direction == "image_to_text"
        else (texts, pictures, np.arange(len(texts)) // 5)
    )
    before = status("VmRSS") - (pictures.nbytes + texts.nbytes) / 1e6
    started = time.perf_counter()
    ranks_of_features(*sides)
    return {"seconds": time.perf_counter() - started, "memory": status("VmHWM") - before}


def alone(*words: str) -> dict[str, float]:
    """Measure in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.eval", *words]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(found.stdout.splitlines()[-1])


def prepare(folder: Path, pictures: int, base: bool) -> tuple[Path, Path]:
    """Write a gallery and a random model with its tokenizer."""
    from data_pipeline.scenes.generate import generate
    from data_pipeline.text import train_tokenizer
    from pretrain.model import GLSCLModel, GLSCLProcessor

    generate(folder / "scenes", train=0, val=0, test=pictures, novel=0, size=96, seed=0, workers=2)
    train_tokenizer([folder / "scenes" / "test"], folder / "tokenizer", 600)
    torch.manual_seed(0)
    model = GLSCLModel(sizes(tiny=not base))
    with torch.no_grad():  # a fresh head gives nearly the same score to every pair
        model.matching_head.weight.normal_()
    model.save_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    GLSCLProcessor.build(model.config, tokenizer).save_pretrained(folder / "model")
    return folder / "model", folder / "scenes" / "test"


@torch.inference_mode()
def towers_again(
    loaded: Any, pixels: torch.Tensor, texts: list[str], rows: list[tuple[int, int]], at_once: int
) -> None:
    """Score pairs (picture, text), each from its pixels and words."""
    ids = [
        torch.tensor(e.ids)
        for e in loaded.tokenizer.encode(texts, loaded.model.config.max_text_length)
    ]
    for start in range(0, len(rows), at_once):
        image, text = zip(*rows[start : start + at_once], strict=True)
        words = torch.nn.utils.rnn.pad_sequence(
            [ids[i] for i in text], True, loaded.tokenizer.pad_id
        )
        lengths = torch.tensor([len(ids[i]) for i in text])
        mask = (torch.arange(words.shape[1]) < lengths[:, None]).long().to(loaded.device)
        with loaded.autocast():
            shown = loaded.model.encode_image(
                loaded.model.normalize(pixels[list(image)].to(loaded.device))
            )
            said = loaded.model.encode_text(words.to(loaded.device), mask)
            pooled = loaded.model.fuse(said, mask, shown).pooled
        loaded.model.match(pooled.float()).cpu()


def against_all_pairs(model: Path, data: Path, options: argparse.Namespace) -> None:
    """Print the seconds of the three ways and their ratios."""
    from data_pipeline.loader import evaluation_batches
    from data_pipeline.shards.manifest import Manifest
    from eval.encoding.features import encode_images, encode_texts, load
    from eval.encoding.matching_scores import match_margins
    from eval.stages import retrieval

    loaded, manifest = load(model, options.precision), Manifest.load(data)
    started = time.perf_counter()
    images = encode_images(loaded, manifest)
    captions = [caption for several in images.captions for caption in several]
    texts = encode_texts(loaded, captions)
    towers = time.perf_counter() - started
    part = max(1, min(options.part, options.pictures))
    every = np.stack(
        np.meshgrid(np.arange(0, options.pictures, part), np.arange(len(captions))), axis=-1
    ).reshape(-1, 2)
    started = time.perf_counter()
    match_margins(loaded, images, texts, every[:, 0], every[:, 1])
    total = options.pictures * len(captions)
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
    print(
        f"\n{options.pictures:,} x {len(captions):,}: {total:,} pairs on {loaded.device}, {options.precision}"
    )
    print(f"{'two stages, k=' + str(options.k):>40}: {two:10.1f} s")
    print(
        f"{f'all pairs, cached towers (of {len(every):,})':>40}: {cached:10.1f} s   {cached / two:6.1f} x"
    )
    print(
        f"{f'all pairs, towers again (of {len(few):,})':>40}: {again:10.1f} s   {again / two:6.1f} x",
        flush=True,
    )


@torch.inference_mode()
def covered(model: Path, data: Path, pictures: int) -> None:
    """Print the metrics of two stages whose k covers everything, beside those of all pairs by the plain model."""
    from data_pipeline.shards.manifest import Manifest
    from eval.encoding.features import encode_images, encode_texts, load
    from eval.stages import retrieval

    loaded = load(model)
    images = encode_images(loaded, Manifest.load(data), limit=pictures)
    captions = [caption for several in images.captions for caption in several]
    texts = encode_texts(loaded, captions)
    owner = np.repeat(np.arange(pictures), CAPTIONS)
    scores = np.empty((len(captions), pictures), dtype=np.float32)
    for number, row in enumerate(texts.row):
        tokens, mask = texts.tokens[[row]].to(loaded.device), texts.mask[[row]].to(loaded.device)
        shown = images.tokens[images.row].to(loaded.device)
        fused = loaded.model.fuse(tokens.expand(pictures, -1, -1), mask.expand(pictures, -1), shown)
        logits = loaded.model.match(fused.pooled).cpu()
        scores[number] = (logits[:, 1] - logits[:, 0]).numpy()
    plain = {
        "text_to_image": ranks(scores, owner),
        "image_to_text": ranks(scores.T, [np.flatnonzero(owner == i) for i in range(pictures)]),
    }
    with tempfile.TemporaryDirectory() as out:
        found = retrieval.evaluate(
            model, data, out, rerank_k=len(captions), score="itm", limit=pictures
        )
    print(f"\n{pictures} x {len(captions)}, k covers all: two stages, all pairs")
    for name, ranked in plain.items():
        for k in (1, 5, 10):
            both = found.metric(f"{name}/reranked/R@{k}").value
            print(f"{name + f'/R@{k}':>22}: {both:8.3f} {100 * ranked.recall(k):8.3f}")


def main() -> None:
    """Print everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--part", type=int, default=10)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--base", action="store_true", help="the published sizes, for a GPU")
    parser.add_argument("--tiny", action="store_true", help="try the script")
    parser.add_argument(
        "--ranking", nargs=3, metavar=("IMAGES", "WIDTH", "DIRECTION"), help=argparse.SUPPRESS
    )
    options = parser.parse_args()
    if options.ranking:
        images, width, direction = options.ranking
        print(json.dumps(ranking(int(images), int(width), direction)))
        return
    if options.tiny:
        options.pictures, options.k, options.part = 24, 4, 4
    print(
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"
    )
    images, width = (100, 32) if options.tiny else (5000, 512)
    for direction in ("image_to_text", "text_to_image"):
        found = alone("--ranking", str(images), str(width), direction)
        said = f"{images:,} x {CAPTIONS * images:,} x {width}, {direction}"
        print(f"{said:>40}: {found['seconds']:10.1f} s   {found['memory']:6.0f} MB", flush=True)
    with tempfile.TemporaryDirectory() as name:
        model, data = prepare(Path(name), options.pictures, options.base)
        against_all_pairs(model, data, options)
        covered(model, data, min(40, options.pictures))


if __name__ == "__main__":
    main()
