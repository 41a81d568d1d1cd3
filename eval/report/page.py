"""Results and a run folder in, one HTML page out: what was run, what it reached, how it trained, what it retrieves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from data_pipeline.errors import DataError
from eval.schema import Metric, Result, read_records, read_result
from pretrain.run.files import write_whole

from .charts import Bar, interval_chart, line_chart
from .gallery import Group, Thumbnails, image_queries, text_queries

_EXAMPLES = 8  # true and false captions shown
_WORDS = {
    "text_to_image": "text → image",
    "image_to_text": "image → text",
    "reranked": "re-ranked",
    "reranked_gain": "gain by re-ranking",
    "contrastive": "contrastive score",
    "matching": "matching head",
    "MdR": "median rank",
    "MeanR": "mean rank",
}


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
        If a folder holds no result, or two hold results of one stage, which a page has no place for.
    """
    read = [(Path(folder), read_result(folder)) for folder in results]
    rows = _metric_rows(Path(run)) if run is not None else []
    sections: dict[str, tuple[Path, Result]] = {}
    for folder, result in read:
        if result.stage in sections:
            other = sections[result.stage][0]
            raise DataError(f"{other} and {folder} both hold a {result.stage} result: write a report for each")
        sections[result.stage] = (folder, result)
    page = {
        "title": title,
        "facts": {**(facts or {}), **_facts([result for _, result in read], run, rows)},
        "tiles": _tiles({stage: result for stage, (_, result) in sections.items()}),
        "overview": _overview({stage: result for stage, (_, result) in sections.items()}),
        "curves": _curves(rows),
        "tables": [(f"{result.stage}: {result.data.get('name', '')}", _table(result)) for _, result in read],
        "flags": [f"{result.stage}: {flag}" for _, result in read for flag in result.flags],
        "retrieval": _gallery(*sections["retrieval"]) if "retrieval" in sections else None,
        "preference": _preference(*sections["preference"]) if "preference" in sections else None,
        "details": _details(Path(run)) if run is not None else {},
        "protocols": {str(folder): _json(result.protocol) for folder, result in read},
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, environment.get_template("report.html.j2").render(page))
    return out


def _facts(results: Sequence[Result], run: Path | str | None, rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    facts: dict[str, str] = {}
    if run is not None:
        folder = Path(run)
        environment, status = _read(folder / "environment.json"), _read(folder / "status.json")
        facts["Run"] = f"{run}, {status.get('state', 'state unknown')} at step {status.get('step', '?')}"
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
    for result in results:
        if "parameters" in result.model:
            facts["Model"] = (
                f"{result.model['parameters']:,} parameters, {result.model['image_size']} px, {result.model['path']}"
            )
        sizes = ", ".join(f"{result.data[n]:,} {n}" for n in ("images", "texts", "pairs") if n in result.data)
        facts[f"Data of {result.stage}"] = f"{result.data.get('name')}: {sizes}"
        facts["Evaluated"] = str(result.environment.get("date", "date unknown"))
    return facts


def _tiles(results: Mapping[str, Result]) -> list[Tile]:
    tiles = []
    retrieval, baseline, preference = (_metrics(results, name) for name in ("retrieval", "baseline", "preference"))
    ours = retrieval.get("text_to_image/R@1")
    for name in ("text_to_image/R@1", "text_to_image/reranked/R@1", "image_to_text/reranked/R@1"):
        if name in retrieval:
            tiles.append(Tile(_label(name), _value(retrieval[name]), _context(retrieval[name])))
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
    return tiles


def _overview(results: Mapping[str, Result]) -> str | None:
    retrieval, baseline = _metrics(results, "retrieval"), _metrics(results, "baseline")
    if "text_to_image/R@1" not in retrieval:
        return None
    first = retrieval["text_to_image/R@1"]
    bars = [Bar("guessing", first.chance or 0.0, None, False)]
    if "text_to_image/R@1" in baseline:
        bars.append(Bar("baseline", baseline["text_to_image/R@1"].value, baseline["text_to_image/R@1"].ci95, False))
    bars.append(Bar("contrastive", first.value, first.ci95, True))
    if "text_to_image/reranked/R@1" in retrieval:
        both = retrieval["text_to_image/reranked/R@1"]
        bars.append(Bar("re-ranked", both.value, both.ci95, True))
    if "ceiling/text_to_image/R@1" in baseline:
        bars.append(Bar("ceiling", baseline["ceiling/text_to_image/R@1"].value, None, False))
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
            charts.append(line_chart(f"Validation: {_WORDS[direction]}, %", recalls, from_zero=True))
    losses = [key for key in keys if key == "loss" or key.startswith("loss/")]
    charts += [line_chart(_loss_name(key), {_loss_name(key): series(key)}) for key in losses]
    others = {"lr": "Learning rate", "grad_norm": "Gradient norm", "samples_per_second": "Samples per second"}
    others |= {"temperature": "Contrastive temperature", "data_wait_fraction": "Share of time waiting for data"}
    charts += [line_chart(name, {name: series(key)}) for key, name in others.items() if series(key)[0]]
    return charts


def _table(result: Result) -> list[dict[str, str]]:
    return [
        {
            "name": _label(metric.name),
            "value": _value(metric),
            "interval": _interval(metric),
            "chance": "" if metric.chance is None else _number(metric.chance, metric.unit),
            "n": f"{metric.n:,}",
        }
        for metric in result.metrics
    ]


def _gallery(folder: Path, result: Result) -> dict[str, Any]:
    thumbnails = Thumbnails(Path(result.data["path"]), result.data.get("hash"))
    records = list(read_records(folder))
    texts: list[Group] = text_queries(records, thumbnails)
    images: list[Group] = image_queries(records, thumbnails)
    return {"text": texts, "image": images, "problem": thumbnails.problem}


def _preference(folder: Path, result: Result) -> dict[str, Any]:
    thumbnails = Thumbnails(Path(result.data["path"]), result.data.get("hash"))
    lines = list(read_records(folder))
    kinds = sorted({line["kind"] for line in lines})
    shown = []
    for kind in kinds:
        several = [line for line in lines if line["kind"] == kind]
        count = -(-_EXAMPLES // len(kinds))
        shown += [several[i * len(several) // count] for i in range(min(count, len(several)))]
    examples = [
        {
            "picture": thumbnails(line["image"]),
            "kind": line["kind"],
            "true": line["true"],
            "false": line["false"],
            "right": line["matching"][0] > line["matching"][1],
        }
        for line in shown
    ]
    return {"examples": examples}


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


def _label(name: str) -> str:
    return " · ".join(_WORDS.get(part, part) for part in name.split("/"))


def _loss_name(key: str) -> str:
    return "Loss, total" if key == "loss" else "Loss: " + key.removeprefix("loss/").replace("_", " ")


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
    return f"95 % interval {_interval(metric)}; guessing {_number(metric.chance or 0.0, metric.unit)}"


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
