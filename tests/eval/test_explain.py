"""`glscl explain`: the picture is drawn, its peak is the map's, and every mistake is said in one line."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.scenes.generate import generate
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.store import Store
from eval.metrics.grounding import unpack_map
from eval.report.explain import explain
from eval.report.overlays import overlay
from eval.results.schema import read_records
from eval.stages.align import evaluate as align
from launch.cli import main

CAPTION = "a red circle and a blue star"


@pytest.fixture
def photo(gallery: Path, tmp_path: Path) -> Path:
    (tmp_path / "p.jpg").write_bytes(Store([Manifest.load(gallery)]).read(0, 0).media)
    return tmp_path / "p.jpg"


@pytest.mark.parametrize("word", [None, "circle", "Blue  star,"])
def test_the_map_is_drawn_and_its_peak_is_said(
    word: str | None,
    knowing_model: Path,
    photo: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "new" / "map.png"
    arguments = [
        "explain",
        str(photo),
        "--caption",
        CAPTION,
        "--model",
        str(knowing_model),
        "--out",
        str(out),
    ]
    assert main([*arguments, "--json", *(["--word", word] if word else [])]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["grid"] == [3, 3] and said["word"] == word and said["caption"] == CAPTION
    with Image.open(out) as drawn:
        assert drawn.format == "PNG" and drawn.width > 600
        assert len(drawn.convert("RGB").getcolors(10**7)) > 500
    found = explain(photo, CAPTION, knowing_model, out, word=word)
    assert list(found.peak) == said["peak"] and found.heat[found.peak] == found.heat.max()
    if word:
        words = [
            explain(photo, CAPTION, knowing_model, out, word=one).heat
            for one in word.strip(",").split()
        ]
        np.testing.assert_allclose(found.heat, sum(words), rtol=1e-6)


def test_the_map_is_the_one_that_alignment_is_measured_by(
    knowing_model: Path, tmp_path: Path
) -> None:
    generate(
        tmp_path / "d", train=0, val=0, test=2, novel=0, size=100, seed=5, workers=1
    )  # not the model's size
    align(knowing_model, tmp_path / "d" / "test", tmp_path / "out")
    line = next(
        line
        for line in read_records(tmp_path / "out")
        if line["level"] == "local" and line["pixel"]
    )
    store = Store([Manifest.load(tmp_path / "d" / "test")])
    (tmp_path / "p.jpg").write_bytes(
        next(store.read(0, i).media for i in range(2) if store.key(0, i) == line["image"])
    )
    found = explain(
        tmp_path / "p.jpg", line["caption"], knowing_model, tmp_path / "p.png", word=line["phrase"]
    )
    np.testing.assert_allclose(found.heat / found.heat.max(), unpack_map(line), atol=0.51 / 255)


def test_a_large_picture_and_a_caption_like_a_formula_are_drawn(
    knowing_model: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (3000, 200), (10, 200, 90)).save(tmp_path / "p.png")
    explain(
        tmp_path / "p.png",
        r"a $\bad{ note and a $5 note",
        knowing_model,
        tmp_path / "o.png",
        word="$5",
    )
    with Image.open(tmp_path / "o.png") as drawn:
        assert drawn.width < 2000


def test_colours_go_where_the_map_is_high() -> None:
    heat = np.zeros((2, 4))
    heat[0, 3] = 0.5
    coloured = overlay(np.full((40, 80, 3), 128, dtype=np.uint8), heat).astype(int)
    yellow = coloured[..., 0] + coloured[..., 1] - coloured[..., 2]
    assert coloured.shape == (40, 80, 3)
    row, column = np.unravel_index(yellow.argmax(), yellow.shape)
    assert row < 20 and column >= 60


@pytest.mark.parametrize(
    ("changed", "code", "message"),
    [
        (
            {"--word": "dog"},
            2,
            "the caption has no 'dog'; its words are: a red circle and a blue star",
        ),
        ({"--word": " "}, 2, "the caption has no ' '"),
        ({"--caption": " "}, 2, "the caption is empty"),
        (
            {"--caption": "so " * 60 + "far", "--word": "far"},
            2,
            "reads only 40 tokens of the caption",
        ),
        ({"image": "nowhere.jpg"}, 3, "cannot read nowhere.jpg"),
        ({"image": __file__}, 3, "not a JPEG, PNG or WebP image"),
        ({"--model": "nowhere"}, 2, "no model at nowhere"),
    ],
)
def test_a_mistake_is_said_in_one_line(
    changed: dict[str, str],
    code: int,
    message: str,
    knowing_model: Path,
    photo: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = {
        "--caption": CAPTION,
        "--model": str(knowing_model),
        "--out": str(tmp_path / "o.png"),
    } | changed
    image = given.pop("image", str(photo))
    assert main(["explain", image, *(part for pair in given.items() for part in pair)]) == code
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "o.png").exists()
