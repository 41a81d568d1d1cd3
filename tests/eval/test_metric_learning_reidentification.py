"""CMC and AP with cameras, junk and distractors, by hand and against a plain evaluator."""

import math

import numpy as np
import pytest

from data_pipeline.errors import DataError
from eval.metrics.relevant_ranks import rank_relevant
from eval.stages.metric_learning.protocols.ranking import metrics_of, rank_gallery, task_of
from eval.stages.metric_learning.protocols.reidentification import judge, values, views
from eval.stages.metric_learning.protocols.task import EmbeddedImages
from eval.stages.metric_learning.protocols.visible_infrared import best_of_identities, draw_gallery

from .tie_orders import orders

Seen = tuple[str, str, bool]


def seen(who: list[Seen], embedding: np.ndarray | None = None, name: str = "g") -> EmbeddedImages:
    """Make images of (identity or "", camera, junk)."""
    labels = [(identity,) if identity else () for identity, _, _ in who]
    annotations = [{"camera": camera, "junk": junk} for _, camera, junk in who]
    points = np.eye(len(who), 4) if embedding is None else embedding
    return EmbeddedImages([f"{name}{i}" for i in range(len(who))], labels, annotations, points)


def walk(order: list[int], query: Seen, gallery: list[Seen]) -> dict[str, float] | None:
    """Go through one ranking, as the official evaluators do."""
    place = correct = 0
    first, total = None, 0.0
    for item in order:
        identity, camera, junk = gallery[item]
        if junk or (identity == query[0] and camera == query[1]):
            continue
        place += 1
        if identity == query[0]:
            correct += 1
            first = first or place
            total += correct / place
    if first is None:
        return None
    return {**{f"rank@{k}": float(first <= k) for k in (1, 5, 10, 20)}, "map": total / correct}


def test_a_hand_made_ranking() -> None:
    gallery = [
        ("p", "c1", False),  # of the query's camera: leaves the ranking
        ("q", "c2", False),
        ("p", "c2", False),  # place 2
        ("p", "c3", True),  # junk
        ("", "c4", False),  # distractor
        ("p", "c3", False),  # place 4
    ]
    queries = views(["x"], [("p",)], [{"camera": "c1"}])
    theirs = seen(gallery)
    right, out = judge(queries, 0, views(theirs.keys, theirs.labels, theirs.annotations))
    assert right.tolist() == [2, 5] and out.tolist() == [0, 3]
    scores = np.array([[6.0, 5, 4, 3, 2, 1]])
    scores[:, out] = -np.inf
    result = {name: column[0] for name, column in values(rank_relevant(scores, [right])).items()}
    assert result == {
        "rank@1": 0,
        "rank@5": 1,
        "rank@10": 1,
        "rank@20": 1,
        "map": pytest.approx((1 / 2 + 2 / 4) / 2),
    }


def test_agrees_with_going_through_every_order_on_1000_random_cases() -> None:
    generator = np.random.default_rng(0)
    left_out = 0
    for _ in range(1000):
        size = int(generator.integers(1, 8))
        gallery = []
        for _ in range(size):
            identity = str(generator.choice(["p", "q", ""]))
            camera = f"c{generator.integers(1, 4)}"
            gallery.append((identity, camera, bool(generator.random() < 0.2)))
        scores = generator.choice([0.0, 0.25, 0.5, 0.75], size=size)
        expected = [walk(order, ("p", "c1", False), gallery) for order in orders(scores.tolist())]
        theirs = seen(gallery)
        right, out = judge(
            views(["x"], [("p",)], [{"camera": "c1"}]),
            0,
            views(theirs.keys, theirs.labels, theirs.annotations),
        )
        row = scores[None].copy()
        row[:, out] = -np.inf
        result = rank_relevant(row, [right])
        if expected[0] is None:
            left_out += 1
            assert result.positives[0] == 0
            continue
        for name, column in values(result).items():
            mean = math.fsum(walked[name] for walked in expected if walked) / len(expected)
            assert column[0] == pytest.approx(mean, abs=1e-9), name
    assert 100 < left_out < 900


def test_queries_without_a_valid_match_are_left_out_and_counted() -> None:
    gallery = seen([("p", "c1", False), ("q", "c1", False), ("", "c2", False)])
    query = seen([("p", "c1", False), ("p", "c2", False), ("r", "c1", False)], name="q")
    lines = rank_gallery("re-identification", gallery, query)
    assert [line["positives"] for line in lines] == [0, 1, 0]
    assert [line["candidates"] for line in lines] == [2, 3, 3]
    result = {metric.name: metric for metric in metrics_of(lines)}
    assert result["left_out"].value == 2 and result["left_out"].n == 3
    assert result["rank@1"].n == 1
    junk = rank_gallery(
        "re-identification", seen([("", "c1", False), ("p", "c2", True)]), seen([("p", "c1", True)])
    )
    assert junk[0]["positives"] == 0  # no identity matches no identity


def test_junk_and_images_of_the_same_camera_are_not_named_as_neighbours() -> None:
    points = np.array([[1, 0.0], [1, 0.1], [1, 0.2], [0, 1]])
    gallery = seen(
        [("p", "c1", False), ("p", "c2", True), ("p", "c3", False), ("q", "c1", False)], points
    )
    lines = rank_gallery(
        "re-identification", gallery, seen([("p", "c1", False)], np.array([[1.0, 0]]), "q")
    )
    assert [(key, right) for key, _, right in lines[0]["top"]] == [("g2", True), ("g3", False)]
    assert lines[0]["values"]["rank@1"] == 1


def test_an_error_about_a_missing_camera_names_the_sample() -> None:
    gallery = EmbeddedImages(["a/1"], [("p",)], [{}], np.eye(1))
    with pytest.raises(DataError, match='sample a/1 has no "camera"'):
        rank_gallery("re-identification", gallery, seen([("p", "c1", False)], np.eye(1)))
    distractor = EmbeddedImages(["a/1"], [()], [{}], np.eye(1))  # needs none
    assert (
        rank_gallery("re-identification", distractor, seen([("p", "c1", False)], np.eye(1)))[0][
            "positives"
        ]
        == 0
    )
    with pytest.raises(DataError, match="sample b has 2"):
        views(["b"], [("p", "q")], [{"camera": "c1"}])


def visible_infrared(people: int, per_view: int, seed: int) -> EmbeddedImages:
    generator = np.random.default_rng(seed)
    who = []
    for person in range(people):
        for camera in range(1, 7):
            who += [(f"p{person}", f"cam{camera}", False)] * per_view
    identity = generator.standard_normal((people, 8))
    points = np.repeat(identity, 6 * per_view, axis=0) + 0.8 * generator.standard_normal(
        (len(who), 8)
    )
    images = seen(who, points)
    for annotation in images.annotations:
        infrared = annotation["camera"] in ("cam3", "cam6")
        annotation["modality"] = "infrared" if infrared else "visible"  # type: ignore[index]
    return images


@pytest.mark.parametrize(
    ("protocol", "cameras"), [("sysu-all", (1, 2, 4, 5)), ("sysu-indoor", (1, 2))]
)
@pytest.mark.parametrize("shots", [1, 2])
def test_visible_infrared_agrees_with_ranking_identities_by_hand(protocol, cameras, shots) -> None:
    images = visible_infrared(6, 3, 0)
    lines = rank_gallery(protocol, images, shots=shots, draws=3, seed=4, chunk=7)
    assert len(lines) == 3 * 6 * 2 * 3
    task = task_of(protocol, images, shots=shots, draws=3, seed=4)
    unit = images.embedding / np.linalg.norm(images.embedding, axis=1, keepdims=True)
    where = {key: row for row, key in enumerate(images.keys)}
    theirs = [where[key] for key in task.gallery.keys]
    assert {int(images.annotations[row]["camera"][-1]) for row in theirs} == set(cameras)
    number = {key: row for row, key in enumerate(task.query.keys)}
    for line in lines:
        row = where[line["query"]]
        _, removed = task.judge(number[line["query"]], line["setting"])
        ranked = [item for place, item in enumerate(theirs) if place not in removed.tolist()]
        camera = images.annotations[row]["camera"]
        allowed = [c for c in cameras if not (camera == "cam3" and c == 2)]
        assert len(ranked) == line["candidates"] == 6 * len(allowed) * shots
        assert {int(images.annotations[item]["camera"][-1]) for item in ranked} == set(allowed)
        order = sorted(ranked, key=lambda item: -float(unit[row] @ unit[item]))
        people = list(dict.fromkeys(images.labels[item][0] for item in order))
        place = people.index(line["label"]) + 1
        assert line["identities"] == 6 == len(people)
        assert line["values"]["rank@1"] == (place <= 1) and line["values"]["rank@5"] == (place <= 5)
        hits = [images.labels[item][0] == line["label"] for item in order]
        precision = [sum(hits[: i + 1]) / (i + 1) for i in range(len(hits)) if hits[i]]
        assert line["values"]["map"] == pytest.approx(sum(precision) / len(precision))
    result = {metric.name: metric for metric in metrics_of(lines)}
    assert result["rank@1"].value > 3 * result["rank@1"].chance > 0
    assert result["rank@1"].chance == pytest.approx(100 / 6)


def test_drawn_galleries_depend_on_seed_and_draw_and_hold_one_image_per_view() -> None:
    identity = np.repeat(["a", "b"], 8)
    camera = np.tile(np.repeat([1, 2], 4), 2)
    draws = [draw_gallery(identity, camera, shots=1, seed=0, draw=draw) for draw in range(10)]
    for rows in draws:
        drawn = [(identity[row], camera[row]) for row in rows]
        assert drawn == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]
    assert len({tuple(rows) for rows in draws}) > 5
    np.testing.assert_array_equal(draws[3], draw_gallery(identity, camera, shots=1, seed=0, draw=3))
    assert len(draw_gallery(identity, camera, shots=10, seed=0, draw=0)) == 16


def test_identities_rank_by_their_best_image() -> None:
    scores, names = best_of_identities(
        np.array([[1.0, 5, 3, -np.inf]]), np.array(["b", "a", "b", "c"])
    )
    assert names.tolist() == ["a", "b", "c"] and scores.tolist() == [[5, 3, -np.inf]]


def test_cameras_of_visible_infrared_are_checked() -> None:
    images = visible_infrared(2, 1, 0)
    images.annotations[4]["modality"] = "infrared"  # type: ignore[index]
    with pytest.raises(DataError, match="sample g4 of camera 5 is marked infrared"):
        rank_gallery("sysu-all", images)
    images.annotations[4]["camera"] = "c9"  # type: ignore[index]
    with pytest.raises(DataError, match="sample g4 is seen by camera 'c9'"):
        rank_gallery("sysu-all", images)
    with pytest.raises(DataError, match="cameras 3, 6"):
        rank_gallery("sysu-all", seen([("p", "c1", False), ("p", "c2", False)]))
