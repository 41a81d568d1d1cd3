"""Whether the training data may hold the test images; where nobody can know, the answer says so.

In: a test set, and the run folder of a model (which names its data, its validation split and the
run it started from) or a training set. Out: one sentence for the result. Data sets are compared by
their recorded digests first, then image by image by the hashes in the shards' indexes, without
reading an image. Equal bytes prove that two images are the same; different bytes prove nothing, so
without a known origin on both sides the rest is unknown.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from data_pipeline.errors import DataError, UsageError
from data_pipeline.sample import EXTENSIONS
from data_pipeline.shards.manifest import MANIFEST_NAME, Manifest

# Visual Genome took its images from COCO and YFCC100M, and Flickr30k's are a part of the latter.
HOLDS = {"visual_genome": ("coco", "flickr30k")}
_NAMES = {
    "visual_genome": r"visual.?genome|\bvg\b",
    "flickr30k": r"flickr.?30k|f30k",
    "coco": r"coco|vqa.?v?2",  # not Karpathy, who split Flickr30k too
}
_GENERATED = ("scenes", "scene-clips", "scene-pairs", "labelled-scenes")
# Importers whose sources do not name the collection that their images come from.
_NO_ORIGIN = ("align_bench", "folder", "class_csv")
_MEDIA = {extension for several in EXTENSIONS.values() for extension in several}
# RUN/checkpoints/step-00000001/model lies three folders below its run; one more does no harm.
_FOLDERS_BELOW_A_RUN = 4


@dataclass
class _Findings:
    """What was learned of training data and the test set, each as part of a sentence."""

    possible: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    def sentence(self) -> str:
        if self.possible:
            return f"possible: {'; '.join(dict.fromkeys(self.possible))}"
        if self.unknown:
            return f"unknown: {'; '.join(dict.fromkeys(self.unknown))}"
        return "none known"


def overlap(test: Manifest, model: Path | str | None, train: Path | str | None = None) -> str:
    """Say whether test images may be in the training or validation data of a model.

    Parameters
    ----------
    test
        What the model is evaluated on.
    model
        Folder of the model; a run folder above it says what it was trained on.
    train
        A run folder or the folder of a data set, instead.

    Returns
    -------
    str
        `none known`, `possible: ...` or `unknown: ...`.

    Raises
    ------
    UsageError
        If ``train`` is neither a run folder nor a data set.
    """
    findings = _Findings()
    if train is not None and (Path(train) / MANIFEST_NAME).is_file():
        _judge(Manifest.load(train), test, "trained on", findings)
    elif train is not None and not (Path(train) / "environment.json").is_file():
        raise UsageError(
            f"{train} is neither a run folder nor a data set, so it cannot say what a model was "
            "trained on"
        )
    else:
        _follow(Path(train or model or "."), test, findings, seen=set())
    return findings.sentence()


def flags(sentence: str) -> list[str]:
    """Flag the sentence of `overlap`, unless it is `none known`."""
    return [] if sentence == "none known" else [f"overlap: {sentence}"]


def _follow(folder: Path, test: Manifest, findings: _Findings, seen: set[Path]) -> None:
    """Judge the data of the run that a folder lies in, and of the runs that it started from."""
    run = _run_of(folder)
    if run is None:
        findings.unknown.append(f"{folder} does not say what it was trained on")
        return
    if run.resolve() in seen:
        return
    seen.add(run.resolve())
    try:
        environment = json.loads((run / "environment.json").read_text("utf-8"))
        config = yaml.safe_load((run / "config.yaml").read_text("utf-8"))
        entries = environment["data"]
    except (OSError, ValueError, KeyError, yaml.YAMLError):
        findings.unknown.append(f"{run} does not say what it was trained on")
        return
    # Paths of a run are relative to where it was started, not to where it is evaluated.
    start = Path(environment.get("working_directory", "."))
    for entry in entries:
        _judge_entry(entry, start, test, findings)
    validation = (config.get("validation") or {}).get("path")
    if validation:
        try:
            chosen_on = Manifest.load(start / validation)
        except DataError:
            findings.unknown.append(f"the validation data {validation} are not there")
        else:
            _judge(chosen_on, test, "checkpoint chosen on", findings)
    if config.get("init_from"):
        _follow(start / config["init_from"], test, findings, seen)
    for name in ("vision_from", "text_from"):
        tower = (config.get("model") or {}).get(name)
        if tower:
            findings.unknown.append(f"what {tower} was trained on")


def _run_of(folder: Path) -> Path | None:
    """Find the run folder that a model's folder lies in."""
    for candidate in (folder, *folder.resolve().parents[:_FOLDERS_BELOW_A_RUN]):
        if (candidate / "environment.json").is_file():
            return candidate
    return None


def _judge_entry(entry: dict[str, Any], start: Path, test: Manifest, findings: _Findings) -> None:
    """Judge a training set that a run recorded by path and digest."""
    if entry["digest"] == test.digest:  # true even where the data have moved since
        findings.possible.append(f"trained on this very data set ({entry['path']})")
        return
    try:
        train = Manifest.load(start / entry["path"])
    except DataError:
        train = None
    if train is None or train.digest != entry["digest"]:
        findings.unknown.append(f"the training data {entry['path']} are not there as they were")
        return
    _judge(train, test, "trained on", findings)


def _judge(used: Manifest, test: Manifest, use: str, findings: _Findings) -> None:
    """Judge a data set that was used for something, for example `trained on`."""
    if used.digest == test.digest:
        findings.possible.append(f"{use} this very data set ({used.root})")
        return
    for shared in _shared(used, test):
        findings.possible.append(shared if use == "trained on" else f"{use} {used.root}: {shared}")
    both = (used, test)
    if any(manifest.source.get("kind") in _GENERATED for manifest in both):
        return  # a generated scene is in nobody's collection of photographs
    for manifest in both:
        if _collection(manifest) is None:
            findings.unknown.append(f"{manifest.root} does not say where its images come from")


def _shared(train: Manifest, test: Manifest) -> list[str]:
    """Say what two different data sets have in common."""
    sentences = []
    test_hashes = _media_hashes(test)
    equal = int(np.isin(test_hashes, _media_hashes(train)).sum())
    if equal:
        sentences.append(
            f"{equal:,} of {len(test_hashes):,} test images are in {train.root}, byte for byte"
        )
    collection, test_collection = _collection(train), _collection(test)
    # An importer leaves out the images of Karpathy's val and test split; other test sets of the
    # same collection, such as VQA v2, hold more of its images than these.
    excluded: set[str] = set()
    if test.source.get("kind", test_collection) == test_collection:
        excluded = set(train.source.get("excluded", ()))
    if test_collection in HOLDS.get(collection or "", ()) and test_collection not in excluded:
        sentences.append(
            f"{train.root} is from {collection}, which holds images of {test_collection}; it does "
            "not say that those of this test set were left out"
        )
    # Importers keep files as they are: if both sets are theirs, different hashes prove that the
    # images differ, and nothing needs to be said.
    proven = _states_origin(train) and _states_origin(test)
    if not equal and collection and collection == test_collection and not proven:
        sentences.append(f"{train.root} and the test set both seem to be from {collection}")
    return sentences


def _media_hashes(manifest: Manifest) -> NDArray[np.uint64]:
    """Return the hash of every image and video of a data set, from the indexes of its shards."""
    hashes = []
    for number in range(len(manifest.shards)):
        index = manifest.index(number)
        codes = []
        for code, extension in enumerate(index.extensions):
            if extension.split(".")[-1] in _MEDIA:
                codes.append(code)
        hashes.append(index.xxh3[np.isin(index.extension, codes)])
    return np.concatenate(hashes)


def _collection(manifest: Manifest) -> str | None:
    """Name the collection of the images, as the importer recorded it or the name suggests it."""
    recorded = manifest.source.get("pictures")
    if recorded is not None:
        return None if recorded in _NO_ORIGIN else str(recorded)
    for collection, pattern in _NAMES.items():
        if re.search(pattern, manifest.name, re.IGNORECASE):
            return collection
    return None


def _states_origin(manifest: Manifest) -> bool:
    """Whether an importer recorded where the images come from."""
    return manifest.source.get("pictures") is not None
