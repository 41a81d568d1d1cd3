"""Whether the training data may hold the test pictures: said in words with every result, and unknown where it is.

In: a test set, and the run folder of a model (whose data and predecessors it names) or a training set. Pictures are
compared by the hashes in the shards' indexes, without reading one; and some data sets are known to hold others.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from data_pipeline.errors import DataError, UsageError
from data_pipeline.manifest import MANIFEST_NAME, Manifest
from data_pipeline.sample import EXTENSIONS

# Visual Genome took its pictures from COCO and YFCC100M, of which Flickr30k's are a part too.
HOLDS = {"visual_genome": ("coco", "flickr30k")}
_NAMES = {
    "visual_genome": r"visual.?genome|\bvg\b",
    "coco": r"coco|vqa.?v?2|karpathy",
    "flickr30k": r"flickr.?30k|f30k",
}
_MEDIA = {extension for several in EXTENSIONS.values() for extension in several}


def overlap(test: Manifest, model: Path | str | None, train: Path | str | None = None) -> str:
    """Say `none known`, `possible: ...` or `unknown: ...` of test pictures in the training data.

    Parameters
    ----------
    test
        What is evaluated on.
    model
        Folder of the model; a run folder above it says what it was trained on.
    train
        A run folder or the folder of a data set, instead.

    Raises
    ------
    UsageError
        If ``train`` is neither.
    """
    possible: list[str] = []
    unknown: list[str] = []
    if train is not None and (Path(train) / MANIFEST_NAME).is_file():
        possible += _shared(Manifest.load(train), test)
    elif train is not None and not (Path(train) / "environment.json").is_file():
        raise UsageError(f"{train} is neither a run folder nor a data set: it says nothing about what was trained on")
    else:
        _follow(Path(train or model or "."), test, possible, unknown, set())
    if possible:
        return f"possible: {'; '.join(possible)}"
    return f"unknown: {'; '.join(unknown)}" if unknown else "none known"


def flags(said: str) -> list[str]:
    """Flag what `overlap` said, unless it found nothing."""
    return [] if said == "none known" else [f"overlap: {said}"]


def _follow(folder: Path, test: Manifest, possible: list[str], unknown: list[str], seen: set[Path]) -> None:
    """Collect what is known of the run that a folder lies in, and of what that run started from."""
    # RUN/checkpoints/step-.../model, or a folder beside the checkpoints
    run = next((f for f in (folder, *folder.resolve().parents[:4]) if (f / "environment.json").is_file()), None)
    if run is None:
        unknown.append(f"{folder} does not say what it was trained on")
        return
    if run.resolve() in seen:
        return
    seen.add(run.resolve())
    try:
        entries = json.loads((run / "environment.json").read_text("utf-8"))["data"]
        config = yaml.safe_load((run / "config.yaml").read_text("utf-8"))
    except (OSError, ValueError, KeyError, yaml.YAMLError):
        unknown.append(f"{run} does not say what it was trained on")
        return
    for entry in entries:
        try:
            train = Manifest.load(entry["path"])
        except DataError:
            train = None
        if train is None or train.digest != entry["digest"]:
            unknown.append(f"the training data {entry['path']} are not there as they were")
        else:
            possible += _shared(train, test)
    if config.get("init_from"):
        _follow(Path(config["init_from"]), test, possible, unknown, seen)
    pretrained = [(config.get("model") or {}).get(name) for name in ("vision_from", "text_from")]
    unknown += [f"what {name} was trained on" for name in pretrained if name]


def _shared(train: Manifest, test: Manifest) -> list[str]:
    """Say what two data sets have in common."""
    if train.digest == test.digest:
        return [f"trained on this very data set ({train.root})"]
    asked = _media(test)
    equal = int(np.isin(asked, _media(train)).sum())
    found = [f"{equal:,} of {len(asked):,} test pictures are in {train.root}, byte for byte"] if equal else []
    family, asked_family = _family(train), _family(test)
    excluded = {str(name) for name in train.source.get("excluded", ())}
    if asked_family in HOLDS.get(family or "", ()) and asked_family not in excluded:
        found.append(
            f"{train.root} is of {family}, which holds pictures of {asked_family}; it does not say they were left out"
        )
    elif not equal and family and family == asked_family and not _stated(train, test):
        found.append(f"{train.root} and the test set both seem to be of {family}")
    return found


def _media(manifest: Manifest) -> NDArray[np.uint64]:
    """Return the hash of every picture and clip of a data set."""
    hashes = []
    for number in range(len(manifest.shards)):
        index = manifest.index(number)
        codes = [code for code, extension in enumerate(index.extensions) if extension.split(".")[-1] in _MEDIA]
        hashes.append(index.xxh3[np.isin(index.extension, codes)])
    return np.concatenate(hashes)


def _family(manifest: Manifest) -> str | None:
    """Name of the data set that pictures come from, as the importer recorded it or as the name suggests."""
    recorded = manifest.source.get("pictures")
    if recorded is not None:
        return str(recorded)
    return next((family for family, name in _NAMES.items() if re.search(name, manifest.name, re.IGNORECASE)), None)


def _stated(*manifests: Manifest) -> bool:
    """Whether importers recorded where the pictures come from: they keep files as they are, so that hashes tell."""
    origins: list[Any] = [manifest.source.get("pictures") for manifest in manifests]
    return None not in origins
