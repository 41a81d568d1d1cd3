"""What a few-shot method sees of an episode's images: their tokens, without keys and labels.

In: the tokens of a whole data set and rows of it. Out: the tokens of those rows, episode by
episode. A method cannot cheat with other images of the data set, because it does not get them.
"""

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
    """Tokens of the n images of an episode, or of several episodes along a leading dimension.

    ``cls`` (..., n, width) and ``patch`` (..., n, patches, width) come from the vision tower,
    ``proj`` (..., n, projection) are unit features of the contrastive space, None for an encoder
    without that space. All are float32.
    """

    cls: Tensor
    patch: Tensor
    proj: Tensor | None = None

    @classmethod
    def of(cls, tokens: ImageTokens, rows: NDArray[Any], *, patches: bool = True) -> EpisodeTokens:
        """Take images ``rows`` (..., n) of a token set.

        Without ``patches`` no patch is copied, and ``patch`` is (..., n, 0, width).
        """
        flat = torch.from_numpy(np.ascontiguousarray(rows, dtype=np.int64)).flatten()

        def take(tensor: Tensor) -> Tensor:
            # Only what is taken becomes float32: the patches of a data set are stored as float16.
            return tensor[flat].float().reshape(*rows.shape, *tensor.shape[1:])

        patch = tokens.patch if patches else tokens.patch[:, :0]
        proj = None if tokens.proj is None else take(tokens.proj)
        return cls(take(tokens.cls), take(patch), proj)

    def __getitem__(self, selection: Any) -> EpisodeTokens:
        """Select along the first dimension: images of one episode, or episodes of several."""
        proj = None if self.proj is None else self.proj[selection]
        return EpisodeTokens(self.cls[selection], self.patch[selection], proj)

    def __len__(self) -> int:
        return len(self.cls)
