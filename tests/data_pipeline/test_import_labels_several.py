"""`glscl data import`: data sets whose images have several labels, and the lists of labels."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from data_pipeline.errors import DataError, UsageError
from data_pipeline.importing.label_lists import keep_labelled, label_lists
from data_pipeline.sources import coco_labels, imaterialist, nus_wide, voc
from launch.cli import main
from tests.data_pipeline import official_labels as official
from tests.data_pipeline.conftest import encoded_image
from tests.data_pipeline.official import coco, put
from tests.data_pipeline.official_labels import imported, labels, samples

# Lists of labels ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("voc", (13, 3, 4)), ("nus_wide", (53, 12, 16)), ("imaterialist", (148, 34, 46))],
)
def test_the_drawn_lists_hold_the_labels_in_the_order_of_their_sha256(name, sizes):
    lists = label_lists(name)
    assert tuple(len(lists[part]) for part in ("base", "val", "novel")) == sizes
    in_order = lists["base"] + lists["val"] + lists["novel"]
    assert in_order == sorted(
        in_order, key=lambda label: hashlib.sha256(label.encode()).hexdigest()
    )
    assert len(set(in_order)) == len(in_order)


def test_the_lists_hold_the_labels_of_their_data_sets():
    numbers = sum(label_lists("imaterialist").values(), [])
    assert sorted(map(int, numbers)) == list(range(1, 229))
    objects = sum(label_lists("voc").values(), [])
    assert {"aeroplane", "diningtable", "tvmonitor", "person"} < set(objects)
    assert {len(part) for part in label_lists("coco_52_12_16").values()} == {52, 12, 16}


def test_a_part_or_a_label_that_the_lists_lack_is_named(tmp_path):
    entries, _ = voc.read(Path(official.voc(tmp_path)[1]), "trainval")
    with pytest.raises(
        UsageError, match="unknown part 'test' of the labels voc; choose one of base, val, novel"
    ):
        keep_labelled(entries, "voc", "test")
    entries[0].annotations["labels"].append("okapi")
    with pytest.raises(
        DataError, match="2008_000002 has the label 'okapi', which the lists voc lack"
    ):
        keep_labelled(entries, "voc", "base")


# COCO ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("year", [2014, 2017])
def test_coco_images_have_the_names_of_their_categories(tmp_path, year):
    manifest = imported(official.coco_labels(tmp_path, year), tmp_path / "out")
    assert labels(manifest) == {
        "391895": ["bicycle", "person"],
        "522418": ["person"],
        "184613": ["dog", "train"],
    }
    assert samples(manifest)["000000391895"].media == encoded_image(391895)
    assert (manifest.source["pictures"], manifest.source["without_labels"]) == ("coco", 1)
    assert manifest.name == f"coco-labels-val{year}"


def test_coco_images_have_the_ids_of_the_caption_set(tmp_path):
    of_labels = imported(official.coco_labels(tmp_path), tmp_path / "labels")
    of_captions = imported(coco(tmp_path), tmp_path / "captions", "--split", "test")
    assert samples(of_captions).keys() < samples(of_labels).keys()
    assert set(labels(of_labels)) > {sample.image_id for sample in samples(of_captions).values()}


@pytest.mark.parametrize(
    ("part", "selected"),
    [("train", ["184613"]), ("val", ["391895", "522418"]), ("test", ["391895"])],
)
def test_labels_select_images_that_keep_all_of_their_labels(tmp_path, part, selected):
    manifest = imported(official.coco_labels(tmp_path), tmp_path / "out", "--labels", part)
    every = {"391895": ["bicycle", "person"], "522418": ["person"], "184613": ["dog", "train"]}
    assert labels(manifest) == {image: every[image] for image in selected}
    label_split = manifest.source["label_split"]
    assert (label_split["part"], label_split["others"]) == (part, 3 - len(selected))
    assert label_split["labels"] == label_lists("coco_52_12_16")[part]
    assert manifest.name == f"coco-labels-val2014-{part}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"annotations": [{"id": 5, "image_id": 1, "category_id": 1}]},
            "annotation 5 is of image 1, category 1",
        ),
        (
            {"annotations": [{"id": 5, "image_id": 522418, "category_id": 3}]},
            "annotation 5 is of .* category 3",
        ),
        ({"categories": None}, ""),
        ({"images": [{"id": 7, "file_name": "a.jpg"}] * 2}, "1 images come twice"),
    ],
)
def test_an_instances_file_that_does_not_fit_is_refused(tmp_path, changes, message):
    _, instances, images = official.coco_labels(tmp_path)
    put(Path(instances), json.loads(Path(instances).read_bytes()) | changes)
    with pytest.raises(
        DataError, match=f"instances_val2014.json is not an instances file of COCO: .*{message}"
    ):
        coco_labels.read(Path(instances), Path(images))


def test_a_captions_file_is_not_accepted_as_instances(tmp_path, capsys):
    _, captions, images = coco(tmp_path)
    assert main(["data", "import", "coco_labels", captions, images, str(tmp_path / "out")]) == 3
    assert (
        "dataset_coco.json is not an instances file of COCO: there is no 'categories'"
        in capsys.readouterr().err
    )


# PASCAL VOC ---------------------------------------------------------------------------------------


def test_difficult_objects_of_voc_give_no_label(tmp_path):
    manifest = imported(official.voc(tmp_path), tmp_path / "out", "--split", "trainval")
    assert labels(manifest) == {
        "2008_000002": ["tvmonitor"],
        "2008_000008": ["horse", "person"],
        "2007_000027": ["person"],
    }
    assert manifest.source["without_labels"] == 1 and manifest.name == "voc2012-trainval"


def test_voc_images_are_selected_by_split_and_labels(tmp_path):
    root = Path(official.voc(tmp_path)[1])
    assert [entry.key for entry in voc.read(root, "train")[0]] == ["2008_000008"]
    entries, source = voc.read(root, "trainval", "novel")  # bicycle, sofa, horse, pottedplant
    assert [entry.annotations["labels"] for entry in entries] == [["horse", "person"]]
    assert source["label_split"]["others"] == 2
    (root / "Annotations" / "2008_000002.xml").write_text("<annotation/>")
    assert voc.read(root, "trainval")[1]["annotations"] != source["annotations"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<annotation><object><name>dog</name>", "no element found"),
        (
            "<annotation><object><difficult>0</difficult></object></annotation>",
            "its objects have no names",
        ),
        ("<html/>", "its objects have no names"),
        (
            '<!DOCTYPE a [<!ENTITY x "dog">]>'
            "<annotation><object><name>&x;</name></object></annotation>",
            "it declares a document type",
        ),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_malformed_annotation_is_named(tmp_path, content, message, encoding):
    root = Path(official.voc(tmp_path)[1])
    (root / "Annotations" / "2008_000002.xml").write_bytes(content.encode(encoding))
    with pytest.raises(
        DataError, match=f"2008_000002.xml is not an annotation of PASCAL VOC: {message}"
    ):
        voc.read(root, "trainval")


def test_missing_annotations_are_named(tmp_path):
    root = Path(official.voc(tmp_path)[1])
    with pytest.raises(
        DataError,
        match=r"2008_000001.xml cannot be read: .*\(VOC2012 publishes none for its test\)",
    ):
        voc.read(root, "test")
    with pytest.raises(DataError, match="val.txt cannot be read"):
        voc.read(root, "val")
    with pytest.raises(DataError, match="ImageSets/Main is not a folder"):
        voc.read(tmp_path, "val")


# NUS-WIDE -----------------------------------------------------------------------------------------


def test_nus_wide_columns_are_joined_with_the_list(tmp_path):
    words = official.nus_wide(tmp_path)
    manifest = imported(words, tmp_path / "out", "--split", "test", "--unreadable", "leave-out")
    assert labels(manifest) == {"2124494179": ["person", "sky"], "88": ["sky", "tiger"]}
    assert list(samples(manifest)) == ["actor_0001_2124494179", "zoo_0902_88"]
    assert [record["key"] for record in manifest.source["left_out"]] == ["actor_0004_1390863913"]
    assert manifest.source["without_labels"] == 1 and len(manifest.source["files"]) == 83


def test_an_image_that_no_longer_exists_is_named(tmp_path, capsys):
    words = official.nus_wide(tmp_path)
    assert (
        main(["data", "import", *words, str(tmp_path / "out"), "--split", "test", "--workers", "1"])
        == 3
    )
    assert (
        "actor_0004_1390863913: " in (output := capsys.readouterr().out) and output.count("\n") == 1
    )


@pytest.mark.parametrize("name", ["0002_174174086.jpg", "174174086.jpg"])
def test_nus_wide_images_may_be_in_one_folder(tmp_path, name):
    root = Path(official.nus_wide(tmp_path)[1])
    file = put(tmp_path / "flat" / name, encoded_image(1))
    assert nus_wide.read(root, tmp_path / "flat", "train")[0][0].media == (file,)


def test_nus_wide_images_are_selected_by_labels(tmp_path):
    _, root, images = official.nus_wide(tmp_path)
    entries, _ = nus_wide.read(
        Path(root), Path(images), "test", "novel"
    )  # with tiger, without sky and person
    assert [entry.annotations["labels"] for entry in entries] == [["sky", "tiger"]]
    with pytest.raises(DataError, match="none of 2 images has a label of nus_wide's novel"):
        nus_wide.read(Path(root), Path(images), "train", "novel")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("0\n1\n", "has 2 lines, .*TestImagelist.txt has 4"),
        ("0\n1\n2\n0\n", "line 3 is '2', which is neither 0 nor 1"),
    ],
)
def test_a_column_that_does_not_fit_is_named(tmp_path, content, message):
    _, root, images = official.nus_wide(tmp_path)
    put(Path(root) / "Groundtruth" / "TrainTestLabels" / "Labels_moon_Test.txt", content.encode())
    with pytest.raises(DataError, match=f"Labels_moon_Test.txt {message}"):
        nus_wide.read(Path(root), Path(images), "test")


# iMaterialist -------------------------------------------------------------------------------------


def test_imaterialist_labels_are_numbers_without_names(tmp_path):
    manifest = imported(official.imaterialist(tmp_path), tmp_path / "out")
    assert labels(manifest) == {"1": ["66", "95", "137"], "2": ["17", "66"], "10": ["157"]}
    assert list(samples(manifest)) == ["0000001", "0000002", "0000010"]
    assert manifest.name == "imaterialist-validation"


def test_imaterialist_files_may_use_the_keys_of_their_readme(tmp_path):
    words = official.imaterialist(tmp_path)
    text = Path(words[1]).read_text().replace("imageId", "image_id").replace("labelId", "label_id")
    Path(words[1]).write_text(text)
    assert labels(imported(words, tmp_path / "out"))["2"] == ["17", "66"]


def test_imaterialist_labels_have_the_names_of_the_challenges_table(tmp_path):
    words = official.imaterialist(tmp_path)
    table = str(tmp_path / "iMat_fashion_2018_label_map_228.csv")
    by_image = labels(imported(words, tmp_path / "out", "--names", table))
    assert by_image["1"] == ["Female", "Jumpsuits Overalls & Rompers", "Polyester"] and by_image[
        "10"
    ] == ["Sandals"]


def test_the_manifest_holds_the_names_of_the_selected_list(tmp_path):
    words = official.imaterialist(tmp_path)
    names = put(
        tmp_path / "names.json", {str(number): f"attribute {number}" for number in range(1, 229)}
    )
    manifest = imported(words, tmp_path / "out", "--names", str(names), "--labels", "novel")
    assert labels(manifest) == {
        "1": ["attribute 66", "attribute 95", "attribute 137"],
        "10": ["attribute 157"],
    }
    assert manifest.source["label_split"]["labels"][:2] == ["attribute 33", "attribute 69"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": None}, ""),
        (
            {"annotations": [{"imageId": "1", "labelId": ["3"]}] * 2},
            "1 images are annotated twice",
        ),
        ({"annotations": [{"imageId": "1", "labelId": ["red"]}]}, "invalid literal"),
        (
            {"annotations": [{"imageId": "1", "labelId": ["3"]}]},
            "image 10 is in only one of images and annotations",
        ),
    ],
)
def test_a_file_that_is_not_imaterialists_is_refused(tmp_path, change, message):
    _, annotations, images = official.imaterialist(tmp_path)
    put(Path(annotations), json.loads(Path(annotations).read_bytes()) | change)
    with pytest.raises(
        DataError, match=f"validation.json is not an annotated file of iMaterialist.*{message}"
    ):
        imaterialist.read(Path(annotations), Path(images))


def test_a_label_without_a_name_is_refused(tmp_path):
    _, annotations, images = official.imaterialist(tmp_path)
    names = put(tmp_path / "names.txt", b"17 Black\n66 Female\n95 Overalls\n137 Polyester\n")
    with pytest.raises(DataError, match="names.txt has no name for the class 157"):
        imaterialist.read(Path(annotations), Path(images), names)
    table = put(tmp_path / "names.csv", b"id,name\n1,Argyle\n")
    with pytest.raises(
        DataError, match="names.csv is not a table with the columns labelId and labelName"
    ):
        imaterialist.read(Path(annotations), Path(images), table)
