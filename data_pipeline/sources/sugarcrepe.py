"""SugarCrepe: seven files (`add_att.json`, ..., `swap_obj.json`), and COCO's images of val2017.

In: the folder of the files and that of the images. Out: one entry per image and true caption, with
the false captions (`foils`) that the files set against it. A foil has its kind (the file's name)
and its number in that file. Nothing is left out: a caption may be in several files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.importing.entries import Entry, file_in, key_of
from data_pipeline.importing.official import check_folder, read_json, reading, source_of

KINDS = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")


def read(folder: Path, images: Path) -> tuple[list[Entry], dict[str, Any]]:
    """List the images with captions and foils; files with other names are ignored.

    Raises `DataError` for files that are missing or not SugarCrepe's.
    """
    check_folder(folder, "seven JSON files of SugarCrepe")
    check_folder(images, "images")
    files = [folder / f"{kind}.json" for kind in KINDS]
    if absent := [file.name for file in files if not file.is_file()]:
        raise DataError(f"{folder} lacks {', '.join(absent)} of SugarCrepe's seven files")
    foils: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for kind, file in zip(KINDS, files, strict=True):
        document = read_json(file)
        with reading(file, "a file of SugarCrepe"):
            for number, item in document.items():
                foil = {"caption": item["negative_caption"], "kind": kind, "id": f"{kind}-{number}"}
                if not item["caption"].strip() or not foil["caption"].strip():
                    raise ValueError(f"a caption of item {number} is empty")
                foils.setdefault((item["filename"], item["caption"]), []).append(foil)
    samples_of_image: dict[str, int] = {}
    entries = []
    for (filename, caption), caption_foils in foils.items():
        stem = Path(filename).stem
        number = samples_of_image.get(stem, 0)
        samples_of_image[stem] = number + 1
        # Without leading zeros, as the other data sets call COCO's images.
        image_id = str(int(stem)) if stem.isdecimal() else stem
        media = file_in(images, filename, f"val2017/{filename}")
        annotations = {"captions": [caption], "image_id": image_id, "foils": caption_foils}
        entries.append(Entry(key_of(f"{stem}-{number}"), (media,), annotations))
    return entries, source_of("sugarcrepe", "sugarcrepe", "test", "coco", files)
