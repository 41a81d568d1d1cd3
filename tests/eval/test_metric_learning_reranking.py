"""Re-ranking lifts copies of an image above the same patches in disorder, and nothing else."""

import numpy as np
import pytest
import torch

from eval.metrics.neighbours import similarities, top_k
from eval.stages.metric_learning.local_reranking import LocalFeatures, by_inliers, inliers
from eval.stages.metric_learning.protocols.ranking import metrics_of, rank_gallery
from eval.stages.metric_learning.protocols.task import EmbeddedImages

SIDE, WIDTH = 7, 24


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def world(seed: int) -> tuple[LocalFeatures, LocalFeatures, torch.Tensor, torch.Tensor]:
    """Six queries, and for each its shuffled patches and a shifted copy with a random border."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(6, SIDE, SIDE, WIDTH, generator=generator)
    order = torch.randperm(SIDE * SIDE, generator=generator)
    bags = tokens.flatten(1, 2)[:, order]
    copies = tokens.roll((1, 1), (1, 2))
    copies[:, 0] = torch.randn(6, SIDE, WIDTH, generator=generator)
    gallery = torch.cat(
        [bags, copies.flatten(1, 2), torch.randn(28, SIDE * SIDE, WIDTH, generator=generator)]
    )
    even = torch.ones(1, SIDE * SIDE)
    query = tokens.flatten(1, 2)
    return (
        LocalFeatures(query, even.expand(len(query), -1), (SIDE, SIDE)),
        LocalFeatures(gallery, even.expand(len(gallery), -1), (SIDE, SIDE)),
        query.mean(dim=1),
        gallery.mean(dim=1),
    )


@pytest.mark.parametrize("seed", range(3))
def test_a_copy_in_place_rises_above_the_same_patches_in_disorder(seed: int) -> None:
    query, gallery, query_means, gallery_means = world(seed)
    labels = [(f"{i}",) for i in range(6)]
    theirs: list[tuple[str, ...]] = [(), (), (), (), (), (), *labels, *[()] * 28]
    galleries = EmbeddedImages([f"g{i}" for i in range(40)], theirs, [{}] * 40, gallery_means)
    queries = EmbeddedImages([f"q{i}" for i in range(6)], labels, [{}] * 6, query_means)
    before = rank_gallery("query-gallery", galleries, queries)
    after = rank_gallery(
        "query-gallery", galleries, queries, reorder=by_inliers(query, gallery), depth=20
    )
    assert (
        metrics_of(before)[0].value == 0
    )  # the mean of its patches cannot tell a bag from its query
    assert metrics_of(after)[0].name == "recall@1" and metrics_of(after)[0].value == 100
    for line in after:
        assert all(-1 <= cosine <= 1.0001 for _, cosine, _ in line["top"])


def test_nothing_below_the_depth_moves_and_the_same_images_stay_above_it() -> None:
    query, gallery, query_means, gallery_means = world(0)
    reorder = by_inliers(query, gallery)
    for row, scores in enumerate(next(similarities(query_means, gallery_means))[1]):
        order = top_k(scores, 40)
        first = reorder(row, order[:9])
        assert sorted(first.tolist()) == sorted(order[:9].tolist())
        counted = inliers(query, row, gallery, order[:9])
        unmoved = order[:9][counted < 10].tolist()
        assert [item for item in first.tolist() if item in unmoved] == unmoved
    labels: list[tuple[str, ...]] = [("a",), ("b",)] * 20
    galleries = EmbeddedImages([f"g{i}" for i in range(40)], labels, [{}] * 40, gallery_means)
    queries = EmbeddedImages([f"q{i}" for i in range(6)], labels[:6], [{}] * 6, query_means)
    plain = rank_gallery("query-gallery", galleries, queries, ks=(9, 20, 30))
    other = rank_gallery(
        "query-gallery",
        galleries,
        queries,
        ks=(9, 20, 30),
        reorder=lambda _, some: some[::-1],
        depth=9,
    )
    for before, after in zip(plain, other, strict=True):
        for k in (9, 20, 30):
            assert before["values"][f"recall@{k}"] == after["values"][f"recall@{k}"]
        assert before["top"][0] != after["top"][0]
    with pytest.raises(ValueError, match="same gallery rows"):
        rank_gallery("query-gallery", galleries, queries, reorder=lambda _, some: some[:-1])


def test_turned_and_grown_copies_are_found_and_strangers_are_not() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(1, 12, 12, WIDTH, generator=generator)
    turned = tokens.rot90(1, (1, 2))
    grown = tokens[:, 3:9, 3:9].repeat_interleave(2, 1).repeat_interleave(2, 2)
    strangers = torch.randn(3, 12, 12, WIDTH, generator=generator)
    shown = torch.cat([turned, grown, strangers]).flatten(1, 2)
    query = LocalFeatures(tokens.flatten(1, 2), torch.ones(1, 144), (12, 12))
    gallery = LocalFeatures(shown, torch.ones(5, 144), (12, 12))
    number = inliers(query, 0, gallery, np.arange(5), patches=144)
    assert number[0] == 144 and number[1] >= 30 and number[2:].max() < 10
    np.testing.assert_array_equal(number, inliers(query, 0, gallery, np.arange(5), patches=144))


def test_only_attended_patches_are_matched() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(1, 49, WIDTH, generator=generator)
    left = (torch.arange(49) % 7 < 4).float()[None]
    same = LocalFeatures(tokens, left, (7, 7))
    right_only = tokens.clone()
    right_only[:, left[0] > 0] = torch.randn(28, WIDTH, generator=generator)
    assert inliers(same, 0, same, np.array([0]), patches=28)[0] == 28
    assert (
        inliers(same, 0, LocalFeatures(right_only, left, (7, 7)), np.array([0]), patches=28)[0] < 10
    )
    assert inliers(same, 0, same, np.empty(0, dtype=np.intp)).tolist() == []


def test_an_object_on_a_plain_background_is_found_where_it_moved_to() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(WIDTH, generator=generator).expand(1, SIDE, SIDE, WIDTH).clone()
    tokens[:, 1:5, 1:4] = torch.randn(4, 3, WIDTH, generator=generator)
    moved = tokens.roll((1, 2), (1, 2))
    weights = torch.ones(1, 49)
    query = LocalFeatures(tokens.flatten(1, 2), weights, (SIDE, SIDE))
    gallery = LocalFeatures(moved.flatten(1, 2), weights, (SIDE, SIDE))
    # All 37 patches of background match the same one: if one direction were enough, they would
    # outvote the object.
    assert inliers(query, 0, gallery, np.array([0]))[0] >= 12


def test_patches_must_fill_their_grid() -> None:
    with pytest.raises(ValueError, match="do not fit grids of 7 x 6"):
        LocalFeatures(torch.zeros(2, 49, 3), torch.zeros(2, 49), (7, 6))
