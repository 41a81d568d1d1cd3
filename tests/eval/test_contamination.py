"""Results say whether test images are among the training or validation images.

Equal files are found by their bytes, related collections by their recorded or usual names; where
the origin of either side is missing, the answer is "unknown".
"""

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


def write_subset(split: Path, out: Path, numbers: range, **source) -> Manifest:
    """Write some images of a split as a separate data set; `source` is recorded in its manifest."""
    store = Store([Manifest.load(split)])
    members = [(f"x{i}", store.members(0, i, MEMBERS["image"])) for i in numbers]
    return write_shards(out, members, source={"name": out.name, **source})


def write_run(path: Path, trained: list[Manifest], **config) -> Path:
    """Write what a run folder records about its data; `config` is the rest of its configuration."""
    path.mkdir()
    data = [{"path": str(m.root), "name": m.name, "digest": m.digest} for m in trained]
    (path / "environment.json").write_text(json.dumps({"data": data}))
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    return path


@pytest.fixture
def test(gallery: Path) -> Manifest:
    return Manifest.load(gallery)


def test_no_overlap_is_known_where_all_images_differ(
    scenes: Path, test: Manifest, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", [Manifest.load(scenes / "train")])
    assert overlap(test, run) == "none known"
    assert overlap(test, run / "checkpoints" / "step-00000001" / "model") == "none known"
    assert overlap(test, None, scenes / "train") == "none known"
    assert flags("none known") == []


def test_equal_images_are_counted_whatever_their_names(
    test: Manifest, gallery: Path, tmp_path: Path
) -> None:
    copies = write_subset(gallery, tmp_path / "copies", range(3, 8))
    sentence = overlap(test, None, copies.root)
    assert sentence == f"possible: 5 of 20 test images are in {copies.root}, byte for byte"
    assert flags(sentence) == [f"overlap: {sentence}"]
    assert overlap(test, None, gallery).startswith("possible: trained on this very data set")


def test_the_data_of_the_run_that_a_run_started_from_count_too(
    scenes: Path, test: Manifest, gallery: Path, tmp_path: Path
) -> None:
    before = write_run(tmp_path / "before", [write_subset(gallery, tmp_path / "copies", range(2))])
    run = write_run(tmp_path / "run", [Manifest.load(scenes / "train")], init_from=str(before))
    assert overlap(test, run).startswith("possible: 2 of 20 test images are in")


def test_missing_records_of_the_training_data_are_reported_as_unknown(
    scenes: Path, test: Manifest, tmp_path: Path
) -> None:
    assert overlap(test, tmp_path) == f"unknown: {tmp_path} does not say what it was trained on"
    train = write_subset(scenes / "train", tmp_path / "t", range(4))
    run = write_run(tmp_path / "run", [train], init_from=str(tmp_path / "gone"))
    assert overlap(test, run) == f"unknown: {tmp_path / 'gone'} does not say what it was trained on"
    tower = write_run(
        tmp_path / "tower", [train], model={"vision_from": "openai/clip-vit-base-patch16"}
    )
    assert overlap(test, tower) == "unknown: what openai/clip-vit-base-patch16 was trained on"
    (train.root / "dataset.json").unlink()
    gone = write_run(tmp_path / "other", [train])
    assert (
        overlap(test, gone) == f"unknown: the training data {train.root} are not there as they were"
    )
    with pytest.raises(UsageError, match="is neither a run folder nor a data set"):
        overlap(test, None, tmp_path)


def test_a_data_set_that_has_moved_is_recognized_by_its_digest(
    test: Manifest, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", [])
    entry = {"path": "data/gone", "name": "gone", "digest": test.digest}
    (run / "environment.json").write_text(json.dumps({"data": [entry]}))
    assert overlap(test, run) == "possible: trained on this very data set (data/gone)"


def test_relative_paths_of_a_run_start_in_its_working_directory(
    scenes: Path, test: Manifest, gallery: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = write_subset(gallery, tmp_path / "project" / "data" / "copies", range(3, 8))
    run = write_run(tmp_path / "run", [], validation={"path": "data/copies"})
    entry = {"path": "data/copies", "name": "copies", "digest": images.digest}
    recorded = {"data": [entry], "working_directory": str(tmp_path / "project")}
    (run / "environment.json").write_text(json.dumps(recorded))
    monkeypatch.chdir(tmp_path)
    assert overlap(test, run).startswith("possible: 5 of 20 test images are in")


def test_visual_genome_overlaps_coco_unless_its_import_left_those_images_out(
    scenes: Path, gallery: Path, tmp_path: Path
) -> None:
    coco = write_subset(gallery, tmp_path / "coco", range(4), pictures="coco")
    for name, source, expected in (
        ("visual_genome", {}, "possible"),
        ("vg-train", {"excluded": ["flickr30k"]}, "possible"),
        ("vg-clean", {"excluded": ["coco", "flickr30k"]}, "none known"),
        ("cc3m", {}, "unknown"),
        # Someone else's copy: its files may differ even where its images are the same.
        ("mscoco", {}, "possible"),
        # Our importer keeps files as they are: different files are different images.
        ("other", {"pictures": "coco"}, "none known"),
    ):
        train = write_subset(scenes / "train", tmp_path / name, range(3), **source)
        assert overlap(coco, None, train.root).startswith(expected), name


@pytest.mark.parametrize("name", ["cc3m", "sbu", "data", "laion-coyo"])
def test_images_of_unknown_origin_may_be_the_test_images_in_other_bytes(
    scenes: Path, gallery: Path, tmp_path: Path, name: str
) -> None:
    coco = write_subset(gallery, tmp_path / "coco", range(4), pictures="coco")
    other = write_subset(scenes / "train", tmp_path / name, range(3))
    unknown = f"unknown: {other.root} does not say where its images come from"
    assert overlap(coco, None, other.root) == unknown
    assert overlap(coco, write_run(tmp_path / "run", [other, other])) == unknown
    # The test set may be the one without an origin, too.
    assert overlap(other, None, coco.root) == unknown
    copies = write_subset(gallery, tmp_path / "copies", range(2, 6))
    # What is certain comes first: shared files outweigh an unknown origin.
    sentence = overlap(coco, write_run(tmp_path / "both", [other, copies]))
    assert sentence == f"possible: 2 of 4 test images are in {copies.root}, byte for byte"


def test_the_origin_of_align_bench_is_unknown(scenes: Path, gallery: Path, tmp_path: Path) -> None:
    bench = write_subset(
        gallery, tmp_path / "bench", range(4), pictures="align_bench", kind="align_bench"
    )
    unknown = f"unknown: {bench.root} does not say where its images come from"
    for family in ("coco", "visual_genome"):
        train = write_subset(scenes / "train", tmp_path / family, range(3), pictures=family)
        assert overlap(bench, None, train.root) == unknown
        assert overlap(train, None, bench.root) == unknown
    assert overlap(bench, None, scenes / "train") == "none known"


@pytest.mark.parametrize("kind", ["scenes", "scene-clips", "scene-pairs"])
def test_generated_scenes_are_in_no_collection(
    scenes: Path, gallery: Path, tmp_path: Path, kind: str
) -> None:
    generated = write_subset(gallery, tmp_path / "generated", range(4), kind=kind)
    other = write_subset(scenes / "train", tmp_path / "other", range(3))
    assert overlap(generated, None, other.root) == "none known"
    assert overlap(other, None, generated.root) == "none known"


def test_a_name_with_karpathy_may_mean_flickr30k(
    scenes: Path, gallery: Path, tmp_path: Path
) -> None:
    flickr = write_subset(gallery, tmp_path / "flickr30k-karpathy-test", range(4))
    coco = write_subset(scenes / "train", tmp_path / "coco-karpathy-train", range(3))
    other = write_subset(scenes / "train", tmp_path / "f30k-train", range(3, 6))
    # Karpathy split both collections, so that his name alone does not mean COCO.
    assert overlap(flickr, None, coco.root) == "none known"
    sentence = overlap(flickr, None, other.root)
    assert sentence == f"possible: {other.root} and the test set both seem to be from flickr30k"


def test_a_checkpoint_chosen_on_test_images_is_reported(
    scenes: Path, test: Manifest, gallery: Path, tmp_path: Path
) -> None:
    train = Manifest.load(scenes / "train")

    def overlap_chosen_on(name: str, validation: Path) -> str:
        write_run(tmp_path / name, [train], validation={"path": str(validation), "every": 10})
        return overlap(test, tmp_path / name / "checkpoints" / "step-00000001" / "model")

    same = f"possible: checkpoint chosen on this very data set ({gallery})"
    assert overlap_chosen_on("same", gallery) == same
    copies = write_subset(gallery, tmp_path / "val", range(6)).root
    equal = f"{copies}: 6 of 20 test images are in {copies}, byte for byte"
    assert overlap_chosen_on("copies", copies) == f"possible: checkpoint chosen on {equal}"
    other = write_subset(scenes / "train", tmp_path / "others", range(3)).root
    assert overlap_chosen_on("other", other) == "none known"
    gone = tmp_path / "gone"
    missing = f"unknown: the validation data {gone} are not there"
    assert overlap_chosen_on("moved", gone) == missing
    # A run without validation that started from one that was chosen on the test images.
    start = str(tmp_path / "same")
    after = write_run(tmp_path / "after", [train], init_from=start, validation=None)
    assert overlap(test, after).startswith("possible: checkpoint chosen on this very data set")


def test_leaving_out_the_test_images_of_captions_keeps_those_of_other_benchmarks(
    scenes: Path, gallery: Path, tmp_path: Path
) -> None:
    train = write_subset(
        scenes / "train", tmp_path / "vg", range(3), pictures="visual_genome", excluded=["coco"]
    )
    for kind, expected in (
        ("coco", "none known"),
        ("vqa_v2", "possible"),
        ("sugarcrepe", "possible"),
    ):
        test = write_subset(gallery, tmp_path / kind, range(4), pictures="coco", kind=kind)
        assert overlap(test, None, train.root).startswith(expected), kind


def test_results_hold_the_overlap_and_flag_it(
    knowing_model: Path, gallery: Path, tmp_path: Path
) -> None:
    result = evaluate(knowing_model, gallery, tmp_path / "out", rerank_k=0, train=gallery)
    assert result.data["overlap"].startswith("possible: trained on this very data set")
    assert f"overlap: {result.data['overlap']}" in result.flags
