"""Episodes depend on seed and number alone, show no query, and give intervals that cover."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data_pipeline.errors import DataError, UsageError
from eval.results.intervals import t_interval
from eval.stages.few_shot.episodes import Episode, EpisodeList, EpisodeSampler, read_episodes

FORM = {"way": 3, "shot": 2, "queries": 3, "episodes": 20, "seed": 4}


def labels_of(*counts: int) -> list[str]:
    labels = []
    for number, count in enumerate(counts):
        labels += [f"class {number}"] * count
    return labels


def same(a: Episode, b: Episode) -> bool:
    return a.classes == b.classes and bool(
        (a.support == b.support).all() and (a.query == b.query).all()
    )


@given(
    counts=st.lists(st.integers(4, 12), min_size=3, max_size=7),
    seed=st.integers(0, 2**40),
    disjoint=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_every_episode_is_whole_and_shows_no_query(
    counts: list[int], seed: int, disjoint: bool
) -> None:
    labels = np.array(labels_of(*counts))
    sampler = EpisodeSampler(
        labels.tolist(), way=3, shot=1, queries=3, episodes=9, seed=seed, disjoint=disjoint
    )
    for episode in sampler:
        assert len(set(episode.classes)) == 3
        for rows, class_index, per_class in (
            (episode.support, episode.support_y, 1),
            (episode.query, episode.query_y, 3),
        ):
            assert class_index.tolist() == np.arange(3).repeat(per_class).tolist()
            assert labels[rows].tolist() == [episode.classes[index] for index in class_index]
        assert len({*episode.support, *episode.query}) == 12


@given(counts=st.lists(st.integers(5, 30), min_size=3, max_size=8), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_disjoint_episodes_share_no_image_and_are_as_many_as_possible(
    counts: list[int], seed: int
) -> None:
    sampler = EpisodeSampler(
        labels_of(*counts), **FORM | {"episodes": 1000, "seed": seed}, disjoint=True
    )
    used: list[int] = []
    for episode in sampler:
        used += [*episode.support, *episode.query]
    assert len(used) == len(set(used))
    assert len(sampler) == most_disjoint_episodes(counts)


def most_disjoint_episodes(counts: list[int]) -> int:
    """Return the most episodes of 3 classes with 5 images each."""
    most = 0
    for episodes in range(100):
        # A class gives at most one block of 5 images to each episode.
        blocks = sum(min(count // 5, episodes) for count in counts)
        if blocks >= 3 * episodes:
            most = episodes
    return most


def test_an_episode_depends_on_seed_and_number_alone() -> None:
    labels = labels_of(9, 8, 7, 6, 5)
    sampler = EpisodeSampler(labels, **FORM)
    longer = EpisodeSampler(labels, **FORM | {"episodes": 500})
    assert all(same(sampler[number], longer[number]) for number in (19, 3, 0))
    assert not same(sampler[3], sampler[4])
    assert not same(sampler[3], EpisodeSampler(labels, **FORM | {"seed": 5})[3])
    with pytest.raises(IndexError):
        sampler[20]


def test_copies_of_an_image_count_once() -> None:
    # Four classes of five images, each of them twice.
    media = [f"file {row // 2}" for row in range(40)]
    sampler = EpisodeSampler(labels_of(10, 10, 10, 10), **FORM | {"episodes": 50}, media=media)
    for episode in sampler:
        rows = [*episode.support, *episode.query]
        assert len({media[row] for row in rows}) == len(rows)
    with pytest.raises(DataError, match="too few images of 'class 0' .5."):
        EpisodeSampler(labels_of(10, 10, 10, 10), **FORM | {"queries": 4}, media=media)


@pytest.mark.parametrize(
    ("counts", "change", "error", "message"),
    [
        ((9, 9), {}, UsageError, "--data has 2 classes, fewer than the 3 ways: choose way 2"),
        ((9,), {}, UsageError, "an episode needs at least two"),
        (
            (9, 4, 9, 3),
            {},
            DataError,
            r"'class 1' \(4\), 'class 3' \(3\).*choose at most 1 queries, or leave these",
        ),
        ((9, 2, 9), {}, DataError, r"'class 1' \(2\).*choose at most 1 shots"),
        ((9, 1, 9), {}, DataError, "add images"),
        ((4,) * 8, {}, DataError, "and 3 more"),
        ((9, 9, 9), {"way": 1}, UsageError, "way is 1, must be at least 2"),
        ((9, 9, 9), {"queries": 0}, UsageError, "queries is 0, must be at least 1"),
        ((9, 9, 9), {"seed": -1}, UsageError, "seed is -1, must be at least 0"),
    ],
)
def test_episodes_that_cannot_be_drawn_are_refused_with_advice(
    counts: tuple[int, ...], change: dict[str, int], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        EpisodeSampler(labels_of(*counts), **FORM | change, name="--data")


@pytest.mark.parametrize("disjoint", [False, True])
def test_a_list_on_disk_gives_the_same_episodes_whatever_the_order_of_the_data(
    tmp_path: Path, disjoint: bool
) -> None:
    labels = labels_of(9, 8, 7, 6)
    keys = [f"data/{row:03d}" for row in range(len(labels))]
    sampler = EpisodeSampler(labels, **FORM, disjoint=disjoint)
    listed = EpisodeList.of(sampler, keys)
    path = tmp_path / "list.json"
    path.write_text(listed.text, "utf-8")
    read = read_episodes(path, keys, labels=labels)
    assert all(same(a, b) for a, b in zip(read.episodes, sampler, strict=True))
    assert (read.way, read.shot, read.queries, read.disjoint) == (3, 2, 3, disjoint)
    assert read.hash == listed.hash
    reversed_keys = keys[::-1]
    of_reversed = read_episodes(path, reversed_keys, labels=labels[::-1])
    query_keys = [keys[row] for row in read.episodes[0].query]
    assert [reversed_keys[row] for row in of_reversed.episodes[0].query] == query_keys


def write_list(tmp_path: Path, **changes: object) -> Path:
    episode = {"classes": ["a", "b"], "support": [[0], [3]], "query": [[1, 2], [4, 5]]}
    content = {
        "format": "glscl-episodes/1",
        "pictures": list("uvwxyz"),
        "episodes": [episode | changes],
    }
    (tmp_path / "list.json").write_text(json.dumps(content))
    return tmp_path / "list.json"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": [[0, 2], [4, 5]]}, "episode 0: u or a copy of it is in support and in query"),
        ({"query": [[2, 2], [4, 5]]}, "w or a copy of it is in query and in query"),
        ({"query": [[1, 2], [4, 2]]}, "w is 'a', not 'b'"),
        ({"query": [[1], [4, 5]]}, "is not a list of episodes"),
        ({"query": [[1, 2]]}, "must list images of each of its 2 classes"),
        ({"query": [[1, 2], [4, 6]]}, "is not a list of episodes"),
        ({"classes": ["a", "a"]}, "names a class twice"),
        (
            {"query": [[1.0, 2], [4, 5]]},
            "list.json .*must name images by whole numbers from 0 to 5",
        ),
        ({"query": [[True, 2], [4, 5]]}, "must name images by whole numbers"),
        ({"query": [[1, 10**30], [4, 5]]}, "must name images by whole numbers"),
        ({"query": [["1", 2], [4, 5]]}, "must name images by whole numbers"),
        ({"query": [1, 2]}, "is not a list of episodes"),
        (
            {"classes": ["a"], "support": [[0]], "query": [[1, 2]]},
            "has 1 classes, an episode needs at least two",
        ),
    ],
)
def test_a_broken_list_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    keys, labels = list("uvwxyz"), list("aaabbb")
    assert len(read_episodes(write_list(tmp_path), keys, labels=labels).episodes) == 1
    with pytest.raises(DataError, match=message):
        read_episodes(write_list(tmp_path, **changes), keys, labels=labels)


def test_a_list_of_other_data_is_refused(tmp_path: Path) -> None:
    path = write_list(tmp_path)
    with pytest.raises(DataError, match="the data has no image 'z' with exactly one label"):
        read_episodes(path, list("uvwxy"))
    with pytest.raises(DataError, match="v or a copy of it is in support and in query"):
        read_episodes(path, list("uvwxyz"), media=["m", "m", *"wxyz"])
    with pytest.raises(UsageError, match="cannot read the episode list"):
        read_episodes(tmp_path / "none.json", list("uvwxyz"))
    content = json.loads(path.read_text())
    twice = content | {"episodes": content["episodes"] * 2, "disjoint": True}
    path.write_text(json.dumps(twice))
    with pytest.raises(DataError, match="episodes 0 and 1 share u"):
        read_episodes(path, list("uvwxyz"))


def _rows(**form: int | bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return support (episodes, 5) and queries (episodes, 5 * queries) of 1-shot episodes.

    They are drawn from 20 classes of 60 images.
    """
    sampler = EpisodeSampler(labels_of(*[60] * 20), way=5, shot=1, episodes=600, **form)  # type: ignore[arg-type]
    return np.stack([e.support for e in sampler]), np.stack([e.query for e in sampler])


def _accuracy(
    images: NDArray[np.float64], support: NDArray[np.int64], query: NDArray[np.int64]
) -> Any:
    """Return the accuracy in percent of the nearest support image, episode by episode."""
    shown = images[support]
    # Squared distances, without the part that is the same for all support images.
    distance = (shown**2).sum(axis=2)[:, None] - 2 * images[query] @ shown.transpose(0, 2, 1)
    truth = np.arange(5).repeat(query.shape[1] // 5)
    return 100 * (distance.argmin(axis=2) == truth).mean(axis=1)


def test_intervals_of_disjoint_episodes_cover_the_truth_and_of_overlapping_ones_do_not() -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(20, 10)).repeat(60, axis=0)
    overlapping = [_rows(queries=15, seed=seed) for seed in range(3)]
    disjoint = [_rows(queries=5, seed=seed, disjoint=True) for seed in range(20)]
    redraws = 60
    drawn = [centres + 1.3 * rng.normal(size=centres.shape) for _ in range(2 * redraws)]
    # The truth is the mean over other draws of the images.
    truth = np.mean([_accuracy(images, *overlapping[0]).mean() for images in drawn[redraws:]])
    covered = {"closed world": 0, "open world": 0, "open world, moved to the other mean": 0}
    for number, images in enumerate(drawn[:redraws]):
        closed_world = _accuracy(images, *overlapping[number % len(overlapping)])
        open_world = _accuracy(images, *disjoint[number % len(disjoint)])
        intervals = [t_interval(values) or (0, 0) for values in (closed_world, open_world)]
        offset = closed_world.mean() - open_world.mean()
        intervals.append((intervals[1][0] + offset, intervals[1][1] + offset))
        for name, (low, high) in zip(covered, intervals, strict=True):
            covered[name] += bool(low <= truth <= high)
    assert covered["closed world"] / redraws < 0.85, covered
    assert 0.90 <= covered["open world"] / redraws <= 1.0, covered
    assert 0.90 <= covered["open world, moved to the other mean"] / redraws <= 1.0, covered
