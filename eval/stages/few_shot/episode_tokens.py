"""What a few-shot method sees of an episode's pictures: their tokens alone, without names, labels or other pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eval.encoding.labelled_images import ImageTokens


@dataclass(frozen=True)
class EpisodeTokens:
    """Tokens of n pictures, or of several episodes of n pictures each where the tensors have a leading dimension.

    ``cls`` (..., n, width) and ``patch`` (..., n, patches, width) are the tower's, ``proj`` (...,
    n, projection) are unit features of the contrastive space, None where the encoder has none. All
    are float32.
    """

    cls: Tensor
    patch: Tensor
    proj: Tensor | None = None

    @classmethod
    def of(cls, tokens: ImageTokens, rows: NDArray[Any], *, patches: bool = True) -> EpisodeTokens:
        """Take pictures ``rows`` (..., n) of a token set; without ``patches`` none are copied, (..., n, 0, width)."""
        flat = torch.from_numpy(np.ascontiguousarray(rows, dtype=np.int64)).flatten()

        def take(tensor: Tensor) -> Tensor:
            return tensor[flat].float().reshape(*rows.shape, *tensor.shape[1:])

        patch = tokens.patch if patches else tokens.patch[:, :0]
        return cls(
            take(tokens.cls), take(patch), None if tokens.proj is None else take(tokens.proj)
        )

    def __getitem__(self, picked: Any) -> EpisodeTokens:
        """Select along the first dimension: pictures of one episode, or episodes of several."""
        proj = None if self.proj is None else self.proj[picked]
        return EpisodeTokens(self.cls[picked], self.patch[picked], proj)

    def __len__(self) -> int:
        return len(self.cls)
