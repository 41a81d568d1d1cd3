"""Attention over video: two calls on shared projections, compared with one masked call.

    python -m benchmarks.video [--batch 2] [--rounds 5]

Prints time, peak memory and operations of the image tower, CLIP ViT-B/16 (11 blocks), forward and
backward in fp32 on 4 frames of 224 pixels. Each side runs in a separate process, because the peak
of a process includes everything that ran in it before.
"""

import argparse
import json
import resource
import statistics

import torch
from torch import Tensor
from transformers import CLIPVisionConfig

from benchmarks.measurement import run_alone, seconds
from pretrain.model import GLSCLConfig, GLSCLModel
from pretrain.model.vision import Patches
from pretrain.planning.plan import flop_counter

FRAMES, SIZE = 4, 224
SIDES = ("structured", "masked")


def encode_masked(model: GLSCLModel, patches: Patches) -> Tensor:
    """Encode a video with one attention call per block, over all tokens under a mask.

    The mask has the size (frames x tokens) squared. A token sees its own frame and the class tokens
    of all frames, as in the structured form.
    """
    tower, count = model.vision, patches.values.shape[2]
    assert model.temporal_embedding is not None
    time_embedding = model.temporal_embedding[:FRAMES]
    tokens = patches.values + patches.positions[1:] + time_embedding[:, None]
    class_tokens = tower.embeddings.class_embedding + patches.positions[0] + time_embedding
    class_tokens = class_tokens[:, None].expand(len(tokens), -1, 1, -1)
    hidden = torch.cat([class_tokens, tokens], dim=2).flatten(1, 2)
    frame = torch.arange(FRAMES).repeat_interleave(1 + count)
    is_class_token = torch.arange(len(frame)) % (1 + count) == 0
    allowed = (frame[:, None] == frame) | is_class_token[:, None]
    hidden = tower.pre_layrnorm(hidden)
    for layer in tower.encoder.layers:
        hidden = layer(hidden, allowed[None, None])
    return model.image_projection(tower.post_layernorm(hidden))


def measure(side: str, batch: int, rounds: int) -> dict[str, float]:
    """Median seconds of forward and backward, peak memory above the model, and operations."""
    torch.manual_seed(0)
    tower = CLIPVisionConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=11,
        num_attention_heads=12,
        patch_size=16,
        image_size=SIZE,
    )
    model = GLSCLModel(GLSCLConfig(vision_config=tower, max_frames=FRAMES))
    pixels = torch.randn(batch, FRAMES, 3, SIZE, SIZE)

    def work() -> None:
        model.zero_grad()
        patches = model.embed_patches(pixels)
        if side == "structured":
            states = model.encode_patches(patches)
        else:
            states = encode_masked(model, patches)
        states.square().mean().backward()

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # The counted call also warms up.
    with flop_counter() as counter:
        work()
    times = [seconds(work) for _ in range(rounds)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "seconds": statistics.median(times),
        "megabytes": (peak - before) / 1024,
        "gflop": counter.get_total_flops() / batch / 1e9,
    }


def main() -> None:
    """Print both sides and their ratios, or measure one side as the separate process."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.video", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--batch", type=int, default=2, help="videos per step (default: 2)")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps per side (default: 5)")
    parser.add_argument("--side", choices=SIDES, help="measure one side and print it as JSON")
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options.side, options.batch, options.rounds)))
        return
    sizes = ("--batch", str(options.batch), "--rounds", str(options.rounds))
    threads = torch.get_num_threads()
    print(f"{FRAMES} frames of {SIZE} px, batch {options.batch}, fp32, {threads} threads")
    results = {}
    for side in SIDES:
        result = run_alone("benchmarks.video", "--side", side, *sizes)
        print(
            f"{side:11} {result['seconds']:8.2f} s {result['megabytes']:8.0f} MB "
            f"{result['gflop']:8.1f} GFLOP/video",
            flush=True,
        )
        results[side] = result
    masked, structured = results["masked"], results["structured"]
    print(
        f"masked / structured: time {masked['seconds'] / structured['seconds']:.2f}, "
        f"memory {masked['megabytes'] / structured['megabytes']:.2f}"
    )


if __name__ == "__main__":
    main()
