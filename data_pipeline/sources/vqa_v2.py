"""VQA v2: the questions file, the annotations file (none for test), and COCO's pictures.

A sample is a picture with all of its questions. Questions and annotations are joined by
`question_id`, never by place.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError, UsageError
from data_pipeline.importing.entries import Entry, file_in
from data_pipeline.importing.official import check_folder, read_json, reading, source_of


def read(
    questions: Path, annotations: Path | None, pictures: Path
) -> tuple[list[Entry], dict[str, Any]]:
    """List the pictures of a questions file; the split is what the file calls `data_subtype` (`train2014`).

    Pictures are looked for as COCO_train2014_000000000009.jpg below `pictures` and below
    `pictures`/train2014, and under the bare number of COCO's releases from 2017. Raises `DataError`
    for files that are missing or no VQA files, for a question that comes twice, and where questions
    and annotations are not the same.
    """
    check_folder(pictures, "pictures")
    document = read_json(questions)
    with reading(questions, "a questions file of VQA v2"):
        if document["data_type"] != "mscoco":
            raise ValueError(
                f"its pictures are {document['data_type']!r}, not those of COCO (mscoco)"
            )
        subtype = document["data_subtype"]
        asked = {str(int(question["question_id"])): question for question in document["questions"]}
        if len(asked) < len(document["questions"]):
            raise ValueError(f"{len(document['questions']) - len(asked)} questions come twice")
    if annotations is None and not subtype.startswith("test"):
        raise UsageError(
            f"the questions of {subtype} have answers: give their file with --annotations"
        )
    answered = _answered(annotations, subtype) if annotations is not None else None
    if answered is not None and answered.keys() != asked.keys():
        without, unasked = (
            sorted(asked.keys() - answered.keys()),
            sorted(answered.keys() - asked.keys()),
        )
        raise DataError(
            f"{annotations} does not belong to {questions}: {len(without):,} questions have no annotation "
            f"({', '.join(without[:3])}), {len(unasked):,} annotations no question ({', '.join(unasked[:3])})"
        )
    of_picture: dict[int, list[dict[str, Any]]] = {}
    with reading(questions, "a questions file of VQA v2"):
        for number, question in asked.items():
            answer = answered[number] if answered is not None else {}
            if answer and int(answer["image_id"]) != int(question["image_id"]):
                raise ValueError(
                    f"question {number} is about another picture than its annotation in {annotations}"
                )
            of_picture.setdefault(int(question["image_id"]), []).append(
                {
                    "id": int(number),
                    "question": question["question"],
                    "answers": [given["answer"] for given in answer.get("answers", ())],
                    "type": answer.get("question_type", ""),
                    "answer_type": answer.get("answer_type", ""),
                }
            )
        # Of test-dev2015 the pictures are those of test2015.
        folder = subtype.replace("test-dev", "test")
        entries = [
            _entry(image, asked_of_it, pictures, folder)
            for image, asked_of_it in of_picture.items()
        ]
    files = [questions, *([annotations] if annotations is not None else [])]
    return entries, source_of(f"vqa-v2-{subtype}", "vqa_v2", subtype, "coco", files)


def _answered(annotations: Path, subtype: str) -> dict[str, Any]:
    document = read_json(annotations)
    with reading(annotations, "an annotations file of VQA v2"):
        if document["data_subtype"] != subtype:
            raise ValueError(
                f"it is of {document['data_subtype']!r}, the questions are of {subtype!r}"
            )
        found = {str(int(answer["question_id"])): answer for answer in document["annotations"]}
        if len(found) < len(document["annotations"]):
            raise ValueError(f"{len(document['annotations']) - len(found)} annotations come twice")
        return found


def _entry(image: int, questions: list[dict[str, Any]], pictures: Path, folder: str) -> Entry:
    name = f"COCO_{folder}_{image:012d}.jpg"
    file = file_in(pictures, name, f"{folder}/{name}", f"{image:012d}.jpg")
    return Entry(f"{image:012d}", (file,), {"image_id": str(image), "questions": questions})
