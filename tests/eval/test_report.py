"""The report is one file that needs nothing else, says in words what colours say, and escapes what captions hold."""

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from data_pipeline.errors import DataError
from data_pipeline.manifest import Manifest
from data_pipeline.write import write_shards
from eval import baselines
from eval.report import write_report
from eval.schema import read_result
from eval.stages import preference, retrieval

CAPTION = "a <script>alert(1)</script> & \"quoted\" 'square'"


@pytest.fixture(scope="module")
def results(knowing_model: Path, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    out = tmp_path_factory.mktemp("results")
    retrieval.evaluate(knowing_model, scenes / "test", out / "retrieval")
    preference.evaluate(knowing_model, scenes / "test", out / "preference")
    baselines.evaluate(scenes / "train", scenes / "test", out / "baseline")
    return [out / "retrieval", out / "preference", out / "baseline"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as training leaves it, with a half-written last line."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.yaml").write_text(yaml.safe_dump({"run": "runs/x", "steps": 30}))
    (folder / "status.json").write_text(json.dumps({"state": "complete", "step": 30, "reason": ""}))
    rows = []
    for step in range(10, 31, 10):
        row = {"step": step, "samples": 64 * step, "epoch": step / 10, "loss": 9.0 / step, "loss/matching": 0.7}
        row |= {"lr": 1e-3, "grad_norm": 2.0, "samples_per_second": 100.0, "keys": "ab12"}
        rows.append(json.dumps(row | ({"validation/text_to_image/R@1": 2.0 * step} if step > 10 else {})))
    (folder / "metrics.jsonl").write_text("\n".join(rows) + '\n{"step": 40, "lo')
    return folder


@pytest.fixture(scope="module")
def page(results: list[Path], run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "report.html"
    return write_report(results, out, run=run, facts={"Commands": "make demo"})


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))


def test_the_page_loads_nothing_from_anywhere(page: Path) -> None:
    text = page.read_text("utf-8")
    for tag, attributes in Tags(text).found:
        assert tag not in ("script", "iframe", "object", "embed")
        for name in ("src", "href", "srcset", "data", "xlink:href"):
            value = attributes.get(name) or ""
            assert value == "" or value.startswith(("data:", "#")), (tag, value)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert page.stat().st_size < 3_000_000


def test_every_picture_has_a_description(page: Path) -> None:
    pictures = [(tag, a) for tag, a in Tags(page.read_text("utf-8")).found if tag in ("img", "svg")]
    assert sum(tag == "img" for tag, _ in pictures) > 30
    assert sum(tag == "svg" for tag, _ in pictures) >= 6
    for tag, attributes in pictures:
        assert attributes.get("alt") if tag == "img" else attributes.get("aria-label"), (tag, attributes)


def test_right_and_wrong_are_said_in_words(page: Path) -> None:
    text = page.read_text("utf-8")
    assert "✓ right" in text
    assert "✗ wrong" in text


def test_the_numbers_are_those_of_the_results(page: Path, results: list[Path]) -> None:
    text = page.read_text("utf-8")
    for folder in results:
        for metric in read_result(folder).metrics:
            if metric.unit == "percent":
                assert f"<strong>{metric.value:.1f} %</strong>" in text
            if metric.ci95:
                assert f"{metric.ci95[0]:.1f} to {metric.ci95[1]:.1f}" in text
    for said in (
        "complete at step 30",
        "make demo",
        "of the ceiling",
        "times the baseline",
        "prefers the true caption",
    ):
        assert said in text


def test_training_curves_are_drawn_from_whole_lines(page: Path) -> None:
    text = page.read_text("utf-8")
    assert "Loss, total over training steps: Loss, total from 0.9 to 0.3" in text
    assert "Validation: text → image, % over training steps: R@1 from 40 to 60" in text


def test_captions_are_escaped(knowing_model: Path, jpeg: bytes, tmp_path: Path) -> None:
    data = write_shards(tmp_path / "d", [("a", {"jpg": jpeg, "txt": CAPTION.encode()})], source={"name": "<b>d</b>"})
    retrieval.evaluate(knowing_model, data.root, tmp_path / "r")
    text = write_report([tmp_path / "r"], tmp_path / "report.html").read_text("utf-8")
    assert "<script" not in text
    assert "<b>d" not in text
    assert "a &lt;script&gt;alert(1)&lt;/script&gt; &amp;" in text


def test_two_results_of_one_stage_are_refused_by_name(results: list[Path], tmp_path: Path) -> None:
    again = shutil.copytree(results[0], tmp_path / "again")
    with pytest.raises(DataError, match=f"{results[0]} and {again} both hold a retrieval result"):
        write_report([*results, again], tmp_path / "report.html")


def test_a_report_without_its_data_says_so(results: list[Path], tmp_path: Path) -> None:
    moved = shutil.copytree(results[0], tmp_path / "retrieval")
    stored = json.loads((moved / "result.json").read_text())
    stored["data"]["path"] = "no/such/data"
    (moved / "result.json").write_text(json.dumps(stored))
    text = write_report([moved], tmp_path / "report.html").read_text("utf-8")
    assert "Pictures are left out: no/such/data is not a folder" in text
    assert "picture not available" in text


def test_pictures_of_other_data_are_not_shown(results: list[Path], scenes: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(results[0], tmp_path / "retrieval")
    stored = json.loads((moved / "result.json").read_text())
    stored["data"]["path"] = str(scenes / "train")
    (moved / "result.json").write_text(json.dumps(stored))
    assert Manifest.load(scenes / "train").digest not in stored["data"]["hash"]
    text = write_report([moved], tmp_path / "report.html").read_text("utf-8")
    assert "is not the data set that was evaluated" in text


def test_flags_are_warnings(results: list[Path], tmp_path: Path) -> None:
    moved = shutil.copytree(results[0], tmp_path / "retrieval")
    stored = json.loads((moved / "result.json").read_text())
    (moved / "result.json").write_text(json.dumps(stored | {"flags": ["degenerate_scores/text_to_image"]}))
    text = write_report([moved], tmp_path / "report.html").read_text("utf-8")
    assert "<strong>Warning:</strong> retrieval: degenerate_scores/text_to_image" in text


def test_a_folder_without_a_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no result.json"):
        write_report([tmp_path], tmp_path / "report.html")
    with pytest.raises(DataError, match="is not a run folder"):
        write_report([], tmp_path / "report.html", run=tmp_path / "nothing")
    assert not (tmp_path / "report.html").exists()


def console(page: Path, profile: Path) -> list[str]:
    """Open a page in headless Chromium; returns what its console printed."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    browser = next((found for name in names if (found := shutil.which(name))), None)
    if browser is None:
        assert not os.environ.get("GLSCL_REQUIRE_BROWSER"), "no Chromium found"
        pytest.skip("no Chromium found")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    done = subprocess.run(
        [browser, *options, f"--user-data-dir={profile}", page.resolve().as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "</html>" in done.stdout, done.stderr[-2000:]
    return [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


@pytest.mark.browser
def test_the_page_opens_in_a_browser_without_console_errors(page: Path, tmp_path: Path) -> None:
    assert console(page, tmp_path / "profile") == []


@pytest.mark.browser
def test_the_browser_would_have_reported_an_error(tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text("<!doctype html><html><body><script>missing()</script></body></html>")
    assert any("missing is not defined" in line for line in console(broken, tmp_path / "profile"))
