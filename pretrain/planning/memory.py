"""Memory of a training step, counted and not measured: what is alive at once while a step runs, on fake tensors too.

Left out: what the process takes before its first step, what an allocator keeps of freed blocks
(glibc's up to a quarter), and scratch inside a kernel.
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
from pretrain.views import PretrainFeatures, contrasted


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of every storage made in this context: `live` now, `peak` at most."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: dict[int, int] = {}

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Leave out what lies in these tensors' storages."""
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
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._seen:
                    self._seen[storage._cdata] = storage.nbytes()
                    self.live += storage.nbytes()
                    self.peak = max(self.peak, self.live)
                    weakref.finalize(storage, self._free, storage._cdata)
        return made

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
    """Bytes that a step of micro-batches like `batch` takes on each of `world` ranks, beside weights and optimiser.

    Gradients of the weights are left out too. One micro-batch is run, forward and backward.
    """
    grown: list[Any] = []
    with LiveMemory() as memory:
        memory.ignore(model.parameters())
        for parameter in model.parameters():
            if parameter.requires_grad:
                grown.append(
                    parameter.register_post_accumulate_grad_hook(lambda p: memory.ignore([p.grad]))
                )
        features = task.features(model, batch)
        kept, recovered, columns = (
            _cached(features),
            _bytes(contrasted(features)),
            _columns(task, features),
        )
        losses = task.losses(features)
        del features
        losses.total.backward()
    for handle in grown:
        handle.remove()
    batches = micro_batches * _bytes(
        value for value in vars(batch).values() if isinstance(value, Tensor)
    )
    peak = memory.peak
    if exact:
        # Before the second forward passes: all features, joined once more, and the gradients of
        # what is contrasted.
        over_all = micro_batches * (2 * kept + recovered + (world - 1) * columns)
        peak = max(over_all, memory.peak + micro_batches * recovered)
    else:
        peak += (world - 1) * columns
    return batches + peak


def _cached(features: PretrainFeatures) -> int:
    return _bytes(tree_leaves(features)) - features.masked_language_logits.nbytes


def _columns(task: PretrainTask, features: PretrainFeatures) -> int:
    """Bytes of one rank's rows that every other rank holds until the backward pass."""
    config, f = task.config, features
    found = [f.contrastive_image, f.contrastive_image]  # and their gradient
    for name in ("global_image", "global_text", "local_image", "local_text"):
        if getattr(config, f"{name}_negatives") == "global":
            found.append(getattr(f, name).target)
    return _bytes(found)


def _bytes(tensors: Iterable[Any]) -> int:
    return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, Tensor))
