"""SYSU-MM01 and Revisited Oxford from miniatures of their official files, through the stage."""

from pathlib import Path
from typing import Any

import pytest

from data_pipeline.errors import DataError
from data_pipeline.shards.manifest import Manifest
from eval.encoding.encoders import load_encoder
from eval.encoding.labelled_images import encode_tokens
from eval.report import write_report
from eval.results.schema import read_records
from eval.results.verify import verify
from eval.stages.metric_learning import evaluate
from eval.stages.metric_learning.protocols.ranking import rank_gallery
from eval.stages.metric_learning.protocols.task import EmbeddedImages
from launch.cli import main
from tests.data_pipeline import official_identities as official

from .test_metric_learning_stage import QUICK, write

QUICKEST: dict[str, Any] = QUICK | {"seeds": (0,), "lam": 0.0, "adversary": "none"}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def base(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    labels = [[f"class {row % 5}"] for row in range(20)]
    return write(tmp_path_factory.mktemp("official") / "base", scenes / "train", labels)


def imported(words: list[str], folder: Path, split: str) -> Path:
    assert (
        main(["data", "import", *words, str(folder / split), "--split", split, "--workers", "1"])
        == 0
    )
    return folder / split


def embedded(model: Path, data: Path) -> EmbeddedImages:
    tokens = encode_tokens(load_encoder(model), Manifest.load(data))
    return EmbeddedImages(tokens.keys, tokens.labels, tokens.annotations, tokens.cls)


def test_imported_sysu_uses_its_queries_and_draws_its_gallery(
    knowing_model: Path, tmp_path: Path
) -> None:
    words = official.sysu_mm01(tmp_path)
    query = embedded(knowing_model, imported(words, tmp_path, "query"))
    gallery = embedded(knowing_model, imported(words, tmp_path, "gallery"))
    lines = rank_gallery("sysu-all", gallery, query)
    rankings = {(line["query"], line["setting"]) for line in lines}
    # Person 6 by cameras 3 and 6, twice each.
    assert len(rankings) == len(lines) == 10 * len(query.keys) == 10 * 4
    # One image per view: person 6 by cameras 1, 2 and 4, person 333 by 4 and 5. Queries of camera 3
    # are not compared with camera 2.
    assert {line["candidates"] for line in lines} == {4, 5}
    assert {line["positives"] for line in lines} == {2, 3}
    with pytest.raises(DataError, match=r"cameras 3, 6: name the infrared queries \(--query DIR\)"):
        rank_gallery("sysu-all", gallery)
    with pytest.raises(DataError, match=r"cameras 1, 2: name the visible gallery \(--data DIR\)"):
        rank_gallery("sysu-indoor", query, query)


def test_a_result_of_sysu_describes_how_its_galleries_were_drawn(
    knowing_model: Path, base: Path, tmp_path: Path
) -> None:
    words = official.sysu_mm01(tmp_path)
    query, gallery = (imported(words, tmp_path, split) for split in ("query", "gallery"))
    out = tmp_path / "out"
    result = evaluate(
        knowing_model, gallery, out, base=base, query=query, protocol="sysu-all", **QUICKEST
    )
    galleries = result.protocol["galleries"]
    assert (galleries["gallery_shots"], galleries["draws"], galleries["seed"]) == (1, 10, 0)
    assert "rand_perm_cam" in galleries["drawn_by"] and verify(out) == []
    write_report([out], tmp_path / "report.html")
    assert "drawn gallery 0" in (tmp_path / "report.html").read_text()


def test_imported_revisited_crops_its_queries_and_reports_one_setup(
    knowing_model: Path, base: Path, tmp_path: Path
) -> None:
    words = official.revisited(tmp_path)
    query, gallery = (imported(words, tmp_path, split) for split in ("query", "gallery"))
    out = tmp_path / "out"
    result = evaluate(
        knowing_model, gallery, out, base=base, query=query, protocol="revisited", **QUICKEST
    )
    assert result.protocol["queries"].startswith("cropped") and verify(out) == []
    queries = [line for line in read_records(out) if line["kind"] == "query"]
    lines = [line for line in queries if line["method"] == "gdfl"]
    assert {line["setting"] for line in lines} == {"easy", "medium", "hard"}
    write_report([out], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "setup medium" in page
    shown = [line["query"] for line in lines if line["setting"] == "medium"]
    assert len(shown) == 2 and all(page.count(f"query {key}") == 1 for key in shown)
