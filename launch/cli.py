"""`glscl ...`: a thin command for each task of a user.

In: the command line. Out: an exit code (0 done, 2 usage, 3 data, 4 numbers, 5 incomplete), errors
as one line on stderr, and with `--json` one line of JSON, last on stdout. Slow imports are inside
the command that needs them, because `glscl --help` must not wait for torch.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError, UsageError, UserError, fail, report
from data_pipeline.sources.catalogue import SOURCES
from launch import imports
from launch.commands import CommandResult, Parser, add_command, add_workers, group, natural
from launch.evaluation import add_compare, add_eval, add_explain, add_predict, add_report
from pretrain.parallel import DEFAULT_ENGINE, ENGINES


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code of its process.

    `argv` defaults to the arguments of this process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words[:1] == ["pretrain"]:
            # Parses its own command line, the same as under `accelerate launch -m pretrain`.
            from pretrain.__main__ import main as pretrain

            return pretrain(words[1:])
        if words[:1] == ["finetune"]:
            from eval.finetune import main as finetune

            return finetune(words[1:])
        arguments = parser().parse_args(words)
        result = arguments.command(arguments)
        if result is not None:
            print(json.dumps(result[0]) if arguments.json else result[1])
        # Flushed here, so that a full disk is an error with an exit code, not a message at exit.
        sys.stdout.flush()
        return 0
    except (UserError, OSError) as error:
        return report(error, "glscl")
    except KeyboardInterrupt:
        return fail("interrupted", 130, "glscl")


# What the commands do, in the order of `glscl --help`. --------------------------------------------


def _scenes(arguments: argparse.Namespace) -> CommandResult:
    from data_pipeline.scenes.generate import generate

    counts = {split: getattr(arguments, split) for split in ("train", "val", "test", "novel")}
    manifests = generate(
        arguments.out,
        **counts,
        size=arguments.size,
        seed=arguments.seed,
        video=arguments.video,
        labelled=arguments.labelled,
        workers=arguments.workers,
    )
    samples = {split: manifest.samples for split, manifest in manifests.items()}
    summary = ", ".join(f"{count:,} {split}" for split, count in samples.items())
    return {"out": str(arguments.out), "samples": samples}, f"{arguments.out}: {summary}"


def _index(arguments: argparse.Namespace) -> CommandResult:
    from data_pipeline.shards.manifest import index

    manifest = index(arguments.dir, name=arguments.name, workers=arguments.workers)
    result = {
        "dir": str(arguments.dir),
        "samples": manifest.samples,
        "shards": len(manifest.shards),
    }
    line = f"{arguments.dir}: {manifest.samples:,} samples in {len(manifest.shards):,} shards"
    return result | {"fields": manifest.fields, "sha256": manifest.digest}, line


def _verify(arguments: argparse.Namespace) -> CommandResult:
    from data_pipeline.shards.verify import verify

    folder = arguments.dir
    problems = verify(folder, decode=arguments.decode, workers=arguments.workers)
    result = {"dir": str(folder), "problems": problems}
    if problems:
        # The list is the result, so it goes to stdout; the error after it sets the exit code.
        print(json.dumps(result) if arguments.json else "\n".join(problems))
        raise DataError(f"{folder}: {len(problems)} problem(s) found; the first: {problems[0]}")
    return result, f"{folder}: everything is as the manifest says"


def _order(arguments: argparse.Namespace) -> None:
    from data_pipeline.positions import planned_keys

    given = {}
    for name in ("dirs", "weights", "seed", "global_batch", "world"):
        value = getattr(arguments, name)
        if value not in (None, []):
            given[name] = value
    # A run reads images, videos or both; each kind has its own order.
    kinds: list[dict[str, Any]] = [{}]
    if arguments.config is not None:
        kinds = _orders_of(arguments.config)
        if "dirs" in given:
            kinds = kinds[:1]
            # The configuration's weights belong to the configuration's data sets.
            del kinds[0]["weights"]
        elif len(kinds) > 1 and "global_batch" in given:
            raise UsageError(
                "--global-batch is one number, but this run takes images and videos: "
                "change its batch in the configuration"
            )
    kinds = [configured | given for configured in kinds]
    for name, option in (("dirs", "DIR"), ("seed", "--seed"), ("global_batch", "--global-batch")):
        if name not in kinds[0]:
            raise UsageError(f"{option} is missing: give it, or --config CONFIG")
    where = {"rank": arguments.rank, "start_step": arguments.start_step, "steps": arguments.steps}
    orders = [planned_keys(**kind, **where) for kind in kinds]
    for step_of_each_kind in zip(*orders, strict=True):
        keys = []
        for step in step_of_each_kind:
            keys += step["keys"]
        print(json.dumps({"step": step_of_each_kind[0]["step"], "keys": keys}))


def _orders_of(path: Path) -> list[dict[str, Any]]:
    """Return what determines the order of each kind of a run's samples, images before videos."""
    from eval.finetuning.config import load_finetune_config
    from pretrain.config import TrainingConfig
    from pretrain.config_file import load_config, read_values

    # Only fine-tuning has a task.
    load = load_finetune_config if "task" in read_values(path) else load_config
    config: TrainingConfig = load(path)
    orders = []
    for mixture in config.mixtures.values():
        order = {
            "dirs": mixture.dirs,
            "weights": mixture.weights,
            "seed": config.seed,
            "global_batch": mixture.global_batch,
            "lanes": mixture.lanes,
            "world": config.world or 1,
        }
        orders.append(order)
    return orders


def _tokenizer(arguments: argparse.Namespace) -> CommandResult:
    from data_pipeline.text import train_tokenizer

    vocabulary = train_tokenizer([arguments.dir], arguments.out, arguments.vocab_size).vocab_size
    result = {"out": str(arguments.out), "vocab_size": vocabulary}
    return result, f"{arguments.out}: {vocabulary:,} entries"


def _plan(arguments: argparse.Namespace) -> CommandResult:
    from dataclasses import asdict

    from pretrain.config_file import load_config
    from pretrain.planning.plan import plan

    if not 0 < arguments.mfu <= 100 or arguments.peak <= 0:
        raise UsageError("--mfu is a percentage above 0, --peak a positive number of TFLOP/s")
    result = plan(load_config(arguments.config), arguments.world, arguments.engine)
    hours = result.device_hours(arguments.peak * 1e12, arguments.mfu / 100)
    totals = {"memory": result.memory, "step_flops": result.step_flops, "device_hours": hours}
    spent = f"{hours:,.3g} device hours at {arguments.mfu:g} % of {arguments.peak:g} TFLOP/s"
    return asdict(result) | totals, f"{result.table()}\n\n{spent}"


def _export(arguments: argparse.Namespace) -> CommandResult:
    from pretrain.export import export

    out = export(arguments.run, arguments.out, check=arguments.check)
    checked = "written and checked" if arguments.check else "written"
    return {"out": str(out), "checked": arguments.check}, f"{out}: {checked}"


def _convert(arguments: argparse.Namespace) -> CommandResult:
    from pretrain.export import convert

    model = convert(arguments.checkpoint, arguments.out, tokenizer=arguments.tokenizer)
    full = arguments.out / "full"
    parameters, size = model.num_parameters(), model.config.image_size
    result = {
        "out": str(arguments.out),
        "full": str(full),
        "tokenizer": arguments.tokenizer is not None,
        "parameters": parameters,
        "image_size": size,
    }
    return result, f"{full}: {parameters:,} parameters, {size} pixels"


# Their arguments. ---------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands.

    In the parsed arguments, `command` is the function that runs the command.
    """
    top = Parser(
        prog="glscl",
        description="Vision-language pre-training: from WebDataset shards to a trained, evaluated, "
        "exported model.",
        epilog="exit codes: 0 done, 2 wrong usage or configuration, 3 bad or missing data, "
        "4 non-finite or degenerate numbers, 5 incomplete (run it again), "
        "75 stopped on a signal after saving",
        allow_abbrev=False,
    )
    groups = top.add_subparsers(metavar="COMMAND", required=True)
    _add_data(group(groups, "data", "create, check and inspect data sets"))
    groups.add_parser(
        "pretrain", help="train in one process (several: accelerate launch -m pretrain CONFIG)"
    )
    groups.add_parser(
        "finetune",
        help="fine-tune in one process (several: accelerate launch -m eval.finetune CONFIG)",
    )
    _add_plan(groups)
    stages = group(groups, "eval", "evaluate a model on a data set")
    add_eval(stages)
    add_explain(groups)
    add_predict(groups)
    add_compare(groups)
    _add_export(groups)
    _add_convert(groups)
    add_report(groups)
    return top


def _add_data(commands: Any) -> None:
    scenes = add_command(
        commands,
        "scenes",
        _scenes,
        "write the embedded data set as shards per split: generated scenes with exact captions, "
        "questions and masks",
        "glscl data scenes runs/demo/data --train 2000 --val 100 --test 500 --novel 100",
    )
    scenes.add_argument(
        "out",
        metavar="OUT",
        type=Path,
        help="folder to write train, val, test, novel and pairs into",
    )
    for split, count in {"train": 20000, "val": 500, "test": 500, "novel": 500}.items():
        scenes.add_argument(
            f"--{split}",
            metavar="N",
            type=natural,
            default=count,
            help="samples (default %(default)s)",
        )
    scenes.add_argument(
        "--size",
        metavar="PX",
        type=natural,
        default=96,
        help="width and height of an image (default %(default)s)",
    )
    scenes.add_argument(
        "--video", action="store_true", help="write videos (mp4) of the same scenes in motion"
    )
    scenes.add_argument(
        "--labelled",
        action="store_true",
        help="also write OUT/labelled/base, val and novel: scenes labelled by fill, color and "
        "shape; the three have no class in common",
    )
    scenes.add_argument(
        "--seed",
        metavar="S",
        type=natural,
        default=0,
        help="seed of the scenes (default 0)",
    )
    add_workers(scenes)

    _add_import(
        group(
            commands, "import", "turn the official files of a data set into shards and dataset.json"
        )
    )

    index = add_command(
        commands,
        "index",
        _index,
        "write dataset.json for existing shards (of img2dataset, webdataset); decodes no image",
        "glscl data index /data/cc3m --workers 8",
    )
    index.add_argument("dir", metavar="DIR", type=Path, help="folder that holds the .tar shards")
    index.add_argument(
        "--name",
        metavar="NAME",
        help="first part of the samples' keys (default: the name it had, else the folder's name)",
    )
    add_workers(index)

    verify = add_command(
        commands,
        "verify",
        _verify,
        "check every byte against dataset.json; exit code 3 and a list if anything is wrong",
        "glscl data verify /data/cc3m --decode",
    )
    verify.add_argument("dir", metavar="DIR", type=Path, help="folder of a data set")
    verify.add_argument("--decode", action="store_true", help="also decode every sample")
    add_workers(verify)

    order = add_command(
        commands,
        "order",
        _order,
        "print the sample keys that a rank will read, one JSON line per step; decodes nothing",
        "glscl data order data/train --seed 0 --global-batch 64 --world 2 --rank 1 --steps 3\n"
        "  glscl data order --config runs/demo/config.yaml --steps 1",
    )
    order.add_argument("dirs", metavar="DIR", nargs="*", help="folders of data sets")
    order.add_argument(
        "--config",
        metavar="CONFIG",
        type=Path,
        help="configuration of a run, for everything that is not given here",
    )
    order.add_argument(
        "--weights",
        metavar="W",
        nargs="+",
        type=float,
        help="weight of each DIR (default: its number of samples)",
    )
    order.add_argument("--seed", metavar="S", type=natural, help="the run's seed")
    order.add_argument(
        "--global-batch", metavar="B", type=natural, help="samples per step over all ranks"
    )
    order.add_argument("--world", metavar="W", type=natural, help="number of ranks (default 1)")
    order.add_argument(
        "--rank",
        metavar="R",
        type=natural,
        default=0,
        help="the rank whose keys are printed (default %(default)s)",
    )
    order.add_argument(
        "--workers",
        metavar="K",
        type=natural,
        help="loader processes of the run; does not change the keys",
    )
    order.add_argument(
        "--start-step",
        metavar="N",
        type=natural,
        default=0,
        help="first step to print (default %(default)s)",
    )
    order.add_argument(
        "--steps",
        metavar="M",
        type=natural,
        default=1,
        help="number of steps to print (default %(default)s)",
    )

    tokenizer = add_command(
        commands,
        "tokenizer",
        _tokenizer,
        "train a byte-level BPE tokenizer on the captions, for use without a hub",
        "glscl data tokenizer data/train --out runs/tokenizer --vocab-size 1000",
    )
    tokenizer.add_argument("dir", metavar="DIR", type=Path, help="folder of a data set")
    tokenizer.add_argument("--out", metavar="TOK", type=Path, required=True, help="folder to write")
    tokenizer.add_argument(
        "--vocab-size", metavar="N", type=natural, required=True, help="maximum number of entries"
    )


def _add_import(commands: Any) -> None:
    for name, source in SOURCES.items():
        example = f"glscl data import {source.example}"
        command = add_command(commands, name, partial(imports.run, name), source.about, example)
        imports.add_arguments(command, source)
        add_workers(command)


def _add_plan(commands: Any) -> None:
    plan = add_command(
        commands,
        "plan",
        _plan,
        "estimate the cost of a run without training: parameters, operations by view and pass, "
        "memory, and the data it reads",
        "glscl plan launch/recipes/pretrain_base.yaml --world 64",
    )
    plan.add_argument("config", metavar="CONFIG", type=Path, help="configuration of the run")
    plan.add_argument(
        "--world",
        metavar="W",
        type=natural,
        default=1,
        help="number of ranks (default %(default)s)",
    )
    plan.add_argument(
        "--engine",
        choices=tuple(ENGINES),
        default=DEFAULT_ENGINE,
        help="engine, which divides the memory over ranks (default %(default)s)",
    )
    plan.add_argument(
        "--peak",
        metavar="TFLOPS",
        type=float,
        default=989.0,
        help="peak of one device in TFLOP/s (default %(default)s: H100, bf16)",
    )
    plan.add_argument(
        "--mfu",
        metavar="PERCENT",
        type=float,
        default=40.0,
        help="share of the peak that the run reaches (default %(default)s)",
    )


def _add_export(commands: Any) -> None:
    export = add_command(
        commands,
        "export",
        _export,
        "write vision/ and text/ as plain transformers folders, with a model card",
        "glscl export runs/demo exported --check",
    )
    export.add_argument("run", metavar="RUN", type=Path, help="run, checkpoint or model folder")
    export.add_argument("out", metavar="OUT", type=Path, help="folder to write")
    export.add_argument(
        "--check", action="store_true", help="load the result without this project and compare"
    )


def _add_convert(commands: Any) -> None:
    convert = add_command(
        commands,
        "convert",
        _convert,
        "turn a pre-training checkpoint of the GLSCL authors into a model folder; "
        "runs nothing that is stored in it",
        "glscl convert glscl-100k.ckpt converted --tokenizer roberta-base",
    )
    convert.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        type=Path,
        help="file of torch.save, PyTorch Lightning or safetensors",
    )
    convert.add_argument(
        "out", metavar="OUT", type=Path, help="new or empty folder; the model goes into OUT/full"
    )
    convert.add_argument(
        "--tokenizer",
        metavar="FOLDER",
        type=Path,
        help="tokenizer to store with the model (evaluation needs one)",
    )


if __name__ == "__main__":
    sys.exit(main())
