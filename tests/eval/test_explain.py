"""`glscl explain` draws the map, reports its peak, and explains every mistake in one line."""

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
def test_the_map_is_drawn_and_its_peak_is_printed(
    word: str | None,
    knowing_model: Path,
    photo: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "new" / "map.png"
    arguments = ["explain", str(photo), "--caption", CAPTION, "--json"]
    arguments += ["--model", str(knowing_model), "--out", str(out)]
    if word:
        arguments += ["--word", word]
    assert main(arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["grid"] == [3, 3] and printed["caption"] == CAPTION
    assert printed["word"] == word
    with Image.open(out) as drawn:
        assert drawn.format == "PNG" and drawn.width > 600
        assert len(drawn.convert("RGB").getcolors(10**7)) > 500
    explanation = explain(photo, CAPTION, knowing_model, out, word=word)
    assert list(explanation.peak) == printed["peak"]
    assert explanation.heat[explanation.peak] == explanation.heat.max()
    if word:
        # The map of a phrase is the sum of its words' maps.
        total = np.zeros_like(explanation.heat)
        for single in word.strip(",").split():
            total += explain(photo, CAPTION, knowing_model, out, word=single).heat
        np.testing.assert_allclose(explanation.heat, total, rtol=1e-6)


def test_the_map_is_the_one_that_alignment_measures(knowing_model: Path, tmp_path: Path) -> None:
    # The images have another size than the model's.
    generate(tmp_path / "d", train=0, val=0, test=2, novel=0, size=100, seed=5, workers=1)
    align(knowing_model, tmp_path / "d" / "test", tmp_path / "out")
    phrases = []
    for line in read_records(tmp_path / "out"):
        if line["level"] == "local" and line["pixel"]:
            phrases.append(line)
    line = phrases[0]
    store = Store([Manifest.load(tmp_path / "d" / "test")])
    row = [store.key(0, i) for i in range(2)].index(line["image"])
    (tmp_path / "p.jpg").write_bytes(store.read(0, row).media)
    explanation = explain(
        tmp_path / "p.jpg", line["caption"], knowing_model, tmp_path / "p.png", word=line["phrase"]
    )
    heat = explanation.heat / explanation.heat.max()
    # Records hold maps as bytes: half a step of 1/255 is lost.
    np.testing.assert_allclose(heat, unpack_map(line), atol=0.51 / 255)


def test_a_large_image_and_a_caption_like_a_formula_are_drawn(
    knowing_model: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (3000, 200), (10, 200, 90)).save(tmp_path / "p.png")
    caption = r"a $\bad{ note and a $5 note"
    explain(tmp_path / "p.png", caption, knowing_model, tmp_path / "o.png", word="$5")
    with Image.open(tmp_path / "o.png") as drawn:
        assert drawn.width < 2000


def test_colors_are_bright_where_the_map_is_high() -> None:
    heat = np.zeros((2, 4))
    heat[0, 3] = 0.5
    colored = overlay(np.full((40, 80, 3), 128, dtype=np.uint8), heat).astype(int)
    yellow = colored[..., 0] + colored[..., 1] - colored[..., 2]
    assert colored.shape == (40, 80, 3)
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
def test_a_mistake_is_explained_in_one_line(
    changed: dict[str, str],
    code: int,
    message: str,
    knowing_model: Path,
    photo: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = str(tmp_path / "o.png")
    options = {"--caption": CAPTION, "--model": str(knowing_model), "--out": out} | changed
    arguments = ["explain", options.pop("image", str(photo))]
    for option, value in options.items():
        arguments += [option, value]
    assert main(arguments) == code
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "o.png").exists()
