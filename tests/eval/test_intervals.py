"""Intervals resample images: equal captions of an image add no certainty."""

import numpy as np
import pytest

from eval.results.intervals import (
    mean_interval,
    mean_metric,
    median_interval,
    paired_difference,
    proportion_interval,
    t_interval,
)
from eval.stages.sugarcrepe import stage as sugarcrepe
from eval.stages.zero_shot import stage as zero_shot

rng = np.random.default_rng(0)


def width(interval: tuple[float, float]) -> float:
    return interval[1] - interval[0]


def test_five_equal_captions_of_an_image_count_as_one() -> None:
    hits = (rng.random(400) < 0.4).astype(float)
    each = mean_interval(hits, range(400))
    fivefold = mean_interval(hits.repeat(5), np.arange(400).repeat(5))
    as_if_independent = mean_interval(hits.repeat(5), range(2000))
    assert fivefold == pytest.approx(each)
    assert width(as_if_independent) < 0.6 * width(fivefold)


def test_the_mean_interval_is_that_of_theory() -> None:
    hits = (rng.random(2000) < 0.3).astype(float)
    error = 1.96 * np.sqrt(hits.mean() * (1 - hits.mean()) / 2000)
    low, high = mean_interval(hits, range(2000))
    assert low == pytest.approx(hits.mean() - error, abs=0.004)
    assert high == pytest.approx(hits.mean() + error, abs=0.004)


def test_images_with_more_captions_weigh_more() -> None:
    values, clusters = (
        np.array([1.0, 1.0, 1.0, 0.0] * 50),
        [f"{i // 4}-{i % 4 == 3}" for i in range(200)],
    )
    low, high = mean_interval(values, clusters)
    assert low < 0.75 < high


def test_the_median_interval_equals_a_written_out_bootstrap() -> None:
    sizes = rng.integers(1, 6, 60)
    clusters = np.arange(60).repeat(sizes)
    values = rng.integers(1, 200, len(clusters)).astype(float)
    groups = [values[clusters == i] for i in range(60)]
    drawn = []
    for _ in range(2000):
        resampled = [groups[i] for i in rng.integers(0, 60, 60)]
        drawn.append(np.median(np.concatenate(resampled)))
    low, high = median_interval(values, clusters)
    assert low == pytest.approx(np.percentile(drawn, 2.5), abs=6)
    assert high == pytest.approx(np.percentile(drawn, 97.5), abs=6)


def test_the_same_values_give_the_same_interval_in_any_order() -> None:
    hits, clusters = (rng.random(100) < 0.5).astype(float), np.arange(50).repeat(2)
    assert mean_interval(hits, clusters) == mean_interval(hits, clusters)
    order = rng.permutation(100)
    assert mean_interval(hits[order], clusters[order]) == pytest.approx(
        mean_interval(hits, clusters)
    )


def test_one_image_has_no_spread() -> None:
    assert mean_interval([0.0, 1.0], ["a", "a"]) == (0.5, 0.5)
    assert median_interval([3.0], ["a"]) == (3.0, 3.0)


def test_the_t_interval_is_that_of_the_textbook() -> None:
    # Mean 3, standard deviation 1.5811, t(0.975, 4) = 2.7764: 3 +- 1.9632.
    assert t_interval([1, 2, 3, 4, 5]) == pytest.approx((1.0368, 4.9632), abs=1e-4)
    assert t_interval([1.0]) is None


def test_a_paired_difference_forgets_what_both_share() -> None:
    common, gain = 20 * rng.normal(size=200), 1 + rng.normal(size=200)
    value, interval = paired_difference(common + gain, common)
    apart = width(t_interval(common + gain) or (0, 0))
    assert interval is not None and interval[0] < 1 < interval[1] and width(interval) < apart / 10
    assert value == pytest.approx(gain.mean())
    assert paired_difference([2.0], [1.0]) == (1.0, None)


@pytest.mark.parametrize("prevalence", [0.02, 0.05, 0.3, 0.5, 0.95])
def test_the_interval_of_a_proportion_covers_the_truth_where_a_bootstrap_does_not(
    prevalence: float,
) -> None:
    draws = np.random.default_rng(3).random((2000, 100)) < prevalence
    covered = 0
    for right in draws:
        low, high = proportion_interval(right, range(100))
        covered += low <= prevalence <= high
    assert covered >= 0.93 * len(draws)  # a percentile bootstrap: 83 % at a prevalence of 5 %


def test_the_interval_of_a_proportion_covers_the_truth_of_clustered_answers() -> None:
    random = np.random.default_rng(4)
    clusters = np.arange(80).repeat(5)
    covered = 0
    for _ in range(400):
        chances = random.beta(0.5, 4.5, 80)  # answers about one image agree with each other
        right = random.random(400) < chances.repeat(5)
        low, high = proportion_interval(right, clusters)
        covered += low <= 0.1 <= high
    assert covered >= 0.92 * 400


def test_a_proportion_of_nothing_or_everything_has_an_interval() -> None:
    low, high = proportion_interval([False] * 100, range(100))
    assert low == 0 and high == pytest.approx(0.0379, abs=0.001)  # Wilson's with Student's quantile
    assert proportion_interval([True] * 100, range(100)) == pytest.approx((1 - high, 1.0))
    assert proportion_interval([True], [0]) == (0.0, 1.0)
    assert t_interval([100.0] * 50, scale=100.0) is not None
    least, most = t_interval([100.0] * 50, scale=100.0) or (0, 0)
    assert least < 95 and most == 100


def test_the_metric_of_a_mean_counts_its_clusters() -> None:
    metric = mean_metric("accuracy", [100.0, 0.0, 100.0, 100.0], ["a", "a", "b", "c"], chance=50.0)
    assert (metric.value, metric.n, metric.clusters, metric.chance) == (75.0, 4, 3, 50.0)
    assert metric.ci95 is not None and 0 <= metric.ci95[0] < 75 < metric.ci95[1] <= 100
    difference = mean_metric("gain", [0.0, 0.0, 0.0], list("abc"), unit="percentage points")
    assert difference.ci95 == (0.0, 0.0)  # equal answers differ by nothing, whatever is drawn


@pytest.mark.parametrize(("above", "margin"), [(0, 1.0), (1, -1.0)])
def test_means_over_classes_or_kinds_have_a_width_at_both_ends(above: int, margin: float) -> None:
    images = [str(number) for number in range(30)]
    classified, chosen = [], []
    for image in images:
        shared = {"query": image, "image": image, "picture": image}
        label = "ab"[int(image) % 2]
        classified.append(shared | {"label": label, "candidates": 9, "above": above, "tied": 1})
        scores = {"contrastive": [margin, 0.0], "matching": [margin, 0.0]}
        chosen.append(shared | {"kind": label, "true": "t", "false": "f"} | scores)
    means = [m for m in zero_shot.metrics(classified) if m.name == "mean_per_class"]
    means += [m for m in sugarcrepe.metrics(chosen) if "mean_accuracy" in m.name]
    assert len(means) == 3
    for metric in means:
        assert metric.ci95 is not None and metric.ci95[1] - metric.ci95[0] > 5
