"""`glscl data import` of products, persons, vehicles and landmarks: splits and identities."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from data_pipeline.decode import decode, open_image
from data_pipeline.errors import DataError
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.store import Store
from data_pipeline.shards.verify import verify
from data_pipeline.sources import cars196, in_shop, market1501, revisited, sop, sysu_mm01, veri776
from launch.cli import main
from tests.data_pipeline import official_identities as official
from tests.data_pipeline.conftest import encoded_image


def imported(words: list[str], out: Path, split: str) -> dict[str, dict[str, Any]]:
    """Import a split, check that all images can be read, and return the JSON members by key."""
    assert main(["data", "import", *words, str(out), "--split", split, "--workers", "1"]) == 0
    assert verify(out, decode=True) == []
    manifest = Manifest.load(out)
    store = Store([manifest])
    read = [store.read(0, number, "image", "none") for number in range(manifest.samples)]
    assert all(decode(open_image(sample.media)).shape == (48, 64, 3) for sample in read)
    return {sample.key.rpartition("/")[2]: sample.annotations for sample in read}


# Cars-196 -----------------------------------------------------------------------------------------


def test_cars_are_split_in_half_by_class(tmp_path):
    words = official.cars196(tmp_path)
    train, test = (imported(words, tmp_path / split, split) for split in ("train", "test"))
    assert train == {
        "000001": {"labels": ["AM General C/V Hummer SUV 2014"], "image_id": "000001"},
        "000002": {"labels": ["AM General C/V Hummer SUV 2098"], "image_id": "000002"},
    }
    assert [sample["labels"][0][-4:] for sample in test.values()] == ["2099", "2196"]


def test_the_manifest_of_cars_holds_the_files_hash(tmp_path):
    words = official.cars196(tmp_path, (7,))  # one alone, which scipy gives as no list
    imported(words, tmp_path / "out", "train")
    source = Manifest.load(tmp_path / "out").source
    assert source["files"] == {
        "cars_annos.mat": f"sha256:{hashlib.sha256(Path(words[1]).read_bytes()).hexdigest()}"
    }
    assert (source["kind"], source["split"], source["pictures"]) == ("cars196", "train", "cars196")


def test_classes_of_cars_may_be_whole_numbers_of_any_type(tmp_path):
    _, file, images = official.cars196(tmp_path, (np.uint8(1), 2.0))
    assert len(cars196.read(Path(file), Path(images), "train")[0]) == 2


@pytest.mark.parametrize("number", [0, 2.5, "two"])
def test_a_class_of_cars_that_is_not_a_class_number_is_named(tmp_path, number):
    _, file, images = official.cars196(tmp_path, (3, number))
    with pytest.raises(
        DataError,
        match=r"cars_annos\.mat is not .*: the class of image 2 \(car_ims/000002\.jpg\)",
    ):
        cars196.read(Path(file), Path(images), "train")


@pytest.mark.parametrize("end", [0, 140, -1])
def test_a_matlab_file_that_is_cut_is_refused(tmp_path, end):
    _, file, images = official.cars196(tmp_path)
    Path(file).write_bytes(Path(file).read_bytes()[:end])
    with pytest.raises(DataError, match=r"cars_annos\.mat is not a MATLAB file"):
        cars196.read(Path(file), Path(images), "train")


def test_a_matlab_file_that_crashes_scipy_is_refused(tmp_path):
    _, file, images = official.cars196(tmp_path, compressed=False)
    content = bytearray(Path(file).read_bytes())
    assert content[144] == 2
    content[144] = 5  # a struct becomes a sparse matrix
    Path(file).write_bytes(content)
    with pytest.raises(DataError, match=r"cars_annos\.mat is not a MATLAB file"):
        cars196.read(Path(file), Path(images), "train")


@pytest.mark.parametrize(
    "content",
    [
        {
            "annotations": np.arange(3),
            "class_names": np.array([f"class {n}" for n in range(196)], object),
        },
        {"annotations": np.arange(3), "class_names": np.array(["a", "a"], object)},
        {"class_names": "a"},
    ],
)
def test_another_matlab_file_is_refused(tmp_path, content):
    savemat(tmp_path / "cars_annos.mat", content)
    with pytest.raises(DataError, match=r"cars_annos\.mat is not cars_annos\.mat of Stanford Cars"):
        cars196.read(tmp_path / "cars_annos.mat", tmp_path, "train")


def test_a_matlab_file_of_version_7_3_is_refused(tmp_path):
    (tmp_path / "cars_annos.mat").write_bytes(
        b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + b"\x89HDF\r\n\x1a\n"
    )
    with pytest.raises(DataError, match="not a MATLAB file before version 7.3"):
        cars196.read(tmp_path / "cars_annos.mat", tmp_path, "train")


# Stanford Online Products -------------------------------------------------------------------------


def test_products_are_labels_and_keep_their_kind(tmp_path):
    words = official.sop(tmp_path)
    train, test = (imported(words, tmp_path / split, split) for split in ("train", "test"))
    assert [sample["labels"] for sample in train.values()] == [["1"], ["1"], ["2"], ["2"]]
    assert train["000003"] == {"labels": ["2"], "image_id": "3", "super_class": "2"}
    assert list(test) == ["059552", "059553"]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("1 1 1 a.JPG", r"its first line is not 'image_id class_id super_class_id path'"),
        (
            "image_id class_id super_class_id path\n1 1 a.JPG",
            r"line 2 is '1 1 a.JPG', where 4 columns are needed",
        ),
        (
            "image_id class_id super_class_id path\n1 one 1 a.JPG",
            r"line 2: class_id is 'one', not a number",
        ),
        (
            "image_id class_id super_class_id path\n1 1 1 a.JPG\n1 1 1 b.JPG",
            "line 3: image 1 comes twice",
        ),
        ("", "its first line"),
    ],
)
def test_a_list_of_products_with_other_columns_is_refused(tmp_path, lines, expected):
    (tmp_path / "Ebay_test.txt").write_text(lines)
    with pytest.raises(DataError, match=rf"Ebay_test\.txt .*{expected}"):
        sop.read(tmp_path, "test")


def test_a_list_with_a_path_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "Ebay_test.txt").write_text(
        "image_id class_id super_class_id path\n1 1 1 ../../etc/secret.jpg"
    )
    with pytest.raises(DataError, match="leads out of the folder"):
        sop.read(tmp_path, "test")


# In-Shop ------------------------------------------------------------------------------------------


def test_items_of_in_shop_are_in_query_and_gallery(tmp_path):
    words = official.in_shop(tmp_path)
    train, query, gallery = (imported(words, tmp_path / split, split) for split in in_shop.SPLITS)
    assert [sample["labels"] for sample in train.values()] == [["id_00000002"]] * 2
    assert [sample["labels"] for sample in query.values()] == [["id_00000001"], ["id_00000080"]]
    assert [sample["labels"] for sample in gallery.values()] == [["id_00000001"], ["id_00000080"]]
    image_id = "WOMEN/Blouses_Shirts/id_00000001/02_1_front"
    assert query["WOMEN_Blouses_Shirts_id_00000001_02_1_front"] == {
        "labels": ["id_00000001"],
        "image_id": image_id,
    }


def test_images_of_in_shop_may_be_outside_of_the_folder_img(tmp_path):
    _, partition, images = official.in_shop(tmp_path)
    assert len(imported(["in_shop", partition, f"{images}/img"], tmp_path / "out", "query")) == 2


@pytest.mark.parametrize(
    ("was", "becomes", "expected"),
    [
        ("6\n", "7\n", "its first line announces 7 images, but it lists 6"),
        ("6\n", "", "its second line is not 'image_name item_id evaluation_status'"),
        (
            " query",
            " question",
            r"line 5 is '.*question', not an image, an item and train, query, gallery",
        ),
        ("id_00000080 query", "query", "line 7 is"),
        (
            "img/MEN/Denim/id_00000080/01_1_front.jpg",
            "img/WOMEN/Blouses_Shirts/id_00000001/02_1_front.jpg",
            "comes twice",
        ),
        ("6\n", "six\n", "six"),
    ],
)
def test_a_damaged_partition_of_in_shop_is_refused(tmp_path, was, becomes, expected):
    _, partition, images = official.in_shop(tmp_path)
    Path(partition).write_text(Path(partition).read_text().replace(was, becomes, 1))
    with pytest.raises(DataError, match=rf"list_eval_partition\.txt is not .*: .*{expected}"):
        in_shop.read(Path(partition), Path(images), "query")


# Market-1501 --------------------------------------------------------------------------------------


def test_file_names_of_market_give_person_camera_junk_and_distractors(tmp_path):
    words = official.market1501(tmp_path)
    train = imported(words, tmp_path / "train", "train")
    query = imported(words, tmp_path / "query", "query")
    gallery = imported(words, tmp_path / "gallery", "gallery")
    assert train["0002_c2s1_000301_01"] == {
        "labels": ["0002"],
        "image_id": "0002_c2s1_000301_01",
        "camera": "c2",
    }
    assert list(query) == ["0001_c1s1_001051_00"]
    told = []
    for sample in gallery.values():
        told.append({name: value for name, value in sample.items() if name != "image_id"})
    assert told == [
        {"labels": ["-1"], "camera": "c1", "junk": True},
        {"labels": ["0000"], "camera": "c1", "distractor": True},
        {"labels": ["0001"], "camera": "c1"},
        {"labels": ["0001"], "camera": "c6"},
    ]


@pytest.mark.parametrize(
    "name", ["0003.jpg", "0003_s1_000451_03.jpg", "c1s1_000451_03.jpg", "-2_c1s1_000401_03.jpg"]
)
def test_an_image_of_market_without_a_person_or_camera_is_named(tmp_path, name):
    folder = Path(official.market1501(tmp_path)[1])
    (folder / "query" / name).write_bytes(encoded_image(1))
    with pytest.raises(
        DataError,
        match=rf"query/{name} is not named as in Market-1501 .*, with person and camera",
    ):
        market1501.read(folder, "query")


def test_a_missing_or_empty_folder_of_market_is_named(tmp_path):
    (tmp_path / "query").mkdir()
    with pytest.raises(DataError, match=r"query holds no image"):
        market1501.read(tmp_path, "query")
    with pytest.raises(DataError, match=r"bounding_box_test is not a folder"):
        market1501.read(tmp_path, "gallery")


# VeRi-776 -----------------------------------------------------------------------------------------


def test_file_names_of_veri_give_vehicle_and_camera(tmp_path):
    words = official.veri776(tmp_path)
    train, query, gallery = (imported(words, tmp_path / split, split) for split in veri776.SPLITS)
    assert [(sample["labels"], sample["camera"]) for sample in train.values()] == [
        (["0001"], "c001"),
        (["0001"], "c014"),
    ]
    assert list(gallery) == ["0002_c002_00030600_0", "0002_c002_00030605_1", "0002_c016_00031000_0"]
    assert query["0002_c002_00030600_0"] == gallery["0002_c002_00030600_0"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "0002_00030600_0.jpg",
            "line 2: '0002_00030600_0.jpg' does not say its vehicle and camera",
        ),
        ("0002_c002_00030600_0.jpg", "line 2: 0002_c002_00030600_0.jpg comes twice"),
    ],
)
def test_a_list_of_veri_with_a_wrong_name_is_refused(tmp_path, name, expected):
    folder = Path(official.veri776(tmp_path)[1])
    (folder / "name_query.txt").write_text(f"0002_c002_00030600_0.jpg\n{name}\n")
    with pytest.raises(DataError, match=rf"name_query\.txt is not .*: {expected}"):
        veri776.read(folder, "query")


# SYSU-MM01 ----------------------------------------------------------------------------------------


def test_sysu_queries_are_infrared_and_its_gallery_is_visible(tmp_path):
    words = official.sysu_mm01(tmp_path)
    query, gallery = (imported(words, tmp_path / split, split) for split in ("query", "gallery"))
    assert {(sample["camera"], sample["modality"]) for sample in query.values()} == {
        ("c3", "infrared"),
        ("c6", "infrared"),
    }
    assert {sample["modality"] for sample in gallery.values()} == {"visible"}
    assert [sample["camera"] for sample in gallery.values()] == [
        *["c1"] * 2,
        *["c2"] * 2,
        *["c4"] * 4,
        *["c5"] * 2,
    ]
    assert query["cam3_0006_0001"] == {
        "labels": ["0006"],
        "image_id": "cam3/0006/0001",
        "camera": "c3",
        "modality": "infrared",
    }
    assert Manifest.load(tmp_path / "query").source["without_pictures"] == ["0333"]
    assert Manifest.load(tmp_path / "gallery").source["without_pictures"] == []


def test_sysu_is_trained_on_train_and_val_in_both_modalities(tmp_path):
    train = imported(official.sysu_mm01(tmp_path), tmp_path / "out", "train")
    seen = set()
    for sample in train.values():
        seen.add((sample["labels"][0], sample["camera"], sample["modality"]))
    assert seen == {
        ("0001", "c1", "visible"),
        ("0001", "c3", "infrared"),
        ("0004", "c2", "visible"),
        ("0004", "c5", "visible"),
        ("0004", "c6", "infrared"),
    }
    assert list(Manifest.load(tmp_path / "out").source["files"]) == ["train_id.txt", "val_id.txt"]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ("6,x,333", "'x' is not the number of a person"),
        ("\n", "it lists no person"),
        ("6 333", "'6 333' is not the number"),
    ],
)
def test_a_list_of_sysu_with_anything_but_numbers_is_refused(tmp_path, ids, expected):
    folder = Path(official.sysu_mm01(tmp_path)[1])
    (folder / "exp" / "test_id.txt").write_text(ids)
    with pytest.raises(DataError, match=rf"test_id\.txt is not .*: {expected}"):
        sysu_mm01.read(folder, "query")


def test_sysu_without_a_camera_or_without_images_is_refused(tmp_path):
    folder = Path(official.sysu_mm01(tmp_path)[1])
    (folder / "exp" / "test_id.txt").write_text("77")
    with pytest.raises(DataError, match=r"SYSU-MM01 holds no image of the 1 persons of query"):
        sysu_mm01.read(folder, "query")
    (folder / "cam6").rename(folder / "elsewhere")
    with pytest.raises(DataError, match=r"cam6 is not a folder"):
        sysu_mm01.read(folder, "query")


# Revisited Oxford and Paris -----------------------------------------------------------------------


@pytest.mark.parametrize("numpy", [False, True])
def test_queries_of_revisited_have_their_box_and_relevant_images(tmp_path, numpy):
    words = official.revisited(tmp_path, numpy=numpy)
    query, gallery = (imported(words, tmp_path / split, split) for split in revisited.SPLITS)
    assert query["all_souls_000013"] == {
        "labels": [],
        "image_id": "all_souls_000013",
        "box": [13.5, 4.1, 48.5, 40.7],
        "relevance": {
            "easy": ["all_souls_000001"],
            "hard": ["all_souls_000006"],
            "junk": ["oxford_002985"],
        },
    }
    assert query["worcester_000194"]["relevance"]["easy"] == [
        "worcester_000006",
        "worcester_000001",
    ]
    assert list(gallery) == [sample["image_id"] for sample in gallery.values()]
    assert gallery["oxford_002985"] == {"labels": [], "image_id": "oxford_002985"}
    assert Manifest.load(tmp_path / "query").name == "roxford5k-query"


def test_the_folder_of_revisited_images_may_be_the_parent_of_jpg(tmp_path):
    words = official.revisited(tmp_path, name="rparis6k")
    words[2] = str(Path(words[2]).parent)
    assert len(imported(words, tmp_path / "out", "gallery")) == 5
    assert Manifest.load(tmp_path / "out").source["pictures"] == "rparis6k"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"easy": [5]}, "'easy' of all_souls_000013 holds 5, which is not one of its 5 rows"),
        ({"junk": [-1]}, "'junk' of all_souls_000013 holds -1"),
        ({"hard": [0.5]}, "'hard' of all_souls_000013 holds 0.5"),
        ({"hard": ["all_souls_000006"]}, "'hard' of all_souls_000013 holds 'all_souls_000006'"),
        ({"bbx": [1, 2, 3]}, "the box of all_souls_000013 is not four numbers"),
        ({"bbx": [1, 2, 3, float("nan")]}, "the box of all_souls_000013 is not four numbers"),
        ({"bbx": [9, 2, 3, 4]}, "the box of all_souls_000013 is empty"),
        ({"bbx": None}, "the box of all_souls_000013 is not four numbers"),
    ],
)
def test_a_damaged_query_of_revisited_is_named(tmp_path, more, expected):
    _, file, images = official.revisited(tmp_path, **more)
    with pytest.raises(
        DataError, match=rf"gnd_roxford5k\.pkl is not a ground truth .*: {expected}"
    ):
        revisited.read(Path(file), Path(images), "query")


def test_the_ground_truth_of_the_original_oxford_set_is_refused(tmp_path):
    document = {
        "imlist": ["a"],
        "qimlist": ["a"],
        "gnd": [{"ok": [0], "junk": [], "bbx": [0, 0, 9, 9]}],
    }
    (tmp_path / "gnd_oxford5k.pkl").write_bytes(pickle.dumps(document))
    with pytest.raises(DataError, match=r"gnd_oxford5k\.pkl is not .*: there is no 'easy'"):
        revisited.read(tmp_path / "gnd_oxford5k.pkl", tmp_path, "query")


def test_nothing_in_a_ground_truth_runs(tmp_path):
    class Command:
        def __reduce__(self):
            return Path.touch, (tmp_path / "harm",)

    _, file, images = official.revisited(tmp_path)
    Path(file).write_bytes(pickle.dumps({"gnd": Command(), "imlist": [], "qimlist": []}))
    with pytest.raises(DataError, match=r"gnd_roxford5k\.pkl is not .*: it names"):
        revisited.read(Path(file), Path(images), "gallery")
    assert not (tmp_path / "harm").exists()


# The command --------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [cars196, in_shop, revisited])
def test_an_unknown_split_is_refused(tmp_path, source):
    with pytest.raises(Exception, match="unknown split 'all' of .*; choose one of"):
        source.read(tmp_path, tmp_path, "all")


@pytest.mark.parametrize("source", [sop, market1501, veri776, sysu_mm01])
def test_an_unknown_split_of_a_folder_is_refused(tmp_path, source):
    with pytest.raises(Exception, match="unknown split 'all' of .*; choose one of"):
        source.read(tmp_path, "all")
