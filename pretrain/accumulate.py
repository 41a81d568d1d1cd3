"""Exact accumulation: the similarity losses of a step see all its micro-batches, in the memory of one.

The features of every micro-batch are computed without a graph, the losses over all of them give
each feature its gradient, and each micro-batch is then computed again, with the same dropout, and
sends those gradients back (GradCache, arXiv 2101.06983). Losses that need no other micro-batch, as
matching, share that second backward. Features and their gradients are float32, so that an fp16
scaler, which multiplies the second backward's loss, loses nothing in the first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from data_pipeline.collate import Batch
from pretrain.objectives.tiles import at_least_float32
from pretrain.task import Task

from .parallel.engines import Engine


def accumulate_plainly(
    task: Task,
    engine: Engine,
    batches: Sequence[Batch],
    counts: Sequence[Any],
    shares: Sequence[float],
    seed: Callable[[int], None],
) -> tuple[list[dict[str, Tensor]], Tensor]:
    """Do as `accumulate_exactly` does, with losses that contrast within one micro-batch; one forward pass of each."""
    found = []
    for number, (batch, count, share) in enumerate(zip(batches, counts, shares, strict=True)):
        seed(number)
        with engine.micro_step(number == len(batches) - 1):
            features = engine.wrapped("features", batch)
            losses = task.similarity_losses(features, count) | task.pair_losses(features, count)
            engine.backward(task.weighted(losses) * share)
        found.append({name: value.detach() for name, value in losses.items()})
    return found, features.temperature.detach()


def accumulate_exactly(
    task: Task,
    engine: Engine,
    batches: Sequence[Batch],
    counts: Sequence[Any],
    shares: Sequence[float],
    seed: Callable[[int], None],
) -> tuple[list[dict[str, Tensor]], Tensor]:
    """Backward passes of one step; only the last micro-batch exchanges gradients.

    Parameters
    ----------
    task, engine
        The task, and the engine that wraps its model.
    batches, counts
        Micro-batches of the step on this rank, all of a kind in a row, and what `task.counts` said
        of each.
    shares : sequence of float
        Share of the step's samples that are in each micro-batch, which weighs its losses.
    seed : callable
        Seeds dropout for micro-batch n; called before each of its two forward passes.

    Returns
    -------
    tuple
        The losses by name that each micro-batch stands for, whose mean over those of a kind is the
        loss of the kind, and the temperature.
    """
    cached: list[Any] = []
    for number, batch in enumerate(batches):
        seed(number)
        with torch.no_grad():
            features = engine.wrapped("features", batch)
        leaves = [
            at_least_float32(value.detach()).requires_grad_() for value in task.contrasted(features)
        ]
        cached.append(task.with_contrasted(features, leaves))
    found: list[dict[str, Tensor]] = []
    for kind in dict.fromkeys(batch.kind for batch in batches):
        members = [n for n, batch in enumerate(batches) if batch.kind == kind]
        joined, count = task.join([cached[n] for n in members], [counts[n] for n in members])
        losses = task.similarity_losses(joined, count)
        (task.weighted(losses) * sum(shares[n] for n in members)).backward()
        found += [{name: value.detach() for name, value in losses.items()} for _ in members]
    temperature = cached[0].temperature.detach()
    # Gradients alone stay; what the losses contrasted is free before the second forward passes.
    gradients = [[leaf.grad for leaf in task.contrasted(features)] for features in cached]
    del cached, joined, features, leaves
    for number, batch in enumerate(batches):
        seed(number)
        with engine.micro_step(number == len(batches) - 1):
            features = engine.wrapped("features", batch)
            losses = task.pair_losses(features, counts[number])
            total = task.weighted(losses) * shares[number]
            for value, gradient in zip(task.contrasted(features), gradients[number], strict=True):
                # Every feature stays in the graph, so that no rank lacks a gradient that another
                # one waits for.
                total = (
                    total
                    + (at_least_float32(value) * (0.0 if gradient is None else gradient)).sum()
                )
            engine.backward(total)
        found[number] |= {name: value.detach() for name, value in losses.items()}
    return found, temperature
