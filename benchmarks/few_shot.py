"""What GLIML costs beside CPEA and ProtoNet: episodes a second, parameters, and operations of a query.

All methods see the same tokens of 5-way episodes with 15 queries a class; encoding the pictures is
not counted. Times alternate in one process, and the least of each counts. FLOPs are those of
products of matrices and of distances, supports included; torch counts no others.
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
    """Untrained: the cost of a head does not depend on what it learned."""
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


def pictures(episodes: int, count: int) -> EpisodeTokens:
    """Random tokens (episodes, count)."""
    cls, patch = torch.randn(episodes, count, WIDTH), torch.randn(episodes, count, PATCHES, WIDTH)
    return EpisodeTokens(cls.to(DEVICE), patch.to(DEVICE))


def recognise(method: Method, support: EpisodeTokens, query: EpisodeTokens, shot: int) -> None:
    """Score the queries of all episodes."""
    method.logits(support, torch.arange(WAY, device=DEVICE).repeat_interleave(shot), query, WAY)
    if DEVICE == "cuda":
        torch.cuda.synchronize()


@torch.inference_mode()
def measure(shot: int) -> dict[str, tuple[float, int, float]]:
    """Episodes a second, parameters, FLOPs of a query."""
    torch.manual_seed(0)
    support, query = pictures(AT_ONCE, WAY * shot), pictures(AT_ONCE, QUERIES)
    compared = methods()
    times: dict[str, list[float]] = {name: [] for name in compared}
    for _ in range(ROUNDS):
        for name, method in compared.items():
            started = time.perf_counter()
            recognise(method, support, query, shot)
            times[name].append(time.perf_counter() - started)
    found = {}
    for name, method in compared.items():
        with FlopCounterMode(display=False, custom_mapping=DISTANCES) as counter:
            recognise(method, support[:1], query[:1], shot)
        weights = (
            sum(each.numel() for each in method.parameters())
            if isinstance(method, nn.Module)
            else 0
        )
        found[name] = (AT_ONCE / min(times[name]), weights, counter.get_total_flops() / QUERIES)
    return found


if __name__ == "__main__":
    device = (
        torch.cuda.get_device_name()
        if DEVICE == "cuda"
        else f"{torch.get_num_threads()} CPU threads"
    )
    print(
        f"{device}, float32, width {WIDTH}, {PATCHES} patches, {AT_ONCE} episodes at once, ratios to {REFERENCE}"
    )
    for shot in (1, 5):
        found = measure(shot)
        print(
            f"\n{WAY}-way {shot}-shot\n{'':<30}{'episodes/s':>11}{'':>9}{'parameters':>12}{'':>7}{'MFLOPs/query':>14}"
        )
        for name, values in found.items():
            ratios = [value / other for value, other in zip(values, found[REFERENCE], strict=True)]
            speed, weights, flops = values
            print(
                f"{name:<30}{speed:>11.1f}{ratios[0]:>8.2f}x{weights:>12,}{ratios[1]:>6.2f}x"
                f"{flops / 1e6:>14.3f}{ratios[2]:>8.4f}x"
            )
