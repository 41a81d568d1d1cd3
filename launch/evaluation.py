"""`glscl eval STAGE`, `explain`, `predict`, `compare` and `report`: results and what shows them.

Each `add_*` adds a command to the parser; the function that runs it imports what it needs only
then, so that `--help` does not wait for torch.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError
from eval.registry import stage_module, stage_names, stage_options
from eval.results.options import OptionDescription, StageOptions, describe
from launch.commands import CommandResult, add_command

_MODEL = "run, checkpoint or model folder, or the authors' checkpoint file"


def add_eval(commands: Any) -> None:
    """Add a command for every stage, and `verify`."""
    for name in stage_names():
        options = stage_options(name)
        run = partial(_evaluate, name)
        add_stage_options(add_command(commands, name, run, options.about, options.example), options)
    verify = add_command(
        commands,
        "verify",
        _verify_results,
        "compute every metric again from samples.jsonl; list those that differ, with exit code 3",
        "glscl eval verify runs/demo/retrieval runs/demo/preference",
    )
    verify.add_argument(
        "dirs", metavar="DIR", nargs="+", type=Path, help="folders that hold a result.json"
    )


def add_stage_options(parser: argparse.ArgumentParser, options: type[StageOptions]) -> None:
    """Add an option for each field of a stage's options."""
    for described in describe(options):
        # Only what was given is passed on: defaults are those of the dataclass, in one place.
        settings: dict[str, Any] = {
            "help": _help(described),
            "required": described.required,
            "default": argparse.SUPPRESS,
        }
        if described.kind is bool:
            settings["action"] = "store_true"
        else:
            settings["type"] = described.kind
            settings["nargs"] = "+" if described.several else None
            settings["choices"] = described.choices or None
            settings["metavar"] = described.metavar
        parser.add_argument(f"--{described.name.replace('_', '-')}", **settings)


def _help(described: OptionDescription) -> str:
    """Return the help of an option with its default, where the default is a value."""
    # argparse formats help texts with %.
    text = described.help.replace("%", "%%")
    if described.required or described.default is None or described.kind is bool:
        return text
    default = described.default
    if described.several:
        default = " ".join(str(value) for value in default)
    return f"{text} (default: {default})"


def _evaluate(stage: str, arguments: argparse.Namespace) -> CommandResult:
    """Run a stage with the options that were given."""
    from eval.results.options import build_options
    from eval.results.run_stage import run

    given = vars(arguments).copy()
    # These are of the command line, not options of the stage.
    del given["command"], given["json"]
    result = run(build_options(stage_options(stage), given))
    printed = f"{arguments.out}/result.json"
    if hasattr(stage_module(stage), "table"):
        printed = f"{stage_module(stage).table(result)}\n{printed}"
    return result.model_dump(mode="json", by_alias=True), printed


def add_explain(commands: Any) -> None:
    """Add `glscl explain`."""
    explain = add_command(
        commands,
        "explain",
        _explain,
        "draw where a caption, or a word of it, looks in an image: cross-attention as a heat map",
        'glscl explain street.jpg --caption "a dog beside a red bus" --word dog '
        "--model runs/demo --out dog.png",
    )
    explain.add_argument("image", metavar="IMAGE", type=Path, help="a JPEG, PNG or WebP file")
    explain.add_argument("--caption", metavar="TEXT", required=True, help="what the image shows")
    explain.add_argument(
        "--word", metavar="TEXT", help="a word or phrase of the caption (default: all of it)"
    )
    explain.add_argument("--model", metavar="DIR", type=Path, required=True, help=_MODEL)
    explain.add_argument(
        "--out", metavar="FILE", type=Path, required=True, help="PNG file to write"
    )


def add_predict(commands: Any) -> None:
    """Add `glscl predict`."""
    predict = add_command(
        commands,
        "predict",
        _predict,
        "classify images, given a folder with a few example images of each class",
        "glscl predict new1.jpg new2.jpg --support examples/ --model runs/demo",
    )
    predict.add_argument(
        "images", metavar="IMAGE", nargs="+", type=Path, help="JPEG, PNG or WebP files"
    )
    predict.add_argument(
        "--support",
        metavar="DIR",
        type=Path,
        required=True,
        help="folder with one folder of images for each class, at least two",
    )
    predict.add_argument(
        "--model", metavar="DIR", type=Path, required=True, help="any model that few-shot takes"
    )


def add_compare(commands: Any) -> None:
    """Add `glscl compare`."""
    compare = add_command(
        commands,
        "compare",
        _compare,
        "compare two results of one stage on the same data: paired differences with intervals",
        "glscl compare runs/one/retrieval runs/other/retrieval",
    )
    compare.add_argument("a", metavar="A", type=Path, help="folder that holds a result.json")
    compare.add_argument("b", metavar="B", type=Path, help="folder of the other result")


def add_report(commands: Any) -> None:
    """Add `glscl report`."""
    report = add_command(
        commands,
        "report",
        _report,
        "write results as one HTML file with images",
        "glscl report runs/demo/retrieval --run runs/demo --out runs/demo/report.html",
    )
    report.add_argument(
        "dirs", metavar="DIR", nargs="+", type=Path, help="folders that hold a result.json"
    )
    report.add_argument(
        "--out", metavar="FILE", type=Path, required=True, help="HTML file to write"
    )
    report.add_argument(
        "--run", metavar="RUN", type=Path, help="run folder whose training curves are shown"
    )


def _explain(arguments: argparse.Namespace) -> CommandResult:
    from eval.report.explain import explain

    done = explain(
        arguments.image, arguments.caption, arguments.model, arguments.out, word=arguments.word
    )
    rows, columns = done.heat.shape
    row, column = done.peak
    result = {
        "out": str(done.out),
        "caption": done.caption,
        "word": done.word,
        "grid": [rows, columns],
        "peak": [row, column],
    }
    line = f"{done.out}: highest in row {row + 1} of {rows}, column {column + 1} of {columns}"
    return result, line


def _predict(arguments: argparse.Namespace) -> CommandResult:
    from dataclasses import asdict

    from eval.stages.few_shot.predict import predict, table

    predictions = predict(arguments.images, arguments.support, arguments.model)
    return asdict(predictions), table(predictions)


def _verify_results(arguments: argparse.Namespace) -> CommandResult:
    from eval.results.verify import verify

    wrong = {str(folder): verify(folder) for folder in arguments.dirs}
    if any(wrong.values()):
        # Printed here, because an error ends the command before its result would be printed.
        if arguments.json:
            print(json.dumps({"wrong": wrong}))
        listed = []
        for folder, names in wrong.items():
            if names:
                listed.append(f"{folder}: {', '.join(names)}")
        count = sum(len(names) for names in wrong.values())
        raise DataError(
            f"{count} entries of result.json do not follow from samples.jsonl: {'; '.join(listed)}"
        )
    lines = [f"{folder}: every metric follows from samples.jsonl" for folder in wrong]
    return {"wrong": wrong}, "\n".join(lines)


def _compare(arguments: argparse.Namespace) -> CommandResult:
    from dataclasses import asdict

    from eval.results.compare import compare, table

    comparison = compare(arguments.a, arguments.b)
    return asdict(comparison), table(comparison)


def _report(arguments: argparse.Namespace) -> CommandResult:
    from eval.report import write_report

    write_report(arguments.dirs, arguments.out, run=arguments.run)
    return {"out": str(arguments.out)}, str(arguments.out)
