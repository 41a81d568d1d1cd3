"""The baseline that a trained model must beat, and the ceiling above it."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.errors import DataError
from data_pipeline.scenes.generate import generate
from eval.results.schema import read_records
from eval.stages.baseline import evaluate
from eval.stages.baseline.stage import colour_histogram, nearest_texts


def test_the_nearest_text_shares_most_words() -> None:
    known_texts = ["a red square", "a blue circle", "a red square left of a blue circle"]
    known_texts.append("two moons")
    texts = ["A red square.", "one blue circle", "two moons and a star", "a a red square"]
    assert list(nearest_texts(texts, known_texts)) == [0, 1, 3, 0]


def test_word_counts_are_compared_as_cosines() -> None:
    rng = np.random.default_rng(0)
    words = np.array(["a", "b", "c", "d", "e"])
    texts = [" ".join(rng.choice(words, rng.integers(1, 9))) for _ in range(300)]
    counts = np.zeros((len(texts), len(words)))
    for row, text in enumerate(texts):
        counts[row] = [text.split().count(word) for word in words]
    counts /= np.linalg.norm(counts, axis=1, keepdims=True)
    cosines = counts[:100] @ counts[100:].T
    chosen = nearest_texts(texts[:100], texts[100:])
    np.testing.assert_allclose(cosines[np.arange(100), chosen], cosines.max(axis=1), rtol=1e-6)


def test_a_colour_histogram_holds_the_share_of_each_colour() -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[0] = (255, 0, 0)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    histogram = colour_histogram(content.getvalue())
    assert histogram.shape == (512,)
    assert histogram[0] == pytest.approx(0.75)
    assert histogram[7 * 64] == pytest.approx(0.25)


def test_videos_are_refused_before_anything_is_computed(scenes: Path, tmp_path: Path) -> None:
    generate(
        tmp_path / "clips", train=2, val=0, test=2, novel=0, size=48, seed=5, workers=1, video=True
    )
    for pair in (
        (scenes / "train", tmp_path / "clips" / "test"),
        (tmp_path / "clips" / "train", scenes / "test"),
    ):
        with pytest.raises(DataError, match="holds no images"):
            evaluate(*pair, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_baseline_knows_what_it_has_seen_and_little_else(scenes: Path, tmp_path: Path) -> None:
    seen = evaluate(scenes / "test", scenes / "test", tmp_path / "seen")
    unseen = evaluate(scenes / "train", scenes / "test", tmp_path / "unseen")
    assert seen.metric("text_to_image/R@1").value > 80
    assert unseen.metric("text_to_image/R@1").value < 40
    assert unseen.metric("text_to_image/R@1").chance == pytest.approx(5.0)
    best = unseen.metric("ceiling/text_to_image/R@1").value
    assert 50 < best <= 100
    assert len(list(read_records(tmp_path / "unseen"))) == 100
    assert unseen.model["hash"] is None and unseen.environment["code"]
