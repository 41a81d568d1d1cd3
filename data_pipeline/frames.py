"""Which frames of a clip stand for it: one at random of each part for training, evenly spaced ones for evaluation.

As for the published GLSCL; a clip is taken whole, without cutting a part of it first.
"""

from __future__ import annotations

import numpy as np


def random_frames(random: np.random.Generator, total: int, count: int) -> list[int]:
    """Choose one frame at random in each of `count` equal segments of `total` frames; rising numbers.

    A clip with fewer frames than segments repeats some of them.
    """
    borders = [total * segment // count for segment in range(count + 1)]
    lengths = [max(end - start, 1) for start, end in zip(borders, borders[1:], strict=False)]
    draws = random.random(count).tolist()
    return [
        start + int(draw * length)
        for start, length, draw in zip(borders, lengths, draws, strict=False)
    ]


def uniform_frames(total: int, count: int) -> list[int]:
    """Choose `count` evenly spaced frames of `total`, the first and the last among them; of one frame the middle one.

    A clip with fewer frames repeats some of them.
    """
    if count == 1:
        return [total // 2]
    return [(2 * number * (total - 1) + count - 1) // (2 * (count - 1)) for number in range(count)]
