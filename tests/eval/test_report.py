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
from data_pipeline.scenes.generate import generate
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.store import Store
from data_pipeline.shards.write import write_shards
from eval.report import write_report
from eval.results.schema import Metric, Result, read_result, write_result
from eval.stages import baseline, preference, retrieval

CAPTION = "a <script>alert(1)</script> & \"quoted\" 'square'"


@pytest.fixture(scope="module")
def results(
    knowing_model: Path, scenes: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    out = tmp_path_factory.mktemp("results")
    retrieval.evaluate(knowing_model, scenes / "test", out / "retrieval")
    preference.evaluate(knowing_model, scenes / "test", out / "preference")
    baseline.evaluate(scenes / "train", scenes / "test", out / "baseline")
    return [out / "retrieval", out / "preference", out / "baseline"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as training leaves it, with a half-written last line."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.yaml").write_text(yaml.safe_dump({"run": "runs/x", "steps": 30}))
    (folder / "status.json").write_text(json.dumps({"state": "complete", "step": 30, "reason": ""}))
    rows = []
    for step in range(10, 31, 10):
        row = {
            "step": step,
            "samples": 64 * step,
            "epoch": step / 10,
            "loss": 9.0 / step,
            "loss/matching": 0.7,
        }
        row |= {"lr": 1e-3, "grad_norm": 2.0, "samples_per_second": 100.0, "keys": "ab12"}
        rows.append(
            json.dumps(row | ({"validation/text_to_image/R@1": 2.0 * step} if step > 10 else {}))
        )
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
        assert attributes.get("alt") if tag == "img" else attributes.get("aria-label"), (
            tag,
            attributes,
        )


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
    data = write_shards(
        tmp_path / "d", [("a", {"jpg": jpeg, "txt": CAPTION.encode()})], source={"name": "<b>d</b>"}
    )
    retrieval.evaluate(knowing_model, data.root, tmp_path / "r")
    text = write_report([tmp_path / "r"], tmp_path / "report.html").read_text("utf-8")
    assert "<script" not in text
    assert "<b>d" not in text
    assert "a &lt;script&gt;alert(1)&lt;/script&gt; &amp;" in text


def test_several_results_of_one_stage_are_told_apart_by_their_folders(
    results: list[Path], tmp_path: Path
) -> None:
    again = shutil.copytree(results[0], tmp_path / "again" / "retrieval")
    text = write_report([*results, again], tmp_path / "report.html").read_text("utf-8")
    for folder in (results[0], again):
        name = f"{folder.parent.name}/retrieval"
        assert f"Retrieval ({name})</h2>" in text
        assert f"<h3>retrieval ({name}): scenes-test</h3>" in text
        assert f"re-ranked ({name})" in text
    anchors = [attributes["id"] for tag, attributes in Tags(text).found if tag == "h2"]
    assert len(anchors) == len(set(anchors)) == 2 + 3
    with pytest.raises(DataError, match="retrieval is named 2 times"):
        write_report([results[0], results[0]], tmp_path / "report.html")


def questions(folder: Path, data: Path, stage: str = "vqa") -> Path:
    """A result as the question stage writes it: two types, answers of ten people."""
    store = Store([Manifest.load(data)])
    records = [
        {
            "query": i,
            "image": store.key(0, i),
            "question": f"what <i>colour</i> is {i}?",
            "prediction": "red",
        }
        | {
            "type": "colour" if i % 2 else "count",
            "answer_type": "other",
            "accuracy": [0.0, 1.0, 0.3][i % 3],
        }
        | {"answers": ["red"] * (3 * (i % 3)) + ["pink"] * (10 - 3 * (i % 3))}
        for i in range(12)
    ]
    metrics = [
        Metric(name=name, value=40.0, unit="percent", ci95=(30.0, 50.0), n=12, chance=5.0)
        for name in ("accuracy", "accuracy/type/colour", "accuracy/type/count", "prior/accuracy")
    ]
    described = {"path": str(data), "name": "asked", "hash": f"sha256:{Manifest.load(data).digest}"}
    result = Result(
        stage=stage, protocol={}, data=described, model={}, environment={}, metrics=metrics
    )
    write_result(folder, result, records)
    return folder


def test_questions_are_shown_by_type_with_what_people_said(scenes: Path, tmp_path: Path) -> None:
    folder = questions(tmp_path / "vqa", scenes / "test")
    text = write_report([folder], tmp_path / "report.html").read_text("utf-8")
    assert "colour: 6 questions" in text and "count: 6 questions" in text
    assert "what &lt;i&gt;colour&lt;/i&gt; is" in text and "<i>" not in text
    assert "people said: pink (10 ×)" in text and "people said: pink (7 ×), red (3 ×)" in text
    assert "✓ right" in text and "✗ wrong" in text
    assert (
        "Accuracy by type of question: colour 40.0 %; count 40.0 %; all 40.0 %; all, without the picture 40.0 %"
        in text
    )
    assert sum(tag == "img" for tag, _ in Tags(text).found) == 4
    assert all(attributes["alt"] for tag, attributes in Tags(text).found if tag == "img")


def test_an_unknown_stage_has_its_table(scenes: Path, tmp_path: Path) -> None:
    folder = questions(tmp_path / "odd", scenes / "test", "a stage of tomorrow")
    text = write_report([folder], tmp_path / "report.html").read_text("utf-8")
    assert "<h3>a stage of tomorrow: asked</h3>" in text
    assert "<strong>40.0 %</strong>" in text and "30.0 to 50.0" in text


def test_clips_are_shown_by_a_frame(tmp_path: Path) -> None:
    generate(tmp_path, train=0, val=0, test=3, novel=0, size=48, seed=5, workers=1, video=True)
    store = Store([Manifest.load(tmp_path / "test")])
    keys = [store.key(0, i) for i in range(3)]
    stage = {"above": 0, "tied": 1, "tied_positives": 1, "top": [[key, 0.5] for key in keys]}
    lines = [
        {
            "direction": "text_to_video",
            "query": f"{key}#0",
            "image": key,
            "text": "a star",
            "contrastive": stage,
        }
        for key in keys
    ]
    described = {"path": str(tmp_path / "test"), "name": "clips", "videos": 3}
    result = Result(
        stage="video-retrieval", protocol={}, data=described, model={}, environment={}, metrics=[]
    )
    write_result(tmp_path / "out", result, lines)
    text = write_report([tmp_path / "out"], tmp_path / "report.html").read_text("utf-8")
    assert "Video retrieval</h2>" in text and "Text → video" in text
    assert sum(tag == "img" for tag, _ in Tags(text).found) == 9


def test_a_report_without_its_data_says_so(results: list[Path], tmp_path: Path) -> None:
    moved = shutil.copytree(results[0], tmp_path / "retrieval")
    stored = json.loads((moved / "result.json").read_text())
    stored["data"]["path"] = "no/such/data"
    (moved / "result.json").write_text(json.dumps(stored))
    text = write_report([moved], tmp_path / "report.html").read_text("utf-8")
    assert "Pictures are left out: no/such/data is not a folder" in text
    assert "picture not available" in text


def test_pictures_of_other_data_are_not_shown(
    results: list[Path], scenes: Path, tmp_path: Path
) -> None:
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
    (moved / "result.json").write_text(
        json.dumps(stored | {"flags": ["degenerate_scores/text_to_image"]})
    )
    text = write_report([moved], tmp_path / "report.html").read_text("utf-8")
    assert "<strong>Warning:</strong> retrieval: degenerate_scores/text_to_image" in text


def test_a_folder_without_a_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no result.json"):
        write_report([tmp_path], tmp_path / "report.html")
    with pytest.raises(DataError, match="is not a run folder"):
        write_report([], tmp_path / "report.html", run=tmp_path / "nothing")
    assert not (tmp_path / "report.html").exists()


def opened(page: Path, profile: Path) -> tuple[str, list[str]]:
    """Open a page in headless Chromium; returns its document and what its console printed."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    browser = next((found for name in names if (found := shutil.which(name))), None)
    if browser is None:
        assert not os.environ.get("GLSCL_REQUIRE_BROWSER"), "no Chromium found"
        pytest.skip("no Chromium found")
    options = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--dump-dom",
    ]
    options += ["--window-size=1400,1000", "--virtual-time-budget=5000"]
    done = subprocess.run(
        [browser, *options, f"--user-data-dir={profile}", page.resolve().as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "</html>" in done.stdout, done.stderr[-2000:]
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


def console(page: Path, profile: Path) -> list[str]:
    return opened(page, profile)[1]


@pytest.mark.browser
def test_the_page_opens_in_a_browser_without_console_errors(page: Path, tmp_path: Path) -> None:
    assert console(page, tmp_path / "profile") == []


@pytest.mark.browser
def test_the_browser_would_have_reported_an_error(tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text("<!doctype html><html><body><script>missing()</script></body></html>")
    assert any("missing is not defined" in line for line in console(broken, tmp_path / "profile"))


@pytest.mark.browser
def test_nothing_sticks_out_on_a_phone_or_a_desk(
    results: list[Path], scenes: Path, run: Path, tmp_path: Path
) -> None:
    """The page reports its width out of frames of two sizes, which needs a script that the page itself refuses."""
    again = shutil.copytree(results[0], tmp_path / "a rather long name of a folder" / "retrieval")
    asked = questions(tmp_path / "vqa", scenes / "test")
    page = write_report([*results, again, asked], tmp_path / "report.html", run=run).read_text(
        "utf-8"
    )
    script = "<script>parent.postMessage([innerWidth, document.documentElement.scrollWidth], '*')</script></body>"
    copy = re.sub(r"<meta http-equiv=.Content-Security-Policy[^>]*>", "", page).replace(
        "</body>", script
    )
    (tmp_path / "copy.html").write_text(copy, "utf-8")
    frames = "".join(
        f'<iframe src="copy.html" width="{width}" height="700"></iframe>' for width in (390, 1200)
    )
    listen = "<script>onmessage = e => document.body.append(`[${e.data}]`)</script>"
    (tmp_path / "frames.html").write_text(
        f"<!doctype html><html><body>{listen}{frames}</body></html>"
    )
    document, printed = opened(tmp_path / "frames.html", tmp_path / "profile")
    widths = {int(inner): int(whole) for inner, whole in re.findall(r"\[(\d+),(\d+)\]", document)}
    assert len(widths) == 2, document[-500:]
    assert all(whole <= inner for inner, whole in widths.items()), widths
    assert printed == []
