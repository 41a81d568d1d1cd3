"""One sample: what the tar members of one key mean.

In: the member bytes of one key, by extension. Out: a `Sample`, or a `BadSample` that says what is
wrong with it. Unknown members are ignored, so shards of img2dataset and other writers are read as
they are. A pair is a sample of two images, `{key}.0.jpg` and `{key}.1.jpg`.
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
# A pair is recognized by the extension of its first image.
EXTENSIONS: dict[Kind, tuple[str, ...]] = {
    "image": IMAGE_EXTENSIONS,
    "video": VIDEO_EXTENSIONS,
    "pair": tuple(f"0.{extension}" for extension in IMAGE_EXTENSIONS),
}
SECOND_EXTENSIONS = tuple(f"1.{extension}" for extension in IMAGE_EXTENSIONS)
# Real annotation files have a few kilobytes. One that is far larger is a mistake or an attack.
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
    """A question about an image, or a statement about a pair that is answered "True" or "False".

    `answers` holds one answer per annotator, or none if the data set keeps them secret. `type` and
    `answer_type` are empty if the data set has none. Statements with the same sentence share a
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
    """An encoded image, video or pair of images with its texts.

    `media` holds the bytes of the file and `extension` its format. `image_id` says what is shown:
    samples of the same image or video may share it. `annotations` is the JSON member ({} without
    one), and `second` is the second image of a pair. `captions` are non-empty texts. Which texts
    must be there depends on the `texts` of `parse_sample`: at least one caption, at least one
    question, or none. `questions` is empty unless questions were requested.
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
    """Read the members of `key`, bytes by extension.

    A sample may hold several kinds of media and texts: `kind` says which media to return, and
    `texts` which text must be there. Raises `BadSample`, whose message names the key.
    """
    extension = _extension(key, members, kind)
    second = None
    if kind == "pair":
        second = _member(key, members, SECOND_EXTENSIONS)
        if second is None:
            names = "|".join(SECOND_EXTENSIONS)
            raise BadSample("missing-field", f"sample {key} has no second image ({names})")
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
    """Read only the captions of `key`, from its `json` and `txt` members.

    Raises `BadSample` as `parse_sample` does.
    """
    return _captions(key, members, parse_annotations(key, members))


def parse_questions(key: str, annotations: Mapping[str, Any]) -> tuple[Question, ...]:
    """Read the questions of `key` from its JSON member.

    Raises `BadSample` if there is none or one is malformed.
    """
    entries = annotations.get("questions")
    if entries is None or entries == []:
        raise BadSample("missing-field", f'sample {key} has no "questions" in its json')
    if not isinstance(entries, list):
        raise BadSample("bad-json", f'sample {key}: "questions" must be a list of objects')
    questions = []
    for number, entry in enumerate(entries):
        questions.append(_question(f"sample {key}: question {number}", entry))
    return tuple(questions)


def _question(where: str, entry: Any) -> Question:
    if not isinstance(entry, dict):
        raise BadSample("bad-json", f"{where} is not an object")
    question_id, answers = entry.get("id"), entry.get("answers", [])
    # A bool is an int in Python, but not an id.
    if isinstance(question_id, bool) or not isinstance(question_id, str | int):
        raise BadSample(
            "bad-json", f'{where}: its "id" must be a text or a whole number, not {question_id!r}'
        )
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise BadSample(
            "bad-json", f'{where}: "answers" must be a list of texts, one per annotator'
        )
    texts = {name: entry.get(name, "") for name in ("question", "type", "answer_type", "group")}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise BadSample("bad-json", f'{where}: its "{name}" must be a text, not {text!r}')
    if any(_is_broken(text) for text in (*texts.values(), *answers, str(question_id))):
        raise BadSample("bad-json", f"{where} holds half of a surrogate pair, not a character")
    if not texts["question"].strip():
        raise BadSample("empty-text", f'{where} has no text ("question")')
    return Question(question_id, texts.pop("question").strip(), tuple(answers), **texts)


def _extension(key: str, members: Mapping[str, bytes], kind: Kind) -> str:
    extension = _member(key, members, EXTENSIONS[kind])
    if extension is not None:
        return extension
    # Say what is there instead, because a wrong --frames or pairs is the usual reason.
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
    """Return the first of the extensions that the sample has, or None."""
    for extension in extensions:
        if extension in members:
            # An import may have kept a missing file as an empty member.
            if not members[extension]:
                raise BadSample("undecodable", f"sample {key}: its {extension} member is empty")
            return extension
    return None


def parse_annotations(key: str, members: Mapping[str, bytes]) -> dict[str, Any]:
    """Read the JSON member of `key`; {} if it has none. Raises `BadSample` as `parse_sample`."""
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


def annotations_member(annotations: Mapping[str, Any]) -> bytes:
    """Return the JSON member that holds annotations; `parse_annotations` reads it."""
    # Without spaces, and never otherwise: equal annotations must give equal shards.
    return json.dumps(annotations, separators=(",", ":")).encode()


def _captions(
    key: str, members: Mapping[str, bytes], annotations: Mapping[str, Any], *, needed: bool = True
) -> tuple[str, ...]:
    texts = annotations.get("captions")
    if texts is None and annotations.get("caption") is not None:
        texts = [annotations["caption"]]  # img2dataset writes the singular, or null for no caption
    if texts is None and "txt" in members:
        texts = [_text(key, members["txt"])]
    if texts is None:
        if not needed:
            return ()
        raise BadSample("missing-field", f"sample {key} has no caption in its json and no txt")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise BadSample("bad-json", f'sample {key}: "captions" must be a list of texts')
    captions = tuple(text.strip() for text in texts if text.strip())
    if any(_is_broken(caption) for caption in captions):
        raise BadSample(
            "bad-json", f"sample {key}: a caption holds half of a surrogate pair, not a character"
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
    """Tell whether JSON escapes made a text that is not UTF-8, which tokenizers refuse."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _image_id(key: str, annotations: Mapping[str, Any]) -> str:
    # Without an image_id, every sample shows an image of its own.
    image_id = annotations.get("image_id")
    return key if image_id is None else str(image_id)
