"""Attention of videos: time and memory of two calls on shared projections, and of one masked call.

    python -m benchmarks.video [--batch 2] [--rounds 5]

CLIP ViT-B/16 (11 blocks), 4 frames of 224 pixels, forward and backward in fp32. Each form
runs in a separate process, so that peak memory can be compared.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch
from transformers import CLIPVisionConfig

from pretrain.model import GLSCLConfig, GLSCLModel
from pretrain.model.vision import Patches
from pretrain.planning.plan import flop_counter

FRAMES, SIDE = 4, 224


def masked_form(model: GLSCLModel, patches: Patches) -> torch.Tensor:
    """Encode with one attention call per block and a mask of (frames x tokens) squared."""
    tower, count = model.vision, patches.values.shape[2]
    tokens = patches.values + patches.positions[1:] + model.temporal_embedding[:FRAMES, None]
    first = (
        tower.embeddings.class_embedding + patches.positions[0] + model.temporal_embedding[:FRAMES]
    )
    hidden = torch.cat([first[:, None].expand(len(tokens), -1, 1, -1), tokens], dim=2).flatten(1, 2)
    frame = torch.arange(FRAMES).repeat_interleave(1 + count)
    allowed = (frame[:, None] == frame) | (torch.arange(len(frame)) % (1 + count) == 0)[:, None]
    hidden = tower.pre_layrnorm(hidden)
    for layer in tower.encoder.layers:
        hidden = layer(hidden, allowed[None, None])
    return model.image_projection(tower.post_layernorm(hidden))


def side(structured: bool, batch: int, rounds: int) -> dict[str, float]:
    """Measure median seconds of forward and backward, and the growth of peak memory in MB."""
    torch.manual_seed(0)
    tower = CLIPVisionConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=11,
        num_attention_heads=12,
        patch_size=16,
        image_size=SIDE,
    )
    model = GLSCLModel(GLSCLConfig(vision_config=tower, max_frames=FRAMES))
    pixels = torch.randn(batch, FRAMES, 3, SIDE, SIDE)

    def work() -> None:
        model.zero_grad()
        patches = model.embed_patches(pixels)
        states = model.encode_patches(patches) if structured else masked_form(model, patches)
        states.square().mean().backward()

    with torch.no_grad():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with flop_counter() as counter:
        work()
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "seconds": statistics.median(times),
        "megabytes": (peak - before) / 1024,
        "gflop": counter.get_total_flops() / batch / 1e9,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", choices=("structured", "masked"))
    options = parser.parse_args()
    if options.side:
        print(json.dumps(side(options.side == "structured", options.batch, options.rounds)))
        sys.exit()
    costs = {}
    for name in ("structured", "masked"):
        command = [sys.executable, "-m", "benchmarks.video", "--side", name]
        command += ["--batch", str(options.batch), "--rounds", str(options.rounds)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        costs[name] = json.loads(done.stdout)
    print(f"{FRAMES} frames of {SIDE} px, batch {options.batch}, fp32, ", end="")
    print(f"{torch.get_num_threads()} threads")
    for name, values in costs.items():
        print(f"{name:11} {values['seconds']:8.2f} s {values['megabytes']:8.0f} MB ", end="")
        print(f"{values['gflop']:8.1f} GFLOP/video")
    masked, structured = costs["masked"], costs["structured"]
    print(
        f"masked / structured: time {masked['seconds'] / structured['seconds']:.2f}, "
        f"memory {masked['megabytes'] / structured['megabytes']:.2f}"
    )
