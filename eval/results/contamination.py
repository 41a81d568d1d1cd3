"""Whether the training data may hold the test pictures: said in words with every result, and unknown where it is.

In: a test set, and the run folder of a model (whose data, validation split and predecessors it
names) or a training set. Pictures are compared by the hashes in the shards' indexes, without
reading one. Equal bytes prove that pictures are the same, other bytes prove nothing: without a
known origin on both sides, what else is shared is unknown.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from data_pipeline.errors import DataError, UsageError
from data_pipeline.sample import EXTENSIONS
from data_pipeline.shards.manifest import MANIFEST_NAME, Manifest

# Visual Genome took its pictures from COCO and YFCC100M, of which Flickr30k's are a part too.
HOLDS = {"visual_genome": ("coco", "flickr30k")}
_NAMES = {
    "visual_genome": r"visual.?genome|\bvg\b",
    "flickr30k": r"flickr.?30k|f30k",
    "coco": r"coco|vqa.?v?2",  # not Karpathy, who split Flickr30k too
}
_GENERATED = ("scenes", "scene-clips", "scene-pairs", "labelled-scenes")
_NO_ORIGIN = (
    "align_bench",
    "folder",
    "class_csv",
)  # they name no collection that their pictures come from
_MEDIA = {extension for several in EXTENSIONS.values() for extension in several}


def overlap(test: Manifest, model: Path | str | None, train: Path | str | None = None) -> str:
    """Say `none known`, `possible: ...` or `unknown: ...` of test pictures in the training or validation data.

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
        _judge(Manifest.load(train), test, "trained on", possible, unknown)
    elif train is not None and not (Path(train) / "environment.json").is_file():
        raise UsageError(
            f"{train} is neither a run folder nor a data set: it says nothing about what was trained on"
        )
    else:
        _follow(Path(train or model or "."), test, possible, unknown, set())
    if possible:
        return f"possible: {'; '.join(dict.fromkeys(possible))}"
    return f"unknown: {'; '.join(dict.fromkeys(unknown))}" if unknown else "none known"


def flags(said: str) -> list[str]:
    """Flag what `overlap` said, unless it found nothing."""
    return [] if said == "none known" else [f"overlap: {said}"]


def _follow(
    folder: Path, test: Manifest, possible: list[str], unknown: list[str], seen: set[Path]
) -> None:
    """Collect what is known of the run that a folder lies in, and of what that run started from."""
    # RUN/checkpoints/step-.../model, or a folder beside the checkpoints
    run = next(
        (f for f in (folder, *folder.resolve().parents[:4]) if (f / "environment.json").is_file()),
        None,
    )
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
            _judge(train, test, "trained on", possible, unknown)
    validation = (config.get("validation") or {}).get("path")
    if validation:
        try:
            _judge(Manifest.load(validation), test, "checkpoint chosen on", possible, unknown)
        except DataError:
            unknown.append(f"the validation data {validation} are not there")
    if config.get("init_from"):
        _follow(Path(config["init_from"]), test, possible, unknown, seen)
    pretrained = [(config.get("model") or {}).get(name) for name in ("vision_from", "text_from")]
    unknown += [f"what {name} was trained on" for name in pretrained if name]


def _judge(
    known: Manifest, test: Manifest, use: str, possible: list[str], unknown: list[str]
) -> None:
    """Collect what is known of a data set that was put to a use, as `trained on`, and the test set."""
    if known.digest == test.digest:
        possible.append(f"{use} this very data set ({known.root})")
        return
    found = _shared(known, test)
    possible += found if use == "trained on" else [f"{use} {known.root}: {said}" for said in found]
    both = (known, test)
    if not any(manifest.source.get("kind") in _GENERATED for manifest in both):
        nameless = [manifest for manifest in both if _family(manifest) is None]
        unknown += [
            f"{manifest.root} does not say where its pictures come from" for manifest in nameless
        ]


def _shared(train: Manifest, test: Manifest) -> list[str]:
    """Say what two data sets that are not the same have in common."""
    asked = _media(test)
    equal = int(np.isin(asked, _media(train)).sum())
    found = (
        [f"{equal:,} of {len(asked):,} test pictures are in {train.root}, byte for byte"]
        if equal
        else []
    )
    family, asked_family = _family(train), _family(test)
    # An importer leaves out Karpathy's val and test; other test sets of the same pictures (VQA v2)
    # have more of them.
    excluded = (
        set(train.source.get("excluded", ()))
        if test.source.get("kind", asked_family) == asked_family
        else set()
    )
    if asked_family in HOLDS.get(family or "", ()) and asked_family not in excluded:
        found.append(
            f"{train.root} is of {family}, which holds pictures of {asked_family}; it does not say that those of this "
            "test set were left out"
        )
    elif not equal and family and family == asked_family and not _stated(train, test):
        found.append(f"{train.root} and the test set both seem to be of {family}")
    return found


def _media(manifest: Manifest) -> NDArray[np.uint64]:
    """Return the hash of every picture and clip of a data set."""
    hashes = []
    for number in range(len(manifest.shards)):
        index = manifest.index(number)
        codes = [
            code
            for code, extension in enumerate(index.extensions)
            if extension.split(".")[-1] in _MEDIA
        ]
        hashes.append(index.xxh3[np.isin(index.extension, codes)])
    return np.concatenate(hashes)


def _family(manifest: Manifest) -> str | None:
    """Name of the data set that pictures come from, as the importer recorded it or as the name suggests, or None."""
    recorded = manifest.source.get("pictures")
    if recorded is not None:
        return None if recorded in _NO_ORIGIN else str(recorded)
    return next(
        (
            family
            for family, name in _NAMES.items()
            if re.search(name, manifest.name, re.IGNORECASE)
        ),
        None,
    )


def _stated(*manifests: Manifest) -> bool:
    """Whether importers recorded where the pictures come from: they keep files as they are, so that hashes tell."""
    return all(manifest.source.get("pictures") is not None for manifest in manifests)
