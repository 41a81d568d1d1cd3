"""Test pictures in training or validation data are found by their bytes, known relations said, unknown is unknown."""

import json
from pathlib import Path

import pytest
import yaml

from data_pipeline.errors import UsageError
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.store import MEMBERS, Store
from data_pipeline.shards.write import write_shards
from eval.results.contamination import flags, overlap
from eval.stages.retrieval import evaluate


def pictures(split: Path, out: Path, chosen: range, **source) -> Manifest:
    """Write some pictures of a split as a data set of its own."""
    store = Store([Manifest.load(split)])
    members = [(f"x{i}", store.members(0, i, MEMBERS["image"])) for i in chosen]
    return write_shards(out, members, source={"name": out.name, **source})


def run_folder(path: Path, trained: list[Manifest], **config) -> Path:
    path.mkdir()
    data = [{"path": str(m.root), "name": m.name, "digest": m.digest} for m in trained]
    (path / "environment.json").write_text(json.dumps({"data": data}))
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    return path


@pytest.fixture
def test(gallery: Path) -> Manifest:
    return Manifest.load(gallery)


def test_other_pictures_are_none_known(scenes: Path, test: Manifest, tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", [Manifest.load(scenes / "train")])
    assert overlap(test, run) == "none known"
    assert overlap(test, run / "checkpoints" / "step-00000001" / "model") == "none known"
    assert overlap(test, None, scenes / "train") == "none known"
    assert flags("none known") == []


def test_equal_pictures_are_counted_whatever_they_are_called(
    test: Manifest, gallery: Path, tmp_path: Path
) -> None:
    copies = pictures(gallery, tmp_path / "copies", range(3, 8))
    said = overlap(test, None, copies.root)
    assert said == f"possible: 5 of 20 test images are in {copies.root}, byte for byte"
    assert flags(said) == [f"overlap: {said}"]
    assert overlap(test, None, gallery).startswith("possible: trained on this very data set")


def test_what_a_run_started_from_counts_too(
    scenes: Path, test: Manifest, gallery: Path, tmp_path: Path
) -> None:
    before = run_folder(tmp_path / "before", [pictures(gallery, tmp_path / "copies", range(2))])
    run = run_folder(tmp_path / "run", [Manifest.load(scenes / "train")], init_from=str(before))
    assert overlap(test, run).startswith("possible: 2 of 20 test images are in")


def test_unknown_is_said_to_be_unknown(scenes: Path, test: Manifest, tmp_path: Path) -> None:
    assert overlap(test, tmp_path) == f"unknown: {tmp_path} does not say what it was trained on"
    train = pictures(scenes / "train", tmp_path / "t", range(4))
    run = run_folder(tmp_path / "run", [train], init_from=str(tmp_path / "gone"))
    assert overlap(test, run) == f"unknown: {tmp_path / 'gone'} does not say what it was trained on"
    tower = run_folder(
        tmp_path / "tower", [train], model={"vision_from": "openai/clip-vit-base-patch16"}
    )
    assert overlap(test, tower) == "unknown: what openai/clip-vit-base-patch16 was trained on"
    (train.root / "dataset.json").unlink()
    gone = run_folder(tmp_path / "other", [train])
    assert (
        overlap(test, gone) == f"unknown: the training data {train.root} are not there as they were"
    )
    with pytest.raises(UsageError, match="is neither a run folder nor a data set"):
        overlap(test, None, tmp_path)


def test_the_same_data_set_is_recognised_by_its_digest_after_it_has_moved(
    test: Manifest, tmp_path: Path
) -> None:
    run = run_folder(tmp_path / "run", [])
    entry = {"path": "data/gone", "name": "gone", "digest": test.digest}
    (run / "environment.json").write_text(json.dumps({"data": [entry]}))
    assert overlap(test, run) == "possible: trained on this very data set (data/gone)"


def test_relative_paths_of_a_run_start_where_the_run_was_started(
    scenes: Path, test: Manifest, gallery: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = pictures(gallery, tmp_path / "project" / "data" / "copies", range(3, 8))
    run = run_folder(tmp_path / "run", [], validation={"path": "data/copies"})
    entry = {"path": "data/copies", "name": "copies", "digest": images.digest}
    recorded = {"data": [entry], "working_directory": str(tmp_path / "project")}
    (run / "environment.json").write_text(json.dumps(recorded))
    monkeypatch.chdir(tmp_path)
    assert overlap(test, run).startswith("possible: 5 of 20 test images are in")


def test_visual_genome_holds_pictures_of_coco_unless_its_import_left_them_out(
    scenes: Path, gallery: Path, tmp_path: Path
) -> None:
    coco = pictures(gallery, tmp_path / "coco", range(4), pictures="coco")
    for name, source, expected in (
        ("visual_genome", {}, "possible"),
        ("vg-train", {"excluded": ["flickr30k"]}, "possible"),
        ("vg-clean", {"excluded": ["coco", "flickr30k"]}, "none known"),
        ("cc3m", {}, "unknown"),
        ("mscoco", {}, "possible"),  # someone else's copy, perhaps of other bytes
        ("other", {"pictures": "coco"}, "none known"),  # ours, of the same files
    ):
        train = pictures(scenes / "train", tmp_path / name, range(3), **source)
        assert overlap(coco, None, train.root).startswith(expected), name


@pytest.mark.parametrize("name", ["cc3m", "sbu", "data", "laion-coyo"])
def test_pictures_from_nobody_knows_where_may_be_those_of_the_test_set_in_other_bytes(
    scenes: Path, gallery: Path, tmp_path: Path, name: str
) -> None:
    coco = pictures(gallery, tmp_path / "coco", range(4), pictures="coco")
    other = pictures(scenes / "train", tmp_path / name, range(3))
    unknown = f"unknown: {other.root} does not say where its images come from"
    assert overlap(coco, None, other.root) == unknown
    assert overlap(coco, run_folder(tmp_path / "run", [other, other])) == unknown
    assert overlap(other, None, coco.root) == unknown, "a test set of which that is not known"
    copies = pictures(gallery, tmp_path / "copies", range(2, 6))
    said = overlap(coco, run_folder(tmp_path / "both", [other, copies]))
    assert said == f"possible: 2 of 4 test images are in {copies.root}, byte for byte"


def test_align_bench_does_not_say_whose_pictures_it_has(
    scenes: Path, gallery: Path, tmp_path: Path
) -> None:
    bench = pictures(
        gallery, tmp_path / "bench", range(4), pictures="align_bench", kind="align_bench"
    )
    unknown = f"unknown: {bench.root} does not say where its images come from"
    for family in ("coco", "visual_genome"):
        train = pictures(scenes / "train", tmp_path / family, range(3), pictures=family)
        assert overlap(bench, None, train.root) == unknown
        assert overlap(train, None, bench.root) == unknown
    assert overlap(bench, None, scenes / "train") == "none known"


@pytest.mark.parametrize("kind", ["scenes", "scene-clips", "scene-pairs"])
def test_generated_scenes_are_nobodys_pictures(
    scenes: Path, gallery: Path, tmp_path: Path, kind: str
) -> None:
    generated = pictures(gallery, tmp_path / "generated", range(4), kind=kind)
    other = pictures(scenes / "train", tmp_path / "other", range(3))
    assert (
        overlap(generated, None, other.root) == overlap(other, None, generated.root) == "none known"
    )


def test_karpathy_split_flickr30k_too(scenes: Path, gallery: Path, tmp_path: Path) -> None:
    flickr = pictures(gallery, tmp_path / "flickr30k-karpathy-test", range(4))
    coco = pictures(scenes / "train", tmp_path / "coco-karpathy-train", range(3))
    other = pictures(scenes / "train", tmp_path / "f30k-train", range(3, 6))
    assert overlap(flickr, None, coco.root) == "none known"
    said = overlap(flickr, None, other.root)
    assert said == f"possible: {other.root} and the test set both seem to be from flickr30k"


def test_a_checkpoint_that_was_chosen_on_test_pictures_is_flagged(
    scenes: Path, test: Manifest, gallery: Path, tmp_path: Path
) -> None:
    train = Manifest.load(scenes / "train")

    def said(name: str, validation: Path) -> str:
        run_folder(tmp_path / name, [train], validation={"path": str(validation), "every": 10})
        return overlap(test, tmp_path / name / "checkpoints" / "step-00000001" / "model")

    assert said("same", gallery) == f"possible: checkpoint chosen on this very data set ({gallery})"
    copies = pictures(gallery, tmp_path / "val", range(6))
    expected = f"{copies.root}: 6 of 20 test images are in {copies.root}, byte for byte"
    assert said("copies", copies.root) == f"possible: checkpoint chosen on {expected}"
    assert (
        said("other", pictures(scenes / "train", tmp_path / "others", range(3)).root)
        == "none known"
    )
    gone = tmp_path / "gone"
    assert said("moved", gone) == f"unknown: the validation data {gone} are not there"
    after = run_folder(
        tmp_path / "after", [train], init_from=str(tmp_path / "same"), validation=None
    )
    assert overlap(test, after).startswith("possible: checkpoint chosen on this very data set")


def test_to_leave_out_the_captions_test_set_does_not_leave_out_that_of_questions(
    scenes: Path, gallery: Path, tmp_path: Path
) -> None:
    train = pictures(
        scenes / "train", tmp_path / "vg", range(3), pictures="visual_genome", excluded=["coco"]
    )
    for kind, expected in (
        ("coco", "none known"),
        ("vqa_v2", "possible"),
        ("sugarcrepe", "possible"),
    ):
        asked = pictures(gallery, tmp_path / kind, range(4), pictures="coco", kind=kind)
        assert overlap(asked, None, train.root).startswith(expected), kind


def test_results_carry_it(knowing_model: Path, gallery: Path, tmp_path: Path) -> None:
    result = evaluate(knowing_model, gallery, tmp_path / "out", rerank_k=0, train=gallery)
    assert result.data["overlap"].startswith("possible: trained on this very data set")
    assert f"overlap: {result.data['overlap']}" in result.flags
