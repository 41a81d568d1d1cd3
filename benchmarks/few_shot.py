"""Cost of GLIML, CPEA and ProtoNet: episodes per second, parameters, and operations per query.

All methods get the same tokens of 5-way episodes with 15 queries per class; encoding the images is
not included. Times alternate in one process, and the shortest of each counts. FLOPs include matrix
products and distances, also of the support images; torch counts no other operations.
"""

import time

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from eval.stages.few_shot.baselines import Method, Proto
from eval.stages.few_shot.cpea import CPEAHead
from eval.stages.few_shot.episode_tokens import EpisodeTokens
from eval.stages.few_shot.gliml import GLIMLHead
from eval.stages.few_shot.inference import DISTANCES

WIDTH, PATCHES, WAY, QUERIES = 768, 49, 5, 75
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
AT_ONCE, ROUNDS = (2, 6) if DEVICE == "cpu" else (32, 30)
REFERENCE = "CPEA"


def methods() -> dict[str, Method]:
    """Make untrained heads, because the cost of a head does not depend on its weights."""
    heads: dict[str, nn.Module] = {
        "GLIML gated_sum": GLIMLHead(WIDTH, PATCHES),
        "GLIML gated_sum, local block": GLIMLHead(WIDTH, PATCHES, include_global=False),
        "GLIML mlp": GLIMLHead(WIDTH, PATCHES, interplay="additive", head="mlp"),
        "GLIML mlp, local block": GLIMLHead(
            WIDTH, PATCHES, interplay="additive", head="mlp", include_global=False
        ),
        REFERENCE: CPEAHead(WIDTH, PATCHES),
    }
    return {name: head.to(DEVICE) for name, head in heads.items()} | {"ProtoNet": Proto()}


def images(episodes: int, count: int) -> EpisodeTokens:
    """Make random tokens (episodes, count)."""
    cls, patch = torch.randn(episodes, count, WIDTH), torch.randn(episodes, count, PATCHES, WIDTH)
    return EpisodeTokens(cls.to(DEVICE), patch.to(DEVICE))


def recognise(method: Method, support: EpisodeTokens, query: EpisodeTokens, shot: int) -> None:
    """Score the queries of all episodes."""
    method.logits(support, torch.arange(WAY, device=DEVICE).repeat_interleave(shot), query, WAY)
    if DEVICE == "cuda":
        torch.cuda.synchronize()


@torch.inference_mode()
def measure(shot: int) -> dict[str, tuple[float, int, float]]:
    """Measure episodes per second, parameters and FLOPs per query."""
    torch.manual_seed(0)
    support, query = images(AT_ONCE, WAY * shot), images(AT_ONCE, QUERIES)
    compared = methods()
    times: dict[str, list[float]] = {name: [] for name in compared}
    for _ in range(ROUNDS):
        for name, method in compared.items():
            started = time.perf_counter()
            recognise(method, support, query, shot)
            times[name].append(time.perf_counter() - started)
    costs = {}
    for name, method in compared.items():
        with FlopCounterMode(display=False, custom_mapping=DISTANCES) as counter:
            recognise(method, support[:1], query[:1], shot)
        weights = 0
        if isinstance(method, nn.Module):
            weights = sum(parameter.numel() for parameter in method.parameters())
        costs[name] = (AT_ONCE / min(times[name]), weights, counter.get_total_flops() / QUERIES)
    return costs


if __name__ == "__main__":
    device = f"{torch.get_num_threads()} CPU threads"
    if DEVICE == "cuda":
        device = torch.cuda.get_device_name()
    print(f"{device}, float32, width {WIDTH}, {PATCHES} patches, ", end="")
    print(f"{AT_ONCE} episodes at once, ratios to {REFERENCE}")
    for shot in (1, 5):
        costs = measure(shot)
        print(f"\n{WAY}-way {shot}-shot\n{'':<30}{'episodes/s':>11}", end="")
        print(f"{'':>9}{'parameters':>12}{'':>7}{'MFLOPs/query':>14}")
        for name, values in costs.items():
            ratios = [value / other for value, other in zip(values, costs[REFERENCE], strict=True)]
            speed, weights, flops = values
            print(
                f"{name:<30}{speed:>11.1f}{ratios[0]:>8.2f}x{weights:>12,}{ratios[1]:>6.2f}x"
                f"{flops / 1e6:>14.3f}{ratios[2]:>8.4f}x"
            )
