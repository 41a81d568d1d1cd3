"""CPEA, the nearest published relative of GLIML: class-aware patches and an MLP over their squared correlations.

Source: Hao et al., "Class-Aware Patch Embedding Adaptation for Few-Shot Image Classification" (ICCV
2023). It is the corner of GLIML with the additive interplay, the constant 2, the MLP and no global
token in the covariance. Two things differ: patches come on the pooled grid, where CPEA reads all
196, and the summary's last layer starts at zero.
"""

from __future__ import annotations

from eval.stages.few_shot.gliml import GLIMLHead


class CPEAHead(GLIMLHead):
    """Compare patches that hold their class token, each with each, by an MLP that must be trained."""

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
