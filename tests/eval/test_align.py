"""Alignment: scores by definition, tokens of phrases, and models whose attention is known."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipeline.errors import DataError
from data_pipeline.regions import encode_mask
from data_pipeline.shards.write import write_shards
from data_pipeline.text import Tokenizer
from eval.__main__ import main as eval_main
from eval.encoding.attention_maps import phrase_tokens
from eval.metrics.grounding import box_mask, grounding_scores, is_background, pool_mask
from eval.results.schema import read_records, read_result
from eval.stages.align import evaluate
from eval.stages.align.stage import metrics
from launch.cli import main
from pretrain.model import GLSCLModel
from tests.data_pipeline import official
from tests.ranks import run_ranks

from .conftest import save_model

CAPTION = "there is a small red circle, a blue star and a small blue circle"
CELL = (40, 0, 60, 20)  # of an image of 60 x 60 and a grid of 3 x 3: row 0, column 2


def image_file(size: tuple[int, int] = (60, 60), bright: tuple[int, int, int, int] = CELL) -> bytes:
    content, image = io.BytesIO(), Image.new("RGB", size, (90, 90, 90))
    image.paste((255, 240, 40), bright)
    image.save(content, "PNG")
    return content.getvalue()


def data_set(folder: Path, *samples: Sequence[dict], size: tuple[int, int] = (60, 60)) -> Path:
    """Write one image per list of regions, all with the same caption."""
    bright = tuple(round(edge * side / 60) for edge, side in zip(CELL, 2 * size, strict=True))
    records = []
    for number, regions in enumerate(samples):
        annotations = json.dumps({"captions": [CAPTION], "regions": regions}).encode()
        members = {"png": image_file(size, bright), "json": annotations}
        records.append((f"s{number}", members))
    write_shards(folder, records, source={"name": folder.name})
    return folder


def region(phrase: str, *boxes: Sequence[float], **fields: object) -> dict:
    return {"phrase": phrase, "boxes": [list(box) for box in boxes], **fields}


def saved(model: GLSCLModel, tokenizer: Path, out: Path) -> Path:
    return save_model(model, tokenizer, out)


@pytest.fixture
def blind(knowing_model: Path, tokenizer: Path, tmp_path: Path) -> Path:
    """A model that attends to everything alike."""
    model = GLSCLModel.from_pretrained(knowing_model)
    with torch.no_grad():
        model.fusion.text_layers[-1].crossattention.self.query.weight.zero_()
        model.fusion.text_layers[-1].crossattention.self.query.bias.zero_()
    return saved(model, tokenizer, tmp_path / "blind")


@pytest.fixture
def pointing(knowing_model: Path, tokenizer: Path, tmp_path: Path) -> Path:
    """A model that attends to the one patch that differs from the others, wherever it is."""
    model = GLSCLModel.from_pretrained(knowing_model)
    last, towers = model.fusion.text_layers[-1].crossattention.self, model.vision
    with torch.no_grad():
        towers.embeddings.position_embedding.weight.zero_()
        grid = torch.full((1, 48, 48, 3), 90, dtype=torch.uint8)
        grid[:, :16, 32:] = torch.tensor([255, 240, 40], dtype=torch.uint8)
        image = model.image_side(model.encode_image(grid))
        text = model.text_side(
            model.encode_text(torch.tensor([[0, 5, 2]]), torch.ones(1, 3)), torch.ones(1, 3)
        )
        seen = []
        last.key.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        model.text_to_image_attention(text, torch.ones(1, 3), image)
        difference = seen[0][0, 3] - seen[0][0, 1]  # row 0, column 2 from row 0, column 0
        last.key._forward_pre_hooks.clear()
        last.query.weight.zero_()
        last.query.bias.fill_(1.0)
        last.key.weight.copy_(100 * difference.expand_as(last.key.weight) / difference.norm())
    return saved(model, tokenizer, tmp_path / "pointing")


# The scores. --------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_pooled_mask_keeps_every_pixel(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    grid = (data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9)))
    mask = np.array(
        data.draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    )
    mask = mask.reshape(height, width)
    cells = pool_mask(mask, grid)
    assert cells.shape == grid and cells.min() >= 0 and cells.max() <= 1
    assert cells.mean() == pytest.approx(mask.mean())
    fine = np.kron(mask, np.ones(grid)).reshape(grid[0], height, grid[1], width).mean(axis=(1, 3))
    np.testing.assert_allclose(cells, fine, atol=1e-12)
    assert ((cells > 0) == (fine > 0)).all()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_scores_are_shares_and_uniform_attention_scores_the_area(data: st.DataObject) -> None:
    values = st.lists(st.floats(0, 1), min_size=12, max_size=12)
    heat, cells = (np.array(data.draw(values)).reshape(3, 4) for _ in range(2))
    result = grounding_scores(heat, cells)
    assert all(-1e-12 <= value <= 1 + 1e-12 for value in result.values())
    uniform = grounding_scores(np.full((3, 4), 0.3), cells)
    assert uniform["mass"] == pytest.approx(uniform["area"]) == pytest.approx(uniform["IoU"])
    assert uniform["pointing"] == uniform["touched"]


def test_all_mass_inside_or_outside_scores_exactly_one_and_zero() -> None:
    inside = np.zeros((3, 3))
    inside[0, 2] = 0.37
    cells = pool_mask(box_mask(CELL, (60, 60)), (3, 3))
    assert grounding_scores(inside, cells) == {
        "mass": 1,
        "pointing": 1,
        "IoU": 1,
        "area": 1 / 9,
        "touched": 1 / 9,
    }
    assert grounding_scores(inside.T, cells) | {"area": 0, "touched": 0} == dict.fromkeys(
        ("mass", "pointing", "IoU", "area", "touched"), 0
    )
    assert grounding_scores(np.zeros((3, 3)), cells)["mass"] == 0  # and not NaN


def test_a_box_is_cut_at_the_border_and_has_no_pixels_without_area() -> None:
    assert box_mask((-5, 3.5, 1000, 5), (10, 20)).sum() == 2 * 20
    for empty in ((4, 4, 4, 9), (4, 4, 9, 4), (30, 0, 40, 5), (-9, 0, -3, 5)):
        assert not box_mask(empty, (10, 20)).any()
    assert is_background(box_mask((0, 0, 20, 9.1), (10, 20))) and not is_background(
        box_mask((0, 0, 20, 9), (10, 20))
    )
    assert not is_background(np.zeros((4, 4), dtype=bool))


# Phrases. -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ("small red circle", " small red circle"),
        ("SMALL  red circle,", " small red circle"),
        ("circle", " circle"),
        ("there", "there"),
        ("blue star", " blue star"),
        ("small", " small"),
    ],
)
def test_a_phrase_has_the_tokens_of_its_first_occurrence(
    phrase: str, expected: str, tokenizer: Path
) -> None:
    loaded = Tokenizer.load(tokenizer)
    positions = phrase_tokens(loaded, CAPTION, phrase, 60)
    [whole] = loaded.encode([CAPTION], 60)
    [alone] = loaded.encode([expected], 60)
    assert [whole.ids[n] for n in positions] == alone.ids[1:-1]
    assert positions == list(range(positions[0], positions[-1] + 1)) and loaded.offsets(
        CAPTION, 60
    )[positions[0]][0] == (CAPTION.index(expected.strip()))


def test_offsets_are_characters_also_where_a_character_is_several_bytes(tokenizer: Path) -> None:
    caption = "un café — naïve dog, zebra"
    loaded = Tokenizer.load(tokenizer)
    offsets = loaded.offsets(caption, 60)
    for phrase in ("café", "naïve dog", "zebra"):
        positions = phrase_tokens(loaded, caption, phrase, 60)
        assert caption[offsets[positions[0]][0] : offsets[positions[-1]][1]] == phrase


def test_pieces_of_a_rare_word_all_belong_to_it(tokenizer: Path) -> None:
    loaded = Tokenizer.load(tokenizer)
    positions = phrase_tokens(loaded, "a zebrafinch, maybe", "zebrafinch", 60)
    assert len(positions) > 3
    offsets = loaded.offsets("a zebrafinch, maybe", 60)
    assert "".join("a zebrafinch, maybe"[slice(*offsets[n])] for n in positions) == "zebrafinch"


@pytest.mark.parametrize(
    "phrase", ["dog", "circl", "red star", "blue circle a", "...", "the small red circle"]
)
def test_a_phrase_that_is_not_there_has_no_tokens(phrase: str, tokenizer: Path) -> None:
    assert phrase_tokens(Tokenizer.load(tokenizer), CAPTION, phrase, 60) == []


def test_a_phrase_behind_the_cut_has_no_tokens(tokenizer: Path) -> None:
    loaded = Tokenizer.load(tokenizer)
    assert phrase_tokens(loaded, CAPTION, "small blue circle", 10) == []
    assert phrase_tokens(loaded, CAPTION, "small", 10)


# The stage. ---------------------------------------------------------------------------------------


def test_attention_to_one_patch_is_found_in_its_region_and_not_in_the_transposed_one(
    pointing: Path, tmp_path: Path
) -> None:
    transposed = (0, 40, 20, 60)
    data = data_set(
        tmp_path / "d", [region("red circle", CELL)], [region("red circle", transposed)]
    )
    result = evaluate(pointing, data, tmp_path / "o")
    lines = [line for line in read_records(tmp_path / "o") if line["level"] == "local"]
    assert [line["box"]["pointing"] for line in lines] == [1, 0]
    assert lines[0]["box"]["mass"] > 0.99 and lines[1]["box"]["mass"] < 0.01
    assert result.metric("local/box/mass").value == pytest.approx(50, abs=0.5)
    assert result.metric("local/box/mass").chance == pytest.approx(100 / 9)
    assert result.metric("local/box/mass_over_uniform").value == pytest.approx(
        50 - 100 / 9, abs=0.5
    )


def test_an_image_that_is_not_square_is_read_in_its_own_proportions(
    pointing: Path, tmp_path: Path
) -> None:
    mask = np.zeros((30, 120), dtype=bool)
    mask[:10, 80:] = True
    regions = [region("red circle", (80, 0, 120, 10), masks=[encode_mask(mask)])]
    evaluate(pointing, data_set(tmp_path / "d", regions, size=(120, 30)), tmp_path / "o")
    for line in read_records(tmp_path / "o"):
        assert line["box"] == line["pixel"]
        assert line["box"]["mass"] > 0.99 and line["box"]["area"] == pytest.approx(1 / 9)


def test_uniform_attention_scores_the_area(blind: Path, tmp_path: Path) -> None:
    data = data_set(
        tmp_path / "d", [region("red circle", (3, 4, 30, 50)), region("star", CELL, (0, 0, 10, 10))]
    )
    arguments = ["--model", str(blind), "--data", str(data), "--out", str(tmp_path / "o")]
    assert main(["eval", "align", *arguments]) == 0
    result = read_result(tmp_path / "o")
    for metric in result.metrics:
        expected = 0.0 if metric.name.endswith("over_uniform") else metric.chance
        assert metric.value == pytest.approx(expected, abs=1e-5)
    circle_area, star_area = 27 * 46, 400 + 100
    local = next(m for m in result.metrics if m.name == "local/box/mass")
    assert local.value == pytest.approx(100 * (circle_area + star_area) / 2 / 3600, abs=1e-5)
    assert local.n == 2


def test_what_cannot_be_scored_is_counted_and_left_out(blind: Path, tmp_path: Path) -> None:
    regions = [
        region("zebra", CELL),  # not in the caption
        region("star", (7, 7, 7, 20)),  # no area
        region("red circle", (0, 0, 60, 60)),  # background
        region("small blue circle", CELL),
    ]
    result = evaluate(blind, data_set(tmp_path / "d", regions), tmp_path / "o")
    lines = {line["phrase"]: line for line in read_records(tmp_path / "o")}
    assert lines["zebra"]["tokens"] == [] and lines["zebra"]["map"] is lines["zebra"]["box"] is None
    assert lines["star"]["box"] is None and lines["star"]["empty"] == 1
    assert lines["red circle"]["box"]["area"] == 1  # background counts in local scores
    assert lines[None]["box"]["area"] == pytest.approx(1 / 9)  # but not in the global one
    assert result.data["left_out"] == {"unmatched": 1, "background": 1, "empty": 1, "zero_map": 0}
    assert result.metric("local/box/mass").n == 2
    assert {"unmatched/1", "empty/1"} <= set(result.flags)
    assert metrics(read_records(tmp_path / "o")) == result.metrics


def test_a_region_belongs_to_the_caption_it_names_or_the_first_that_holds_it(
    blind: Path, tmp_path: Path
) -> None:
    captions = ["a red circle", "a blue star", "one star, one circle"]
    regions = [region("circle", CELL, caption=2), region("star", CELL), region("moon", CELL)]
    members = {
        "png": image_file(),
        "json": json.dumps({"captions": captions, "regions": regions}).encode(),
    }
    write_shards(tmp_path / "d", [("s", members)], source={"name": "d"})
    evaluate(blind, tmp_path / "d", tmp_path / "o")
    lines = list(read_records(tmp_path / "o"))
    caption_of = {line["phrase"]: line["caption"] for line in lines if line["level"] == "local"}
    assert caption_of == {"circle": captions[2], "star": captions[1], "moon": captions[0]}
    assert [line["caption"] for line in lines if line["level"] == "global"] == captions


def test_phrases_are_averaged_per_image_before_images_are(blind: Path, tmp_path: Path) -> None:
    big = (0, 0, 60, 30)
    data = data_set(
        tmp_path / "d", [region("star", big), region("circle", big), region("blue", big)], []
    )
    more = data_set(
        tmp_path / "e",
        [region("star", big), region("circle", big), region("blue", big)],
        [region("star", CELL)],
    )
    assert evaluate(blind, data, tmp_path / "o").metric("local/box/mass").value == pytest.approx(50)
    result = evaluate(blind, more, tmp_path / "p").metric("local/box/mass")
    assert result.value == pytest.approx((50 + 100 / 9) / 2) and result.n == 4


def test_attention_that_is_not_finite_is_an_error_that_names_the_image(
    knowing_model: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = GLSCLModel.from_pretrained(knowing_model)
    with torch.no_grad():
        model.fusion.text_layers[-1].crossattention.self.query.bias.fill_(float("nan"))
    folder = saved(model, tokenizer, tmp_path / "m")
    data = data_set(tmp_path / "d", [region("star", CELL)])
    arguments = ["--model", str(folder), "--data", str(data), "--out", str(tmp_path / "o")]
    assert main(["eval", "align", *arguments]) == 4
    assert "attention is not finite for the image d/shard-000000.tar/s0" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_a_map_without_mass_scores_nothing_and_is_counted(
    knowing_model: Path, tokenizer: Path, tmp_path: Path
) -> None:
    model = GLSCLModel.from_pretrained(knowing_model)
    last = model.fusion.text_layers[-1].crossattention.self
    with torch.no_grad():  # all attention goes to the class token: the only key that is not zero
        model.fusion.image_layers[0].crossattention.output.dense.weight.zero_()
        for parameter in model.vision.embeddings.parameters():
            parameter.zero_()
        model.vision.embeddings.class_embedding.copy_(torch.linspace(-1, 1, 48))
        grid = model.image_side(model.encode_image(torch.zeros(1, 48, 48, 3, dtype=torch.uint8)))
        seen = []
        last.key.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        text = model.text_side(
            model.encode_text(torch.tensor([[0, 5, 2]]), torch.ones(1, 3)), torch.ones(1, 3)
        )
        model.text_to_image_attention(text, torch.ones(1, 3), grid)
        last.key._forward_pre_hooks.clear()
        difference = seen[0][0, 0] - seen[0][0, 1]
        last.query.weight.zero_()
        last.query.bias.fill_(1.0)
        last.key.weight.copy_(1e4 * difference.expand_as(last.key.weight) / difference.norm())
    result = evaluate(
        saved(model, tokenizer, tmp_path / "m"),
        data_set(tmp_path / "d", [region("star", CELL)]),
        tmp_path / "o",
    )
    assert result.data["left_out"]["zero_map"] == 2 and "zero_map/2" in result.flags
    assert result.metric("local/box/mass").value == result.metric("local/box/pointing").value == 0


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ([], "has no regions"),
        (
            [{"phrase": "star", "masks": [encode_mask(np.ones((60, 50), dtype=bool))]}],
            r"'star' and the \w+ differ",
        ),
        ([{"phrase": "star", "boxes": [[1, 2, 3]]}], "s0: region 0"),
    ],
)
def test_data_that_cannot_be_used_are_refused(
    regions: list, message: str, knowing_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        evaluate(knowing_model, data_set(tmp_path / "d", regions), tmp_path / "o")


def test_a_region_that_ends_where_a_cell_ends_touches_no_other() -> None:
    for width in (96, 222, 334, 480, 640):
        assert (pool_mask(box_mask((0, 0, width / 2, 1), (1, width)), (1, 18)) > 0).sum() == 9


def test_the_benchmarks_own_files_are_imported_and_scored(blind: Path, tmp_path: Path) -> None:
    assert (
        main(
            [
                "data",
                "import",
                *official.align_bench(tmp_path),
                str(tmp_path / "d"),
                "--workers",
                "1",
            ]
        )
        == 0
    )
    result = evaluate(blind, tmp_path / "d", tmp_path / "o")
    lines = list(read_records(tmp_path / "o"))
    assert [line["phrase"] for line in lines] == [None, "red dog", "grass"] * 2
    assert all(line["box"] == pytest.approx(line["pixel"]) for line in lines)
    assert lines[0]["pixel"]["mass"] == pytest.approx(220 / (48 * 64))
    assert result.metric("local/pixel/mass").value == pytest.approx(
        100 * (220 + 200) / 2 / (48 * 64)
    )


@pytest.mark.slow
def test_three_processes_write_the_same_records(
    knowing_model: Path, scenes: Path, tmp_path: Path
) -> None:
    """Neither 20 images nor their captions can be divided by 3."""
    evaluate(knowing_model, scenes / "test", tmp_path / "one")
    config = tmp_path / "align.yaml"
    config.write_text(
        f"model: {knowing_model}\ndata: {scenes / 'test'}\nout: {tmp_path / 'three'}\n"
    )
    run_ranks(3, eval_main, ["align", str(config)])
    alone = (tmp_path / "one" / "samples.jsonl").read_bytes()
    assert (tmp_path / "three" / "samples.jsonl").read_bytes() == alone
    assert alone.count(b"\n") > 40
    assert read_result(tmp_path / "three").environment["world"] == 3
