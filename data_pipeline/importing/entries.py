"""What an importer found, to shards: in parallel, resumable, and nothing is left out without being said.

In: entries (key, files, annotations) in the order they shall have. Out: a data set whose manifest
says where it came from. Every picture is decoded and every clip opened before it is written. One
that is missing or unreadable stops the import, with the list of all of them; or, as one chooses,
its sample is left out, or kept as it is for an evaluation to count it as wrong, and the manifest
lists it.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from data_pipeline.decode import decode, open_image
from data_pipeline.errors import DataError
from data_pipeline.files import write_whole
from data_pipeline.sample import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS, BadSample
from data_pipeline.shards.manifest import Manifest, Shard, map_shards, write_index
from data_pipeline.shards.write import Record, publish, unfinished_folder, write_tar

Policy = Literal["refuse", "leave-out", "keep"]

_PLAN = "import.json"
_NO_KEY = re.compile(
    r"[^\w-]", re.ASCII
)  # a key ends at its first dot, and a slash would be a folder


@dataclass(frozen=True)
class Entry:
    """A sample to be: its key, the files of its pictures (two of a pair) or its clip, and its JSON member."""

    key: str
    media: tuple[Path, ...]
    annotations: dict[str, Any]


@dataclass(frozen=True)
class Unreadable:
    """A sample without one of its files: the key, the file, what is wrong, and the questions that go with it."""

    key: str
    file: str
    reason: str
    questions: int


class UnreadableMedia(DataError):
    """Pictures or clips are missing or unreadable; `found` lists all of them."""

    def __init__(self, message: str, found: Sequence[Unreadable]) -> None:
        super().__init__(message)
        self.found = tuple(found)


def import_entries(
    root: Path | str,
    entries: Sequence[Entry],
    *,
    source: dict[str, Any],
    workers: int = 1,
    resume: bool = False,
    unreadable: Policy = "refuse",
    samples_per_shard: int = 1000,
) -> Manifest:
    """Write entries as the data set `root`, which appears whole or not at all.

    Parameters
    ----------
    root, entries, source
        Folder to write; samples; what the manifest says about their origin.
    workers
        Processes; they change no byte.
    resume
        Keep the shards that an interrupted call with the same entries finished.
    unreadable
        What becomes of samples whose picture or clip is missing or unreadable: `refuse` stops,
        `leave-out` goes on without them ("left_out" in the manifest's source lists them), `keep`
        writes them with the bytes that are there, or none ("kept_unreadable"): evaluations count
        them as wrong, training takes other samples instead.

    Raises
    ------
    UsageError, DataError
        Where `root` holds files; for two samples of one key, and when nothing can be written.
    UnreadableMedia
        For missing files, before anything is written, and for unreadable ones, after all were
        tried.
    """
    root = Path(root)
    for key, count in Counter(entry.key for entry in entries).items():
        if count > 1:
            raise DataError(
                f"{count} samples are called {key}: the files describe it more than once"
            )
    missing = [
        _unreadable(entry, file, "missing")
        for entry in entries
        for file in entry.media
        if not file.is_file()
    ]
    if missing and unreadable == "refuse":
        raise _refusal(missing, len(entries))
    unfinished = unfinished_folder(root, resume=resume)
    plan = _digest(entries, source, samples_per_shard).encode()
    if resume and any(unfinished.iterdir()) and _read(unfinished / _PLAN) != plan:
        shutil.rmtree(unfinished)  # made of other files
        unfinished.mkdir()
    write_whole(unfinished / _PLAN, plan)
    chunks = [
        (f"shard-{number:06d}.tar", entries[start : start + samples_per_shard])
        for number, start in enumerate(range(0, len(entries), samples_per_shard))
    ]
    done = map_shards(partial(_write_shard, unfinished, unreadable == "keep"), chunks, workers)
    bad = [one for part in done for one in part[1]]
    if bad and unreadable == "refuse":
        raise _refusal(bad, len(entries))
    for name in (_PLAN, *(_receipt(name) for name, _ in chunks)):
        (unfinished / name).unlink()
    indexed = [part[0] for part in done if part[0] is not None]
    listed: dict[str, Any] = {"left_out": [], "kept_unreadable": []}
    listed["kept_unreadable" if unreadable == "keep" else "left_out"] = [asdict(one) for one in bad]
    return publish(root, unfinished, indexed, source | listed)


def key_of(name: object) -> str:
    """Key of a sample that its data set calls `name`: letters, digits, `_` and `-` stay, the rest becomes `_`."""
    return _NO_KEY.sub("_", str(name))


def file_in(folder: Path, *names: str) -> Path:
    """Find one of several names that a file may have below a folder; the first of them where none is there.

    Raises DataError for a name that leads out of the folder.
    """
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise DataError(
                f"{name!r} is no name of a file in {folder}: it leads out of the folder"
            )
    paths = [folder / name for name in names]
    return next((path for path in paths if path.is_file()), paths[0])


def _write_shard(
    unfinished: Path, keep: bool, chunk: tuple[str, Sequence[Entry]]
) -> tuple[tuple[Shard, Counter[str]] | None, list[Unreadable]]:
    """Write one shard with its index (none where no sample can be read), and a receipt that it is done."""
    name, entries = chunk
    finished = _finished(unfinished, name)
    if finished is not None:
        return finished, []
    for file in unfinished.glob(f"{name}*"):
        file.unlink()  # what an earlier call began
    bad: list[Unreadable] = []
    write_tar(unfinished / name, _records(entries, keep, bad))
    if len(bad) == len(entries) and not keep:
        (unfinished / name).unlink()
        indexed = None
    else:
        indexed = write_index(unfinished, name)
    # Only a complete shard is not tried again: a file may be there the next time.
    receipt = {"shard": asdict(indexed[0]), "fields": indexed[1]} if indexed and not bad else {}
    write_whole(unfinished / _receipt(name), json.dumps(receipt).encode())
    return indexed, bad


def _finished(unfinished: Path, name: str) -> tuple[Shard, Counter[str]] | None:
    receipt = json.loads(_read(unfinished / _receipt(name)) or b"{}")
    tar = unfinished / name
    if not receipt or not tar.is_file() or tar.stat().st_size != receipt["shard"]["bytes"]:
        return None
    return Shard(**receipt["shard"]), Counter(receipt["fields"])


def _records(entries: Sequence[Entry], keep: bool, bad: list[Unreadable]) -> Iterator[Record]:
    """Read the entries' files and list what is wrong with them, one line a sample."""
    for entry in entries:
        members: dict[str, bytes] = {}
        problem = None
        for number, file in enumerate(entry.media):
            try:
                extension, data = _media(file)
            except (OSError, BadSample) as error:
                reason = (
                    str(error) if isinstance(error, BadSample) else error.strerror or str(error)
                )
                problem = problem or _unreadable(
                    entry, file, reason if file.is_file() else "missing"
                )
                extension, data = _as_it_is(file)
            members[extension if len(entry.media) == 1 else f"{number}.{extension}"] = data
        if problem is not None:
            bad.append(problem)
        if problem is None or keep:
            yield (
                entry.key,
                members | {"json": json.dumps(entry.annotations, separators=(",", ":")).encode()},
            )


def _as_it_is(file: Path) -> tuple[str, bytes]:
    """Return the member for a file that is missing or unreadable: its bytes, or none."""
    extension = file.suffix.lower().removeprefix(".")
    known = extension in (*IMAGE_EXTENSIONS, *VIDEO_EXTENSIONS)
    try:
        return (extension, file.read_bytes()) if known else ("mp4", b"")
    except OSError:
        return extension, b""


def _media(file: Path) -> tuple[str, bytes]:
    """Read a picture or clip and check that it is one; returns the extension of its member and the bytes."""
    extension, data = file.suffix.lower().removeprefix("."), file.read_bytes()
    if extension in IMAGE_EXTENSIONS:
        decode(open_image(data))
        return extension, data
    if extension not in (*VIDEO_EXTENSIONS, "avi"):
        raise BadSample(
            "undecodable",
            f"{extension or 'a file without extension'} is no format of pictures or clips",
        )
    from data_pipeline.decode_video import open_clip  # loads FFmpeg, which pictures do without

    if extension == "avi":
        from data_pipeline.importing.reencode import to_mp4

        extension, data = "mp4", to_mp4(data)
    with open_clip(data):
        return extension, data


def _unreadable(entry: Entry, file: Path, reason: str) -> Unreadable:
    return Unreadable(entry.key, str(file), reason, len(entry.annotations.get("questions", ())))


def _refusal(found: Sequence[Unreadable], samples: int) -> UnreadableMedia:
    first = found[0]
    return UnreadableMedia(
        f"{len({one.key for one in found}):,} of {samples:,} samples have a picture or clip that is "
        f"missing or unreadable; the first: {first.file} ({first.reason}). Put the files there (--resume keeps what is "
        "done), or choose with --unreadable what becomes of these samples",
        found,
    )


def _digest(entries: Sequence[Entry], source: dict[str, Any], samples_per_shard: int) -> str:
    digest = hashlib.sha256(json.dumps([source, samples_per_shard], sort_keys=True).encode())
    for entry in entries:
        digest.update(
            json.dumps([entry.key, [str(file) for file in entry.media], entry.annotations]).encode()
        )
    return digest.hexdigest()


def _receipt(name: str) -> str:
    return f"{name}.receipt.json"


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
