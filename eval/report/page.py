"""Results and a run folder in, one HTML page out, which opens without a network.

From top to bottom: a paragraph and five numbers, every evaluation beside its reference, warnings,
a section with example images for each evaluation, training curves, and what was run. Tables are
behind a click.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from data_pipeline.files import write_whole

from .evaluation import Evaluation, read_evaluations
from .flags import warnings_of
from .labels import method_label, words
from .sections import Section, make_sections
from .summary import overview, paragraph, tiles
from .training import Training, read_training

_COUNTED = ("images", "videos", "texts", "questions", "statements", "phrases", "pairs")


@dataclass(frozen=True)
class _Source:
    """What an evaluation measured; ``overlap`` is about test images in the training data."""

    title: str
    model: str
    data: str
    overlap: str


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
        Further rows for "What was run", such as the commands.

    Raises
    ------
    DataError
        If a folder holds no result, or is named twice, or ``run`` is not a folder.
    """
    evaluations = read_evaluations(results)
    training = None if run is None else read_training(run)
    sections = make_sections(evaluations)
    flagged = [(section.title, section.evaluation.result.flags) for section in sections]
    warnings = warnings_of(flagged)
    sentence = "" if training is None else training.sentence
    page = {
        "title": title,
        "summary": paragraph(sections, sentence, len(warnings)),
        "tiles": tiles(sections),
        "overview": overview(sections),
        "warnings": warnings,
        "sections": [section for section in sections if not section.evaluation.is_baseline],
        "baselines": [section for section in sections if section.evaluation.is_baseline],
        "training": training,
        "facts": {**(facts or {}), **_facts(evaluations, training)},
        "sources": _sources(sections),
        "files": {} if training is None else training.files,
        "protocols": _protocols(evaluations),
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"words": words, "method_label": method_label}
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, environment.get_template("report.html.j2").render(page))
    return out


def _facts(evaluations: Sequence[Evaluation], training: Training | None) -> dict[str, str]:
    """Describe the run, and when the evaluations were made."""
    facts = {} if training is None else dict(training.facts)
    dates = []
    for evaluation in evaluations:
        if "date" in evaluation.result.environment:
            dates.append(str(evaluation.result.environment["date"]))
    if dates:
        facts["Evaluated"] = min(dates) if len(set(dates)) == 1 else f"{min(dates)} to {max(dates)}"
    return facts


def _sources(sections: Sequence[Section]) -> list[_Source]:
    """Describe the model and the data of every evaluation."""
    sources = []
    for section in sections:
        result = section.evaluation.result
        model = str(result.model.get("path") or result.model.get("name") or "unknown")
        if "parameters" in result.model:
            model += f" ({result.model['parameters']:,} parameters)"
        sizes = []
        for counted in _COUNTED:
            if isinstance(result.data.get(counted), int):
                sizes.append(f"{result.data[counted]:,} {counted}")
        data = f"{result.data.get('name')}: {', '.join(sizes)}" if sizes else ""
        overlap = str(result.data.get("overlap", "not checked"))
        title = section.title
        if section.evaluation.is_baseline:
            title += ", baseline"
        sources.append(_Source(title, model, data or str(result.data.get("name")), overlap))
    return sources


def _protocols(evaluations: Sequence[Evaluation]) -> dict[str, str]:
    protocols = {}
    for evaluation in evaluations:
        protocol = json.dumps(evaluation.result.protocol, indent=2, ensure_ascii=False)
        protocols[str(evaluation.folder)] = protocol
    return protocols
