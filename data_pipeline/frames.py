"""Which frames of a video are read: random ones for training, evenly spaced ones for evaluation.

In: the number of frames of a video, and how many are needed. Out: rising frame numbers. Both rules
are those of the published GLSCL; the video is taken whole, without cutting a part of it first.
"""

from __future__ import annotations

import numpy as np


def random_frames(random: np.random.Generator, total: int, count: int) -> list[int]:
    """Choose one frame at random in each of `count` equal segments of `total` frames.

    A video with fewer frames than segments repeats some of them.
    """
    frames = []
    for segment, draw in enumerate(random.random(count).tolist()):
        start, end = total * segment // count, total * (segment + 1) // count
        frames.append(start + int(draw * max(end - start, 1)))
    return frames


def uniform_frames(total: int, count: int) -> list[int]:
    """Choose `count` evenly spaced frames of `total`, with the first and the last among them.

    A single frame is the middle one. A video with fewer frames than `count` repeats some of them.
    """
    if count == 1:
        return [total // 2]
    # number * (total - 1) / (count - 1), rounded to the nearest in whole numbers.
    return [(2 * number * (total - 1) + count - 1) // (2 * (count - 1)) for number in range(count)]
