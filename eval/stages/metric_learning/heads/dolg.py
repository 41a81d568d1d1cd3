"""Deep orthogonal fusion of local and global features (DOLG, arXiv 2108.02927) as a head.

In: tokens of two blocks. Out: one unit descriptor of the global feature and of what attended local
features add to it. The global feature is the projected class token of the later block, whereas DOLG
pools the last map of a ResNet. Layer norms replace its batch norms: the descriptor of an image must
not depend on the rest of its batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .atrous import MultiAtrous, on_grid
from .gdfl import Embedded


def orthogonal_complement(local: Tensor, global_: Tensor) -> Tensor:
    """Remove from local features (batch, patches, size) their part along the global one.

    ``global_`` is (batch, size). A global feature of zeros has no direction, so nothing is removed.
    """
    squared = global_.square().sum(dim=1)[:, None, None]
    along = local @ global_[:, :, None] / torch.where(squared > 0, squared, 1)
    return local - along * global_[:, None]


class DOLGHead(nn.Module):
    """Fuse the global feature with the parts of local features that are orthogonal to it.

    Parameters
    ----------
    dim
        Width of the tower's tokens.
    layer_local, layer_global
        Blocks that the local and the global features are read from, counted from 1.
    out, inner
        Size of the descriptor, and of the features that are fused.
    dilations
        Dilations of the local branch, in patches, in addition to the patch itself and the whole
        image.
    """

    def __init__(
        self,
        dim: int,
        layer_local: int,
        layer_global: int,
        out: int = 512,
        inner: int = 512,
        dilations: Sequence[int] = (3, 6, 9),
    ) -> None:
        super().__init__()
        self.layers: tuple[int, ...] = (layer_local, layer_global)
        self.normalize_global, self.normalize_local = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_global = nn.Linear(dim, inner)
        self.atrous = MultiAtrous(dim, inner, (0, *dilations))
        self.mix = nn.Conv2d(inner, inner, kernel_size=1)
        self.to_local = nn.Linear(inner, inner)
        self.score = nn.Linear(inner, 1)
        self.fuse = nn.Linear(2 * inner, out)

    def forward(self, layers: Mapping[int, Tensor], grid: tuple[int, int]) -> Embedded:
        """Map tokens of both blocks to descriptors (batch, out).

        Each block has tokens (batch, 1 + rows * columns, dim).
        """
        local, last = (layers[layer] for layer in self.layers)
        global_ = self.to_global(self.normalize_global(last[:, 0]))
        mixed = self.mix(self.atrous(on_grid(self.normalize_local(local), grid)).relu())
        local_features = self.to_local(mixed.flatten(2).transpose(1, 2))
        scores = F.softplus(self.score(local_features.relu()))
        attended = scores * F.normalize(local_features, dim=2)
        general = torch.cat([global_, orthogonal_complement(attended, global_).mean(dim=1)], dim=1)
        weights = scores[..., 0] / scores[..., 0].sum(dim=1, keepdim=True).clamp_min(1e-12)
        return Embedded(
            F.normalize(self.fuse(general), dim=1), general, weights={self.layers[0]: weights}
        )
