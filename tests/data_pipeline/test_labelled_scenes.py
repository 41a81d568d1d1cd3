"""Labelled scenes: exact labels, splits without a common class, bytes from the seed alone."""

import json
from collections import Counter
from itertools import chain, product

import pytest

from data_pipeline.errors import UsageError
from data_pipeline.sample import parse_sample
from data_pipeline.scenes.generate import generate
from data_pipeline.scenes.graph import COLOURS, FILLS, HELD_OUT, SHAPES
from data_pipeline.scenes.labelled import CLASSES, labelled_sample_at
from data_pipeline.scenes.truth import fits, is_scene
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.verify import verify

SPLITS = ("base", "val", "novel")
FEW = {"base": 6, "val": 4, "novel": 5}


@pytest.fixture(scope="module")
def annotations() -> dict[str, list[dict]]:
    """300 images of every split."""
    made = {}
    for split in SPLITS:
        made[split] = [labelled_sample_at(7, split, i, 48) for i in range(300)]
    by_split = {}
    for split, records in made.items():
        by_split[split] = [parse_sample(*record).annotations for record in records]
    return by_split


def few(folder, **changed):
    return generate(
        folder,
        **({"train": 0, "val": 0, "test": 0, "novel": 0, "size": 48, "labelled": FEW} | changed),
    )


def test_no_class_is_in_two_splits_and_novel_classes_are_held_out_of_all_training():
    base, val, novel = (set(CLASSES[split]) for split in SPLITS)
    assert (len(base), len(val), len(novel)) == (72, 24, 24)
    assert novel == {f"{fill} {color} {shape}" for fill, (color, shape) in product(FILLS, HELD_OUT)}
    pairs = []
    for names in (base, val, novel):
        pairs.append({name.split(" ", 1)[1] for name in names})
    assert not pairs[0] & pairs[1] and not (pairs[0] | pairs[1]) & pairs[2]
    assert set(" ".join(base).split()) == {*FILLS, *COLOURS, *SHAPES}


def test_labels_name_all_that_an_image_shows_and_nothing_else(annotations):
    for split, several in annotations.items():
        for annotation in several:
            shown = []
            for item in annotation["scene"]["objects"]:
                shown.append(f"{item['fill']} {item['colour']} {item['shape']}")
            shown.sort()
            assert annotation["labels"] == shown and len(set(shown)) == len(shown) <= 4
            assert set(shown) <= set(CLASSES[split])
            assert is_scene(annotation)
            for statement in annotation["statements"]:
                assert fits(statement, annotation["scene"])


def test_half_of_the_images_show_one_object_and_every_class_as_often(annotations):
    for split, several in annotations.items():
        counts = Counter(len(annotation["labels"]) for annotation in several)
        assert counts[1] == 150 and min(counts[number] for number in (2, 3, 4)) > 25
        labels = [annotation["labels"] for annotation in several]
        alone = Counter(names[0] for names in labels if len(names) == 1)
        assert max(alone.values()) - min(alone.values()) <= 1
        assert set(chain.from_iterable(labels)) == set(CLASSES[split])


def test_a_sample_depends_on_its_seed_split_and_number_alone(tmp_path):
    alone = few(tmp_path / "alone", workers=1)["labelled/val"]
    among_more = few(tmp_path / "more", labelled=FEW | {"base": 350}, workers=2)["labelled/val"]
    assert alone.shards[0].sha256 == among_more.shards[0].sha256
    assert labelled_sample_at(0, "base", 3, 48) == labelled_sample_at(0, "base", 3, 48)
    images = set()
    for seed in (0, 1):
        for split in SPLITS:
            images.add(labelled_sample_at(seed, split, 3, 48)[1]["jpg"])
    assert len(images) == 6


def test_the_folders_are_whole_data_sets_that_name_their_classes(tmp_path):
    manifests = few(tmp_path, train=4)
    assert list(manifests) == ["train", "labelled/base", "labelled/val", "labelled/novel"]
    for split, count in FEW.items():
        manifest = Manifest.load(tmp_path / "labelled" / split)
        assert manifest.samples == count and manifest.source["classes"] == list(CLASSES[split])
        assert not verify(tmp_path / "labelled" / split, decode=True)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.tar")}
    few(tmp_path, train=4)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.tar")}


def test_other_counts_in_the_way_and_clips_are_refused(tmp_path):
    few(tmp_path)
    with pytest.raises(
        UsageError, match="labelled/base holds another data set .its samples is 6, not 7"
    ):
        few(tmp_path, labelled=FEW | {"base": 7})
    with pytest.raises(UsageError, match="labelled scenes are images"):
        few(tmp_path / "clips", video=True)


def test_the_command_writes_them(tmp_path, monkeypatch, capsys):
    from data_pipeline.scenes import generate as module
    from launch.cli import main

    monkeypatch.setattr(module, "COUNTS", FEW)
    options = [
        "--train",
        "2",
        "--val",
        "0",
        "--test",
        "0",
        "--novel",
        "0",
        "--size",
        "48",
        "--labelled",
        "--json",
    ]
    assert main(["data", "scenes", str(tmp_path), *options]) == 0
    counts = json.loads(capsys.readouterr().out.splitlines()[-1])["samples"]
    assert counts == {"train": 2} | {f"labelled/{split}": count for split, count in FEW.items()}
