"""All sources by name: what `glscl data import NAME` needs to offer and call each of them.

A source is added with two files: its module in this folder, whose `read` takes paths and returns
entries and the manifest's `source`, and its entry in `SOURCES`. This module imports none of the
others, because every command line reads it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Input(NamedTuple):
    """A path that a source takes: the argument of its `read`, and its name and meaning in help."""

    argument: str
    metavar: str
    about: str


@dataclass(frozen=True)
class Source:
    """A data set: which module reads it, what it takes, and an example of a command.

    Parameters
    ----------
    module
        Name of the module in `data_pipeline/sources`.
    about
        One line of help.
    inputs, options
        Paths that must be given, in the order of the command line, and paths that may be given.
    example
        Arguments of an example, which begin with the name of the source.
    splits
        Values of `split`, one of which must be given.
    labels
        Values of `labels`: parts of the lists in `data_pipeline/importing/label_splits`, by which
        images can be selected.
    fixed
        Arguments of `read` that the name of the source already says.
    """

    module: str
    about: str
    inputs: tuple[Input, ...]
    example: str
    splits: tuple[str, ...] = ()
    options: tuple[Input, ...] = ()
    labels: tuple[str, ...] = ()
    fixed: tuple[tuple[str, str], ...] = ()


_IMAGES = Input("images", "IMAGES", "folder of the images")
_SEARCH_SPLITS = ("train", "query", "gallery")
_LABEL_PARTS = ("base", "val", "novel")

SOURCES = {
    "coco": Source(
        "karpathy",
        "COCO captions in Karpathy's splits",
        (Input("annotations", "JSON", "dataset_coco.json"), _IMAGES),
        "coco dataset_coco.json coco/ data/coco-test --split test",
        splits=("train", "restval", "val", "test", "train+restval"),
        fixed=(("dataset", "coco"),),
    ),
    "flickr30k": Source(
        "karpathy",
        "Flickr30k in Karpathy's splits",
        (Input("annotations", "JSON", "dataset_flickr30k.json"), _IMAGES),
        "flickr30k dataset_flickr30k.json flickr30k-images/ data/flickr30k-test --split test",
        splits=("train", "val", "test"),
        fixed=(("dataset", "flickr30k"),),
    ),
    "visual_genome": Source(
        "visual_genome",
        "Visual Genome's region phrases as captions, for training",
        (
            Input("regions", "REGIONS", "region_descriptions.json"),
            Input("image_data", "IMAGE_DATA", "image_data.json"),
            _IMAGES,
        ),
        "visual_genome region_descriptions.json image_data.json vg/ data/vg "
        "--without-coco dataset_coco.json --without-flickr30k dataset_flickr30k.json",
        options=(
            Input(
                "without_coco",
                "JSON",
                "dataset_coco.json: leave out the images of its val and test",
            ),
            Input(
                "without_flickr30k",
                "JSON",
                "dataset_flickr30k.json: leave out the images of its val and test",
            ),
        ),
    ),
    "vqa_v2": Source(
        "vqa_v2",
        "VQA v2: questions with ten answers each",
        (Input("questions", "QUESTIONS", "v2_OpenEnded_mscoco_..._questions.json"), _IMAGES),
        "vqa_v2 v2_OpenEnded_mscoco_val2014_questions.json coco/ data/vqa-val "
        "--annotations v2_mscoco_val2014_annotations.json",
        options=(
            Input(
                "annotations",
                "JSON",
                "v2_mscoco_..._annotations.json (the test split has none)",
            ),
        ),
    ),
    "nlvr2": Source(
        "nlvr2",
        "NLVR2: statements about pairs of images",
        (
            Input(
                "statements",
                "STATEMENTS",
                "train.json, dev.json, test1.json, ... (one JSON document per line)",
            ),
            _IMAGES,
        ),
        "nlvr2 dev.json nlvr2/images data/nlvr2-dev",
    ),
    "msrvtt": Source(
        "msrvtt",
        "MSR-VTT in the split 1k-A; 500 training videos are held out as val",
        (
            Input("captions", "CAPTIONS", "MSRVTT_data.json with all 10,000 videos"),
            Input("test_list", "LIST", "MSRVTT_JSFusion_test.csv"),
            Input("videos", "VIDEOS", "folder of video0.mp4, ..."),
        ),
        "msrvtt MSRVTT_data.json MSRVTT_JSFusion_test.csv videos/ data/msrvtt-test --split test",
        splits=("train", "val", "test"),
    ),
    "lsmdc": Source(
        "lsmdc",
        "LSMDC 2016; AVI files are encoded again as H.264",
        (
            Input(
                "table",
                "TABLE",
                "LSMDC16_annos_training.csv, ..._val.csv, LSMDC16_challenge_1000_publictect.csv",
            ),
            Input("videos", "VIDEOS", "folder that holds one folder per film"),
        ),
        "lsmdc LSMDC16_challenge_1000_publictect.csv lsmdc/ data/lsmdc-test --split test",
        splits=("train", "val", "test"),
    ),
    "align_bench": Source(
        "align_bench",
        "ALIGN-BENCH: boxes and masks of the phrases of captions; its pickles are not unpickled",
        (Input("folder", "FOLDER", "folder that holds images and pkls"),),
        "align_bench ALIGN-BENCH data/align-bench",
    ),
    "sugarcrepe": Source(
        "sugarcrepe",
        "SugarCrepe: true captions and hard false ones",
        (
            Input("folder", "FOLDER", "folder of the seven JSON files"),
            Input("images", "IMAGES", "COCO's val2017"),
        ),
        "sugarcrepe sugar-crepe/data coco/val2017 data/sugarcrepe",
    ),
    "winoground": Source(
        "winoground",
        "Winoground: two images, and two captions that use the same words",
        (Input("examples", "EXAMPLES", "examples.jsonl"), _IMAGES),
        "winoground examples.jsonl images/ data/winoground",
    ),
    "folder": Source(
        "labelled_folder",
        "your own images, or any data set with one folder per class",
        (Input("root", "ROOT", "folder that holds one folder of images per class"),),
        "folder birds/ data/birds",
        options=(
            Input("classes", "FILE", "take only these classes (the name of one folder per line)"),
        ),
    ),
    "class_csv": Source(
        "class_csv",
        "miniImageNet, tieredImageNet and others with a split as filename,label",
        (
            Input("table", "TABLE", "train.csv, val.csv, test.csv, or easyfsl's train.json, ..."),
            _IMAGES,
        ),
        "class_csv mini_imagenet/test.csv mini_imagenet/images data/mini-test --names names.txt",
        options=(
            Input(
                "names",
                "FILE",
                "names of the classes: lines with a class and its name, or a JSON object",
            ),
        ),
    ),
    "cub": Source(
        "cub",
        "CUB-200-2011: train and test of metric learning; base, val and novel of few-shot learning",
        (Input("root", "ROOT", "folder CUB_200_2011"),),
        "cub CUB_200_2011 data/cub-novel --split novel",
        splits=("train", "test", "base", "val", "novel", "all"),
        options=(
            Input(
                "classes",
                "FILE",
                "take only these classes of the split (one per line, or easyfsl's JSON)",
            ),
        ),
    ),
    "cifar_fs": Source(
        "cifar_fs",
        "CIFAR-FS in Bertinetto's splits",
        (Input("root", "ROOT", "folder that holds data and splits"),),
        "cifar_fs cifar100 data/cifar-fs-test --split test",
        splits=("train", "val", "test"),
    ),
    "coco_labels": Source(
        "coco_labels",
        "COCO's categories as labels",
        (
            Input("instances", "JSON", "instances_train2014.json, instances_val2017.json, ..."),
            _IMAGES,
        ),
        "coco_labels instances_val2014.json coco/ data/coco-novel --labels test",
        labels=("train", "val", "test"),
    ),
    "voc": Source(
        "voc",
        "PASCAL VOC: the objects of an image as labels",
        (Input("root", "ROOT", "folder VOCdevkit/VOC2007 or VOC2012"),),
        "voc VOCdevkit/VOC2012 data/voc-novel --split val --labels novel",
        splits=("train", "val", "trainval", "test"),
        labels=_LABEL_PARTS,
    ),
    "nus_wide": Source(
        "nus_wide",
        "NUS-WIDE: images from Flickr with 81 concepts",
        (
            Input("root", "ROOT", "folder that holds ImageList, Groundtruth and ConceptsList"),
            _IMAGES,
        ),
        "nus_wide NUS-WIDE NUS-WIDE/Flickr data/nus-test --split test --unreadable leave-out",
        splits=("train", "test"),
        labels=_LABEL_PARTS,
    ),
    "imaterialist": Source(
        "imaterialist",
        "iMaterialist (Fashion) 2018: images with attributes of clothes",
        (Input("annotations", "JSON", "train.json or validation.json"), _IMAGES),
        "imaterialist validation.json images/ data/imaterialist-val "
        "--names iMat_fashion_2018_label_map_228.csv",
        options=(Input("names", "FILE", "the table of labelId and labelName, or a JSON object"),),
        labels=_LABEL_PARTS,
    ),
    "cars196": Source(
        "cars196",
        "Stanford Cars: the first 98 classes as train, the last 98 as test",
        (
            Input("annotations", "MAT", "cars_annos.mat"),
            Input("images", "IMAGES", "folder that holds car_ims"),
        ),
        "cars196 cars_annos.mat cars/ data/cars196-test --split test",
        splits=("train", "test"),
    ),
    "sop": Source(
        "sop",
        "Stanford Online Products",
        (Input("folder", "FOLDER", "Stanford_Online_Products"),),
        "sop Stanford_Online_Products data/sop-test --split test",
        splits=("train", "test"),
    ),
    "in_shop": Source(
        "in_shop",
        "DeepFashion's In-Shop Clothes Retrieval",
        (
            Input("partition", "LIST", "list_eval_partition.txt"),
            Input("images", "IMAGES", "folder that holds img"),
        ),
        "in_shop list_eval_partition.txt Img/ data/in-shop-query --split query",
        splits=_SEARCH_SPLITS,
    ),
    "market1501": Source(
        "market1501",
        "Market-1501: persons seen by six cameras",
        (Input("folder", "FOLDER", "Market-1501-v15.09.15"),),
        "market1501 Market-1501-v15.09.15 data/market-query --split query",
        splits=_SEARCH_SPLITS,
    ),
    "veri776": Source(
        "veri776",
        "VeRi-776: vehicles seen by twenty cameras",
        (Input("folder", "FOLDER", "VeRi"),),
        "veri776 VeRi data/veri-query --split query",
        splits=_SEARCH_SPLITS,
    ),
    "sysu_mm01": Source(
        "sysu_mm01",
        "SYSU-MM01: infrared queries, visible gallery",
        (Input("folder", "FOLDER", "SYSU-MM01, which holds exp and cam1 to cam6"),),
        "sysu_mm01 SYSU-MM01 data/sysu-query --split query",
        splits=_SEARCH_SPLITS,
    ),
    "revisited": Source(
        "revisited",
        "Revisited Oxford and Paris; the pickle is not unpickled",
        (Input("ground_truth", "PICKLE", "gnd_roxford5k.pkl, gnd_rparis6k.pkl"), _IMAGES),
        "revisited gnd_roxford5k.pkl roxford5k/jpg data/roxford5k-query --split query",
        splits=("query", "gallery"),
    ),
}
