"""`glscl eval STAGE`, `explain`, `compare` and `report`: results, and what is made of them."""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError
from launch.commands import CommandResult, add_command, natural

_MODEL = "run, checkpoint or model folder, or the authors' file"


def add_eval(commands: Any) -> None:
    """Add a command for each stage, and `verify`."""
    retrieval = add_command(
        commands,
        "retrieval",
        partial(evaluation, "retrieval"),
        "zero-shot image-text retrieval: contrastive score, then the matching head on the best candidates",
        "glscl eval retrieval --model runs/demo --data data/test --out runs/demo/retrieval",
    )
    _add_retrieval_options(retrieval)
    retrieval.add_argument(
        "--folds",
        metavar="N",
        type=natural,
        default=1,
        help="parts ranked apart (5 of COCO's 5K are its 1K; default 1)",
    )
    video = add_command(
        commands,
        "video-retrieval",
        partial(evaluation, "video-retrieval"),
        "zero-shot video-text retrieval: the same, on evenly spaced frames of clips",
        "glscl eval video-retrieval --model runs/video --data data/clips --out runs/video/retrieval --frames 4",
    )
    _add_retrieval_options(video)
    video.add_argument(
        "--frames", metavar="N", type=natural, default=4, help="of each clip (default %(default)s)"
    )
    align = add_command(
        commands,
        "align",
        partial(evaluation, "align"),
        "how much of a text's attention falls on the boxes and masks of what it names, beside uniform attention",
        "glscl eval align --model runs/demo --data data/test --out runs/demo/align",
    )
    add_evaluation_options(align)
    zero_shot = add_command(
        commands,
        "zero-shot",
        partial(evaluation, "zero-shot"),
        "zero-shot classification: which class's name, put into sentences, is closest to the picture",
        "glscl eval zero-shot --model runs/demo --data data/test --out runs/demo/zero-shot",
    )
    add_evaluation_options(zero_shot)
    zero_shot.add_argument(
        "--templates",
        metavar="TEXT",
        nargs="+",
        default=None,
        help='sentences such as "a photo of a {}"',
    )
    zero_shot.add_argument(
        "--classes",
        metavar="NAME",
        nargs="+",
        help="names to choose from (default: those that label a picture)",
    )
    for stage, about in {
        "preference": "whether a true caption scores higher than one with attributes or a relation swapped (scenes)",
        "sugarcrepe": "whether a true caption scores higher than a hard false one (SugarCrepe)",
        "winoground": "two pictures, two captions of the same words: text, image and group score (Winoground)",
    }.items():
        example = (
            f"glscl eval {stage} --model runs/demo --data data/{stage} --out runs/demo/{stage}"
        )
        add_evaluation_options(
            add_command(commands, stage, partial(evaluation, stage), about, example)
        )
    _add_answering(commands)

    verify = add_command(
        commands,
        "verify",
        _verify_results,
        "compute every metric again from samples.jsonl; exit code 3 and their names where one differs in a bit",
        "glscl eval verify runs/demo/retrieval runs/demo/preference",
    )
    verify.add_argument(
        "dirs", metavar="DIR", nargs="+", type=Path, help="folders that hold a result.json"
    )


def _add_answering(commands: Any) -> None:
    vqa = add_command(
        commands,
        "vqa",
        partial(evaluation, "vqa"),
        "questions about pictures: the official accuracy, by type, and what the answer vocabulary allows",
        "glscl eval vqa --model runs/vqa --data data/val --out runs/vqa/val --prior runs/vqa/prior",
    )
    add_evaluation_options(vqa)
    vqa.add_argument(
        "--prior",
        metavar="DIR",
        type=Path,
        help="a vqa-prior result on the same data, compared question by question",
    )
    vqa.add_argument(
        "--submit", action="store_true", help="also write submission.json for the test server"
    )
    for stage, about in {
        "vqa-prior": "what answers reach that know the training questions and see no picture",
        "baseline": "retrieval of scenes without a model, and the best that any could reach",
    }.items():
        example = f"glscl eval {stage} --train data/train --data data/test --out runs/{stage}"
        blind = add_command(commands, stage, partial(evaluation, stage), about, example)
        for name, help_ in (
            ("train", "data set to learn from"),
            ("data", "data set to be measured on"),
        ):
            blind.add_argument(f"--{name}", metavar="DIR", type=Path, required=True, help=help_)
        blind.add_argument(
            "--out",
            metavar="DIR",
            type=Path,
            required=True,
            help="for result.json and samples.jsonl",
        )
        blind.add_argument("--limit", metavar="N", type=natural, help="only the first N pictures")
    nlvr2 = add_command(
        commands,
        "nlvr2",
        partial(evaluation, "nlvr2"),
        "whether statements are true of pairs of pictures: accuracy and consistency",
        "glscl eval nlvr2 --model runs/nlvr2 --data data/pairs/test --out runs/nlvr2/test",
    )
    add_evaluation_options(nlvr2)


def _add_retrieval_options(retrieval: argparse.ArgumentParser) -> None:
    add_evaluation_options(retrieval)
    retrieval.add_argument(
        "--rerank-k",
        metavar="K",
        type=natural,
        default=16,
        help="candidates per query (default %(default)s; 0: none)",
    )
    retrieval.add_argument(
        "--score",
        choices=("itm", "itm+sim"),
        default="itm+sim",
        help="what ranks them (default %(default)s)",
    )
    retrieval.add_argument(
        "--train",
        metavar="DIR",
        type=Path,
        help="run or data set that may hold test pictures (default: the model's run)",
    )


def add_evaluation_options(parser: argparse.ArgumentParser) -> None:
    """Add what every stage with a model and a data set takes."""
    parser.add_argument("--model", metavar="DIR", type=Path, required=True, help=_MODEL)
    parser.add_argument(
        "--data", metavar="DIR", type=Path, required=True, help="folder of a data set"
    )
    parser.add_argument(
        "--out", metavar="DIR", type=Path, required=True, help="for result.json and samples.jsonl"
    )
    parser.add_argument(
        "--limit", metavar="N", type=natural, help="only the first N pictures or clips"
    )
    parser.add_argument(
        "--batch-size",
        metavar="N",
        type=natural,
        default=argparse.SUPPRESS,
        help="encoded at once; changes no result",
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        default="fp32",
        help="of the networks (%(default)s)",
    )
    parser.add_argument(
        "--cache",
        metavar="DIR",
        type=Path,
        help="keep what is encoded there, for the next time (default: keep nothing)",
    )


def add_explain(commands: Any) -> None:
    """Add `glscl explain`."""
    explain = add_command(
        commands,
        "explain",
        _explain,
        "draw where a caption, or a word of it, looks in a picture: cross-attention as a heat map",
        'glscl explain street.jpg --caption "a dog beside a red bus" --word dog --model runs/demo --out dog.png',
    )
    explain.add_argument("image", metavar="IMAGE", type=Path, help="a JPEG, PNG or WebP file")
    explain.add_argument("--caption", metavar="TEXT", required=True, help="what is in the picture")
    explain.add_argument(
        "--word", metavar="TEXT", help="a word or phrase of the caption (default: all of it)"
    )
    explain.add_argument("--model", metavar="DIR", type=Path, required=True, help=_MODEL)
    explain.add_argument(
        "--out", metavar="FILE", type=Path, required=True, help="PNG file to write"
    )


def add_compare(commands: Any) -> None:
    """Add `glscl compare`."""
    compare = add_command(
        commands,
        "compare",
        _compare,
        "what differs between two results of one stage on the same data: paired differences with intervals",
        "glscl compare runs/one/retrieval runs/other/retrieval",
    )
    compare.add_argument("a", metavar="A", type=Path, help="folder that holds a result.json")
    compare.add_argument("b", metavar="B", type=Path, help="another one")


def add_report(commands: Any) -> None:
    """Add `glscl report`."""
    report = add_command(
        commands,
        "report",
        _report,
        "results as one HTML file with pictures",
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


def evaluation(stage: str, arguments: argparse.Namespace) -> CommandResult:
    """Run a stage with the options that were parsed."""
    from importlib import import_module

    from eval.__main__ import STAGES

    options = {
        name: value for name, value in vars(arguments).items() if name not in ("command", "json")
    }
    result = import_module(STAGES[stage]).evaluate(**options)
    return result.model_dump(mode="json", by_alias=True), f"{arguments.out}/result.json"


def _explain(arguments: argparse.Namespace) -> CommandResult:
    from eval.report.explain import explain

    done = explain(
        arguments.image, arguments.caption, arguments.model, arguments.out, word=arguments.word
    )
    rows, columns = done.heat.shape
    row, column = done.peak
    result: dict[str, Any] = {"out": str(done.out), "caption": done.caption, "word": done.word}
    result |= {"grid": [rows, columns], "peak": [row, column]}
    return (
        result,
        f"{done.out}: highest in row {row + 1} of {rows}, column {column + 1} of {columns}",
    )


def _verify_results(arguments: argparse.Namespace) -> CommandResult:
    from eval.results.verify import verify

    wrong = {str(folder): verify(folder) for folder in arguments.dirs}
    if any(wrong.values()):
        if arguments.json:
            print(json.dumps({"wrong": wrong}))
        said = "; ".join(
            f"{folder}: {', '.join(names)}" for folder, names in wrong.items() if names
        )
        metrics = sum(map(len, wrong.values()))
        raise DataError(f"{metrics} metrics do not follow from samples.jsonl: {said}")
    return {"wrong": wrong}, "\n".join(
        f"{folder}: every metric follows from samples.jsonl" for folder in wrong
    )


def _compare(arguments: argparse.Namespace) -> CommandResult:
    from dataclasses import asdict

    from eval.results.compare import compare, table

    comparison = compare(arguments.a, arguments.b)
    return asdict(comparison), table(comparison)


def _report(arguments: argparse.Namespace) -> CommandResult:
    from eval.report import write_report

    write_report(arguments.dirs, arguments.out, run=arguments.run)
    return {"out": str(arguments.out)}, str(arguments.out)
