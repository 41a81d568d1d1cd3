"""GLIML: few-shot classification by relating global and local tokens of two images.

In: the tokens of an episode. Out: a score of every query for every class. Source: Hao, He, Cheng
and Tao, IEEE TCSVT, doi 10.1109/tcsvt.2021.3132912. Only its abstract was available: the relation
follows the authors' neighbouring methods SAML and CPEA, and the interplay is a reconstruction.
"""

from __future__ import annotations

import itertools
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_pipeline.errors import UsageError
from eval.stages.few_shot.episode_tokens import EpisodeTokens

Interplay = Literal["none", "additive", "gated"]
Score = Literal["gated_sum", "mlp"]
Shots = Literal["map_mean", "score_mean"]
TAU = 10.0
# The logarithm of tau learns faster than weights do by this factor, because epochs are short.
TAU_RATE = 10.0


class GLFeatures(NamedTuple):
    """An image after the interplay: its global token, local tokens and their weights."""

    g: Tensor  # (..., width)
    z: Tensor  # (..., patches, width)
    w: Tensor  # (..., patches), sums to 1


class Explanation(NamedTuple):
    """Why queries got their scores."""

    query_weights: Tensor  # (queries, patches), sums to 1
    support_weights: Tensor  # (supports, patches), sums to 1
    # Share of each block in the relation (queries, supports, 2, 2): the query's side, then the
    # support's side; 0 is global, 1 is local.
    shares: Tensor


def check_choice(name: str, value: str, choices: object) -> None:
    """Raise UsageError for a value that the Literal ``choices`` does not have."""
    if value not in get_args(choices):
        raise UsageError(f'{name} is "{value}", must be one of {", ".join(get_args(choices))}')


class GLICL(nn.Module):
    """Let the global token and the local tokens of each image inform each other.

    The mode `additive` adds a summary of all tokens to each, and then ``lam`` times the global
    token to every local one (CPEA). `gated` weights local tokens by how well they fit the global
    one, and adds their weighted mean to it. `none` leaves tokens as they are.

    Raises
    ------
    UsageError
        For another mode.
    """

    def __init__(
        self,
        width: int,
        mode: Interplay = "gated",
        lam: float = 0.25,
        dropout: float = 0.1,
        include_global: bool = True,
    ):
        super().__init__()
        check_choice("the interplay", mode, Interplay)
        self.mode, self.lam, self.include_global = mode, lam, include_global
        if mode == "gated":
            # The identity is the method without training, and the start of training.
            self.query = nn.Parameter(torch.eye(width))
            self.key = nn.Parameter(torch.eye(width))
        if mode == "additive" or (mode == "gated" and include_global):
            hidden = max(width // 4, 1)
            back = nn.Linear(hidden, width)
            # The summary starts at zero, so that an untrained head reads the encoder's tokens.
            nn.init.zeros_(back.weight)
            nn.init.zeros_(back.bias)
            self.summary = nn.Sequential(
                nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), back, nn.Dropout(dropout)
            )
            self.norm = nn.LayerNorm(width)

    def forward(self, cls: Tensor, patch: Tensor) -> GLFeatures:
        """Return features of class tokens (..., width) and patches (..., patches, width)."""
        uniform = patch.new_full(patch.shape[:-1], 1 / patch.shape[-2])
        if self.mode == "none":
            return GLFeatures(cls, patch, uniform)
        if self.mode == "additive":
            u = self.add_summary(cls, patch)
            return GLFeatures(u[..., 0, :], u[..., 1:, :] + self.lam * u[..., :1, :], uniform)
        # The fit of class token c and patch p is c Q^T K p^T. From left to right, both matrices
        # meet one class token per image instead of every patch.
        attention = standardised(cls) @ self.query.T @ self.key
        fit = (standardised(patch) @ attention[..., None]).squeeze(-1)
        w = fit.div(cls.shape[-1] ** 0.5).softmax(-1)
        if not self.include_global:
            return GLFeatures(cls, patch, w)
        u = self.add_summary(cls, patch)
        return GLFeatures(u[..., 0, :] + (w[..., None] * u[..., 1:, :]).sum(-2), patch, w)

    def add_summary(self, cls: Tensor, patch: Tensor) -> Tensor:
        """Add a summary of all tokens to each, (..., 1 + patches, width)."""
        tokens = torch.cat([cls[..., None, :], patch], dim=-2)
        return self.norm(tokens + self.summary(tokens.mean(-2, keepdim=True)))


def standardised(tokens: Tensor) -> Tensor:
    """Scale tokens to mean 0 and variance 1 over the width.

    Encoders differ in scale, and the sharpness of the softmax must not depend on it.
    """
    return F.layer_norm(tokens, tokens.shape[-1:])


class GLICCE(nn.Module):
    """Score pairs of images by the cross-covariance C of their tokens.

    With ``include_global`` the covariance has four blocks (global and local on either side),
    otherwise the local-local block alone. The head `gated_sum` is sum_ij tau_ij w_i w_j
    relu(C_ij)^2. It does not depend on the order and the number of patches, and learns with a tau
    for each block which of them separate classes. The head `mlp` reads the flattened
    w_i w_j C_ij^2 and depends on positions.

    Raises
    ------
    UsageError
        For another head.
    """

    def __init__(
        self,
        patches: int,
        head: Score = "gated_sum",
        hidden: int = 256,
        dropout: float = 0.1,
        include_global: bool = True,
    ):
        super().__init__()
        check_choice("the head", head, Score)
        self.head, self.patches, self.include_global = head, patches, include_global
        if head == "gated_sum":
            # One tau for each block; as logarithms, so that they stay positive.
            self.log_tau = nn.Parameter(torch.zeros(2, 2))
        else:
            size = (patches + include_global) ** 2
            self.mlp = nn.Sequential(
                nn.Linear(size, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, 1)
            )

    @staticmethod
    def cross_covariance(query: Tensor, support: Tensor) -> Tensor:
        """Return covariances (..., q, s, n, m) over the width.

        ``query`` is (..., q, n, width), ``support`` (..., s, m, width).
        """
        q = query - query.mean(-1, keepdim=True)
        s = support - support.mean(-1, keepdim=True)
        # One large product of all tokens is faster than a product for each pair of images.
        product = q.flatten(-3, -2) @ s.flatten(-3, -2).transpose(-1, -2) / (query.shape[-1] - 1)
        return product.unflatten(-1, s.shape[-3:-1]).unflatten(-3, q.shape[-3:-1]).transpose(-3, -2)

    def relation(self, query: GLFeatures, support: GLFeatures) -> Tensor:
        """Return squared, weighted covariances (..., q, s, n, n) of tokens of unit length."""
        covariance = self.cross_covariance(self._tokens(query), self._tokens(support))
        if self.head == "gated_sum":
            # Squared, opposite tokens would count as similar ones. The MLP learns from all squares.
            covariance = covariance.relu()
        return covariance.square()

    def forward(self, query: GLFeatures, support: GLFeatures) -> Tensor:
        """Return scores (..., q, s)."""
        relation = self.relation(query, support)
        if self.head == "gated_sum":
            return self.blocks(relation).sum((-2, -1))
        if relation.shape[-1] != self.patches + self.include_global:
            raise UsageError(
                f"this head reads {self.patches} patches per image, the tokens have "
                f"{support.z.shape[-2]}: train it on the same grid, or use the "
                '"gated_sum" head, which fits every grid'
            )
        return self.mlp(relation.flatten(-2)).squeeze(-1)

    def blocks(self, relation: Tensor) -> Tensor:
        """Sum a relation over each of its four blocks, times tau if the head has one.

        Returns (..., q, s, 2, 2); along the last two dimensions 0 is global, 1 is local.
        """
        # Without a global token the global side is empty, and its sums are 0.
        first_patch = int(self.include_global)
        sides = (slice(0, first_patch), slice(first_patch, None))
        sums = []
        for query_side, support_side in itertools.product(sides, sides):
            sums.append(relation[..., query_side, support_side].sum((-2, -1)))
        blocks = torch.stack(sums, dim=-1).unflatten(-1, (2, 2))
        if self.head == "gated_sum":
            blocks = blocks * TAU * (TAU_RATE * self.log_tau).exp()
        return blocks

    def _tokens(self, features: GLFeatures) -> Tensor:
        """Return tokens of length sqrt(width - 1) times the root of their weight.

        With that length C is a cosine, and its square has the product of both weights.
        """
        w = features.w.clamp_min(1e-12)  # the slope of the root is infinite at 0
        if self.head == "mlp":
            # Weights of 1 on average: the size of the MLP's inputs must not depend on the grid.
            w = w * w.shape[-1]
        z = scaled(features.z, w)
        if not self.include_global:
            return z
        g = features.g[..., None, :]
        return torch.cat([scaled(g, g.new_ones(g.shape[:-1])), z], dim=-2)


def scaled(tokens: Tensor, weight: Tensor) -> Tensor:
    """Scale tokens (..., width) to the squared length weight * (width - 1), in one pass."""
    length = tokens.norm(dim=-1).clamp_min(1e-12)
    return tokens * ((weight * (tokens.shape[-1] - 1)).sqrt() / length)[..., None]


class GLIMLHead(nn.Module):
    """Classify queries by their relation to the examples of each class.

    ``patches`` is the number of local tokens of an image; only the head `mlp` depends on it. For
    several examples of a class, ``shots`` averages their tokens by position (`map_mean`, as SAML
    and CPEA do) or their scores (`score_mean`). Parameters depend on ``seed`` alone.
    """

    def __init__(
        self,
        width: int,
        patches: int,
        *,
        interplay: Interplay = "gated",
        lam: float = 0.25,
        head: Score = "gated_sum",
        include_global: bool = True,
        shots: Shots = "map_mean",
        seed: int = 0,
    ):
        super().__init__()
        check_choice("the rule for several shots", shots, Shots)
        self.shots = shots
        # The caller's random state stays as it is.
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.interplay = GLICL(width, interplay, lam, include_global=include_global)
            self.similarity = GLICCE(patches, head, include_global=include_global)
        # Training switches dropout on for its own steps.
        self.eval()

    def logits(
        self,
        support: EpisodeTokens,
        support_y: Tensor,
        query: EpisodeTokens,
        way: int,
        class_text: Tensor | None = None,
    ) -> Tensor:
        """Return logits (queries, way) of one episode.

        Tokens and result may have a leading dimension of episodes. ``support_y`` (supports,) are
        classes 0 to way - 1; the features of class names ``class_text`` are not used.
        """
        q = self.interplay(query.cls, query.patch)
        s = self.interplay(support.cls, support.patch)
        classes = torch.as_tensor(support_y, device=support.cls.device)
        members = F.one_hot(classes, way).to(support.cls.dtype)
        # A matrix (way, supports) that averages over the examples of each class.
        mean = (members / members.sum(-2, keepdim=True)).transpose(-1, -2)
        if self.shots == "map_mean":
            z = (mean @ s.z.flatten(-2)).unflatten(-1, s.z.shape[-2:])
            return self.similarity(q, GLFeatures(mean @ s.g, z, mean @ s.w))
        return self.similarity(q, s) @ mean.transpose(-1, -2)

    @torch.no_grad()
    def explain(self, support: EpisodeTokens, query: EpisodeTokens) -> Explanation:
        """Return weights of all patches, and the share of each block in each pair's relation."""
        q = self.interplay(query.cls, query.patch)
        s = self.interplay(support.cls, support.patch)
        parts = self.similarity.blocks(self.similarity.relation(q, s))
        return Explanation(q.w, s.w, parts / parts.sum((-2, -1), keepdim=True).clamp_min(1e-12))
