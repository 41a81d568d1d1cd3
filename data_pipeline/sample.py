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
EXTENSIONS: dict[Kind, tuple[str, ...]] = {"image": IMAGE_EXTENSIONS, "video": VIDEO_EXTENSIONS}
# Real annotation files are a few kilobytes; what is far larger is a mistake or an attack.
MAX_TEXT_BYTES = 16 * 2**20
_ARTICLES: dict[Kind, str] = {"image": "an image", "video": "a video"}


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
    """An encoded image or clip with its captions.

    `media` holds the file's bytes, `extension` says its format, `captions` at least one non-empty text, `image_id` what
    it shows (samples of the same image or clip may share it), `annotations` the JSON member ({} without).
    """

    key: str
    media: bytes
    extension: str
    captions: tuple[str, ...]
    image_id: str
    annotations: dict[str, Any]


def parse_sample(key: str, members: Mapping[str, bytes], kind: Kind = "image") -> Sample:
    """Read the members of `key` (extension -> bytes); raises `BadSample`, whose message names the key.

    `kind` says which of an image and a video is wanted: a sample may hold both.
    """
    extension = _extension(key, members, kind)
    annotations = _annotations(key, members)
    return Sample(
        key=key,
        media=members[extension],
        extension=extension,
        captions=_captions(key, members, annotations),
        image_id=_image_id(key, annotations),
        annotations=annotations,
    )


def parse_captions(key: str, members: Mapping[str, bytes]) -> tuple[str, ...]:
    """Read the captions of `key` alone, of its `json` and `txt` members; raises `BadSample` as `parse_sample` does."""
    return _captions(key, members, _annotations(key, members))


def _extension(key: str, members: Mapping[str, bytes], kind: Kind) -> str:
    for extension in EXTENSIONS[kind]:
        if extension in members:
            if not members[extension]:
                raise BadSample("undecodable", f"sample {key}: its {extension} member is empty")
            return extension
    for other, extensions in EXTENSIONS.items():
        if any(extension in members for extension in extensions):
            raise BadSample("missing-field", f"sample {key} holds {_ARTICLES[other]} where {_ARTICLES[kind]} is needed")
    found = ", ".join(sorted(members)) or "none"
    raise BadSample("missing-field", f"sample {key} has no {kind} ({'|'.join(EXTENSIONS[kind])}); its members: {found}")


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
