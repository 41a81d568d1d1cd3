"""What GLIML costs, compared with CPEA and ProtoNet: episodes per second, parameters, operations.

All methods classify the same 5-way episodes with 15 queries per class, on tokens of images; the
encoder is not part of the measurement. Times alternate in one process, and the shortest of each
method counts. FLOPs are per query, of matrix products and of distances, with the share of the
support images; torch counts no other operations.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measurement import device_name, seconds
from eval.stages.few_shot.baselines import Method, Proto
from eval.stages.few_shot.cpea import CPEAHead
from eval.stages.few_shot.episode_tokens import EpisodeTokens
from eval.stages.few_shot.gliml import GLIMLHead
from eval.stages.few_shot.inference import DISTANCES

WIDTH, PATCHES, WAY, QUERIES = 768, 49, 5, 75
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
AT_ONCE, ROUNDS = (2, 6) if DEVICE == "cpu" else (32, 30)
REFERENCE = "CPEA"


class Cost(NamedTuple):
    """What one method costs."""

    episodes_per_second: float
    parameters: int
    flops_per_query: float


def build_methods() -> dict[str, Method]:
    """Build all methods untrained: the cost of a head does not depend on what it learned."""
    heads = {
        "GLIML gated_sum": GLIMLHead(WIDTH, PATCHES),
        "GLIML gated_sum, local block": GLIMLHead(WIDTH, PATCHES, include_global=False),
        "GLIML mlp": GLIMLHead(WIDTH, PATCHES, interplay="additive", head="mlp"),
        "GLIML mlp, local block": GLIMLHead(
            WIDTH, PATCHES, interplay="additive", head="mlp", include_global=False
        ),
        REFERENCE: CPEAHead(WIDTH, PATCHES),
    }
    methods: dict[str, Method] = {name: head.to(DEVICE) for name, head in heads.items()}
    methods["ProtoNet"] = Proto()
    return methods


def random_tokens(episodes: int, images: int) -> EpisodeTokens:
    """Tokens of random images, (episodes, images, ...)."""
    cls = torch.randn(episodes, images, WIDTH)
    patch = torch.randn(episodes, images, PATCHES, WIDTH)
    return EpisodeTokens(cls.to(DEVICE), patch.to(DEVICE))


def classify(method: Method, support: EpisodeTokens, query: EpisodeTokens, shot: int) -> None:
    """Score the queries of all episodes; support images are in the order of their classes."""
    support_y = torch.arange(WAY, device=DEVICE).repeat_interleave(shot)
    method.logits(support, support_y, query, WAY)


@torch.inference_mode()
def measure(shot: int) -> dict[str, Cost]:
    """Measure the cost of every method on episodes with `shot` support images per class."""
    torch.manual_seed(0)
    support = random_tokens(AT_ONCE, WAY * shot)
    query = random_tokens(AT_ONCE, QUERIES)
    methods = build_methods()
    times: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(ROUNDS):
        for name, method in methods.items():
            work = partial(classify, method, support, query, shot)
            times[name].append(seconds(work))
    costs = {}
    for name, method in methods.items():
        # Without the custom mapping, distances would count as free.
        with FlopCounterMode(display=False, custom_mapping=DISTANCES) as counter:
            classify(method, support[:1], query[:1], shot)
        parameters = 0
        if isinstance(method, nn.Module):
            parameters = sum(weight.numel() for weight in method.parameters())
        flops = counter.get_total_flops() / QUERIES
        costs[name] = Cost(AT_ONCE / min(times[name]), parameters, flops)
    return costs


def print_costs(shot: int) -> None:
    """Print one table; ratios are to the reference."""
    costs = measure(shot)
    reference = costs[REFERENCE]
    print(f"\n{WAY}-way {shot}-shot")
    print(f"{'':<30}{'episodes/s':>11}{'':>9}{'parameters':>12}{'':>7}{'MFLOPs/query':>14}")
    for name, cost in costs.items():
        speed = cost.episodes_per_second / reference.episodes_per_second
        parameters = cost.parameters / reference.parameters
        flops = cost.flops_per_query / reference.flops_per_query
        print(
            f"{name:<30}{cost.episodes_per_second:>11.1f}{speed:>8.2f}x"
            f"{cost.parameters:>12,}{parameters:>6.2f}x"
            f"{cost.flops_per_query / 1e6:>14.3f}{flops:>8.4f}x"
        )


if __name__ == "__main__":
    print(f"{device_name()}, float32, width {WIDTH}, {PATCHES} patches, ", end="")
    print(f"{AT_ONCE} episodes at once, ratios to {REFERENCE}")
    for shot in (1, 5):
        print_costs(shot)
