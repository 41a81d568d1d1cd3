"""Results and a run folder in, one HTML page out: what was run, what it reached, how it trained, what it retrieves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from data_pipeline.errors import DataError
from data_pipeline.files import write_whole
from eval.results.schema import Metric, Result, read_result

from .charts import Bar, interval_chart, line_chart
from .sections import WORDS, label, sections_of, tell_apart

_SHOWN = 40  # metrics of a result that are shown at once


@dataclass(frozen=True)
class Tile:
    """A number that a reader wants first, with what it is compared to."""

    label: str
    value: str
    note: str


def write_report(
    results: Sequence[Path | str],
    out: Path | str,
    *,
    run: Path | str | None = None,
    facts: Mapping[str, str] | None = None,
    title: str = "GLSCL report",
) -> Path:
    """Write one self-contained HTML file and return its path.

    Parameters
    ----------
    results
        Folders that stages wrote (`result.json`, `samples.jsonl`).
    out
        The file to write.
    run
        Run folder whose training is shown.
    facts
        Further rows for "what was run", such as the commands.

    Raises
    ------
    DataError
        If a folder holds no result, or is named twice.
    """
    read = [(Path(folder), read_result(folder)) for folder in results]
    names = tell_apart(read)
    rows = _metric_rows(Path(run)) if run is not None else []
    first: dict[str, Result] = {}
    for _, result in read:
        first.setdefault(result.stage, result)
    named = [(name, result) for name, (_, result) in zip(names, read, strict=True)]
    page = {
        "title": title,
        "facts": {**(facts or {}), **_facts(named, run, rows)},
        "tiles": _tiles(first),
        "overview": _overview(named, first.get("baseline")),
        "curves": _curves(rows),
        "tables": [
            (f"{name}: {result.data.get('name', '')}", _table(result)) for name, result in named
        ],
        "flags": [f"{name}: {flag}" for name, result in named for flag in result.flags],
        "sections": sections_of(read, names),
        "details": _details(Path(run)) if run is not None else {},
        "protocols": {str(folder): _json(result.protocol) for folder, result in read},
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, environment.get_template("report.html.j2").render(page))
    return out


def _facts(
    results: Sequence[tuple[str, Result]], run: Path | str | None, rows: Sequence[dict[str, Any]]
) -> dict[str, str]:
    facts: dict[str, str] = {}
    if run is not None:
        folder = Path(run)
        environment, status = _read(folder / "environment.json"), _read(folder / "status.json")
        facts["Run"] = (
            f"{run}, {status.get('state', 'state unknown')} at step {status.get('step', '?')}"
        )
        if rows:
            last = rows[-1]
            facts["Trained on"] = f"{last['samples']:,} samples, {last.get('epoch', 0):.1f} epochs"
        if environment:
            hardware, versions = environment.get("hardware", {}), environment.get("versions", {})
            world = environment.get("world", 1)
            facts["Machine"] = (
                f"{hardware.get('cpus')} CPU cores, {hardware.get('device')}, {world} process{'es' * (world != 1)}"
            )
            facts["Versions"] = ", ".join(
                f"{n} {versions[n]}" for n in ("python", "torch", "transformers") if n in versions
            )
            facts["Code"] = f"{environment.get('code')}, seed {environment.get('seed')}"
            if "command" in environment:
                facts["Training command"] = " ".join(environment["command"])
    for name, result in results:
        if "parameters" in result.model:
            different = (
                len(
                    {other.model.get("hash") for _, other in results if "parameters" in other.model}
                )
                > 1
            )
            facts[f"Model of {name}" if different else "Model"] = (
                f"{result.model['parameters']:,} parameters, {result.model['image_size']} px, {result.model['path']}"
            )
        counted = ("images", "videos", "texts", "questions", "phrases", "pairs")
        sizes = ", ".join(
            f"{result.data[n]:,} {n}" for n in counted if isinstance(result.data.get(n), int)
        )
        facts[f"Data of {name}"] = f"{result.data.get('name')}: {sizes}"
        if "overlap" in result.data:
            facts[f"Data of {name}"] += (
                f"; test pictures in the training data: {result.data['overlap']}"
            )
        facts["Evaluated"] = str(result.environment.get("date", "date unknown"))
    return facts


def _tiles(results: Mapping[str, Result]) -> list[Tile]:
    tiles = []
    retrieval, baseline, preference = (
        _metrics(results, name) for name in ("retrieval", "baseline", "preference")
    )
    ours = retrieval.get("text_to_image/R@1")
    for name in ("text_to_image/R@1", "text_to_image/reranked/R@1", "image_to_text/reranked/R@1"):
        if name in retrieval:
            tiles.append(Tile(label(name), _value(retrieval[name]), _context(retrieval[name])))
    ceiling, floor = baseline.get("ceiling/text_to_image/R@1"), baseline.get("text_to_image/R@1")
    if ours and ceiling:
        note = f"text → image R@1 as a share of the best possible, {ceiling.value:.1f} %"
        tiles.append(Tile("of the ceiling", f"{100 * ours.value / ceiling.value:.0f} %", note))
    if ours and floor and floor.value > 0:
        note = f"closest training caption, then colours: R@1 {floor.value:.1f} %"
        tiles.append(Tile("times the baseline", f"{ours.value / floor.value:.2g} ×", note))
    if "matching/accuracy" in preference:
        best = preference["matching/accuracy"]
        tiles.append(Tile("prefers the true caption", _value(best), _context(best)))
    for stage, result in results.items():
        if stage not in ("retrieval", "baseline", "preference") and result.metrics:
            metric = result.metrics[0]
            tiles.append(
                Tile(f"{label(stage)}: {label(metric.name)}", _value(metric), _context(metric))
            )
    return tiles


def _overview(named: Sequence[tuple[str, Result]], baseline: Result | None) -> str | None:
    """Draw R@1 of all retrieval results on the data of the first one, between guessing and the ceiling."""
    shown = [(name, result) for name, result in named if result.stage == "retrieval"]
    if not shown:
        return None
    data = shown[0][1].data.get("hash")
    shown = [(name, result) for name, result in shown if result.data.get("hash") == data]
    beside = (
        {"baseline": baseline} if baseline is not None and baseline.data.get("hash") == data else {}
    )
    floor = _metrics(beside, "baseline")
    bars = [Bar("guessing", shown[0][1].metric("text_to_image/R@1").chance or 0.0, None, False)]
    if "text_to_image/R@1" in floor:
        bars.append(
            Bar(
                "baseline", floor["text_to_image/R@1"].value, floor["text_to_image/R@1"].ci95, False
            )
        )
    for name, result in shown:
        found = _metrics({"retrieval": result}, "retrieval")
        suffix = name.removeprefix("retrieval") if len(shown) > 1 else ""
        for words, key in (
            ("contrastive", "text_to_image/R@1"),
            ("re-ranked", "text_to_image/reranked/R@1"),
        ):
            if key in found:
                bars.append(Bar(words + suffix, found[key].value, found[key].ci95, True))
    if "ceiling/text_to_image/R@1" in floor:
        bars.append(Bar("ceiling", floor["ceiling/text_to_image/R@1"].value, None, False))
    return interval_chart("Text → image, R@1", bars)


def _curves(rows: Sequence[dict[str, Any]]) -> list[str]:
    def series(key: str) -> tuple[list[float], list[float]]:
        kept = [(row["step"], row[key]) for row in rows if isinstance(row.get(key), int | float)]
        return [step for step, _ in kept], [value for _, value in kept]

    keys = dict.fromkeys(key for row in rows for key in row)
    charts = []
    for direction in ("text_to_image", "image_to_text"):
        recalls = {k: series(f"validation/{direction}/{k}") for k in ("R@1", "R@5", "R@10")}
        recalls = {k: line for k, line in recalls.items() if line[0]}
        if recalls:
            charts.append(line_chart(f"Validation: {WORDS[direction]}, %", recalls, from_zero=True))
    drawn = [f"validation/{direction}/" for direction in ("text_to_image", "image_to_text")]
    for key in keys:
        if key.startswith("validation/") and not key.startswith(tuple(drawn)) and series(key)[0]:
            name = f"Validation: {label(key.removeprefix('validation/'))}"
            charts.append(line_chart(name, {name: series(key)}))
    losses = [key for key in keys if key == "loss" or key.startswith("loss/")]
    charts += [line_chart(_loss_name(key), {_loss_name(key): series(key)}) for key in losses]
    others = {
        "lr": "Learning rate",
        "grad_norm": "Gradient norm",
        "samples_per_second": "Samples per second",
    }
    others |= {
        "temperature": "Contrastive temperature",
        "data_wait_fraction": "Share of time waiting for data",
    }
    charts += [
        line_chart(name, {name: series(key)}) for key, name in others.items() if series(key)[0]
    ]
    return charts


def _table(result: Result) -> dict[str, list[dict[str, str]]]:
    """Make rows of the metrics; those of single classes and what is more than a page stand apart, behind a click."""
    rows: dict[str, list[dict[str, str]]] = {"metrics": [], "more": []}
    for metric in result.metrics:
        row = {
            "name": label(metric.name),
            "value": _value(metric),
            "interval": _interval(metric),
            "chance": "" if metric.chance is None else _number(metric.chance, metric.unit),
            "n": f"{metric.n:,}",
        }
        of_class = "class" in metric.name.split("/")[:-1]
        rows["more" if of_class or len(rows["metrics"]) == _SHOWN else "metrics"].append(row)
    return rows


def _details(run: Path) -> dict[str, str]:
    names = ("config.yaml", "environment.json", "status.json")
    return {name: (run / name).read_text("utf-8") for name in names if (run / name).is_file()}


def _metric_rows(run: Path) -> list[dict[str, Any]]:
    file = run / "metrics.jsonl"
    if not run.is_dir():
        raise DataError(f"{run} is not a run folder")
    rows = []
    for line in file.read_text("utf-8").splitlines() if file.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break  # the line that a running job is writing
    return rows


def _metrics(results: Mapping[str, Result], stage: str) -> dict[str, Metric]:
    return {metric.name: metric for metric in results[stage].metrics} if stage in results else {}


def _loss_name(key: str) -> str:
    return (
        "Loss, total" if key == "loss" else "Loss: " + key.removeprefix("loss/").replace("_", " ")
    )


def _number(value: float, unit: str) -> str:
    return (
        f"{value:.1f} %"
        if unit == "percent"
        else f"{value:+.1f} pp"
        if unit.startswith("percentage")
        else f"{value:.1f}"
    )


def _value(metric: Metric) -> str:
    return _number(metric.value, metric.unit)


def _interval(metric: Metric) -> str:
    return "" if metric.ci95 is None else f"{metric.ci95[0]:.1f} to {metric.ci95[1]:.1f}"


def _context(metric: Metric) -> str:
    parts = [f"95 % interval {_interval(metric)}"] if metric.ci95 else []
    parts += (
        [f"guessing {_number(metric.chance, metric.unit)}"] if metric.chance is not None else []
    )
    return "; ".join(parts)


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
