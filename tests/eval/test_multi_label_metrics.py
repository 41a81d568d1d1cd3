"""Metrics of several labels: by hand, against scikit-learn, and intervals against resampling."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score

from eval.results.schema import Metric
from eval.stages.multi_label.metrics import average_precision, multilabel_metrics
from eval.stages.multi_label.records import DrawRecord, _unpack, metrics, record_of
from eval.stages.multi_label.summary import flag_uninformative


def test_average_precision_by_hand() -> None:
    scores, truth = np.array([4.0, 3, 2, 1]), np.array([True, False, True, False])
    assert average_precision(scores, truth)[0] == pytest.approx((1 / 1 + 2 / 3) / 2)


def test_tied_scores_are_one_step_whatever_their_order() -> None:
    scores = np.array([1.0, 1, 1, 0])
    expected = 1 / 2 * 1 / 3 + 1 / 2 * 2 / 4
    for truth in ([1, 0, 0, 1], [0, 0, 1, 1]):
        assert average_precision(scores, np.array(truth, dtype=bool))[0] == pytest.approx(expected)


def test_all_metrics_by_hand_with_a_label_that_no_image_has() -> None:
    truth = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]], dtype=bool)
    scores = np.array([[2.0, -1, 1], [-2, 3, -1], [1, 2, -1], [-1, 1, -1]])
    values, by_label = multilabel_metrics(scores, truth)
    assert by_label[:2] == pytest.approx([(1 / 1 + 2 / 4) / 2, 1.0]) and np.isnan(by_label[2])
    assert values["n_classes_scored"] == 2
    assert values["mAP"] == pytest.approx((0.75 + 1) / 2)
    # Predicted: label 0 in images 0 and 2, label 1 in 1, 2 and 3, label 2 in 0. Three of these six
    # are right, and four labels are present.
    assert values["micro_P"] == pytest.approx(3 / 6)
    assert values["micro_R"] == pytest.approx(3 / 4)
    assert values["micro_F1"] == pytest.approx(0.6)
    assert values["macro_P"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert values["macro_R"] == pytest.approx((1 / 2 + 1) / 2)
    assert values["macro_F1"] == pytest.approx((0.5 + 0.8) / 2)
    p, r = (1 / 2 + 2 / 3) / 2, 0.75
    assert values["macro_F1_PR"] == pytest.approx(2 * p * r / (p + r))
    assert values["macro_F1"] != pytest.approx(values["macro_F1_PR"], abs=1e-3)
    # Of the 12 pairs by score, present ones are at 3, twice at 2, and at the end at -2.
    assert values["micro_AP"] == pytest.approx((1 + 2 * 3 / 3) / 4 + 1 / 4 * 4 / 12)


def test_a_single_label_is_measured_too() -> None:
    scores, truth = np.array([[1.0], [-1], [2]]), np.array([[True], [True], [False]])
    values, _ = multilabel_metrics(scores, truth)
    for name in ("macro_P", "micro_P", "macro_R", "macro_F1"):
        assert values[name] == 0.5


def test_without_a_threshold_only_rankings_are_measured() -> None:
    values, _ = multilabel_metrics(np.array([[1.0, 0], [0, 1]]), np.eye(2, dtype=bool), None)
    assert set(values) == {"mAP", "micro_AP", "n_classes_scored"} and values["mAP"] == 1


_SIZES = st.tuples(st.integers(2, 30), st.integers(2, 6), st.integers(1, 8), st.integers(0, 2**31))


@settings(deadline=None, max_examples=25)
@given(_SIZES)
def test_metrics_agree_with_scikit_learn(sizes: tuple[int, int, int, int]) -> None:
    images, labels, largest, seed = sizes
    rng = np.random.default_rng(seed)
    truth = rng.random((images, labels)) < 0.4
    truth[0, 0] = True
    # Small whole numbers have many ties.
    scores = rng.integers(-largest, largest + 1, (images, labels)).astype(float)
    values, by_label = multilabel_metrics(scores, truth)
    scored = np.flatnonzero(truth.any(axis=0))
    expected = [average_precision_score(truth[:, c], scores[:, c]) for c in scored]
    assert by_label[scored] == pytest.approx(expected)
    assert np.isnan(np.delete(by_label, scored)).all()
    assert values["mAP"] == pytest.approx(np.mean(expected))
    micro = average_precision_score(truth, scores, average="micro")
    assert values["micro_AP"] == pytest.approx(micro)
    for name, function in {"P": precision_score, "R": recall_score, "F1": f1_score}.items():
        by_column = function(truth, scores > 0, average=None, zero_division=0)
        assert values[f"macro_{name}"] == pytest.approx(by_column[scored].mean())
        micro = function(truth, scores > 0, average="micro", zero_division=0)
        assert values[f"micro_{name}"] == pytest.approx(micro)


@settings(deadline=None, max_examples=15)
@given(_SIZES)
def test_influences_are_derivatives_of_the_weighted_average_precision(
    sizes: tuple[int, int, int, int],
) -> None:
    images, _, largest, seed = sizes
    rng = np.random.default_rng(seed)
    truth = rng.random(images) < 0.4
    truth[0] = True
    scores = rng.integers(-largest, largest + 1, images).astype(float)
    _, influence = average_precision(scores, truth)
    # Equal weights for all images change nothing, however large they are.
    assert influence.sum() == pytest.approx(0, abs=1e-9)
    for image in range(min(images, 5)):
        step = np.eye(images)[image] * 1e-5
        up = average_precision_score(truth, scores, sample_weight=1 + step)
        down = average_precision_score(truth, scores, sample_weight=1 - step)
        assert influence[image] == pytest.approx((up - down) / 2e-5, abs=1e-5)


def _records(draws: int, images: int = 300, seed: int = 0) -> list[DrawRecord]:
    rng = np.random.default_rng(seed)
    truth = rng.random((images, 4)) < 0.3
    records = []
    for number in range(draws):
        query = np.sort(rng.permutation(images)[: images - 10])
        noise = {name: rng.normal(size=truth.shape) for name in ("lcm", "all_patch")}
        scores = {
            "lcm": (2 * truth + noise["lcm"])[query] - 1,
            "all_patch": (truth + noise["all_patch"])[query] - 1,
        }
        records.append(record_of(1, number, ["a", "b", "c", "d"], truth, query, scores, True))
    return records


def _by_name(records: list[DrawRecord]) -> dict[str, Metric]:
    return {metric.name: metric for metric in metrics(records)}


def test_the_interval_over_images_is_as_wide_as_by_resampling_them() -> None:
    records = _records(1)
    low, high = _by_name(records)["1shot/lcm/mAP"].intervals["pictures"]
    rng = np.random.default_rng(1)
    draw = _unpack(records[0])
    scores, truth = draw.scores["lcm"], draw.truth
    resampled = []
    for _ in range(300):
        rows = rng.integers(0, len(truth), len(truth))
        resampled.append(100 * multilabel_metrics(scores[rows], truth[rows], None)[0]["mAP"])
    assert (high - low) / 2 == pytest.approx(1.96 * np.std(resampled), rel=0.15)


def test_metrics_of_records_are_means_over_draws_with_paired_differences() -> None:
    records = _records(4)
    by_name = _by_name(records)
    single = [_by_name([record]) for record in records]
    for name in (
        "1shot/lcm/mAP",
        "1shot/lcm/micro_F1",
        "1shot/all_patch/class/c",
        "1shot/lcm-all_patch/mAP",
    ):
        values = [of_draw[name].value for of_draw in single]
        assert by_name[name].value == pytest.approx(np.mean(values))
        assert (
            by_name[name].n == 4 and by_name[name].ci95 is not None and single[0][name].ci95 is None
        )
    difference = by_name["1shot/lcm/mAP"].value - by_name["1shot/all_patch/mAP"].value
    assert by_name["1shot/lcm-all_patch/mAP"].value == pytest.approx(difference)
    assert by_name["1shot/lcm-all_patch/mAP"].unit == "percentage points"
    assert by_name["1shot/n_classes_scored"].value == 4
    assert not any("all_patch-all_patch" in name for name in by_name)


def test_stored_scores_keep_the_metrics_to_a_hundredth_of_a_point() -> None:
    rng = np.random.default_rng(3)
    truth = rng.random((500, 4)) < 0.3
    scores = 2 * truth + rng.normal(size=truth.shape) - 1
    record = record_of(5, 0, list("abcd"), truth, np.arange(500), {"lcm": scores}, True)
    exact, _ = multilabel_metrics(scores, truth)
    for metric in metrics([record]):
        name = metric.name.rpartition("/")[2]
        if name in exact and name != "n_classes_scored":
            assert metric.value == pytest.approx(100 * exact[name], abs=0.01)


def test_intervals_of_percentages_end_at_0_and_100_and_of_differences_do_not() -> None:
    truth = np.arange(8)[:, None] % 2 == [0, 1]
    right, wrong = 2.0 * truth - 1, 1 - 2.0 * truth
    of_draws = [{"lcm": right, "all_patch": wrong}, {"lcm": wrong, "all_patch": right}]
    records = []
    for number, scores in enumerate(of_draws):
        records.append(record_of(1, number, ["a", "b"], truth, np.arange(8), scores, True))
    by_name = _by_name(records)
    for name in ("mAP", "micro_F1", "class/a"):
        assert by_name[f"1shot/lcm/{name}"].ci95 == (0, 100)
    assert by_name["1shot/lcm-all_patch/mAP"].ci95[1] > 100
    over_images = []
    for seed in range(5):
        for metric in metrics(_records(2, images=20, seed=seed)):
            if metric.unit == "percent" and metric.intervals:
                over_images.append(metric.intervals["pictures"])
    assert all(0 <= low <= high <= 100 for low, high in over_images)
    assert any(low < high == 100 for low, high in over_images)


def test_methods_that_never_predict_a_label_are_flagged() -> None:
    records = _records(2)
    truth = np.eye(4, dtype=bool)
    for number in range(2):
        scores = {"lcm": truth - 2.0, "cross": truth - 1.0, "text_proto": truth - 0.5}
        records.append(record_of(5, number, list("abcd"), truth, np.arange(4), scores, True))
    for record in records:
        record["constant"] = []
    flags = flag_uninformative(records)
    assert flags == ["no label is ever predicted at threshold 0.5: lcm, cross (5shot)"]
    for record in records:
        record["logits"] = False
    assert flag_uninformative(records) == []  # without a threshold nothing is predicted


def test_a_label_that_no_query_has_is_left_out_of_that_draw() -> None:
    truth = np.zeros((6, 2), dtype=bool)
    truth[:4, 0] = truth[5, 1] = True
    scores = np.arange(12.0).reshape(6, 2)
    whole = record_of(1, 0, ["a", "b"], truth, np.arange(6), {"lcm": scores}, False)
    part = record_of(1, 1, ["a", "b"], truth, np.arange(5), {"lcm": scores[:5]}, False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        by_name = _by_name([whole, part])
    assert by_name["1shot/n_classes_scored"].value == 1.5
    assert by_name["1shot/lcm/class/b"].n == 1 and by_name["1shot/lcm/class/a"].n == 2
    assert "1shot/lcm/micro_F1" not in by_name  # no logits, no threshold
