"""Metrics of several labels: by hand, against scikit-learn, and intervals against resampling."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score, precision_score, recall_score

from eval.stages.multi_label.metrics import average_precision, multilabel_metrics
from eval.stages.multi_label.records import metrics, record_of
from eval.stages.multi_label.summary import silent


def test_average_precision_by_hand() -> None:
    scores, truth = np.array([4.0, 3, 2, 1]), np.array([True, False, True, False])
    assert average_precision(scores, truth)[0] == pytest.approx((1 / 1 + 2 / 3) / 2)


def test_tied_scores_are_one_step_whatever_their_order() -> None:
    scores = np.array([1.0, 1, 1, 0])
    expected = 1 / 2 * 1 / 3 + 1 / 2 * 2 / 4
    for truth in ([1, 0, 0, 1], [0, 0, 1, 1]):
        assert average_precision(scores, np.array(truth, dtype=bool))[0] == pytest.approx(expected)


def test_all_metrics_by_hand_with_a_label_that_no_picture_has() -> None:
    truth = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]], dtype=bool)
    scores = np.array([[2.0, -1, 1], [-2, 3, -1], [1, 2, -1], [-1, 1, -1]])
    found, by_label = multilabel_metrics(scores, truth)
    assert by_label[:2] == pytest.approx([(1 / 1 + 2 / 4) / 2, 1.0]) and np.isnan(by_label[2])
    assert found["n_classes_scored"] == 2
    assert found["mAP"] == pytest.approx((0.75 + 1) / 2)
    # said: label 0 of pictures 0 and 2, label 1 of 1, 2 and 3, label 2 of 0: three are right, four
    # are there
    assert found["micro_P"] == pytest.approx(3 / 6) and found["micro_R"] == pytest.approx(3 / 4)
    assert found["micro_F1"] == pytest.approx(0.6)
    assert found["macro_P"] == pytest.approx((1 / 2 + 2 / 3) / 2) and found[
        "macro_R"
    ] == pytest.approx((1 / 2 + 1) / 2)
    assert found["macro_F1"] == pytest.approx((0.5 + 0.8) / 2)
    p, r = (1 / 2 + 2 / 3) / 2, 0.75
    assert found["macro_F1_PR"] == pytest.approx(2 * p * r / (p + r))
    assert found["macro_F1"] != pytest.approx(found["macro_F1_PR"], abs=1e-3)
    ranked = [
        (3, 1),
        (2, 1),
        (2, 1),
        (1, 0),
        (1, 0),
        (1, 0),
        (-1, 0),
        (-2, 1),
    ]  # by score; 12 pairs, four are there
    assert len([pair for pair in ranked if pair[1]]) == 4
    assert found["micro_AP"] == pytest.approx((1 + 2 * 3 / 3) / 4 + 1 / 4 * 4 / 12)


def test_one_label_alone_is_measured_too() -> None:
    found, _ = multilabel_metrics(np.array([[1.0], [-1], [2]]), np.array([[True], [True], [False]]))
    assert (
        found["macro_P"] == found["micro_P"] == 0.5
        and found["macro_R"] == 0.5
        and found["macro_F1"] == 0.5
    )


def test_without_a_threshold_only_rankings_are_measured() -> None:
    found, _ = multilabel_metrics(np.array([[1.0, 0], [0, 1]]), np.eye(2, dtype=bool), None)
    assert set(found) == {"mAP", "micro_AP", "n_classes_scored"} and found["mAP"] == 1


_SIZES = st.tuples(st.integers(2, 30), st.integers(2, 6), st.integers(1, 8), st.integers(0, 2**31))


@settings(deadline=None, max_examples=25)
@given(_SIZES)
def test_metrics_agree_with_scikit_learn(sizes: tuple[int, int, int, int]) -> None:
    pictures, labels, values, seed = sizes
    rng = np.random.default_rng(seed)
    truth = rng.random((pictures, labels)) < 0.4
    truth[0, 0] = True
    scores = rng.integers(-values, values + 1, (pictures, labels)).astype(float)  # many ties
    found, by_label = multilabel_metrics(scores, truth)
    scored = np.flatnonzero(truth.any(axis=0))
    each = [average_precision_score(truth[:, c], scores[:, c]) for c in scored]
    assert by_label[scored] == pytest.approx(each) and np.isnan(np.delete(by_label, scored)).all()
    assert found["mAP"] == pytest.approx(np.mean(each))
    assert found["micro_AP"] == pytest.approx(
        average_precision_score(truth, scores, average="micro")
    )
    for name, function in {"P": precision_score, "R": recall_score, "F1": f1_score}.items():
        by_hand = function(truth, scores > 0, average=None, zero_division=0)[scored].mean()
        assert found[f"macro_{name}"] == pytest.approx(by_hand)
        assert found[f"micro_{name}"] == pytest.approx(
            function(truth, scores > 0, average="micro", zero_division=0)
        )


@settings(deadline=None, max_examples=15)
@given(_SIZES)
def test_influences_are_derivatives_of_the_weighted_average_precision(
    sizes: tuple[int, int, int, int],
) -> None:
    pictures, _, values, seed = sizes
    rng = np.random.default_rng(seed)
    truth = rng.random(pictures) < 0.4
    truth[0] = True
    scores = rng.integers(-values, values + 1, pictures).astype(float)
    _, influence = average_precision(scores, truth)
    assert influence.sum() == pytest.approx(0, abs=1e-9)  # more of everything changes nothing
    for picture in range(min(pictures, 5)):
        step = np.eye(pictures)[picture] * 1e-5
        up, down = (
            average_precision_score(truth, scores, sample_weight=1 + s) for s in (step, -step)
        )
        assert influence[picture] == pytest.approx((up - down) / 2e-5, abs=1e-5)


def _records(draws: int, pictures: int = 300, seed: int = 0) -> list[dict]:
    rng = np.random.default_rng(seed)
    truth = rng.random((pictures, 4)) < 0.3
    records = []
    for number in range(draws):
        query = np.sort(rng.permutation(pictures)[: pictures - 10])
        noise = {name: rng.normal(size=truth.shape) for name in ("lcm", "all_patch")}
        scores = {
            "lcm": (2 * truth + noise["lcm"])[query] - 1,
            "all_patch": (truth + noise["all_patch"])[query] - 1,
        }
        records.append(record_of(1, number, ["a", "b", "c", "d"], truth, query, scores, True))
    return records


def test_the_interval_over_pictures_is_that_of_resampling_them() -> None:
    records = _records(1)
    stored = {metric.name: metric for metric in metrics(records)}["1shot/lcm/mAP"]
    rng = np.random.default_rng(1)
    from eval.stages.multi_label.records import _unpacked

    _, truth, scores = _unpacked(records[0])
    drawn = []
    for _ in range(300):
        rows = rng.integers(0, len(truth), len(truth))
        drawn.append(100 * multilabel_metrics(scores["lcm"][rows], truth[rows], None)[0]["mAP"])
    half = (stored.intervals["pictures"][1] - stored.intervals["pictures"][0]) / 2
    assert half == pytest.approx(1.96 * np.std(drawn), rel=0.15)


def test_metrics_of_records_are_means_over_draws_with_paired_differences() -> None:
    records = _records(4)
    found = {metric.name: metric for metric in metrics(records)}
    single = [{metric.name: metric for metric in metrics([record])} for record in records]
    for name in (
        "1shot/lcm/mAP",
        "1shot/lcm/micro_F1",
        "1shot/all_patch/class/c",
        "1shot/lcm-all_patch/mAP",
    ):
        assert found[name].value == pytest.approx(np.mean([each[name].value for each in single]))
        assert found[name].n == 4 and found[name].ci95 is not None and single[0][name].ci95 is None
    difference = found["1shot/lcm/mAP"].value - found["1shot/all_patch/mAP"].value
    assert found["1shot/lcm-all_patch/mAP"].value == pytest.approx(difference)
    assert found["1shot/lcm-all_patch/mAP"].unit == "percentage points"
    assert found["1shot/n_classes_scored"].value == 4
    assert not any("all_patch-all_patch" in name for name in found)


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


def test_intervals_of_shares_end_at_0_and_100_and_those_of_differences_do_not() -> None:
    truth = np.arange(8)[:, None] % 2 == [0, 1]
    right, wrong = 2.0 * truth - 1, 1 - 2.0 * truth
    each = [({"lcm": right, "all_patch": wrong}), ({"lcm": wrong, "all_patch": right})]
    records = [
        record_of(1, n, ["a", "b"], truth, np.arange(8), scores, True)
        for n, scores in enumerate(each)
    ]
    found = {metric.name: metric for metric in metrics(records)}
    for name in ("mAP", "micro_F1", "class/a"):
        assert found[f"1shot/lcm/{name}"].ci95 == (0, 100)
    assert found["1shot/lcm-all_patch/mAP"].ci95[1] > 100
    few = [
        m
        for seed in range(5)
        for m in metrics(_records(2, pictures=20, seed=seed))
        if m.unit == "percent"
    ]
    over = [m.intervals["pictures"] for m in few if m.intervals]
    assert all(0 <= low <= high <= 100 for low, high in over) and any(
        low < high == 100 for low, high in over
    )


def test_methods_that_never_say_that_a_label_is_there_are_flagged() -> None:
    records = _records(2)
    truth = np.eye(4, dtype=bool)
    for number in range(2):
        scores = {"lcm": truth - 2.0, "cross": truth - 1.0, "text_proto": truth - 0.5}
        records.append(record_of(5, number, list("abcd"), truth, np.arange(4), scores, True))
    flags = silent([record | {"constant": []} for record in records])
    assert flags == ["no label is ever said to be present at threshold 0.5: lcm, cross (5shot)"]
    ranked = [record | {"logits": False, "constant": []} for record in records]
    assert silent(ranked) == []  # without a threshold nothing is said at all


def test_a_label_without_a_picture_to_find_is_left_out_of_that_draw_and_counted() -> None:
    truth = np.zeros((6, 2), dtype=bool)
    truth[:4, 0] = truth[5, 1] = True
    scores = np.arange(12.0).reshape(6, 2)
    whole = record_of(1, 0, ["a", "b"], truth, np.arange(6), {"lcm": scores}, False)
    part = record_of(1, 1, ["a", "b"], truth, np.arange(5), {"lcm": scores[:5]}, False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = {metric.name: metric for metric in metrics([whole, part])}
    assert found["1shot/n_classes_scored"].value == 1.5
    assert found["1shot/lcm/class/b"].n == 1 and found["1shot/lcm/class/a"].n == 2
    assert "1shot/lcm/micro_F1" not in found  # no logits, no threshold
