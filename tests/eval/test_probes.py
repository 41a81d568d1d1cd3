"""SugarCrepe and Winoground on miniatures of their files: scores by hand, ties, wrong data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.importing.entries import import_entries
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.store import Store
from data_pipeline.shards.write import write_shards
from data_pipeline.sources import sugarcrepe as sugarcrepe_files
from data_pipeline.sources import winoground as winoground_files
from eval.__main__ import main as eval_main
from eval.results.schema import read_records
from eval.results.verify import verify
from eval.stages import sugarcrepe, winoground
from eval.stages.sugarcrepe.stage import metrics as sugarcrepe_metrics
from eval.stages.winoground.stage import metrics as winoground_metrics
from launch.cli import main
from pretrain.model import GLSCLModel
from tests.data_pipeline import official
from tests.ranks import run_ranks

from .conftest import save_model, warnings


@pytest.fixture(scope="module")
def crepe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sugarcrepe")
    entries, source = sugarcrepe_files.read(*map(Path, official.sugarcrepe(root)[1:]))
    import_entries(root / "out", entries, source=source)
    return root / "out"


@pytest.fixture(scope="module")
def ground(gallery: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images that the model knows, with their captions, in the form of Winoground."""
    root, store = tmp_path_factory.mktemp("winoground"), Store([Manifest.load(gallery)])
    words = official.winoground(root, examples=6)
    lines = [json.loads(line) for line in Path(words[1]).read_text().splitlines()]
    for number, line in enumerate(lines):
        for side in (0, 1):
            sample = store.read(0, 2 * number + side)
            line[f"caption_{side}"] = sample.captions[0]
            (root / "images" / f"ex_{number}_img_{side}.png").write_bytes(sample.media)
    Path(words[1]).write_text("\n".join(map(json.dumps, lines)))
    entries, source = winoground_files.read(*map(Path, words[1:]))
    import_entries(root / "out", entries, source=source)
    return root / "out"


@pytest.fixture(scope="module")
def blind_model(
    knowing_model: Path, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A model that scores everything the same."""
    model = GLSCLModel.from_pretrained(knowing_model)
    with torch.no_grad():
        model.matching_head.weight.zero_()
        model.contrastive_text_head[3].weight.zero_()
    return save_model(model, tokenizer, tmp_path_factory.mktemp("blind"))


def test_sugarcrepe_compares_each_foil_with_its_caption(
    knowing_model: Path, crepe: Path, tmp_path: Path
) -> None:
    result = sugarcrepe.evaluate(knowing_model, crepe, tmp_path)
    lines = list(read_records(tmp_path))
    assert [line["query"] for line in lines] == [
        *(f"{kind}-0" for kind in official.SUGARCREPE),
        "swap_obj-12",
        "swap_obj-15",
    ]
    assert lines[-1] | {"contrastive": 0, "matching": 0} == {
        "query": "swap_obj-15",
        "image": "sugarcrepe/shard-000000.tar/000000174482-0",
        "picture": "174482",
        "kind": "swap_obj",
        "true": "A grey cat.",
        "false": "A grey mat.",
        "contrastive": 0,
        "matching": 0,
    }
    assert sugarcrepe_metrics(lines) == result.metrics
    assert result.metric("matching/accuracy/swap_obj").n == 3
    kinds = [result.metric(f"contrastive/accuracy/{kind}").value for kind in official.SUGARCREPE]
    assert result.metric("contrastive/mean_accuracy").value == pytest.approx(np.mean(kinds))


def test_a_tie_is_half_a_hit_in_sugarcrepe(blind_model: Path, crepe: Path, tmp_path: Path) -> None:
    result = sugarcrepe.evaluate(blind_model, crepe, tmp_path)
    for metric in result.metrics:
        if metric.name.startswith("matching/"):
            assert (metric.value, metric.bounds, metric.ci95) == (50.0, (0.0, 100.0), (50.0, 50.0))
    assert warnings(result) == ["constant_scores/matching"]


def test_winoground_scores_every_image_with_every_caption(
    knowing_model: Path, ground: Path, tmp_path: Path
) -> None:
    result = winoground.evaluate(knowing_model, ground, tmp_path)
    lines = list(read_records(tmp_path))
    assert result.data["pairs"] == len(lines) == 6 and result.data["images"] == 12
    assert winoground_metrics(lines) == result.metrics
    # It knows these images by heart.
    assert result.metric("contrastive/group").value > 80
    assert result.metric("matching/text").value > 80


def test_the_commands_use_what_was_kept_and_reach_the_same(
    knowing_model: Path, ground: Path, tmp_path: Path
) -> None:
    words = [
        "--model",
        str(knowing_model),
        "--data",
        str(ground),
        "--cache",
        str(tmp_path / "cache"),
    ]
    written = []
    for out in ("first", "again"):
        assert main(["eval", "winoground", *words, "--out", str(tmp_path / out)]) == 0
        files = (tmp_path / "cache").rglob("*.safetensors")
        written.append({path: path.stat().st_mtime_ns for path in files})
    assert written[0] == written[1] != {}
    first, again = ((tmp_path / out / "samples.jsonl").read_bytes() for out in ("first", "again"))
    assert first == again
    assert verify(tmp_path / "again") == []


@pytest.mark.slow
def test_three_processes_write_the_same_lines(
    knowing_model: Path, ground: Path, tmp_path: Path
) -> None:
    winoground.evaluate(knowing_model, ground, tmp_path / "one", limit=5)
    config = tmp_path / "winoground.yaml"
    config.write_text(
        json.dumps(
            {"model": str(knowing_model), "data": str(ground), "out": str(tmp_path / "three")}
        )
    )
    run_ranks(3, eval_main, ["winoground", str(config), "--limit", "5"])
    alone = (tmp_path / "one" / "samples.jsonl").read_bytes()
    assert (tmp_path / "three" / "samples.jsonl").read_bytes() == alone


def test_winoground_images_are_not_swapped(
    knowing_model: Path, ground: Path, tmp_path: Path
) -> None:
    winoground.evaluate(knowing_model, ground, tmp_path / "as written", batch_size=1)
    source = Manifest.load(ground)
    store = Store([source])
    records = []
    for number in range(source.samples):
        sample = store.read(0, number, "pair")
        members = {"0.png": sample.second or b"", "1.png": sample.media}
        records.append(
            (f"{number:06d}", members | {"json": json.dumps(sample.annotations).encode()})
        )
    write_shards(tmp_path / "swapped", records, source=source.source)
    winoground.evaluate(knowing_model, tmp_path / "swapped", tmp_path / "out", batch_size=1)
    written = np.array([line["contrastive"] for line in read_records(tmp_path / "as written")])
    swapped = np.array([line["contrastive"] for line in read_records(tmp_path / "out")])
    np.testing.assert_allclose(swapped, written[:, :, ::-1], atol=1e-5)


def test_a_tie_is_wrong_in_winoground(blind_model: Path, ground: Path, tmp_path: Path) -> None:
    result = winoground.evaluate(blind_model, ground, tmp_path, limit=3)
    for name in ("matching/text", "matching/image", "matching/group", "contrastive/text"):
        assert (result.metric(name).value, result.metric(name).bounds) == (0.0, (0.0, 100.0))
    assert warnings(result) == ["constant_scores/matching"]


def test_the_mean_over_kinds_counts_each_kind_the_same() -> None:
    kinds = ["add_att"] * 90 + ["swap_obj"] * 10
    lines = []
    for n, kind in enumerate(kinds):
        line = {"kind": kind, "image": str(n), "picture": str(n // 2)}
        lines.append(line | {"contrastive": [n % 10 > 0, 0.5], "matching": [1, 0]})
    result = {metric.name: metric for metric in sugarcrepe_metrics(lines)}
    assert (
        result["contrastive/accuracy"].value
        == result["contrastive/mean_accuracy"].value
        == pytest.approx(90)
    )
    low, high = result["contrastive/mean_accuracy"].ci95 or (0, 0)
    narrow = result["contrastive/accuracy"].ci95 or (0, 0)
    assert low < narrow[0] and 90 < high <= 100  # the smaller kind is known less well
    low, high = result["matching/mean_accuracy"].ci95 or (0, 0)
    assert 90 < low < 95 and high == 100  # 50 images do not prove that the next answer is right


def _by_hand(s: list[list[float]]) -> tuple[bool, bool, bool]:
    """The paper's definitions; s[caption][image]."""
    text = s[0][0] > s[1][0] and s[1][1] > s[0][1]
    image = s[0][0] > s[0][1] and s[1][1] > s[1][0]
    return text, image, text and image


_score = st.integers(-2, 2)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.lists(st.lists(_score, min_size=2, max_size=2), min_size=2, max_size=2),
        min_size=1,
        max_size=8,
    )
)
def test_the_three_scores_are_those_of_the_paper(tables: list[list[list[int]]]) -> None:
    lines = []
    for n, table in enumerate(tables):
        lines.append({"image": str(n), "contrastive": table, "matching": table})
    values = {metric.name: metric.value for metric in winoground_metrics(lines)}
    expected = 100 * np.mean([_by_hand(table) for table in tables], axis=0)
    assert [values[f"matching/{name}"] for name in ("text", "image", "group")] == pytest.approx(
        expected.tolist()
    )


def test_guessing_reaches_chance() -> None:
    random = np.random.default_rng(0)
    lines = []
    for number, table in enumerate(random.random((3000, 2, 2)).tolist()):
        lines.append({"image": str(number), "contrastive": table, "matching": table})
    for metric in winoground_metrics(lines):
        assert metric.value == pytest.approx(metric.chance, abs=3)


@pytest.mark.parametrize("evaluate", [sugarcrepe.evaluate, winoground.evaluate])
def test_data_of_another_kind_are_refused(
    evaluate: Callable, knowing_model: Path, gallery: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="glscl data import sugarcrepe|holds no pairs"):
        evaluate(knowing_model, gallery, tmp_path)
