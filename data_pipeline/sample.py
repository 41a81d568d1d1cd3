"""One sample: what the tar members of one key mean.

In: the member bytes of one key, by extension. Out: a `Sample`, or a `BadSample` that says what is
wrong with it. Unknown members are ignored, so shards of img2dataset and other writers are read as
they are. A pair is a sample of two pictures, `{key}.0.jpg` and `{key}.1.jpg`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from data_pipeline.errors import DataError

Kind = Literal["image", "video", "pair"]
Texts = Literal["captions", "questions", "none"]
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
VIDEO_EXTENSIONS = ("mp4", "webm")
# Of a pair, those of its first picture: they tell that it is one.
EXTENSIONS: dict[Kind, tuple[str, ...]] = {
    "image": IMAGE_EXTENSIONS,
    "video": VIDEO_EXTENSIONS,
    "pair": tuple(f"0.{extension}" for extension in IMAGE_EXTENSIONS),
}
SECOND_EXTENSIONS = tuple(f"1.{extension}" for extension in IMAGE_EXTENSIONS)
# Real annotation files are a few kilobytes; what is far larger is a mistake or an attack.
MAX_TEXT_BYTES = 16 * 2**20
_ARTICLES: dict[Kind, str] = {"image": "an image", "video": "a video", "pair": "a pair of images"}


class BadSample(DataError):
    """A sample that cannot be used.

    `reason` is one of `missing-field`, `empty-text`, `undecodable`, `too-large`, `checksum` and
    `bad-json`.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[BadSample], tuple[str, str]]:
        # Exceptions travel from workers by their args, which hold only the message.
        return BadSample, (self.reason, str(self))


@dataclass(frozen=True)
class Question:
    """A question about a picture, or a statement about a pair, which is answered "True" or "False".

    `answers` holds one answer of each annotator, and none where they are kept secret. `type` and
    `answer_type` are empty where the data set has none. Statements with the same sentence share a
    `group`.
    """

    id: str | int
    question: str
    answers: tuple[str, ...]
    type: str = ""
    answer_type: str = ""
    group: str = ""


@dataclass(frozen=True)
class Sample:
    """An encoded image, clip or pair of images with its texts.

    `media` holds the file's bytes, `extension` says its format, `image_id` what it shows (samples
    of the same image or clip may share it), `annotations` the JSON member ({} without), `second`
    the second image of a pair. `captions` are non-empty texts, at least one unless questions were
    asked for; `questions` are read only then, and at least one.
    """

    key: str
    media: bytes
    extension: str
    captions: tuple[str, ...]
    image_id: str
    annotations: dict[str, Any]
    second: bytes | None = None
    questions: tuple[Question, ...] = ()


def parse_sample(
    key: str, members: Mapping[str, bytes], kind: Kind = "image", texts: Texts = "captions"
) -> Sample:
    """Read the members of `key` (extension -> bytes); raises `BadSample`, whose message names the key.

    `kind` says which of an image, a video and a pair is wanted, `texts` which text must be there: a
    sample may hold several.
    """
    extension = _extension(key, members, kind)
    second = None if kind != "pair" else _member(key, members, SECOND_EXTENSIONS)
    if kind == "pair" and second is None:
        raise BadSample(
            "missing-field", f"sample {key} has no second image ({'|'.join(SECOND_EXTENSIONS)})"
        )
    annotations = parse_annotations(key, members)
    return Sample(
        key=key,
        media=members[extension],
        extension=extension,
        captions=_captions(key, members, annotations, needed=texts == "captions"),
        image_id=_image_id(key, annotations),
        annotations=annotations,
        second=None if second is None else members[second],
        questions=parse_questions(key, annotations) if texts == "questions" else (),
    )


def parse_captions(key: str, members: Mapping[str, bytes]) -> tuple[str, ...]:
    """Read the captions of `key` alone, of its `json` and `txt` members; raises `BadSample` as `parse_sample` does."""
    return _captions(key, members, parse_annotations(key, members))


def parse_questions(key: str, annotations: Mapping[str, Any]) -> tuple[Question, ...]:
    """Read the questions of `key`, of its JSON member; raises `BadSample` where there is none, or one is malformed."""
    entries = annotations.get("questions")
    if entries is None or entries == []:
        raise BadSample("missing-field", f'sample {key} has no "questions" in its json')
    if not isinstance(entries, list):
        raise BadSample("bad-json", f'sample {key}: "questions" must be a list of objects')
    return tuple(
        _question(f"sample {key}: question {number}", entry) for number, entry in enumerate(entries)
    )


def _question(where: str, entry: Any) -> Question:
    if not isinstance(entry, dict):
        raise BadSample("bad-json", f"{where} is not an object")
    question_id, answers = entry.get("id"), entry.get("answers", [])
    if isinstance(question_id, bool) or not isinstance(question_id, str | int):
        raise BadSample(
            "bad-json", f'{where}: its "id" must be a text or a whole number, not {question_id!r}'
        )
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise BadSample(
            "bad-json", f'{where}: "answers" must be a list of texts, one of each annotator'
        )
    texts = {name: entry.get(name, "") for name in ("question", "type", "answer_type", "group")}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise BadSample("bad-json", f'{where}: its "{name}" must be a text, not {text!r}')
    if any(_is_broken(text) for text in (*texts.values(), *answers, str(question_id))):
        raise BadSample(
            "bad-json", f"{where} holds half of a surrogate pair, which is no character"
        )
    if not texts["question"].strip():
        raise BadSample("empty-text", f'{where} has no text ("question")')
    return Question(question_id, texts.pop("question").strip(), tuple(answers), **texts)


def _extension(key: str, members: Mapping[str, bytes], kind: Kind) -> str:
    found = _member(key, members, EXTENSIONS[kind])
    if found is not None:
        return found
    for other, extensions in EXTENSIONS.items():
        if any(extension in members for extension in extensions):
            raise BadSample(
                "missing-field",
                f"sample {key} holds {_ARTICLES[other]} where {_ARTICLES[kind]} is needed",
            )
    names = ", ".join(sorted(members)) or "none"
    raise BadSample(
        "missing-field",
        f"sample {key} has no {kind} ({'|'.join(EXTENSIONS[kind])}); its members: {names}",
    )


def _member(key: str, members: Mapping[str, bytes], extensions: Sequence[str]) -> str | None:
    """Return the first of the extensions that the sample has; None without."""
    for extension in extensions:
        if extension in members:
            if not members[extension]:
                raise BadSample("undecodable", f"sample {key}: its {extension} member is empty")
            return extension
    return None


def parse_annotations(key: str, members: Mapping[str, bytes]) -> dict[str, Any]:
    """Read the JSON member of `key`, {} without; raises `BadSample` as `parse_sample` does."""
    if "json" not in members:
        return {}
    if len(members["json"]) > MAX_TEXT_BYTES:
        raise BadSample(
            "too-large", f"sample {key}: its json member has {len(members['json']):,} bytes"
        )
    try:
        annotations = json.loads(members["json"])
    except RecursionError:
        raise BadSample("bad-json", f"sample {key}: its json member is nested too deeply") from None
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise BadSample(
            "bad-json", f"sample {key}: its json member cannot be read: {error}"
        ) from None
    if not isinstance(annotations, dict):
        raise BadSample("bad-json", f"sample {key}: its json member is not an object")
    return annotations


def _captions(
    key: str, members: Mapping[str, bytes], annotations: Mapping[str, Any], *, needed: bool = True
) -> tuple[str, ...]:
    texts = annotations.get("captions")
    if texts is None:
        texts = annotations.get(
            "caption"
        )  # img2dataset writes the singular, null where there was none
        texts = None if texts is None else [texts]
    if texts is None and "txt" in members:
        texts = [_text(key, members["txt"])]
    if texts is None:
        if not needed:
            return ()
        raise BadSample(
            "missing-field", f"sample {key} has no caption (neither in its json nor as txt)"
        )
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise BadSample("bad-json", f'sample {key}: "captions" must be a list of texts')
    captions = tuple(text.strip() for text in texts if text.strip())
    if any(_is_broken(caption) for caption in captions):
        raise BadSample(
            "bad-json",
            f"sample {key}: a caption holds half of a surrogate pair, which is no character",
        )
    if needed and not captions:
        raise BadSample("empty-text", f"sample {key}: its caption is empty")
    return captions


def _text(key: str, payload: bytes) -> str:
    if len(payload) > MAX_TEXT_BYTES:
        raise BadSample("too-large", f"sample {key}: its txt member has {len(payload):,} bytes")
    try:
        return payload.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadSample(
            "undecodable", f"sample {key}: its txt member is not UTF-8: {error}"
        ) from None


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
