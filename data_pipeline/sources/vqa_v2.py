"""VQA v2: the questions file, the annotations file (none for test), and COCO's images.

In: these files. Out: one entry per image, with all of its questions. Questions and annotations are
joined by `question_id`, never by place.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError, UsageError
from data_pipeline.importing.entries import Entry, file_in
from data_pipeline.importing.official import check_folder, read_json, reading, source_of

_WHAT = "a questions file of VQA v2"


def read(
    questions: Path, annotations: Path | None, images: Path
) -> tuple[list[Entry], dict[str, Any]]:
    """List the images of a questions file; its `data_subtype` is the split (`train2014`).

    Images are searched below `images` and below `images`/train2014 as
    COCO_train2014_000000000009.jpg, and under the bare number as in COCO's releases from 2017.
    Raises `DataError` for files that are missing or not VQA files, for a question that comes twice,
    and if questions and annotations do not belong together.
    """
    check_folder(images, "images")
    document = read_json(questions)
    with reading(questions, _WHAT):
        if document["data_type"] != "mscoco":
            raise ValueError(
                f"its images are {document['data_type']!r}, not those of COCO (mscoco)"
            )
        subtype = document["data_subtype"]
        question_by_id = _by_id(document["questions"], "questions")
    if annotations is None and not subtype.startswith("test"):
        raise UsageError(
            f"the questions of {subtype} have answers: give their file with --annotations"
        )
    files = [questions]
    annotation_by_id: dict[str, Any] = {}
    if annotations is not None:
        annotation_by_id = _annotations(annotations, subtype)
        _check_ids(questions, question_by_id, annotations, annotation_by_id)
        files.append(annotations)
    questions_by_image: dict[int, list[dict[str, Any]]] = {}
    with reading(questions, _WHAT):
        for number, question in question_by_id.items():
            annotation = annotation_by_id.get(number, {})
            image = int(question["image_id"])
            if annotation and int(annotation["image_id"]) != image:
                raise ValueError(
                    f"question {number} is about another image than its annotation in {annotations}"
                )
            answers = [answer["answer"] for answer in annotation.get("answers", ())]
            record = {
                "id": int(number),
                "question": question["question"],
                "answers": answers,
                "type": annotation.get("question_type", ""),
                "answer_type": annotation.get("answer_type", ""),
            }
            questions_by_image.setdefault(image, []).append(record)
        folder = subtype.replace("test-dev", "test")  # test-dev2015 uses the images of test2015
        entries = []
        for image, records in questions_by_image.items():
            entries.append(_entry(image, records, images, folder))
    return entries, source_of(f"vqa-v2-{subtype}", "vqa_v2", subtype, "coco", files)


def _by_id(items: list[dict[str, Any]], what: str) -> dict[str, Any]:
    # Ids may be numbers or text.
    by_id = {str(int(item["question_id"])): item for item in items}
    if len(by_id) < len(items):
        raise ValueError(f"{len(items) - len(by_id)} {what} come twice")
    return by_id


def _annotations(annotations: Path, subtype: str) -> dict[str, Any]:
    document = read_json(annotations)
    with reading(annotations, "an annotations file of VQA v2"):
        if document["data_subtype"] != subtype:
            raise ValueError(
                f"it is of {document['data_subtype']!r}, but the questions are of {subtype!r}"
            )
        return _by_id(document["annotations"], "annotations")


def _check_ids(
    questions: Path,
    question_by_id: dict[str, Any],
    annotations: Path,
    annotation_by_id: dict[str, Any],
) -> None:
    """Raise DataError unless every question has an annotation and the other way round."""
    without_annotation = sorted(question_by_id.keys() - annotation_by_id.keys())
    without_question = sorted(annotation_by_id.keys() - question_by_id.keys())
    if without_annotation or without_question:
        raise DataError(
            f"{annotations} does not belong to {questions}: {len(without_annotation):,} questions "
            f"have no annotation ({', '.join(without_annotation[:3])}), {len(without_question):,} "
            f"annotations have no question ({', '.join(without_question[:3])})"
        )


def _entry(image: int, questions: list[dict[str, Any]], images: Path, folder: str) -> Entry:
    name = f"COCO_{folder}_{image:012d}.jpg"
    file = file_in(images, name, f"{folder}/{name}", f"{image:012d}.jpg")
    return Entry(f"{image:012d}", (file,), {"image_id": str(image), "questions": questions})
