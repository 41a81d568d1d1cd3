"""Options that cannot work are refused before a model or a data set is opened, from the command and from YAML alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipeline.errors import UsageError

from .heads.adversary import KINDS
from .losses import LOSSES
from .methods import HEADS
from .protocols.records import PROTOCOLS

LEAST = {
    "folds": 2,
    "steps": 1,
    "embed_dim": 1,
    "per_layer_dim": 1,
    "pool_grid": 1,
    "batch_size": 1,
    "limit": 1,
    "parts": 0,
    "rerank_k": 0,
    "clusterings": 0,
}
SEEDS = 2**32
"""Scikit-learn takes no larger seed."""


def check_options(options: Mapping[str, Any]) -> None:
    """Raise UsageError for the first of the stage's ``options``, by their names, that cannot work."""
    for name, allowed in (
        ("protocol", PROTOCOLS),
        ("head", HEADS),
        ("loss", LOSSES),
        ("adversary", KINDS),
    ):
        if options[name] not in allowed:
            raise UsageError(f"{name} is {options[name]!r}, must be one of {', '.join(allowed)}")
    for name, least in LEAST.items():
        if options[name] is not None and options[name] < least:
            raise UsageError(f"{name} is {options[name]}, must be {least} or more")
    seeds, layers, lam, ks = (options[name] for name in ("seeds", "layers", "lam", "ks"))
    if not seeds or _repeats(seeds) or not all(0 <= seed < SEEDS for seed in seeds):
        raise UsageError(
            f"seeds are {list(seeds)}, must be one or more different numbers from 0 to {SEEDS - 1}"
        )
    if layers is not None and (not layers or _repeats(layers) or min(layers) < 1):
        raise UsageError(f"layers are {list(layers)}, must be different blocks, 1 the first")
    if lam is not None and not (math.isfinite(lam) and lam >= 0):
        raise UsageError(f"lam is {lam}, must be a finite weight of 0 or more")
    if 1 not in ks or min(ks) < 1:
        raise UsageError(
            "ks must hold 1, the K that methods are compared by, and no smaller number"
        )
    _check_together(options["protocol"], options["head"], options)


def _check_together(protocol: str, head: str, options: Mapping[str, Any]) -> None:
    if head == "parts" and not options["parts"]:
        raise UsageError("the head parts needs the number of bands of patch rows: --parts N")
    if options["rerank_k"] and (head == "parts" or protocol.startswith("sysu")):
        raise UsageError(
            "rerank_k needs a head with attention (gdfl, dolg, vitgal) and pictures of one modality"
        )
    if protocol == "classes" and options["query"] is not None:
        raise UsageError(
            "the protocol classes ranks a data set against itself; with queries it is query-gallery"
        )
    if options["query"] is None and protocol in ("query-gallery", "re-identification", "revisited"):
        raise UsageError(f"the protocol {protocol} needs queries beside the gallery (--query DIR)")


def _repeats(numbers: Sequence[int]) -> bool:
    return len(set(numbers)) < len(numbers)
