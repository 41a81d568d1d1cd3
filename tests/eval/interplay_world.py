"""Pictures whose class no global and no local token tells alone: the ground truth of GLIML's tests.

Each family of contexts has a marker and a vector for every part. A picture of (family, part) has
one patch that is the sum of its family's marker and part, several patches of every other family
with a part drawn from its episode's, and patches of nothing. Its class token is the family's
marker. All classes of an episode are of one family.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eval.encoding.labelled_images import ImageTokens
from eval.stages.few_shot.episodes import Episode
from eval.stages.few_shot.inference import World

WIDTH, PARTS = 64, {"base": range(60), "val": range(60, 75), "novel": range(75, 95)}
RELEVANT, IRRELEVANT, EMPTY = range(3)


@dataclass(frozen=True)
class Drawn:
    """Pictures of episodes, the episodes, and what each patch is (pictures, patches)."""

    world: World
    episodes: list[Episode]
    role: Tensor


@dataclass(frozen=True)
class InterplayWorld:
    """``distractors`` patches of every other family on a ``grid``; ``noise`` is the length of what all tokens get."""

    seed: int
    families: int = 3
    distractors: int = 2
    grid: tuple[int, int] = (3, 3)
    noise: float = 1.5

    def draw(
        self, split: str, episodes: int, queries: int = 15, way: int = 5, shot: int = 1
    ) -> Drawn:
        """Episodes of the parts of a split."""
        vectors = np.random.default_rng([self.seed])
        marker = unit(vectors.standard_normal((self.families, WIDTH)))
        part = unit(vectors.standard_normal((self.families, 95, WIDTH)))
        rng = np.random.default_rng([self.seed, list(PARTS).index(split), episodes])
        patches = self.grid[0] * self.grid[1]
        role = np.full(patches, EMPTY)
        role[0], role[1 : 1 + (self.families - 1) * self.distractors] = RELEVANT, IRRELEVANT
        cls, patch, roles, names, drawn = [], [], [], [], []
        for number in range(episodes):
            family = int(rng.integers(self.families))
            chosen = rng.choice(PARTS[split], way, replace=False)
            own = np.arange(way).repeat(shot + queries)
            tokens = np.zeros((len(own), patches, WIDTH))
            tokens[:, 0] = marker[family] + part[family, chosen[own]]
            others = [
                other
                for other in range(self.families)
                if other != family
                for _ in range(self.distractors)
            ]
            for place, other in enumerate(others, start=1):
                tokens[:, place] = marker[other] + part[other, rng.choice(chosen, len(own))]
            order = rng.permuted(np.tile(np.arange(patches), (len(own), 1)), axis=1)
            patch.append(np.take_along_axis(tokens, order[..., None], axis=1))
            cls.append(np.tile(marker[family], (len(own), 1)))
            roles.append(role[order])
            classes = tuple(f"family {family} part {one}" for one in chosen)
            names += [classes[one] for one in own]
            rows = np.arange(len(own)).reshape(way, -1) + number * len(own)
            drawn.append(Episode.of(rows, shot, classes))
        noisy = [torch.from_numpy(np.concatenate(part)).float() for part in (cls, patch)]
        noisy = [
            tokens + self.noise / WIDTH**0.5 * torch.from_numpy(noise_like(rng, tokens))
            for tokens in noisy
        ]
        keys = [f"{split}/{row}" for row in range(len(names))]
        tokens = ImageTokens(
            keys,
            [(name,) for name in names],
            [{}] * len(keys),
            keys,
            *noisy,
            proj=None,
            grid=self.grid,
        )
        return Drawn(World(tokens, names, None), drawn, torch.from_numpy(np.concatenate(roles)))


def noise_like(rng: np.random.Generator, tokens: Tensor) -> np.ndarray:
    return rng.standard_normal(tokens.shape, dtype=np.float32)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
