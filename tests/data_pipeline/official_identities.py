"""Miniatures of the official files of data sets of products, persons, vehicles and landmarks.

Each function writes into a folder and returns the words of `glscl data import` up to OUT; the split
comes after it.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import savemat

from tests.data_pipeline.conftest import encoded_image
from tests.data_pipeline.official import put


def cars196(
    root: Path, classes: tuple[Any, ...] = (14, 98, 99, 196), *, compressed: bool = True
) -> list[str]:
    """One image for each class number; the file names all 196 classes."""
    fields = ("relative_im_path", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "test")
    annotations = np.empty((1, len(classes)), [(field, object) for field in fields])
    for row, number in enumerate(classes):
        path = f"car_ims/{row + 1:06d}.jpg"
        numbers = [np.array([[value]], np.uint16) for value in (10, 4, 60, 40)]
        number = (
            number if isinstance(number, str) else np.array([[number]], np.asarray(number).dtype)
        )
        annotations[0, row] = (path, *numbers, number, np.array([[row % 2]], np.uint8))
        put(root / "cars" / path, encoded_image(row))
    names = np.empty((1, 196), object)
    names[0] = [f"AM General C/V Hummer SUV {2000 + number}" for number in range(1, 197)]
    file = root / "cars_annos.mat"
    savemat(file, {"annotations": annotations, "class_names": names}, do_compression=compressed)
    return ["cars196", str(file), str(root / "cars")]


def sop(root: Path) -> list[str]:
    """Two products of train with two images each, one of test; file names end in .JPG."""
    folder = root / "Stanford_Online_Products"
    lists = {
        "train": [
            "1 1 1 bicycle_final/111085122871_0.JPG",
            "2 1 1 bicycle_final/111085122871_1.JPG",
        ]
        + ["3 2 2 cabinet_final/111265328556_0.JPG", "4 2 2 cabinet_final/111265328556_1.JPG"],
        "test": [
            "59552 11319 1 bicycle_final/251952414262_0.JPG",
            "59553 11319 1 bicycle_final/251952414262_1.JPG",
        ],
    }
    for split, lines in lists.items():
        put(
            folder / f"Ebay_{split}.txt",
            "\n".join(["image_id class_id super_class_id path", *lines, ""]).encode(),
        )
        for line in lines:
            number, _, _, path = line.split()
            put(folder / path, encoded_image(int(number)))
    return ["sop", str(folder)]


def in_shop(root: Path) -> list[str]:
    """Two images per split; columns are divided by several spaces."""
    lines = [
        ("img/WOMEN/Dresses/id_00000002/02_1_front.jpg", "id_00000002", "train"),
        ("img/WOMEN/Dresses/id_00000002/02_2_side.jpg", "id_00000002", "train"),
        ("img/WOMEN/Blouses_Shirts/id_00000001/02_1_front.jpg", "id_00000001", "query"),
        ("img/WOMEN/Blouses_Shirts/id_00000001/02_3_back.jpg", "id_00000001", "gallery"),
        ("img/MEN/Denim/id_00000080/01_1_front.jpg", "id_00000080", "query"),
        ("img/MEN/Denim/id_00000080/01_7_additional.jpg", "id_00000080", "gallery"),
    ]
    for number, (path, _, _) in enumerate(lines):
        put(root / "Img" / path, encoded_image(number))
    table = "".join(f"{path:<80}{item} {status}\n" for path, item, status in lines)
    file = put(
        root / "list_eval_partition.txt",
        f"{len(lines)}\nimage_name item_id evaluation_status\n{table}".encode(),
    )
    return ["in_shop", str(file), str(root / "Img")]


def market1501(root: Path) -> list[str]:
    """Persons 2 (train) and 1 (test) seen by two cameras, one junk image, one distractor."""
    folder = root / "Market-1501-v15.09.15"
    names = {
        "bounding_box_train": ["0002_c1s1_000451_03", "0002_c2s1_000301_01"],
        "query": ["0001_c1s1_001051_00"],
        "bounding_box_test": [
            "-1_c1s1_000401_03",
            "0000_c1s1_000151_01",
            "0001_c1s1_001051_03",
            "0001_c6s1_009601_02",
        ],
    }
    for part, stems in names.items():
        for number, stem in enumerate(stems):
            put(folder / part / f"{stem}.jpg", encoded_image(number))
        put(folder / part / "Thumbs.db", b"\xd0\xcf\x11\xe0")
    put(folder / "readme.txt", b"Market-1501")
    return ["market1501", str(folder)]


def veri776(root: Path) -> list[str]:
    """Vehicles 1 (train) and 2; the query is in the gallery too; lists are Windows files."""
    folder = root / "VeRi"
    names = {
        "train": ["0001_c001_00016450_0.jpg", "0001_c014_00018600_0.jpg"],
        "query": ["0002_c002_00030600_0.jpg"],
        "test": [
            "0002_c002_00030600_0.jpg",
            "0002_c002_00030605_1.jpg",
            "0002_c016_00031000_0.jpg",
        ],
    }
    for part, listed in names.items():
        put(folder / f"name_{part}.txt", "".join(f"{name}\r\n" for name in listed).encode())
        for name in listed:
            put(folder / f"image_{part}" / name, encoded_image(int(name[10:18])))
    put(folder / "image_test" / "0009_c009_00000001_0.jpg", b"is in no list")
    return ["veri776", str(folder)]


def sysu_mm01(root: Path) -> list[str]:
    """Persons 1 (train), 4 (val), 6 and 333 (test); only visible cameras saw person 333."""
    folder = root / "SYSU-MM01"
    for name, persons in {
        "train": "1\n",
        "val": "4\n",
        "test": "333,6\n",
        "available": "1,4,6,333\n",
    }.items():
        put(folder / "exp" / f"{name}_id.txt", persons.encode())
    seen = {1: (1, 3), 4: (2, 5, 6), 6: (1, 2, 3, 4, 6), 333: (4, 5)}
    for camera in range(1, 7):
        for person, cameras in seen.items():
            if camera in cameras:
                for number in (1, 2):
                    file = folder / f"cam{camera}" / f"{person:04d}" / f"{number:04d}.jpg"
                    put(file, encoded_image(100 * camera + person + number))
    return ["sysu_mm01", str(folder)]


def revisited(
    root: Path, *, numpy: bool = False, name: str = "roxford5k", **more: Any
) -> list[str]:
    """Two queries and a gallery of five; `more` changes the first query.

    With `numpy`, boxes and rows are arrays.
    """
    gallery = ["all_souls_000001", "all_souls_000006", "worcester_000001", "worcester_000006"]
    gallery.append("oxford_002985")
    queries = ["all_souls_000013", "worcester_000194"]
    truth: list[dict[str, Any]] = [
        {"bbx": [13.5, 4.1, 48.5, 40.7], "easy": [0], "hard": [1], "junk": [4]} | more,
        {"bbx": [0.0, 0.0, 64.0, 48.0], "easy": [3, 2], "hard": [], "junk": []},
    ]
    if numpy:
        for query in truth:
            query["bbx"] = np.array(query["bbx"])
            query |= {kind: np.array(query[kind], np.uint16) for kind in ("easy", "hard", "junk")}
    for number, image in enumerate([*gallery, *queries]):
        put(root / name / "jpg" / f"{image}.jpg", encoded_image(number))
    document = {"gnd": truth, "imlist": gallery, "qimlist": queries}
    file = put(root / name / f"gnd_{name}.pkl", pickle.dumps(document, protocol=2 if numpy else 3))
    return ["revisited", str(file), str(root / name / "jpg")]
