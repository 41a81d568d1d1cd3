"""Memory of a training step, counted on tensors that may be fake: the most bytes alive at once.

Not counted: what the process takes before its first step, blocks that an allocator keeps after they
are freed (glibc keeps up to a quarter more), and scratch memory inside a kernel.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from data_pipeline.collate import Batch
from pretrain.model import GLSCLModel
from pretrain.task import PretrainTask
from pretrain.views import PretrainFeatures


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of every storage created in this context: `live` now, `peak` at most."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: dict[int, int] = {}

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Stop counting the storages of these tensors."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self.live -= self._seen.get(storage._cdata, 0)
            self._seen[storage._cdata] = 0

    def __torch_dispatch__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Any = (),
        kwargs: Any = None,
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            # A view shares the storage of its base, which is counted once.
            if storage._cdata in self._seen:
                continue
            self._seen[storage._cdata] = storage.nbytes()
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._free, storage._cdata)
        return result

    def _free(self, storage: int) -> None:
        self.live -= self._seen.pop(storage)


def step_memory(
    task: PretrainTask,
    model: GLSCLModel,
    batch: Batch,
    micro_batches: int = 1,
    exact: bool = False,
    world: int = 1,
) -> int:
    """Bytes that a step takes on each of `world` ranks, beside weights, gradients and optimizer.

    Runs forward and backward of one micro-batch, `batch`, and adds up what a step of
    `micro_batches` like it holds at once.
    """
    hooks: list[Any] = []
    with LiveMemory() as memory:
        memory.ignore(model.parameters())
        for parameter in model.parameters():
            if parameter.requires_grad:
                # Gradients of the weights are counted elsewhere, as part of the parameters.
                hooks.append(
                    parameter.register_post_accumulate_grad_hook(lambda p: memory.ignore([p.grad]))
                )
        features = task.features(model, batch)
        cached = _cached_bytes(features)
        contrasted = _bytes(task.contrasted(features).values())
        columns = _bytes(_columns(task, features))
        losses = task.losses(features)
        # The backward pass frees each feature when it is done with it, unless a name holds it.
        del features
        losses.total.backward()
    for hook in hooks:
        hook.remove()
    tensors = [value for value in vars(batch).values() if isinstance(value, Tensor)]
    batches = micro_batches * _bytes(tensors)
    peak = memory.peak
    if exact:
        # Before the second forward passes: all features, all of them once more after joining, and
        # the gradients of what is contrasted.
        over_all = micro_batches * (2 * cached + contrasted + (world - 1) * columns)
        peak = max(over_all, memory.peak + micro_batches * contrasted)
    else:
        peak += (world - 1) * columns
    return batches + peak


def _cached_bytes(features: PretrainFeatures) -> int:
    # `PretrainTask.with_contrasted` drops the logits.
    return _bytes(tree_leaves(features)) - features.masked_language_logits.nbytes


def _columns(task: PretrainTask, features: PretrainFeatures) -> list[Tensor]:
    """Rows of one rank that every other rank holds until the backward pass."""
    columns = []
    for objective in task.computed:
        columns += objective.columns(features, task.config)
    return columns


def _bytes(tensors: Iterable[Any]) -> int:
    return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, Tensor))
