"""Which frames of a video are read."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.frames import random_frames, uniform_frames

counts, totals = st.integers(1, 16), st.integers(1, 400)


def generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))


@given(total=totals, count=counts, seed=st.integers(0, 99))
def test_a_training_clip_has_one_frame_of_each_segment(total, count, seed):
    frames = random_frames(generator(seed), total, count)
    assert (
        len(frames) == count and frames == sorted(frames) and frames[0] >= 0 and frames[-1] < total
    )
    borders = [total * number // count for number in range(count + 1)]
    for number, frame in enumerate(frames):
        assert borders[number] <= frame < max(borders[number + 1], borders[number] + 1)
    if total >= count:
        assert len(set(frames)) == count


@given(total=totals, count=st.integers(2, 16))
def test_an_evaluation_clip_is_evenly_spaced_from_first_to_last(total, count):
    frames = uniform_frames(total, count)
    assert (len(frames), frames[0], frames[-1]) == (count, 0, total - 1)
    exact = np.linspace(0, total - 1, count)
    assert np.abs(np.array(frames) - exact).max() <= 0.5 + 1e-9
    if total >= count:
        assert len(set(frames)) == count


def test_a_single_frame_is_the_middle_one():
    assert [uniform_frames(total, 1) for total in (1, 2, 9, 12)] == [[0], [1], [4], [6]]


def test_all_frames_of_a_segment_are_equally_likely():
    random = generator(0)
    seen = np.zeros(12)
    for _ in range(3000):
        seen[random_frames(random, 12, 4)] += 1
    assert abs(seen / 1000 - 1).max() < 0.12


def test_short_clips_repeat_frames():
    assert random_frames(generator(0), 1, 4) == [0, 0, 0, 0]
    assert random_frames(generator(0), 2, 4) == [0, 0, 1, 1]
    assert uniform_frames(2, 4) == [0, 0, 1, 1]
