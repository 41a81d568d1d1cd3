"""GLIML: few-shot recognition from what the global and the local tokens of two pictures say together.

In: the tokens of an episode. Out: a score of every query for every class. Source: Hao, He, Cheng
and Tao, IEEE TCSVT, doi 10.1109/tcsvt.2021.3132912, of which only the abstract could be read; the
relation follows the authors' neighbouring methods SAML and CPEA, the interplay is a reconstruction.
"""

from __future__ import annotations

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
TAU_RATE = 10.0  # its logarithm learns this much faster than weights do: epochs are short


class GLFeatures(NamedTuple):
    """A picture after the interplay: global token, local tokens and how much each of these counts."""

    g: Tensor  # (..., width)
    z: Tensor  # (..., patches, width)
    w: Tensor  # (..., patches), sums to 1


class Explanation(NamedTuple):
    """Why queries got their scores."""

    query_weights: Tensor  # (queries, patches), sums to 1
    support_weights: Tensor  # (supports, patches), sums to 1
    shares: Tensor  # (queries, supports, 2, 2) of the relation: query's side, support's side; 0 is global, 1 is local


def choice(name: str, value: str, known: object) -> None:
    """Refuse a value that is not one of a Literal's, UsageError."""
    if value not in get_args(known):
        raise UsageError(f'{name} is "{value}", which is none of {", ".join(get_args(known))}')


class GLICL(nn.Module):
    """Let the global token and the local tokens of each picture inform each other.

    ``additive`` adds ``lam`` times the global token to every local one, after a summary of all went
    to each (CPEA). ``gated`` weighs local tokens by how well they fit the global one, and adds
    their weighted mean to it. ``none`` leaves tokens as they are. UsageError for another mode.
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
        choice("the interplay", mode, Interplay)
        self.mode, self.lam, self.include_global = mode, lam, include_global
        if mode == "gated":
            # The identity is the method without training, and where training starts.
            self.query, self.key = (nn.Parameter(torch.eye(width)) for _ in range(2))
        if mode == "additive" or (mode == "gated" and include_global):
            hidden = max(width // 4, 1)
            back = nn.Linear(hidden, width)
            nn.init.zeros_(back.weight)
            nn.init.zeros_(back.bias)
            self.summary = nn.Sequential(
                nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), back, nn.Dropout(dropout)
            )
            self.norm = nn.LayerNorm(width)

    def forward(self, cls: Tensor, patch: Tensor) -> GLFeatures:
        """Features of class tokens (..., width) and patches (..., patches, width)."""
        uniform = patch.new_full(patch.shape[:-1], 1 / patch.shape[-2])
        if self.mode == "none":
            return GLFeatures(cls, patch, uniform)
        if self.mode == "additive":
            u = self.summarised(cls, patch)
            return GLFeatures(u[..., 0, :], u[..., 1:, :] + self.lam * u[..., :1, :], uniform)
        # One vector a picture meets all patches: the key's matrix need not multiply each of them.
        wanted = standardised(cls) @ self.query.T @ self.key
        w = (
            (standardised(patch) @ wanted[..., None])
            .squeeze(-1)
            .div(cls.shape[-1] ** 0.5)
            .softmax(-1)
        )
        if not self.include_global:
            return GLFeatures(cls, patch, w)
        u = self.summarised(cls, patch)
        return GLFeatures(u[..., 0, :] + (w[..., None] * u[..., 1:, :]).sum(-2), patch, w)

    def summarised(self, cls: Tensor, patch: Tensor) -> Tensor:
        """Add a summary of all tokens to each, (..., 1 + patches, width)."""
        tokens = torch.cat([cls[..., None, :], patch], dim=-2)
        return self.norm(tokens + self.summary(tokens.mean(-2, keepdim=True)))


def standardised(tokens: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the width: encoders differ in scale, and the softmax's sharpness must not."""
    return F.layer_norm(tokens, tokens.shape[-1:])


class GLICCE(nn.Module):
    """Score pairs of pictures by the cross-covariance of their tokens.

    With ``include_global`` the covariance has four blocks (global and local on either side), else
    local-local alone. ``gated_sum`` is sum_ij tau_ij w_i w_j relu(C_ij)^2, indifferent to the order
    and the number of patches, with a tau for each block, so that it learns which of them tell
    classes apart; ``mlp`` reads the flattened w_i w_j C_ij^2 and knows positions. UsageError for
    another head.
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
        choice("the head", head, Score)
        self.head, self.patches, self.include_global = head, patches, include_global
        if head == "gated_sum":
            self.log_tau = nn.Parameter(torch.zeros(2, 2))
        else:
            size = (patches + include_global) ** 2
            self.mlp = nn.Sequential(
                nn.Linear(size, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, 1)
            )

    @staticmethod
    def cross_covariance(query: Tensor, support: Tensor) -> Tensor:
        """Covariances over the width of (..., q, n, width) with (..., s, m, width), (..., q, s, n, m)."""
        q, s = (tokens - tokens.mean(-1, keepdim=True) for tokens in (query, support))
        product = q.flatten(-3, -2) @ s.flatten(-3, -2).transpose(-1, -2) / (query.shape[-1] - 1)
        return product.unflatten(-1, s.shape[-3:-1]).unflatten(-3, q.shape[-3:-1]).transpose(-3, -2)

    def relation(self, query: GLFeatures, support: GLFeatures) -> Tensor:
        """Squared, weighted covariances (..., q, s, n, n) of tokens of unit length."""
        covariance = self.cross_covariance(self._tokens(query), self._tokens(support))
        return (covariance.relu() if self.head == "gated_sum" else covariance).square()

    def forward(self, query: GLFeatures, support: GLFeatures) -> Tensor:
        """Scores (..., q, s)."""
        relation = self.relation(query, support)
        if self.head == "gated_sum":
            return self.blocks(relation).sum((-2, -1))
        if relation.shape[-1] != self.patches + self.include_global:
            raise UsageError(
                f"this head reads {self.patches} patches a picture, the tokens have {support.z.shape[-2]}: "
                'train it on the same grid, or take the "gated_sum" head, which fits every grid'
            )
        return self.mlp(relation.flatten(-2)).squeeze(-1)

    def blocks(self, relation: Tensor) -> Tensor:
        """Sum a relation over each of the four blocks, (..., q, s, 2, 2): global 0, local 1; tau included."""
        first = int(self.include_global)
        sides = (slice(0, first), slice(first, None))
        sums = [relation[..., query, support].sum((-2, -1)) for query in sides for support in sides]
        found = torch.stack(sums, dim=-1).unflatten(-1, (2, 2))
        return found * TAU * (TAU_RATE * self.log_tau).exp() if self.head == "gated_sum" else found

    def _tokens(self, features: GLFeatures) -> Tensor:
        """Tokens of length sqrt(width - 1), so that C is a cosine, times the root of what weighs their squares."""
        w = features.w.clamp_min(1e-12)  # the root's slope at 0 is infinite
        if self.head == "mlp":
            w = w * w.shape[-1]  # 1 on average: the size of the MLP's inputs depends on no grid
        z = scaled(features.z, w)
        if not self.include_global:
            return z
        g = features.g[..., None, :]
        return torch.cat([scaled(g, g.new_ones(g.shape[:-1])), z], dim=-2)


def scaled(tokens: Tensor, weight: Tensor) -> Tensor:
    """Give tokens (..., width) the squared length of weight * (width - 1), in one pass."""
    length = tokens.norm(dim=-1).clamp_min(1e-12)
    return tokens * ((weight * (tokens.shape[-1] - 1)).sqrt() / length)[..., None]


class GLIMLHead(nn.Module):
    """Classify queries by their relation to the examples of each class.

    ``patches`` is the number of a picture's local tokens (only ``mlp`` depends on it). ``shots``
    averages the tokens of a class's examples by position (``map_mean``, as SAML and CPEA do) or the
    scores of each. Parameters depend on ``seed`` alone.
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
        choice("the rule for several shots", shots, Shots)
        self.shots = shots
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.interplay = GLICL(width, interplay, lam, include_global=include_global)
            self.similarity = GLICCE(patches, head, include_global=include_global)
        self.eval()

    def logits(
        self,
        support: EpisodeTokens,
        support_y: Tensor,
        query: EpisodeTokens,
        way: int,
        class_text: Tensor | None = None,
    ) -> Tensor:
        """Logits (queries, way) of one episode; all arguments may have a leading dimension of episodes.

        ``support_y`` (supports,) are classes 0 to way - 1; the names' features ``class_text`` are
        not used.
        """
        q = self.interplay(query.cls, query.patch)
        s = self.interplay(support.cls, support.patch)
        member = F.one_hot(torch.as_tensor(support_y, device=support.cls.device), way).to(
            support.cls.dtype
        )
        mean = (member / member.sum(-2, keepdim=True)).transpose(-1, -2)  # (..., way, supports)
        if self.shots == "map_mean":
            s = GLFeatures(
                mean @ s.g, (mean @ s.z.flatten(-2)).unflatten(-1, s.z.shape[-2:]), mean @ s.w
            )
            return self.similarity(q, s)
        return self.similarity(q, s) @ mean.transpose(-1, -2)

    @torch.no_grad()
    def explain(self, support: EpisodeTokens, query: EpisodeTokens) -> Explanation:
        """Weights of all patches, and each block's share of the relation between each query and each example."""
        q, s = self.interplay(query.cls, query.patch), self.interplay(support.cls, support.patch)
        parts = self.similarity.blocks(self.similarity.relation(q, s))
        return Explanation(q.w, s.w, parts / parts.sum((-2, -1), keepdim=True).clamp_min(1e-12))
