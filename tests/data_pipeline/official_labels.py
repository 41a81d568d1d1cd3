"""Miniatures of the official files of data sets with labels, built like those of `official.py`."""

from __future__ import annotations

from pathlib import Path

from data_pipeline.importing.label_lists import label_lists
from data_pipeline.sample import Sample
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.store import Store
from data_pipeline.shards.verify import verify
from launch.cli import main
from tests.data_pipeline.conftest import encoded_image
from tests.data_pipeline.official import put

VOC_ANNOTATION = """<annotation>
	<folder>VOC2012</folder>
	<filename>{image}.jpg</filename>
	<source><database>The VOC2008 Database</database></source>
	<size><width>64</width><height>48</height><depth>3</depth></size>
	<segmented>0</segmented>
{objects}</annotation>
"""
VOC_OBJECT = """	<object>
		<name>{name}</name>
		<pose>Left</pose>
		<truncated>1</truncated>
		<difficult>{difficult}</difficult>
		<bndbox><xmin>3</xmin><ymin>4</ymin><xmax>40</xmax><ymax>33</ymax></bndbox>
		<part><name>head</name><bndbox><xmin>3</xmin><ymin>4</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part>
	</object>
"""


def folder(root: Path) -> list[str]:
    """Three classes in all formats, with files that systems and people leave in folders."""
    for name, kind, number in [
        ("tree frog/IMG 1.JPG", "JPEG", 1),
        ("tree frog/IMG_1.png", "PNG", 2),
        ("Black_bear/猫.webp", "WEBP", 3),
        ("Black_bear/犬.jpeg", "JPEG", 4),
        ("zebra/a.jpg", "JPEG", 5),
    ]:
        put(root / "animals" / name, encoded_image(number, kind=kind))
    for name in (".DS_Store", "zebra/._a.jpg", "zebra/notes.txt", ".cache/b.jpg"):
        put(root / "animals" / name, b"no picture")
    return ["folder", str(root / "animals")]


def mini_imagenet(root: Path, *, header: bool = True) -> list[str]:
    """A split of Ravi and Larochelle: file names begin with the class, then comes a number."""
    rows = []
    for wnid in ("n01930112", "n01981276"):
        for number in (1, 5):
            rows.append((f"{wnid}{number:08d}.jpg", wnid))
    for number, (name, _) in enumerate(rows):
        put(root / "images" / name, encoded_image(number))
    lines = [*(["filename,label"] if header else []), *(",".join(row) for row in rows)]
    file = put(root / "test.csv", "\r\n".join(lines).encode() + b"\r\n")
    return ["class_csv", str(file), str(root / "images")]


def tiered_imagenet(root: Path) -> list[str]:
    """The split of easyfsl, whose folders are relative to where it is run."""
    wnids = ["n02099267", "n03207941"]
    for number, wnid in enumerate(wnids):
        put(root / "images" / wnid / f"{wnid}_{number}.JPEG.jpg", encoded_image(number))
    spec = {
        "class_names": wnids,
        "class_roots": [f"./data/tiered_imagenet/images/{wnid}" for wnid in wnids],
    }
    return ["class_csv", str(put(root / "val.json", spec)), str(root / "images")]


def cub(root: Path) -> list[str]:
    """All 200 classes with one image each (the first has two), with real names where tests look."""
    real = {
        1: "Black_footed_Albatross",
        2: "Laysan_Albatross",
        4: "Groove_billed_Ani",
        200: "Common_Yellowthroat",
    }
    folders = {}
    for number in range(1, 201):
        folders[number] = f"{number:03d}.{real.get(number, f'Bird_{number}')}"
    files = [(1, "046_18"), (1, "009_34"), *((number, "001_1") for number in range(2, 201))]
    base = root / "CUB_200_2011"
    images = [f"{folders[n]}/{folders[n][4:]}_{name}.jpg" for n, name in files]
    for number, name in enumerate(images):
        put(base / "images" / name, encoded_image(number))
    lists = {
        "images.txt": images,
        "image_class_labels.txt": [class_number for class_number, _ in files],
        "classes.txt": folders.values(),
        "train_test_split.txt": [number % 2 for number in range(len(files))],
        "bounding_boxes.txt": ["60.0 27.0 325.0 304.0"] * len(files),
    }
    for name, values in lists.items():
        put(
            base / name,
            "".join(f"{number} {value}\n" for number, value in enumerate(values, 1)).encode(),
        )
    return ["cub", str(base)]


def cifar_fs(root: Path) -> list[str]:
    splits = {"train": ["aquarium_fish", "train"], "val": ["otter"], "test": ["baby", "maple_tree"]}
    for split, classes in splits.items():
        put(
            root / "cifar100" / "splits" / "bertinetto" / f"{split}.txt",
            "\n".join(classes).encode(),
        )
        for name in classes:
            for number in (0, 1):
                image = encoded_image(number, size=(32, 32), kind="PNG")
                put(root / "cifar100" / "data" / name / f"{name}_s_00000{number}.png", image)
    return ["cifar_fs", str(root / "cifar100")]


def coco_labels(root: Path, year: int = 2014) -> list[str]:
    """Four images: two bicycles and a person, a crowd of persons, a dog and a train, nothing."""
    categories = []
    names = {1: "person", 2: "bicycle", 7: "train", 18: "dog", 90: "toothbrush"}
    for category_id, category in names.items():
        categories.append({"supercategory": "a", "id": category_id, "name": category})
    labels_by_image = {391895: [2, 1, 2], 522418: [1], 184613: [18, 7], 318219: []}
    images, annotations = [], []
    for number, category_ids in labels_by_image.items():
        name = f"COCO_val2014_{number:012d}.jpg" if year == 2014 else f"{number:012d}.jpg"
        images.append({"license": 3, "file_name": name, "height": 48, "width": 64, "id": number})
        put(root / "coco" / f"val{year}" / name, encoded_image(number))
        for category in category_ids:
            crowd = (
                {"counts": [272, 2], "size": [48, 64]}
                if number == 522418
                else [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]]
            )
            annotations.append(
                {
                    "segmentation": crowd,
                    "area": 5.5,
                    "iscrowd": int(number == 522418),
                    "image_id": number,
                }
                | {
                    "bbox": [1.0, 2.0, 3.0, 4.0],
                    "category_id": category,
                    "id": 900 + len(annotations),
                }
            )
    document = {"info": {}, "images": images, "licenses": [], "annotations": annotations[::-1]}
    file = put(root / f"instances_val{year}.json", document | {"categories": categories})
    return ["coco_labels", str(file), str(root / "coco")]


def voc(root: Path) -> list[str]:
    """Four images of trainval in the layout of VOC2012; the last shows only difficult objects."""
    base = root / "VOCdevkit" / "VOC2012"
    labels_by_image = {
        "2008_000002": [("tvmonitor", 0)],
        "2008_000008": [("horse", 0), ("person", 0), ("person", 1)],
        "2007_000027": [("person", 0), ("bottle", 1)],
        "2009_000012": [("chair", 1)],
    }
    for number, (image, shown) in enumerate(labels_by_image.items()):
        objects = ""
        for name, difficult in shown:
            objects += VOC_OBJECT.format(name=name, difficult=difficult)
        put(
            base / "Annotations" / f"{image}.xml",
            VOC_ANNOTATION.format(image=image, objects=objects).encode(),
        )
        put(base / "JPEGImages" / f"{image}.jpg", encoded_image(number))
    put(base / "ImageSets" / "Main" / "trainval.txt", "\n".join(labels_by_image).encode() + b"\n")
    put(base / "ImageSets" / "Main" / "train.txt", b"2008_000008\n")
    put(base / "ImageSets" / "Main" / "test.txt", b"2008_000001\n")
    put(base / "ImageSets" / "Main" / "person_trainval.txt", b"2008_000002 -1\n2008_000008  1\n")
    return ["voc", str(base)]


def nus_wide(root: Path) -> list[str]:
    """Four images of test and two of train.

    The second of test is no longer at Flickr, the third shows no concept.
    """
    base = root / "NUS-WIDE"
    images = {
        "Test": [
            ("actor", "0001_2124494179"),
            ("actor", "0004_1390863913"),
            ("zoo", "0870_77"),
            ("zoo", "0902_88"),
        ],
        "Train": [("actor", "0002_174174086"), ("zoo", "0001_99")],
    }
    marked = {"Test": {"tiger": [3], "sky": [0, 1, 3], "person": [0]}, "Train": {"sky": [0, 1]}}
    concepts = sorted(sum(label_lists("nus_wide").values(), []))
    put(
        base / "ConceptsList" / "Concepts81.txt",
        "".join(f"{name} \r\n" for name in concepts).encode(),
    )
    for split, listed in images.items():
        lines = "".join(f"{name}\\{image}.jpg\r\n" for name, image in listed)
        put(base / "ImageList" / f"{split}Imagelist.txt", lines.encode())
        for concept in concepts:
            rows = marked[split].get(concept, [])
            values = "".join(f"{int(place in rows)}\r\n" for place in range(len(listed)))
            file = base / "Groundtruth" / "TrainTestLabels" / f"Labels_{concept}_{split}.txt"
            put(file, values.encode())
        for number, (name, image) in enumerate(listed):
            if image != "0004_1390863913":
                put(base / "Flickr" / name / f"{image}.jpg", encoded_image(number))
    return ["nus_wide", str(base), str(base / "Flickr")]


def imaterialist(root: Path) -> list[str]:
    """Three images, one of them called .jpeg; numbers are text, as in the challenge's files."""
    labels_by_image = {"1": ["95", "66", "137"], "2": ["17", "66"], "10": ["157"]}
    images = []
    for image in labels_by_image:
        images.append({"url": f"https://contestimg.wish.com/{image}-large", "imageId": image})
    annotations = []
    for image, labels in labels_by_image.items():
        annotations.append({"labelId": labels, "imageId": image})
    for image in labels_by_image:
        extension = "jpeg" if image == "10" else "jpg"
        put(root / "images" / f"{image}.{extension}", encoded_image(int(image)))
    names = ["labelId,taskId,labelName,taskName", "17,2,Black,color", '66,3,Female,"gender"']
    names += [
        '95,1,"Jumpsuits Overalls & Rompers",category',
        "137,4,Polyester,material",
        "157,1,Sandals,category",
    ]
    put(root / "iMat_fashion_2018_label_map_228.csv", "\n".join(names).encode())
    document = {"info": {"year": 2018}, "license": {}, "images": images, "annotations": annotations}
    return ["imaterialist", str(put(root / "validation.json", document)), str(root / "images")]


def imported(words: list[str], out: Path, *options: str) -> Manifest:
    """Import with the command and verify the data set."""
    assert main(["data", "import", *words, str(out), *options, "--workers", "1"]) == 0
    assert verify(out) == []
    return Manifest.load(out)


def samples(manifest: Manifest) -> dict[str, Sample]:
    """Return the samples by their key inside the shard."""
    store = Store([manifest])
    read = [store.read(0, number, "image", "none") for number in range(manifest.samples)]
    return {sample.key.rpartition("/")[2]: sample for sample in read}


def labels(manifest: Manifest) -> dict[str, list[str]]:
    """Return the labels of each image by its `image_id`."""
    return {sample.image_id: sample.annotations["labels"] for sample in samples(manifest).values()}
