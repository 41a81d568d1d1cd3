"""Images whose class needs global and local tokens together: the ground truth of GLIML's tests.

Each family of contexts has a marker and a vector for every part. An image of (family, part) has one
patch that is the sum of its family's marker and its part, several patches of every other family
with parts of other classes of the episode, and empty patches. Its class token is the family's
marker. All classes of an episode are of one family. So the class token says which family counts,
and only the patches say which part.
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
    """Images of episodes, the episodes, and the role of each patch (images, patches)."""

    world: World
    episodes: list[Episode]
    role: Tensor


@dataclass(frozen=True)
class InterplayWorld:
    """Worlds of ``families`` with ``distractors`` patches of every other family on a ``grid``.

    ``noise`` is the length of the noise that is added to all tokens.
    """

    seed: int
    families: int = 3
    distractors: int = 2
    grid: tuple[int, int] = (3, 3)
    noise: float = 1.5

    def draw(
        self, split: str, episodes: int, queries: int = 15, way: int = 5, shot: int = 1
    ) -> Drawn:
        """Draw episodes of the parts of a split."""
        # Markers and parts are the same in all splits, so they do not depend on the split.
        vectors = np.random.default_rng([self.seed])
        marker = unit(vectors.standard_normal((self.families, WIDTH)))
        part = unit(vectors.standard_normal((self.families, 95, WIDTH)))
        rng = np.random.default_rng([self.seed, list(PARTS).index(split), episodes])
        patches = self.grid[0] * self.grid[1]
        role = np.full(patches, EMPTY)
        role[0], role[1 : 1 + (self.families - 1) * self.distractors] = RELEVANT, IRRELEVANT
        all_cls, all_patches, all_roles, names, drawn = [], [], [], [], []
        for number in range(episodes):
            family = int(rng.integers(self.families))
            parts = rng.choice(PARTS[split], way, replace=False)
            class_index = np.arange(way).repeat(shot + queries)
            images = len(class_index)
            tokens = np.zeros((images, patches, WIDTH))
            tokens[:, 0] = marker[family] + part[family, parts[class_index]]
            place = 1
            for other in range(self.families):
                if other == family:
                    continue
                for _ in range(self.distractors):
                    # Parts of any class of the episode: they say nothing about the image's class.
                    tokens[:, place] = marker[other] + part[other, rng.choice(parts, images)]
                    place += 1
            order = rng.permuted(np.tile(np.arange(patches), (images, 1)), axis=1)
            all_patches.append(np.take_along_axis(tokens, order[..., None], axis=1))
            all_cls.append(np.tile(marker[family], (images, 1)))
            all_roles.append(role[order])
            classes = tuple(f"family {family} part {number}" for number in parts)
            names += [classes[index] for index in class_index]
            rows = np.arange(images).reshape(way, -1) + number * images
            drawn.append(Episode.of(rows, shot, classes))
        keys = [f"{split}/{row}" for row in range(len(names))]
        tokens = ImageTokens(
            keys=keys,
            labels=[(name,) for name in names],
            annotations=[{}] * len(keys),
            media=keys,
            cls=self._noisy(rng, all_cls),
            patch=self._noisy(rng, all_patches),
            proj=None,
            grid=self.grid,
        )
        roles = torch.from_numpy(np.concatenate(all_roles))
        return Drawn(World(tokens, names, None), drawn, roles)

    def _noisy(self, rng: np.random.Generator, parts: list[np.ndarray]) -> Tensor:
        tokens = torch.from_numpy(np.concatenate(parts)).float()
        noise = rng.standard_normal(tokens.shape, dtype=np.float32)
        return tokens + self.noise / WIDTH**0.5 * torch.from_numpy(noise)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
