"""The report is one file that needs nothing else, speaks plain English, and escapes captions.

It starts with a summary and few numbers, and puts every number beside what it is compared with.
"""

import html
import itertools
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_pipeline.errors import DataError
from data_pipeline.scenes.generate import generate
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.store import Store
from data_pipeline.shards.write import write_shards
from eval.report import sections, write_report
from eval.report.evaluation import read_evaluations
from eval.report.flags import warnings_of
from eval.report.labels import metric_label, value_text
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
        row = {"step": step, "samples": 64 * step, "epoch": step / 10}
        row |= {"loss": 9.0 / step, "loss/matching": 0.7}
        row |= {"lr": 1e-3, "grad_norm": 2.0, "samples_per_second": 100.0, "keys": "ab12"}
        if step > 10:
            row["validation/text_to_image/R@1"] = 2.0 * step
        rows.append(json.dumps(row))
    (folder / "metrics.jsonl").write_text("\n".join(rows) + '\n{"step": 40, "lo')
    return folder


@pytest.fixture(scope="module")
def page(results: list[Path], run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "report.html"
    return write_report(results, out, run=run, facts={"Commands": "make demo"})


class Tags(HTMLParser):
    """The tags of a page with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))


def readable(text: str) -> str:
    """The text of a page without tags, files that are quoted word for word, and spare blanks."""
    text = re.sub(r"<(style|pre|svg).*?</\1>", "", text, flags=re.S)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", "", text)))


def test_the_page_loads_nothing_from_anywhere(page: Path) -> None:
    text = page.read_text("utf-8")
    for tag, attributes in Tags(text).tags:
        assert tag not in ("script", "iframe", "object", "embed")
        for name in ("src", "href", "srcset", "data", "xlink:href"):
            value = attributes.get(name) or ""
            assert value == "" or value.startswith(("data:", "#")), (tag, value)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert page.stat().st_size < 3_000_000


def test_every_image_has_a_description(page: Path) -> None:
    tags = Tags(page.read_text("utf-8")).tags
    images = [attributes for tag, attributes in tags if tag == "img"]
    drawings = [attributes for tag, attributes in tags if tag == "svg"]
    assert len(images) > 30 and len(drawings) >= 6
    assert all(attributes.get("alt") for attributes in images)
    assert all(attributes.get("aria-label") for attributes in drawings)


def test_headings_never_skip_a_level(page: Path) -> None:
    levels = [int(tag[1]) for tag, _ in Tags(page.read_text("utf-8")).tags if tag[:-1] == "h"]
    levels = [level for level in levels if 1 <= level <= 6]
    assert levels[0] == 1 and levels.count(1) == 1
    for before, level in itertools.pairwise(levels):
        assert level <= before + 1


def test_right_and_wrong_are_said_in_words(page: Path) -> None:
    text = page.read_text("utf-8")
    assert "✓ right" in text
    assert "✗ wrong" in text


def test_the_numbers_are_those_of_the_results(page: Path, results: list[Path]) -> None:
    text = page.read_text("utf-8")
    for folder in results:
        for metric in read_result(folder).metrics:
            if metric.unit == "percent":
                assert f"<strong>{metric.value:.1f}%</strong>" in text
            if metric.ci95 and metric.unit != "percentage points":
                assert f"{metric.ci95[0]:.1f} to {metric.ci95[1]:.1f}" in text
    for part in ("complete at step 30", "make demo", "of the best possible", "chance"):
        assert part in text


def test_the_page_starts_with_a_summary_and_at_most_five_numbers(page: Path) -> None:
    text = page.read_text("utf-8")
    summary = text[text.index('<p class="summary">') :].partition("</p>")[0]
    assert "It was pre-trained for 30 steps (1,920 samples, 3.0 epochs)." in summary
    assert re.search(r"in [0-2] of 2 evaluations", summary)
    assert text.count('class="tile"') == 5
    assert text.index('class="tile"') < text.index("<h2")


def test_tables_are_behind_a_click(page: Path) -> None:
    text = page.read_text("utf-8")
    assert text.count("<table") >= 3
    opened = 0
    for part in re.findall(r"<details|</details>|<table", text):
        opened += {"<details": 1, "</details>": -1}.get(part, 0)
        assert part != "<table" or opened > 0


def test_no_internal_names_are_in_the_text(page: Path, results: list[Path]) -> None:
    text = readable(page.read_text("utf-8"))
    for folder in results:
        for metric in read_result(folder).metrics:
            if "/" in metric.name:
                assert metric.name not in text
    for name in ("text_to_image", "R@1", "reranked", "tie_rate"):
        assert name not in text
    assert "Text-to-image recall@1, re-ranked" in text
    # Whoever looks for a number in result.json finds its name by pointing at it.
    assert 'title="text_to_image/reranked/R@1"' in page.read_text("utf-8")


def test_there_are_no_empty_cards(page: Path, tmp_path: Path) -> None:
    empty = write_report([], tmp_path / "report.html")
    for file in (page, empty):
        text = re.sub(r"<span[^>]*></span>", "", file.read_text("utf-8"))
        assert not re.search(r"<(div|section|figure|ul|ol|table|tbody)[^>]*>\s*</\1>", text)


def test_training_curves_are_drawn_from_whole_lines(page: Path) -> None:
    text = page.read_text("utf-8")
    assert "Total loss over training steps: Total loss from 0.9 to 0.3" in text
    curve = "Validation: text-to-image, % over training steps: Recall@1 from 40 to 60"
    assert curve in text


def test_the_training_curves_that_matter_most_are_shown_first(page: Path) -> None:
    text = page.read_text("utf-8")
    training = text[text.index('<h2 id="training">') :]
    first, _, more = training.partition("<details>")
    assert "Total loss over" in first and "Validation: text-to-image" in first
    assert "Loss: matching over" in more and "Learning rate over" in more


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
        assert f"Image-text retrieval ({folder.parent.name}/retrieval)</h2>" in text
    anchors = []
    for _, attributes in Tags(text).tags:
        if "id" in attributes:
            anchors.append(attributes["id"])
    assert len(anchors) == len(set(anchors))
    with pytest.raises(DataError, match="retrieval is named 2 times"):
        write_report([results[0], results[0]], tmp_path / "report.html")


def questions(
    folder: Path, data: Path, stage: str = "vqa", model: dict[str, Any] | None = None
) -> Path:
    """Write a result as the question stage writes it: two types, answers of ten people."""
    store = Store([Manifest.load(data)])
    records = []
    for i in range(12):
        line = {
            "query": i,
            "image": store.key(0, i),
            "question": f"what <i>color</i> is {i}?",
            "prediction": "red",
            "type": "color" if i % 2 else "count",
            "answer_type": "other",
            "accuracy": (0.0, 1.0, 0.3)[i % 3],
            "answers": ["red"] * (3 * (i % 3)) + ["pink"] * (10 - 3 * (i % 3)),
        }
        records.append(line)
    values = {"accuracy": 40.0, "accuracy/type/color": 41.0, "accuracy/type/count": 42.0}
    if model is not None:  # a baseline, which answers without the image
        values = {name: value - 20 for name, value in values.items()}
    metrics = []
    for name, value in values.items():
        interval = (value - 10, value + 10)
        metric = Metric(name=name, value=value, unit="percent", ci95=interval, n=12, chance=5.0)
        metrics.append(metric)
    digest = f"sha256:{Manifest.load(data).digest}"
    result = Result(
        stage=stage,
        protocol={},
        data={"path": str(data), "name": "asked", "hash": digest},
        model=model or {},
        environment={},
        metrics=metrics,
    )
    write_result(folder, result, records)
    return folder


def test_questions_are_shown_by_type_with_what_people_said(scenes: Path, tmp_path: Path) -> None:
    folder = questions(tmp_path / "vqa", scenes / "test")
    text = write_report([folder], tmp_path / "report.html").read_text("utf-8")
    assert "Color: 6 questions" in text and "Count: 6 questions" in text
    assert "what &lt;i&gt;color&lt;/i&gt; is" in text and "<i>" not in text
    assert "people said: pink (10 ×)" in text and "people said: pink (7 ×), red (3 ×)" in text
    assert "✓ right" in text and "✗ wrong" in text
    assert "Accuracy by type of question" in text
    images = [attributes for tag, attributes in Tags(text).tags if tag == "img"]
    assert len(images) == 4
    assert all(attributes["alt"] for attributes in images)


def test_accuracy_on_questions_is_beside_what_the_questions_alone_give(
    scenes: Path, tmp_path: Path
) -> None:
    blind = {"name": "question only", "hash": None}
    folders = [
        questions(tmp_path / "vqa", scenes / "test"),
        questions(tmp_path / "prior", scenes / "test", model=blind),
    ]
    page = write_report(folders, tmp_path / "report.html").read_text("utf-8")
    text = readable(page)
    assert "compared with 20.0% (the questions alone). above questions alone" in text
    assert "41.0% 31.0 to 51.0 questions alone 21.0%" in text
    # The baseline does not evaluate the model: no tile, no verdict, no examples.
    assert page.count('class="tile"') == 1
    assert page.index("Baselines without a model") < page.index("question only")


def test_a_stage_without_files_of_its_own_has_bars_and_a_table(
    scenes: Path, tmp_path: Path
) -> None:
    folder = questions(tmp_path / "odd", scenes / "test", "a stage-of_tomorrow")
    text = write_report([folder], tmp_path / "report.html").read_text("utf-8")
    assert "A stage of tomorrow</h2>" in text
    assert "<strong>40.0%</strong>" in text and "30.0 to 50.0" in text
    assert "Accuracy, question type color" in readable(text)


def test_a_stage_gets_its_section_from_files_with_its_name(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "new_stage.html.j2").write_text("")
    (tmp_path / "new_stage.py").write_text(
        "TITLE = 'A new stage'\n"
        "def content(evaluation):\n"
        "    return {'lines': len(evaluation.records)}\n"
    )
    monkeypatch.setattr(sections.stages, "__path__", [str(tmp_path)])
    folder = questions(tmp_path / "new", scenes / "test", "new-stage")
    [section] = sections.make_sections(read_evaluations([folder]))
    assert section.title == "A new stage"
    assert section.template == "stages/new_stage.html.j2"
    assert section.content == {"lines": 12}


def test_a_result_of_the_first_samples_still_has_its_images(
    results: list[Path], tmp_path: Path
) -> None:
    limited = shutil.copytree(results[0], tmp_path / "retrieval")
    stored = json.loads((limited / "result.json").read_text())
    stored["data"]["hash"] += "/first-3"
    (limited / "result.json").write_text(json.dumps(stored))
    text = write_report([limited], tmp_path / "report.html").read_text("utf-8")
    assert "Images are left out" not in text and "data:image/jpeg" in text


def test_videos_are_shown_by_a_frame(tmp_path: Path) -> None:
    generate(tmp_path, train=0, val=0, test=3, novel=0, size=48, seed=5, workers=1, video=True)
    store = Store([Manifest.load(tmp_path / "test")])
    keys = [store.key(0, i) for i in range(3)]
    stage = {"above": 0, "tied": 1, "tied_positives": 1, "top": [[key, 0.5] for key in keys]}
    lines = []
    for key in keys:
        line = {"direction": "text_to_video", "query": f"{key}#0", "image": key}
        lines.append(line | {"text": "a star", "contrastive": stage})
    described = {"path": str(tmp_path / "test"), "name": "clips", "videos": 3}
    result = Result(
        stage="video-retrieval", protocol={}, data=described, model={}, environment={}, metrics=[]
    )
    write_result(tmp_path / "out", result, lines)
    text = write_report([tmp_path / "out"], tmp_path / "report.html").read_text("utf-8")
    assert "Video retrieval</h2>" in text and "Text to video</h3>" in text
    assert sum(tag == "img" for tag, _ in Tags(text).tags) == 9


def test_a_report_without_its_data_says_so(results: list[Path], tmp_path: Path) -> None:
    moved = shutil.copytree(results[0], tmp_path / "retrieval")
    stored = json.loads((moved / "result.json").read_text())
    stored["data"]["path"] = "no/such/data"
    (moved / "result.json").write_text(json.dumps(stored))
    text = write_report([moved], tmp_path / "report.html").read_text("utf-8")
    assert "Images are left out: no/such/data is not a folder" in text
    assert "image not available" in text


def test_images_of_other_data_are_not_shown(
    results: list[Path], scenes: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(results[0], tmp_path / "retrieval")
    stored = json.loads((moved / "result.json").read_text())
    stored["data"]["path"] = str(scenes / "train")
    (moved / "result.json").write_text(json.dumps(stored))
    assert Manifest.load(scenes / "train").digest not in stored["data"]["hash"]
    text = write_report([moved], tmp_path / "report.html").read_text("utf-8")
    assert "is not the data set that was evaluated" in text


def test_flags_are_warnings_in_words(results: list[Path], tmp_path: Path) -> None:
    moved = shutil.copytree(results[0], tmp_path / "retrieval")
    stored = json.loads((moved / "result.json").read_text())
    flags = ["degenerate_scores/text_to_image", "limit/100"]
    (moved / "result.json").write_text(json.dumps(stored | {"flags": flags}))
    text = write_report([moved], tmp_path / "report.html").read_text("utf-8")
    assert "Scores are the same for all candidates" in text
    assert "Image-text retrieval: 100 samples" in text
    assert "There are 2 kinds of warnings, listed below." in text
    assert "degenerate_scores" not in text


def test_flags_of_one_kind_are_one_warning() -> None:
    groups = warnings_of(
        [
            ("A", ["limit/5", "gliml is not above zero_shot, proto (5way-1shot)"]),
            ("B", ["limit/7", "gliml is not above proto (5way-5shot)", "limit/7"]),
        ]
    )
    assert [list(group.places) for group in groups] == [["A", "B"], ["A", "B"]]
    assert groups[0].places == {"A": ["5 samples"], "B": ["7 samples"]}
    expected = "GLIML; not above zero-shot (class names only), ProtoNet; 5-way 1-shot"
    assert groups[1].places["A"] == [expected]


def test_a_flag_that_nobody_has_words_for_is_shown_in_its_own() -> None:
    [group] = warnings_of([("A", ["brand_new_flag/some_thing"])])
    assert group.sentence == "Brand new flag." and group.places == {"A": ["some thing"]}


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("text_to_image/R@1", "Text-to-image recall@1"),
        ("text_to_image/reranked_gain/R@1", "Text-to-image recall@1, gain from re-ranking"),
        ("ceiling/text_to_image/R@1", "Text-to-image recall@1, best possible"),
        ("accuracy/answer_type/yes/no", "Accuracy, answer type yes/no"),
        ("above_prior/accuracy", "Accuracy, gain over answering without the image"),
        ("5way-1shot/gliml/above_proto", "5-way 1-shot accuracy, GLIML, gain over ProtoNet"),
        ("gdfl/above/frozen_cls/recall@1", "Recall@1, GDFL head, gain over frozen class token"),
        ("1shot/lcm-zero_shot/mAP", None),
        ("local/pixel/mass", "Phrase attention inside the region, masks"),
        ("a_new/metric_of-tomorrow", "A new, metric of tomorrow"),
    ],
)
def test_metrics_have_names_that_people_read(name: str, label: str | None) -> None:
    if label is None:
        label = "1-shot mean average precision, LCM minus zero-shot (class names only)"
    assert metric_label(name) == label


def test_values_have_their_units() -> None:
    assert value_text(19.72, "percent") == "19.7%"
    assert value_text(-3.0, "percentage points") == "-3.0 points"
    assert value_text(4.0, "rank") == "4.0"
    assert value_text(24.0, "classes") == "24 classes"


def test_a_folder_without_a_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no result.json"):
        write_report([tmp_path], tmp_path / "report.html")
    with pytest.raises(DataError, match="is not a run folder"):
        write_report([], tmp_path / "report.html", run=tmp_path / "nothing")
    assert not (tmp_path / "report.html").exists()


def opened(page: Path, profile: Path) -> tuple[str, list[str]]:
    """Open a page in headless Chromium; returns its document and what its console printed."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    browsers = [path for path in map(shutil.which, names) if path]
    if not browsers:
        assert not os.environ.get("GLSCL_REQUIRE_BROWSER"), "no Chromium found"
        pytest.skip("no Chromium found")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    options += ["--dump-dom", "--window-size=1400,1000", "--virtual-time-budget=5000"]
    done = subprocess.run(
        [browsers[0], *options, f"--user-data-dir={profile}", page.resolve().as_uri()],
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
    again = shutil.copytree(results[0], tmp_path / "a rather long name of a folder" / "retrieval")
    vqa = questions(tmp_path / "vqa", scenes / "test")
    report = write_report([*results, again, vqa], tmp_path / "report.html", run=run)
    # The page reports its width from frames of two sizes. That takes a script, which the page
    # itself refuses, so the copy goes without the policy.
    page = re.sub(r"<meta http-equiv=.Content-Security-Policy[^>]*>", "", report.read_text("utf-8"))
    # Tables too must fit when they are opened.
    page = page.replace("<details", "<details open")
    widths = "[innerWidth, document.documentElement.scrollWidth]"
    script = f"<script>parent.postMessage({widths}, '*')</script></body>"
    (tmp_path / "copy.html").write_text(page.replace("</body>", script), "utf-8")
    frames = ""
    for width in (390, 1200):
        frames += f'<iframe src="copy.html" width="{width}" height="700"></iframe>'
    listen = "<script>onmessage = e => document.body.append(`[${e.data}]`)</script>"
    (tmp_path / "frames.html").write_text(
        f"<!doctype html><html><body>{listen}{frames}</body></html>"
    )
    document, printed = opened(tmp_path / "frames.html", tmp_path / "profile")
    measured = re.findall(r"\[(\d+),(\d+)\]", document)
    assert len(measured) == 2, document[-500:]
    for inner, whole in measured:
        assert int(whole) <= int(inner)
    assert printed == []
