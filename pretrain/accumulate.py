"""Accumulation over micro-batches: plain, or exact for losses that compare all samples of a step.

Exact accumulation takes the memory of one micro-batch. It computes the features of every
micro-batch without a graph; the losses over all of them give each feature its gradient; then it
computes each micro-batch again, with the same dropout, and sends those gradients back (GradCache,
arXiv 2101.06983). Losses that need no other micro-batch, such as matching, share that second pass.

Both functions take a step's micro-batches and leave the step's gradient in the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_leaves_with_path

from data_pipeline.collate import Batch

from .objectives.tiles import at_least_float32
from .parallel.engines import Engine
from .protocols import Task


def accumulate_plainly(
    task: Task,
    engine: Engine,
    batches: Sequence[Batch],
    counts: Sequence[Any],
    shares: Sequence[float],
    seed: Callable[[int], None],
) -> tuple[list[dict[str, Tensor]], Tensor]:
    """Run one forward and backward pass per micro-batch; losses compare samples within it alone.

    Parameters and results are those of `accumulate_exactly`.
    """
    losses_of_batches = []
    for number, (batch, count, share) in enumerate(zip(batches, counts, shares, strict=True)):
        seed(number)
        with engine.micro_step(number == len(batches) - 1):
            features = engine.wrapped("features", batch)
            losses = task.similarity_losses(features, count) | task.pair_losses(features, count)
            engine.backward(task.weighted(losses) * share)
        losses_of_batches.append(_detached(losses))
    return losses_of_batches, features.temperature.detach()


def accumulate_exactly(
    task: Task,
    engine: Engine,
    batches: Sequence[Batch],
    counts: Sequence[Any],
    shares: Sequence[float],
    seed: Callable[[int], None],
) -> tuple[list[dict[str, Tensor]], Tensor]:
    """Give every micro-batch the gradient that it has in one large batch.

    Only the last micro-batch exchanges gradients between the ranks.

    Parameters
    ----------
    task, engine
        The task, and the engine that wraps its model.
    batches, counts
        Micro-batches of the step on this rank, grouped by kind, and what `task.counts` returned for
        each.
    shares : sequence of float
        Fraction of the step's samples that each micro-batch holds; weighs its losses.
    seed : callable
        Seeds dropout for micro-batch n; called before each of its two forward passes.

    Returns
    -------
    tuple
        The losses of each micro-batch by name, whose mean over the micro-batches of a kind is the
        loss of the kind, and the temperature.
    """
    cached = []
    for number, batch in enumerate(batches):
        seed(number)
        with torch.no_grad():
            features = engine.wrapped("features", batch)
        cached.append(_as_leaves(task, features))

    losses_of_batches = _backward_to_features(task, batches, cached, counts, shares)
    temperature = cached[0].temperature.detach()
    gradients = []
    for features in cached:
        leaves = task.contrasted(features)
        gradients.append({name: leaf.grad for name, leaf in leaves.items()})
    # Only the gradients are kept; the features are freed before the second forward passes.
    del cached, features, leaves

    for number, batch in enumerate(batches):
        seed(number)
        with engine.micro_step(number == len(batches) - 1):
            features = engine.wrapped("features", batch)
            losses = task.pair_losses(features, counts[number])
            total = task.weighted(losses) * shares[number]
            total = _add_pullback(total, task.contrasted(features), gradients[number])
            engine.backward(total)
        losses_of_batches[number] |= _detached(losses)
    return losses_of_batches, temperature


def _as_leaves(task: Task, features: Any) -> Any:
    """Replace the contrasted features by leaves that collect their gradients."""
    leaves = {}
    for name, value in task.contrasted(features).items():
        # float32 at least: an fp16 scaler multiplies only the loss of the second backward pass, so
        # that half-precision gradients of the first one would underflow.
        leaves[name] = at_least_float32(value.detach()).requires_grad_()
    return task.with_contrasted(features, leaves)


def _backward_to_features(
    task: Task,
    batches: Sequence[Batch],
    cached: Sequence[Any],
    counts: Sequence[Any],
    shares: Sequence[float],
) -> list[dict[str, Tensor]]:
    """Send the gradients of the similarity losses of each kind back to the cached features."""
    losses_of_batches: list[dict[str, Tensor]] = []
    for features in cached:
        _watch(task, features)
    for kind in dict.fromkeys(batch.kind for batch in batches):
        members = [n for n, batch in enumerate(batches) if batch.kind == kind]
        joined, count = task.join([cached[n] for n in members], [counts[n] for n in members])
        losses = task.similarity_losses(joined, count)
        (task.weighted(losses) * sum(shares[n] for n in members)).backward()
        losses_of_batches += [_detached(losses) for _ in members]
    for features in cached:
        _refuse_lost_gradients(task, features)
    return losses_of_batches


def _watch(task: Task, features: Any) -> None:
    """Let the features that are not contrasted collect gradients too, to notice lost ones.

    Costs nothing: losses detach their targets, so that no gradient is computed for these.
    """
    for _, value in tree_leaves_with_path(features):
        if isinstance(value, Tensor) and value.is_floating_point() and value.is_leaf:
            value.requires_grad_()


def _refuse_lost_gradients(task: Task, features: Any) -> None:
    """Raise ValueError where a loss sent a gradient to a feature that `contrasted` does not name.

    The second backward pass would not pass it on, so that the loss would be logged and not learned.
    """
    named = {id(value) for value in task.contrasted(features).values()}
    for path, value in tree_leaves_with_path(features):
        if isinstance(value, Tensor) and id(value) not in named and value.grad is not None:
            raise ValueError(
                f"a loss sends a gradient to features{keystr(path)}, which no objective names in "
                "`contrasts`: exact accumulation would lose it"
            )


def _add_pullback(
    total: Tensor, features: Mapping[str, Tensor], gradients: Mapping[str, Tensor | None]
) -> Tensor:
    """Add features times their gradients, which a backward pass sends through the model."""
    for name, value in features.items():
        gradient = gradients[name]
        # Features without a gradient stay in the graph with the factor 0, so that no rank lacks a
        # gradient that the others wait for.
        total = total + (at_least_float32(value) * (0.0 if gradient is None else gradient)).sum()
    return total


def _detached(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in losses.items()}
