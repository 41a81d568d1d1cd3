"""`glscl data import`: data sets whose images show one class each."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from data_pipeline.errors import DataError
from data_pipeline.importing import class_names
from data_pipeline.sources import cifar_fs, class_csv, cub, labelled_folder
from launch.cli import main
from tests.data_pipeline import official_labels as official
from tests.data_pipeline.conftest import encoded_image
from tests.data_pipeline.official import put
from tests.data_pipeline.official_labels import imported, labels, samples

# A labelled folder --------------------------------------------------------------------------------


def test_a_folder_gives_its_images_the_names_of_their_folders(tmp_path):
    manifest = imported(official.folder(tmp_path), tmp_path / "out")
    assert labels(manifest) == {
        "Black_bear/犬.jpeg": ["Black bear"],
        "Black_bear/猫.webp": ["Black bear"],
        "tree frog/IMG 1.JPG": ["tree frog"],
        "tree frog/IMG_1.png": ["tree frog"],
        "zebra/a.jpg": ["zebra"],
    }
    assert list(samples(manifest)) == [
        "0000-000000",
        "0000-000001",
        "0001-000000",
        "0001-000001",
        "0002-000000",
    ]
    assert samples(manifest)["0001-000000"].media == encoded_image(1)
    assert (manifest.name, manifest.source["kind"], manifest.source["classes"]) == (
        "folder-animals",
        "folder",
        3,
    )


def test_a_class_list_selects_its_classes(tmp_path):
    words = official.folder(tmp_path)
    listed = put(tmp_path / "novel.txt", b"zebra\r\ntree frog\r\n\r\n")
    manifest = imported(words, tmp_path / "out", "--classes", str(listed))
    assert sorted(labels(manifest)) == ["tree frog/IMG 1.JPG", "tree frog/IMG_1.png", "zebra/a.jpg"]
    digest = hashlib.sha256(b"tree frog\nzebra\n").hexdigest()
    assert manifest.source["class_list"] == f"sha256:{digest}"
    assert (
        manifest.source["files"].keys() == {"novel.txt"} and manifest.name == "folder-animals-novel"
    )


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ("zebra\nquagga\n", r"novel.txt names 1 classes that are not in .*animals: quagga"),
        ("zebra\nzebra\n", "novel.txt names zebra twice"),
        (" \n", "novel.txt names no class"),
    ],
)
def test_a_class_list_that_does_not_fit_is_refused(tmp_path, listed, message):
    root = Path(official.folder(tmp_path)[1])
    with pytest.raises(DataError, match=message):
        labelled_folder.read(root, put(tmp_path / "novel.txt", listed.encode()))


def test_an_empty_class_folder_is_named(tmp_path):
    root = Path(official.folder(tmp_path)[1])
    (root / "okapi").mkdir()
    with pytest.raises(DataError, match="animals/okapi holds no image"):
        labelled_folder.read(root)


@pytest.mark.parametrize("root", ["empty", "missing"])
def test_a_root_without_class_folders_is_refused(tmp_path, root):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no folder|missing is not a folder"):
        labelled_folder.read(tmp_path / root)


def test_two_classes_of_one_name_are_refused(tmp_path):
    root = Path(official.folder(tmp_path)[1])
    put(root / "tree_frog" / "a.jpg", encoded_image(9))
    with pytest.raises(DataError, match="tree frog and tree_frog are both called 'tree frog'"):
        labelled_folder.read(root)


def test_a_class_without_a_letter_is_refused(tmp_path):
    root = Path(official.folder(tmp_path)[1])
    put(root / "_" / "a.jpg", encoded_image(9))
    with pytest.raises(DataError, match="the class '_' has no letter"):
        labelled_folder.read(root)


def test_a_file_that_is_not_an_image_is_named(tmp_path, capsys):
    words = official.folder(tmp_path)
    put(tmp_path / "animals" / "zebra" / "a.jpg", b"text")
    assert main(["data", "import", *words, str(tmp_path / "out"), "--workers", "1"]) == 3
    assert f"0002-000000: {tmp_path}/animals/zebra/a.jpg: " in capsys.readouterr().out


# miniImageNet and tieredImageNet ------------------------------------------------------------------


@pytest.mark.parametrize("header", [True, False])
def test_a_table_labels_the_images_that_it_names(tmp_path, header):
    manifest = imported(official.mini_imagenet(tmp_path, header=header), tmp_path / "out")
    assert labels(manifest) == {
        "n0193011200000001.jpg": ["n01930112"],
        "n0193011200000005.jpg": ["n01930112"],
        "n0198127600000001.jpg": ["n01981276"],
        "n0198127600000005.jpg": ["n01981276"],
    }
    assert (manifest.name, manifest.source["split"], manifest.source["classes"]) == (
        "class-csv-test",
        "test",
        2,
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "synset_words.txt",
            b"n01930112 nematode, roundworm\nn01981276  king_crab\n"
            b"n02099267 flat-coated retriever\n",
        ),
        ("names.json", b'{"n01930112": "nematode, roundworm", "n01981276": "king_crab"}'),
    ],
)
def test_names_replace_wordnet_ids(tmp_path, name, content):
    words = official.mini_imagenet(tmp_path)
    manifest = imported(words, tmp_path / "out", "--names", str(put(tmp_path / name, content)))
    assert {label for (label,) in labels(manifest).values()} == {"nematode, roundworm", "king crab"}
    assert manifest.source["files"].keys() == {"test.csv", name}


def test_a_split_of_easyfsl_is_read(tmp_path):
    manifest = imported(official.tiered_imagenet(tmp_path), tmp_path / "out")
    assert labels(manifest) == {
        "n02099267/n02099267_0.JPEG.jpg": ["n02099267"],
        "n03207941/n03207941_1.JPEG.jpg": ["n03207941"],
    }


def test_images_may_be_in_folders_of_their_classes(tmp_path):
    _, table, images = official.mini_imagenet(tmp_path)
    for file in Path(images).iterdir():
        put(tmp_path / "folders" / file.name[:9] / file.name, file.read_bytes())
    assert imported(["class_csv", table, str(tmp_path / "folders")], tmp_path / "out").samples == 4


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("filename,label\na.jpg,n01\na.jpg,n02\n", r"names a.jpg twice \(row 3\)"),
        ("filename,label\na.jpg\n", "row 2 is 'a.jpg', which is not a filename and a label"),
        ("a.jpg,n01,x\n", "row 1 is"),
        ("a.jpg, \n", "row 1 is"),
        ("filename,label\n", "names no image"),
        ("", "names no image"),
    ],
)
def test_a_table_that_is_not_a_split_is_refused(tmp_path, table, message):
    with pytest.raises(DataError, match=f"test.csv {message}"):
        class_csv.read(put(tmp_path / "test.csv", table.encode()), tmp_path)


@pytest.mark.parametrize(
    "spec",
    [
        {"class_names": ["a", "b"], "class_roots": ["x/a"]},
        {"class_names": ["a"]},
        {"class_names": ["a"], "class_roots": [""]},
        [],
    ],
)
def test_json_that_is_not_a_split_of_easyfsl_is_refused(tmp_path, spec):
    with pytest.raises(DataError, match="val.json is not"):
        class_csv.read(put(tmp_path / "val.json", spec), tmp_path)


def test_classes_without_a_name_or_with_the_same_name_are_refused(tmp_path):
    _, table, images = official.mini_imagenet(tmp_path)
    few = put(tmp_path / "few.txt", b"n01930112 nematode\n")
    with pytest.raises(DataError, match="few.txt has no name for the class n01981276"):
        class_csv.read(Path(table), Path(images), few)
    # ImageNet has two classes called crane.
    same = put(tmp_path / "same.json", {"n01930112": "crane", "n01981276": "crane"})
    with pytest.raises(DataError, match="n01930112 and n01981276 are both called 'crane'"):
        class_csv.read(Path(table), Path(images), same)


def test_lines_without_a_name_and_classes_with_two_names_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"names.txt line 3 is 'n02', where 2 columns are needed"):
        class_names.read_names(put(tmp_path / "names.txt", b"n01 one\n\nn02\n"))
    with pytest.raises(
        DataError, match=r"names.txt has two names for the class n01: 'one' and 'another'"
    ):
        class_names.read_names(put(tmp_path / "names.txt", b"n01 one\nn01 another\n"))


# CUB-200-2011 -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("split", "classes", "first"),
    [
        ("train", 100, 1),
        ("test", 100, 101),
        ("base", 100, 1),
        ("val", 50, 2),
        ("novel", 50, 4),
        ("all", 200, 1),
    ],
)
def test_cub_is_split_by_classes(tmp_path, split, classes, first):
    entries, source = cub.read(Path(official.cub(tmp_path)[1]), split)
    assert (
        source["classes"] == len({entry.annotations["labels"][0] for entry in entries}) == classes
    )
    assert entries[0].annotations["filename"].startswith(f"{first:03d}.")
    assert (source["name"], source["split"]) == (f"cub-200-2011-{split}", split)


def test_disjoint_splits_of_cub_share_no_class(tmp_path):
    root = Path(official.cub(tmp_path)[1])
    labels_by_split = {}
    for split in cub.SPLITS:
        entries, _ = cub.read(root, split)
        labels_by_split[split] = {entry.annotations["labels"][0] for entry in entries}
    assert not labels_by_split["train"] & labels_by_split["test"]
    assert len(labels_by_split["base"] | labels_by_split["val"] | labels_by_split["novel"]) == 200
    assert (
        labels_by_split["train"] & labels_by_split["base"]
    )  # metric learning and few-shot learning go by other splits


def test_birds_are_called_by_their_names(tmp_path):
    words = official.cub(tmp_path)
    listed = put(
        tmp_path / "two.json", {"class_names": ["200.Common_Yellowthroat", "004.Groove_billed_Ani"]}
    )
    manifest = imported(words, tmp_path / "out", "--split", "novel", "--classes", str(listed))
    by_key = samples(manifest)
    assert {key: sample.annotations["labels"] for key, sample in by_key.items()} == {
        "00005": ["Groove billed Ani"],
        "00201": ["Common Yellowthroat"],
    }
    assert by_key["00005"].image_id == "5" and by_key["00005"].media == encoded_image(4)
    assert manifest.name == "cub-200-2011-novel-two"
    digest = hashlib.sha256(b"004.Groove_billed_Ani\n200.Common_Yellowthroat\n").hexdigest()
    assert manifest.source["class_list"] == f"sha256:{digest}"


def test_a_class_of_another_split_is_refused(tmp_path):
    listed = put(tmp_path / "two.txt", b"001.Black_footed_Albatross\n002.Laysan_Albatross\n")
    with pytest.raises(DataError, match="not in the split base .*: 002.Laysan_Albatross"):
        cub.read(Path(official.cub(tmp_path)[1]), "base", listed)


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("image_class_labels.txt", "5", "image_class_labels.txt line 202 is '5', where 2 columns"),
        ("images.txt", "900 a/b.jpg", "image_class_labels.txt is not .*: there is no 900"),
        ("images.txt", "201 a/b.jpg", "images.txt is not a file of CUB.*1 numbers come twice"),
        ("classes.txt", "x y", "classes.txt is not a file of CUB"),
        ("classes.txt", "202 202.Dodo", "images.txt has no image of Dodo"),
    ],
)
def test_lists_of_cub_that_do_not_fit_together_are_named(tmp_path, name, line, message):
    root = Path(official.cub(tmp_path)[1])
    (root / name).write_text((root / name).read_text() + f"{line}\n")
    with pytest.raises(DataError, match=message):
        cub.read(root, "all")


# CIFAR-FS -----------------------------------------------------------------------------------------


def test_cifar_fs_follows_bertinettos_lists(tmp_path):
    manifest = imported(official.cifar_fs(tmp_path), tmp_path / "out", "--split", "train")
    assert labels(manifest) == {
        "aquarium_fish/aquarium_fish_s_000000.png": ["aquarium fish"],
        "aquarium_fish/aquarium_fish_s_000001.png": ["aquarium fish"],
        "train/train_s_000000.png": ["train"],
        "train/train_s_000001.png": ["train"],
    }
    assert manifest.source["files"].keys() == {"train.txt"} and manifest.name == "cifar-fs-train"


def test_cifar_fs_without_a_class_or_in_another_folder_is_refused(tmp_path):
    root = Path(official.cifar_fs(tmp_path)[1])
    with pytest.raises(DataError, match=f"{tmp_path}/data is not a folder"):
        cifar_fs.read(tmp_path, "train")
    put(root / "splits" / "bertinetto" / "val.txt", b"otter\nokapi\n")
    with pytest.raises(DataError, match="data/okapi is not a folder"):
        cifar_fs.read(root, "val")
    put(root / "splits" / "bertinetto" / "val.txt", b"../../secret\n")
    with pytest.raises(DataError, match="leads out of the folder"):
        cifar_fs.read(root, "val")
