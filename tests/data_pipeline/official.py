"""Miniatures of the official files of real data sets, in their authors' layout.

Images and videos are real ones, but small.

Each function writes into a folder and returns the words of `glscl data import` up to OUT, options
last.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tests.data_pipeline.conftest import encoded_clip, encoded_image

SUGARCREPE = (
    "add_att",
    "add_obj",
    "replace_att",
    "replace_obj",
    "replace_rel",
    "swap_att",
    "swap_obj",
)


def put(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def coco(root: Path) -> list[str]:
    """Six images: two of train, one of restval, one of val, two of test; one has seven captions."""
    images, sentid = [], 0
    splits = ["train", "test", "restval", "val", "train", "test"]
    for imgid, (split, cocoid) in enumerate(
        zip(splits, (57870, 391895, 60623, 184613, 9, 522418), strict=True)
    ):
        part = "train2014" if split == "train" else "val2014"
        sentences = []
        for number in range(7 if cocoid == 522418 else 5):
            raw = f"A man {number} with a red helmet, on picture {cocoid}. "
            sentences.append(
                {"tokens": raw.lower().split(), "raw": raw, "imgid": imgid, "sentid": sentid}
            )
            sentid += 1
        name = f"COCO_{part}_{cocoid:012d}.jpg"
        images.append(
            {
                "filepath": part,
                "sentids": [s["sentid"] for s in sentences],
                "filename": name,
                "imgid": imgid,
            }
            | {"split": split, "sentences": sentences, "cocoid": cocoid}
        )
        put(root / "coco" / part / name, encoded_image(cocoid))
    file = put(root / "dataset_coco.json", {"images": images, "dataset": "coco"})
    return ["coco", str(file), str(root / "coco")]


def flickr30k(root: Path) -> list[str]:
    images = []
    for imgid, (split, name) in enumerate(
        [("train", "1000092795.jpg"), ("test", "1007129816.jpg"), ("val", "12.jpg")]
    ):
        raws = [f"Two young guys {number} with shaggy hair." for number in range(5)]
        sentences = []
        for n, raw in enumerate(raws):
            sentences.append(
                {"tokens": raw.split(), "raw": raw, "imgid": imgid, "sentid": imgid * 5 + n}
            )
        images.append(
            {"sentids": [s["sentid"] for s in sentences], "imgid": imgid, "sentences": sentences}
            | {"split": split, "filename": name}
        )
        put(root / "flickr30k-images" / name, encoded_image(imgid))
    file = put(root / "dataset_flickr30k.json", {"images": images, "dataset": "flickr30k"})
    return ["flickr30k", str(file), str(root / "flickr30k-images")]


def visual_genome(root: Path) -> list[str]:
    """Three images: one of its own, one of COCO's test (see `coco`), one of Flickr30k's train."""
    images, described = [], []
    for number, coco_id, flickr_id in [(1, None, None), (2, 391895, 3000), (3, None, 1000092795)]:
        part = "VG_100K" if number == 1 else "VG_100K_2"
        images.append(
            {
                "width": 64,
                "url": f"https://a/rak248/{part}/{number}.jpg",
                "height": 48,
                "image_id": number,
            }
            | {"coco_id": coco_id, "flickr_id": flickr_id}
        )
        place = {"width": 20, "height": 10, "x": 1, "y": 2, "image_id": number}
        phrases = [f"the clock is green {number}", "a man"]
        regions = []
        for n, phrase in enumerate(phrases):
            regions.append(place | {"region_id": 10 * number + n, "phrase": phrase})
        described.append({"id": number, "regions": regions})
        put(root / "vg" / part / f"{number}.jpg", encoded_image(number))
    files = [
        put(root / "region_descriptions.json", described),
        put(root / "image_data.json", images),
    ]
    return ["visual_genome", *map(str, files), str(root / "vg")]


def vqa_v2(root: Path, subtype: str = "val2014", *, ids: type = int) -> list[str]:
    """Three questions about two images; the annotations are in another order."""
    about = [
        (262148000, 262148, "Where is he looking?"),
        (393225000, 393225, "What website copyrighted the picture?"),
    ]
    about.append((262148001, 262148, "What are the people in the background doing?"))
    head = {"info": {}, "license": {}, "data_type": "mscoco", "data_subtype": subtype}
    questions = []
    for number, image, text in about:
        questions.append({"image_id": image, "question": text, "question_id": number})
    answers = {
        262148000: ["down"] * 9 + ["at table"],
        393225000: ["foodiebakercom"] * 10,
        262148001: ["watching"] * 10,
    }
    annotations = []
    for question_id, image_id, question in reversed(about):
        given = []
        for n, answer in enumerate(answers[question_id], 1):
            given.append({"answer": answer, "answer_confidence": "yes", "answer_id": n})
        annotation = {
            "question_type": question.split()[0].lower(),
            "multiple_choice_answer": answers[question_id][0],
            "answers": given,
            "image_id": image_id,
            "answer_type": "other",
            "question_id": ids(question_id),
        }
        annotations.append(annotation)
    folder = subtype.replace("test-dev", "test")
    for image in (262148, 393225):
        put(root / "coco" / folder / f"COCO_{folder}_{image:012d}.jpg", encoded_image(image))
    questions_file = put(
        root / f"v2_OpenEnded_mscoco_{subtype}_questions.json",
        head | {"task_type": "Open-Ended", "questions": questions},
    )
    words = ["vqa_v2", str(questions_file), str(root / "coco")]
    if subtype.startswith("test"):
        return words
    annotations_file = put(
        root / f"v2_mscoco_{subtype}_annotations.json", head | {"annotations": annotations}
    )
    return [*words, "--annotations", str(annotations_file)]


def nlvr2(root: Path, split: str = "dev") -> list[str]:
    """Two sentences of one set about two pairs each, and one of another set.

    Files named png may hold JPEG, as in the real data set.
    """
    lines = []
    for identifier, label in [
        ("850-0-0", "True"),
        ("850-1-0", "False"),
        ("850-0-1", "False"),
        ("7-3-1", "True"),
    ]:
        lines.append(
            {
                "validation": {"138": label},
                "sentence": f"Sentence {identifier[-1]} of set {identifier.split('-')[0]}.",
            }
            | {
                "left_url": "https://a/1.png",
                "right_url": "https://a/2.jpg",
                "writer": 7,
                "label": label,
            }
            | {"identifier": f"{split}-{identifier}", "synset": "acorn", "query": "acorns1"}
            | ({"directory": 12} if split == "train" else {})
        )
        pair = f"{split}-{identifier.rsplit('-', 1)[0]}"
        folder = root / "images" / split / ("12" if split == "train" else "")
        for side, kind in enumerate(("PNG", "JPEG")):
            put(folder / f"{pair}-img{side}.png", encoded_image(side, kind=kind))
    file = put(root / f"{split}.json", "\n".join(map(json.dumps, lines)).encode() + b"\n")
    return ["nlvr2", str(file), str(root / "images")]


def msrvtt(root: Path, clips: int = 8) -> list[str]:
    """Videos video0, ...; neither the sentences nor the test list are in their order."""
    names = [f"video{number}" for number in (10, *range(clips - 1))]
    videos = []
    for number, name in enumerate(names):
        videos.append(
            {
                "category": 9,
                "url": "https://a",
                "video_id": name,
                "start time": 1.0,
                "end time": 2.5,
            }
            | {"split": "test" if number > 5 else "train", "id": number}
        )
    sentences = []
    for number in (1, 0):
        for n, name in reversed(list(enumerate(names))):
            sentences.append(
                {
                    "caption": f"caption {number} of {name}",
                    "video_id": name,
                    "sen_id": 20 * n + number,
                }
            )
    file = put(root / "MSRVTT_data.json", {"info": {}, "videos": videos, "sentences": sentences})
    rows = [
        "key,vid_key,video_id,sentence",
        'ret0,msr3,video3,"a woman, and a dog"',
        "ret1,msr1,video1,caption of 1",
    ]
    listed = put(root / "MSRVTT_JSFusion_test.csv", "\r\n".join(rows).encode() + b"\r\n")
    for number, name in enumerate(names):
        put(root / "videos" / f"{name}.mp4", encoded_clip(number, frames=3))
    return ["msrvtt", str(file), str(listed), str(root / "videos")]


def lsmdc(root: Path) -> list[str]:
    rows = [
        ("0001_American_Beauty_00.00.51.926-00.00.54.129", 'SOMEONE says "no.'),
        ("0001_American_Beauty_00.02.24.072-00.02.26.070", "He walks on."),
    ]
    times = ["00.00.51.926", "00.00.54.129", "00.00.51.805", "00.00.54.321"]
    for number, (name, _) in enumerate(rows):
        put(
            root / "films" / "0001_American_Beauty" / f"{name}.avi",
            encoded_clip(number, kind="avi", codec="mpeg4"),
        )
    table = "".join("\t".join([name, *times, sentence]) + "\n" for name, sentence in rows)
    file = put(root / "LSMDC16_challenge_1000_publictect.csv", table.encode())
    return ["lsmdc", str(file), str(root / "films")]


def align_bench(root: Path) -> list[str]:
    """Two images of 64 x 48; masks are bool tensors of torch, one of them a transposed view."""
    folder = root / "ALIGN-BENCH"
    masks = torch.zeros(2, 48, 64, dtype=torch.bool)
    masks[0, 10:20, 30:50] = True
    masks[1, 0:5, 60:64] = True
    places = [
        {"bbox_mask": [30, 10, 50, 20], "pixel_mask": masks[0]},
        {"bbox_mask": (60, 0, 64.0, 5)},
    ]
    places[1]["pixel_mask"] = masks[1].T.contiguous().T  # strides of a transposed table
    for number, image in enumerate((15, 1000)):
        put(folder / "images" / f"{image}.jpg", encoded_image(image))
        document = {
            "caption": f"A red dog on grass {image}.",
            "annotation": {"red dog": places, "grass": places[:1]},
        }
        document["annotation"]["sky"] = []
        put(folder / "pkls" / f"{image}.pkl", pickle.dumps(document, protocol=(2, 4)[number]))
    return ["align_bench", str(folder)]


def sugarcrepe(root: Path, images: Sequence[int] = (85329, 174482)) -> list[str]:
    """Two captions of the first image; one of them is in all seven files."""
    for kind in SUGARCREPE:
        items = {
            "0": {
                "filename": f"{images[0]:012d}.jpg",
                "caption": "A cat is on a mat.",
                "negative_caption": f"A mat is on a cat ({kind}).",
            }
        }
        if kind == "swap_obj":
            items["12"] = items["0"] | {"caption": "A grey cat.", "negative_caption": "A grey mat."}
            items["15"] = items["12"] | {"filename": f"{images[1]:012d}.jpg"}
        put(root / "data" / f"{kind}.json", items)
    for image in images:
        put(root / "val2017" / f"{image:012d}.jpg", encoded_image(image))
    return ["sugarcrepe", str(root / "data"), str(root / "val2017")]


def winoground(root: Path, examples: int = 2) -> list[str]:
    lines = []
    for number in range(examples):
        names = [f"ex_{number}_img_{side}" for side in (0, 1)]
        for side, name in enumerate(names):
            put(root / "images" / f"{name}.png", encoded_image(2 * number + side, kind="PNG"))
        lines.append(
            {"id": number, "image_0": names[0], "image_1": names[1], "num_main_preds": 1}
            | {"caption_0": f"an old person kisses a young person {number}", "tag": "Adjective-Age"}
            | {"caption_1": f"a young person kisses an old person {number}", "secondary_tag": ""}
            | {"collapsed_tag": "Object"}
        )
    file = put(root / "examples.jsonl", "\n".join(map(json.dumps, lines)).encode())
    return ["winoground", str(file), str(root / "images")]
