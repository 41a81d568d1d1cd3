"""`glscl data import SOURCE ...`: the command line of the sources.

In: an entry of `data_pipeline/sources/catalogue.py` and parsed arguments. Out: a data set, and what
the command prints about it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.sources.catalogue import SOURCES, Source

if TYPE_CHECKING:
    from data_pipeline.importing.entries import Unreadable


def add_arguments(parser: argparse.ArgumentParser, source: Source) -> None:
    """Add the arguments of a source and the folder to write."""
    for path in source.inputs:
        parser.add_argument(path.argument, metavar=path.metavar, type=Path, help=path.about)
    parser.add_argument("out", metavar="OUT", type=Path, help="new or empty folder for the shards")
    for path in source.options:
        option = f"--{path.argument.replace('_', '-')}"
        parser.add_argument(option, metavar=path.metavar, type=Path, help=path.about)
    if source.splits:
        parser.add_argument("--split", choices=source.splits, required=True, help="split to import")
    if source.labels:
        parser.add_argument(
            "--labels",
            choices=source.labels,
            help="import only images with at least one of these labels; they keep all of their "
            "labels (default: all images)",
        )
    parser.add_argument(
        "--resume", action="store_true", help="keep the shards that an interrupted call finished"
    )
    parser.add_argument(
        "--unreadable",
        choices=("refuse", "leave-out", "keep"),
        default="refuse",
        help="what to do with samples whose image or video is missing or unreadable: stop and list "
        "them (default), leave them out, or keep them, so that vqa, nlvr2 and video-retrieval "
        "count them as wrong; dataset.json lists them in both cases",
    )


def run(name: str, arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Import the data set `name`; unreadable samples are printed, one per line or as JSON."""
    # Imported here, because `glscl --help` must not wait for the decoders.
    from data_pipeline.importing.entries import UnreadableMedia, import_entries

    source = SOURCES[name]
    values: dict[str, Any] = dict(source.fixed)
    for path in (*source.inputs, *source.options):
        values[path.argument] = getattr(arguments, path.argument)
    if source.splits:
        values["split"] = arguments.split
    if source.labels:
        values["labels"] = arguments.labels
    entries, origin = import_module(f"data_pipeline.sources.{source.module}").read(**values)
    try:
        manifest = import_entries(
            arguments.out,
            entries,
            source=origin,
            workers=arguments.workers,
            resume=arguments.resume,
            unreadable=arguments.unreadable,
        )
    except UnreadableMedia as error:
        _print_unreadable(error.unreadable, arguments)
        raise
    left_out = len(manifest.source["left_out"])
    unreadable = len(manifest.source["kept_unreadable"])
    result = {
        "out": str(arguments.out),
        "name": manifest.name,
        "samples": manifest.samples,
        "left_out": left_out,
        "kept_unreadable": unreadable,
        "shards": len(manifest.shards),
        "sha256": manifest.digest,
    }
    line = f"{arguments.out}: {manifest.samples:,} samples in {len(manifest.shards):,} shards"
    if left_out:
        line += f"; {left_out:,} left out (dataset.json lists them)"
    if unreadable:
        line += f"; {unreadable:,} unreadable (dataset.json lists them)"
    return result, line


def _print_unreadable(unreadable: Sequence[Unreadable], arguments: argparse.Namespace) -> None:
    records = []
    for sample in unreadable:
        records.append({"key": sample.key, "file": sample.file, "reason": sample.reason})
    if arguments.json:
        print(json.dumps({"out": str(arguments.out), "unreadable": records}))
        return
    for record in records:
        print(f"{record['key']}: {record['file']}: {record['reason']}")
