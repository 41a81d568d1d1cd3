"""`glscl data import SOURCE ...`: the official files that each real data set takes, and the call that imports them."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

_PICTURES = ("pictures", "PICTURES", "folder of the pictures")
_KARPATHY = ("train", "restval", "val", "test", "train+restval")
_SEARCH = ("train", "query", "gallery")
_PARTS = ("base", "val", "novel")


@dataclass(frozen=True)
class Source:
    """A data set: the file of `data_pipeline/sources` that reads it, the paths that it takes by name, its splits.

    `labels` are the parts of the label lists of `data_pipeline/sources/label_splits` that pictures
    can be chosen by.
    """

    module: str
    about: str
    paths: tuple[tuple[str, str, str], ...]
    example: str
    splits: tuple[str, ...] = ()
    optional: tuple[tuple[str, str, str], ...] = ()
    given: tuple[tuple[str, str], ...] = ()
    labels: tuple[str, ...] = ()


SOURCES = {
    "coco": Source(
        "karpathy",
        "COCO captions in Karpathy's splits",
        (("annotations", "JSON", "dataset_coco.json"), _PICTURES),
        "coco dataset_coco.json coco/ data/coco-test --split test",
        splits=_KARPATHY,
        given=(("dataset", "coco"),),
    ),
    "flickr30k": Source(
        "karpathy",
        "Flickr30k in Karpathy's splits",
        (("annotations", "JSON", "dataset_flickr30k.json"), _PICTURES),
        "flickr30k dataset_flickr30k.json flickr30k-images/ data/flickr30k-test --split test",
        splits=tuple(split for split in _KARPATHY if "restval" not in split),
        given=(("dataset", "flickr30k"),),
    ),
    "visual_genome": Source(
        "visual_genome",
        "Visual Genome's region phrases as captions, for training",
        (
            ("regions", "REGIONS", "region_descriptions.json"),
            ("images", "IMAGES", "image_data.json"),
            _PICTURES,
        ),
        "visual_genome region_descriptions.json image_data.json vg/ data/vg "
        "--without-coco dataset_coco.json --without-flickr30k dataset_flickr30k.json",
        optional=(
            (
                "without_coco",
                "JSON",
                "dataset_coco.json: leave out the pictures of its val and test",
            ),
            (
                "without_flickr30k",
                "JSON",
                "dataset_flickr30k.json: leave out the pictures of its val and test",
            ),
        ),
    ),
    "vqa_v2": Source(
        "vqa_v2",
        "VQA v2: questions with ten answers each",
        (("questions", "QUESTIONS", "v2_OpenEnded_mscoco_..._questions.json"), _PICTURES),
        "vqa_v2 v2_OpenEnded_mscoco_val2014_questions.json coco/ data/vqa-val "
        "--annotations v2_mscoco_val2014_annotations.json",
        optional=(
            ("annotations", "JSON", "v2_mscoco_..._annotations.json (there is none of test)"),
        ),
    ),
    "nlvr2": Source(
        "nlvr2",
        "NLVR2: statements about pairs of pictures",
        (
            ("statements", "STATEMENTS", "train.json, dev.json, test1.json, ... (one JSON a line)"),
            _PICTURES,
        ),
        "nlvr2 dev.json nlvr2/images data/nlvr2-dev",
    ),
    "msrvtt": Source(
        "msrvtt",
        "MSR-VTT in the split 1k-A; 500 clips of training are held out as val",
        (
            ("captions", "CAPTIONS", "MSRVTT_data.json, of all 10,000 clips"),
            ("test_list", "LIST", "MSRVTT_JSFusion_test.csv"),
            ("videos", "CLIPS", "folder of video0.mp4, ..."),
        ),
        "msrvtt MSRVTT_data.json MSRVTT_JSFusion_test.csv videos/ data/msrvtt-test --split test",
        splits=("train", "val", "test"),
    ),
    "lsmdc": Source(
        "lsmdc",
        "LSMDC 2016; AVI is encoded again as H.264",
        (
            (
                "table",
                "TABLE",
                "LSMDC16_annos_training.csv, ..._val.csv, LSMDC16_challenge_1000_publictect.csv",
            ),
            ("videos", "CLIPS", "folder of the films' folders"),
        ),
        "lsmdc LSMDC16_challenge_1000_publictect.csv lsmdc/ data/lsmdc-test --split test",
        splits=("train", "val", "test"),
    ),
    "align_bench": Source(
        "align_bench",
        "ALIGN-BENCH: boxes and masks of the phrases of a caption; its pickles are read without unpickling",
        (("folder", "FOLDER", "folder that holds images and pkls"),),
        "align_bench ALIGN-BENCH data/align-bench",
    ),
    "sugarcrepe": Source(
        "sugarcrepe",
        "SugarCrepe: true captions and hard false ones",
        (
            ("folder", "FOLDER", "folder of the seven JSON files"),
            ("pictures", "PICTURES", "COCO's val2017"),
        ),
        "sugarcrepe sugar-crepe/data coco/val2017 data/sugarcrepe",
    ),
    "winoground": Source(
        "winoground",
        "Winoground: two pictures, two captions of the same words",
        (("examples", "EXAMPLES", "examples.jsonl"), _PICTURES),
        "winoground examples.jsonl images/ data/winoground",
    ),
    "folder": Source(
        "labelled_folder",
        "pictures of your own, or of any data set with one folder a class",
        (("root", "ROOT", "folder that holds one folder of pictures a class"),),
        "folder birds/ data/birds",
        optional=(("classes", "FILE", "take only these classes (one folder's name a line)"),),
    ),
    "class_csv": Source(
        "class_csv",
        "miniImageNet, tieredImageNet and others with a split as filename,label",
        (
            ("table", "TABLE", "train.csv, val.csv, test.csv, or easyfsl's train.json, ..."),
            _PICTURES,
        ),
        "class_csv mini_imagenet/test.csv mini_imagenet/images data/mini-test --names names.txt",
        optional=(
            (
                "names",
                "FILE",
                "what classes are called: lines of a class and its name, or a JSON object",
            ),
        ),
    ),
    "cub": Source(
        "cub",
        "CUB-200-2011: train and test of metric learning; base, val and novel of few-shot learning",
        (("root", "ROOT", "folder CUB_200_2011"),),
        "cub CUB_200_2011 data/cub-novel --split novel",
        splits=("train", "test", "base", "val", "novel", "all"),
        optional=(
            (
                "classes",
                "FILE",
                "take only these classes of the split (one a line, or easyfsl's JSON)",
            ),
        ),
    ),
    "cifar_fs": Source(
        "cifar_fs",
        "CIFAR-FS in Bertinetto's splits",
        (("root", "ROOT", "folder that holds data and splits"),),
        "cifar_fs cifar100 data/cifar-fs-test --split test",
        splits=("train", "val", "test"),
    ),
    "coco_labels": Source(
        "coco_labels",
        "COCO's categories as labels",
        (("instances", "JSON", "instances_train2014.json, instances_val2017.json, ..."), _PICTURES),
        "coco_labels instances_val2014.json coco/ data/coco-novel --labels test",
        labels=("train", "val", "test"),
    ),
    "voc": Source(
        "voc",
        "PASCAL VOC: the objects of a picture as labels",
        (("root", "ROOT", "folder VOCdevkit/VOC2007 or VOC2012"),),
        "voc VOCdevkit/VOC2012 data/voc-novel --split val --labels novel",
        splits=("train", "val", "trainval", "test"),
        labels=_PARTS,
    ),
    "nus_wide": Source(
        "nus_wide",
        "NUS-WIDE: pictures of Flickr with 81 concepts",
        (("root", "ROOT", "folder that holds ImageList, Groundtruth and ConceptsList"), _PICTURES),
        "nus_wide NUS-WIDE NUS-WIDE/Flickr data/nus-test --split test --unreadable leave-out",
        splits=("train", "test"),
        labels=_PARTS,
    ),
    "imaterialist": Source(
        "imaterialist",
        "iMaterialist (Fashion) 2018: pictures with attributes of clothes",
        (("annotations", "JSON", "train.json or validation.json"), _PICTURES),
        "imaterialist validation.json images/ data/imaterialist-val --names iMat_fashion_2018_label_map_228.csv",
        optional=(("names", "FILE", "the table of labelId and labelName, or a JSON object"),),
        labels=_PARTS,
    ),
    "cars196": Source(
        "cars196",
        "Stanford Cars: the first 98 classes as train, the last 98 as test",
        (
            ("annotations", "MAT", "cars_annos.mat"),
            ("pictures", "PICTURES", "folder that holds car_ims"),
        ),
        "cars196 cars_annos.mat cars/ data/cars196-test --split test",
        splits=("train", "test"),
    ),
    "sop": Source(
        "sop",
        "Stanford Online Products",
        (("folder", "FOLDER", "Stanford_Online_Products"),),
        "sop Stanford_Online_Products data/sop-test --split test",
        splits=("train", "test"),
    ),
    "in_shop": Source(
        "in_shop",
        "DeepFashion's In-Shop Clothes Retrieval",
        (
            ("partition", "LIST", "list_eval_partition.txt"),
            ("pictures", "PICTURES", "folder that holds img"),
        ),
        "in_shop list_eval_partition.txt Img/ data/in-shop-query --split query",
        splits=_SEARCH,
    ),
    "market1501": Source(
        "market1501",
        "Market-1501: persons before six cameras",
        (("folder", "FOLDER", "Market-1501-v15.09.15"),),
        "market1501 Market-1501-v15.09.15 data/market-query --split query",
        splits=_SEARCH,
    ),
    "veri776": Source(
        "veri776",
        "VeRi-776: vehicles before twenty cameras",
        (("folder", "FOLDER", "VeRi"),),
        "veri776 VeRi data/veri-query --split query",
        splits=_SEARCH,
    ),
    "sysu_mm01": Source(
        "sysu_mm01",
        "SYSU-MM01: infrared queries, visible gallery",
        (("folder", "FOLDER", "SYSU-MM01, which holds exp and cam1 to cam6"),),
        "sysu_mm01 SYSU-MM01 data/sysu-query --split query",
        splits=_SEARCH,
    ),
    "revisited": Source(
        "revisited",
        "Revisited Oxford and Paris; the pickle is read without unpickling",
        (("ground_truth", "PICKLE", "gnd_roxford5k.pkl, gnd_rparis6k.pkl"), _PICTURES),
        "revisited gnd_roxford5k.pkl roxford5k/jpg data/roxford5k-query --split query",
        splits=("query", "gallery"),
    ),
}


def run(name: str, arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Import the data set `name`; what is unreadable is printed one a line (with `--json` as one document)."""
    from data_pipeline.importing.entries import UnreadableMedia, import_entries

    source = SOURCES[name]
    values: dict[str, Any] = dict(source.given)
    values |= {path: getattr(arguments, path) for path, _, _ in (*source.paths, *source.optional)}
    values |= {"split": arguments.split} if source.splits else {}
    values |= {"labels": arguments.labels} if source.labels else {}
    entries, origin = import_module(f"data_pipeline.sources.{source.module}").read(**values)
    try:
        manifest = import_entries(
            arguments.out,
            entries,
            source=origin,
            workers=arguments.workers,
            resume=arguments.resume,
            unreadable=arguments.unreadable,
        )
    except UnreadableMedia as error:
        found = [{"key": one.key, "file": one.file, "reason": one.reason} for one in error.found]
        lines = "\n".join(f"{one['key']}: {one['file']}: {one['reason']}" for one in found)
        print(
            json.dumps({"out": str(arguments.out), "unreadable": found})
            if arguments.json
            else lines
        )
        raise
    bad = {name: len(manifest.source[name]) for name in ("left_out", "kept_unreadable")}
    result = {"out": str(arguments.out), "name": manifest.name, "samples": manifest.samples} | bad
    line = f"{arguments.out}: {manifest.samples:,} samples in {len(manifest.shards):,} shards"
    line += f"; {bad['left_out']:,} left out (dataset.json lists them)" if bad["left_out"] else ""
    line += (
        f"; {bad['kept_unreadable']:,} unreadable (dataset.json lists them)"
        if bad["kept_unreadable"]
        else ""
    )
    return result | {"shards": len(manifest.shards), "sha256": manifest.digest}, line


def add_arguments(parser: argparse.ArgumentParser, source: Source) -> None:
    """Add what a data set takes, up to the folder that is written."""
    for path, metavar, about in source.paths:
        parser.add_argument(path, metavar=metavar, type=Path, help=about)
    parser.add_argument("out", metavar="OUT", type=Path, help="new or empty folder for the shards")
    for path, metavar, about in source.optional:
        parser.add_argument(f"--{path.replace('_', '-')}", metavar=metavar, type=Path, help=about)
    if source.splits:
        parser.add_argument("--split", choices=source.splits, required=True, help="which samples")
    if source.labels:
        about = "only pictures with one of these labels at least, which keep all of theirs (default: all)"
        parser.add_argument("--labels", choices=source.labels, help=about)
    parser.add_argument(
        "--resume", action="store_true", help="keep the shards that an interrupted call finished"
    )
    parser.add_argument(
        "--unreadable",
        choices=("refuse", "leave-out", "keep"),
        default="refuse",
        help="samples whose picture or clip is missing or unreadable: end with their list (default), leave them out, "
        "or keep them, so that vqa, nlvr2 and video-retrieval count them as wrong; dataset.json lists both",
    )
