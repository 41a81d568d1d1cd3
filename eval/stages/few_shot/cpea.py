"""CPEA: class-aware patches, and an MLP over their squared correlations.

Source: Hao et al., "Class-Aware Patch Embedding Adaptation for Few-Shot Image Classification" (ICCV
2023), the nearest published relative of GLIML. It equals GLIML with the additive interplay, the
constant 2, the MLP, and no global token in the covariance. Two things differ from the publication:
patches come on the pooled grid, whereas CPEA reads all 196, and the last layer of the summary
starts at zero.
"""

from __future__ import annotations

from eval.stages.few_shot.gliml import GLIMLHead


class CPEAHead(GLIMLHead):
    """Compare patches that contain their class token, each with each, by an MLP."""

    def __init__(self, width: int, patches: int, *, lam: float = 2.0, seed: int = 0):
        super().__init__(
            width,
            patches,
            interplay="additive",
            lam=lam,
            head="mlp",
            include_global=False,
            seed=seed,
        )
