"""Images of an alignment result: the worst are shown, regions framed, missing data reported."""

import base64
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.regions import encode_mask
from data_pipeline.shards.write import write_shards
from eval.report import write_report
from eval.report.gallery import Thumbnails
from eval.report.overlays import overlays
from eval.results.schema import read_records, read_result
from eval.stages.align import evaluate


@pytest.fixture
def result(knowing_model: Path, tmp_path: Path) -> Path:
    """Nine images with two phrases each, one with boxes, one with a mask."""
    generator = np.random.default_rng(0)
    records = []
    for number in range(9):
        content = io.BytesIO()
        pixels = generator.integers(0, 256, (30, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(content, "PNG")
        mask = np.zeros((30, 60), dtype=bool)
        mask[3 * number : 3 * number + 5, 10:20] = True
        regions = [
            {"phrase": "red circle", "boxes": [[5 * number, 2, 5 * number + 20, 25]]},
            {"phrase": "star", "masks": [encode_mask(mask)]},
        ]
        annotations = {"captions": ["a red circle and a star"], "regions": regions}
        members = {"png": content.getvalue(), "json": json.dumps(annotations).encode()}
        records.append((f"s{number}", members))
    write_shards(tmp_path / "data", records, source={"name": "d"})
    evaluate(knowing_model, tmp_path / "data", tmp_path / "out")
    return tmp_path / "out"


def test_examples_are_spread_or_the_worst_and_each_is_a_framed_image(result: Path) -> None:
    data = read_result(result).data
    images = Thumbnails(Path(data["path"]), data["hash"])
    spread, worst, whole = overlays(list(read_records(result)), images).values()
    assert [len(group) for group in (spread, worst, whole)] == [6, 6, 6]
    gains: dict[str, float] = {}
    for line in read_records(result):
        scores = line["pixel"] or line["box"]
        if line["level"] == "local":
            gain = scores["mass"] - scores["area"]
            gains[line["image"]] = min(gain, gains.get(line["image"], 1.0))
    shown = [example.mass - example.area for example in worst]
    assert shown == pytest.approx(sorted(gains.values())[:6])
    assert {example.phrase for example in whole} == {None}
    for example in (*spread, *worst, *whole):
        kind, _, content = example.image.partition(",")
        assert kind == "data:image/jpeg;base64"
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(content)))).astype(int)
        assert pixels.shape == (120, 240, 3)
        assert (pixels.min(axis=2) > 215).sum() > 50  # the white frame


def test_the_page_shows_maps_in_words_and_reports_missing_data(
    result: Path, tmp_path: Path
) -> None:
    text = write_report([result], tmp_path / "page.html").read_text("utf-8")
    assert text.count("data:image/jpeg") == 18
    assert text.count("looks, with its region framed: a red circle") == 18
    assert "% of attention inside" in text
    assert "Phrase attention inside the region, masks" in text
    assert "compared with" in text and "(uniform attention)" in text
    shutil.rmtree(tmp_path / "data")
    text = write_report([result], tmp_path / "page.html").read_text("utf-8")
    assert "Images are left out" in text and "data:image/jpeg" not in text
