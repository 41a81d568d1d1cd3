"""One sample: what the tar members of one key mean.

In: the member bytes of one key, by extension. Out: a `Sample`, or a `BadSample` that says what is wrong with it.
Unknown members are ignored, so shards of img2dataset and other writers are read as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from data_pipeline.errors import DataError

Kind = Literal["image", "video"]
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
VIDEO_EXTENSIONS = ("mp4", "webm")
# Real annotation files are a few kilobytes; what is far larger is a mistake or an attack.
MAX_TEXT_BYTES = 16 * 2**20


class BadSample(DataError):
    """A sample that cannot be used.

    `reason` is one of `missing-field`, `empty-text`, `undecodable`, `too-large`, `checksum` and `bad-json`.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[BadSample], tuple[str, str]]:
        # Exceptions travel from workers by their args, which hold only the message.
        return BadSample, (self.reason, str(self))


@dataclass(frozen=True)
class Sample:
    """An encoded image with its captions.

    `image` holds the file's bytes, `captions` at least one non-empty text, `annotations` the JSON member ({} without).
    """

    key: str
    image: bytes
    image_extension: str
    captions: tuple[str, ...]
    image_id: str
    annotations: dict[str, Any]


def parse_sample(key: str, members: Mapping[str, bytes]) -> Sample:
    """Read the members of `key` (extension -> bytes); raises `BadSample`, whose message names the key."""
    extension = _image_extension(key, members)
    annotations = _annotations(key, members)
    return Sample(
        key=key,
        image=members[extension],
        image_extension=extension,
        captions=_captions(key, members, annotations),
        image_id=_image_id(key, annotations),
        annotations=annotations,
    )


def parse_captions(key: str, members: Mapping[str, bytes]) -> tuple[str, ...]:
    """Read the captions of `key` alone, of its `json` and `txt` members; raises `BadSample` as `parse_sample` does."""
    return _captions(key, members, _annotations(key, members))


def _image_extension(key: str, members: Mapping[str, bytes]) -> str:
    for extension in IMAGE_EXTENSIONS:
        if extension in members:
            if not members[extension]:
                raise BadSample("undecodable", f"sample {key}: its {extension} member is empty")
            return extension
    if any(extension in members for extension in VIDEO_EXTENSIONS):
        raise BadSample("missing-field", f"sample {key} holds a video where an image is needed")
    found = ", ".join(sorted(members)) or "none"
    raise BadSample("missing-field", f"sample {key} has no image ({'|'.join(IMAGE_EXTENSIONS)}); its members: {found}")


def _annotations(key: str, members: Mapping[str, bytes]) -> dict[str, Any]:
    if "json" not in members:
        return {}
    if len(members["json"]) > MAX_TEXT_BYTES:
        raise BadSample("too-large", f"sample {key}: its json member has {len(members['json']):,} bytes")
    try:
        annotations = json.loads(members["json"])
    except RecursionError:
        raise BadSample("bad-json", f"sample {key}: its json member is nested too deeply") from None
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise BadSample("bad-json", f"sample {key}: its json member cannot be read: {error}") from None
    if not isinstance(annotations, dict):
        raise BadSample("bad-json", f"sample {key}: its json member is not an object")
    return annotations


def _captions(key: str, members: Mapping[str, bytes], annotations: Mapping[str, Any]) -> tuple[str, ...]:
    texts = annotations.get("captions")
    if texts is None:
        texts = annotations.get("caption")  # img2dataset writes the singular, null where there was none
        texts = None if texts is None else [texts]
    if texts is None and "txt" in members:
        texts = [_text(key, members["txt"])]
    if texts is None:
        raise BadSample("missing-field", f"sample {key} has no caption (neither in its json nor as txt)")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise BadSample("bad-json", f'sample {key}: "captions" must be a list of texts')
    captions = tuple(text.strip() for text in texts if text.strip())
    if any(_is_broken(caption) for caption in captions):
        raise BadSample("bad-json", f"sample {key}: a caption holds half of a surrogate pair, which is no character")
    if not captions:
        raise BadSample("empty-text", f"sample {key}: its caption is empty")
    return captions


def _text(key: str, payload: bytes) -> str:
    if len(payload) > MAX_TEXT_BYTES:
        raise BadSample("too-large", f"sample {key}: its txt member has {len(payload):,} bytes")
    try:
        return payload.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadSample("undecodable", f"sample {key}: its txt member is not UTF-8: {error}") from None


def _is_broken(text: str) -> bool:
    """Whether JSON escapes made a text that cannot be written as UTF-8 (tokenizers refuse it)."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _image_id(key: str, annotations: Mapping[str, Any]) -> str:
    image_id = annotations.get("image_id")
    return key if image_id is None else str(image_id)
