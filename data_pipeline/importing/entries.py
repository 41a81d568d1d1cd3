"""Write what an importer listed as shards: in parallel, resumable, and with every omission listed.

In: entries (key, files, annotations) in the order to write them in. Out: a data set whose
manifest says where it came from. Every image is decoded and every video opened before it is
written. If one is missing or unreadable, the import stops with the list of all of them. Instead,
its sample can be left out, or kept as it is so that an evaluation counts it as wrong; the manifest
lists it in both cases.
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
from data_pipeline.processes import map_in_processes
from data_pipeline.sample import (
    IMAGE_EXTENSIONS,
    VIDEO_EXTENSIONS,
    BadSample,
    annotations_member,
)
from data_pipeline.shards.manifest import Manifest, Shard, write_index
from data_pipeline.shards.write import Record, publish, unfinished_folder, write_tar

Policy = Literal["refuse", "leave-out", "keep"]

_PLAN = "import.json"  # the hash of everything that is imported; lies beside unfinished shards
# A key ends at its first dot, and a slash would make a folder.
_NOT_IN_KEYS = re.compile(r"[^\w-]", re.ASCII)


@dataclass(frozen=True)
class Entry:
    """A sample to write: its key, its image, two images or video, and its JSON member."""

    key: str
    media: tuple[Path, ...]
    annotations: dict[str, Any]


@dataclass(frozen=True)
class Unreadable:
    """A sample without one of its files: what is wrong, and how many questions belong to it."""

    key: str
    file: str
    reason: str
    questions: int


class UnreadableMedia(DataError):
    """Images or videos are missing or unreadable; `unreadable` lists all of them."""

    def __init__(self, message: str, unreadable: Sequence[Unreadable]) -> None:
        super().__init__(message)
        self.unreadable = tuple(unreadable)


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
        Number of processes, which changes no byte.
    resume
        Keep the shards that an interrupted call with the same entries finished.
    unreadable
        What happens to samples whose image or video is missing or unreadable. `refuse` stops.
        `leave-out` goes on without them ("left_out" in the manifest's source lists them). `keep`
        writes them with the bytes that are there, or none ("kept_unreadable"): evaluations count
        them as wrong, and training takes other samples instead.

    Raises
    ------
    UsageError
        If `root` holds files.
    DataError
        If two samples have one key, or nothing can be written.
    UnreadableMedia
        For missing files before anything is written, and for unreadable ones after all were tried.
    """
    root = Path(root)
    _check_keys(entries)
    if unreadable == "refuse":
        missing = _missing_files(entries)
        if missing:
            raise _refusal(missing, len(entries))
    unfinished = unfinished_folder(root, resume=resume)
    plan = _digest(entries, source, samples_per_shard).encode()
    if resume and any(unfinished.iterdir()) and _read(unfinished / _PLAN) != plan:
        shutil.rmtree(unfinished)  # its shards were made from other entries
        unfinished.mkdir()
    write_whole(unfinished / _PLAN, plan)
    chunks: list[tuple[str, Sequence[Entry]]] = []
    for start in range(0, len(entries), samples_per_shard):
        chunk = entries[start : start + samples_per_shard]
        chunks.append((f"shard-{len(chunks):06d}.tar", chunk))
    write_shard = partial(_write_shard, unfinished, unreadable == "keep")
    indexed = []
    bad: list[Unreadable] = []
    for shard, bad_in_shard in map_in_processes(write_shard, chunks, workers):
        bad.extend(bad_in_shard)
        if shard is not None:
            indexed.append(shard)
    if bad and unreadable == "refuse":
        raise _refusal(bad, len(entries))
    # What only an interrupted import needs must not become part of the data set.
    (unfinished / _PLAN).unlink()
    for name, _ in chunks:
        (unfinished / _receipt(name)).unlink()
    listed: dict[str, Any] = {"left_out": [], "kept_unreadable": []}
    place = "kept_unreadable" if unreadable == "keep" else "left_out"
    listed[place] = [asdict(sample) for sample in bad]
    return publish(root, unfinished, indexed, source | listed)


def key_of(name: object) -> str:
    """Return the key of a sample that its data set calls `name`.

    Letters, digits, `_` and `-` stay; everything else becomes `_`.
    """
    return _NOT_IN_KEYS.sub("_", str(name))


def file_in(folder: Path, *names: str) -> Path:
    """Find a file that may have one of several names below a folder.

    If there is none, returns the path for the first name. Raises DataError for a name that leads
    out of the folder.
    """
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise DataError(
                f"{name!r} is not the name of a file in {folder}: it leads out of the folder"
            )
    paths = [folder / name for name in names]
    return next((path for path in paths if path.is_file()), paths[0])


def _check_keys(entries: Sequence[Entry]) -> None:
    for key, count in Counter(entry.key for entry in entries).items():
        if count > 1:
            raise DataError(
                f"{count} samples are called {key}: the files describe it more than once"
            )


def _missing_files(entries: Sequence[Entry]) -> list[Unreadable]:
    missing = []
    for entry in entries:
        for file in entry.media:
            if not file.is_file():
                missing.append(_unreadable(entry, file, "missing"))
    return missing


def _write_shard(
    unfinished: Path, keep: bool, chunk: tuple[str, Sequence[Entry]]
) -> tuple[tuple[Shard, Counter[str]] | None, list[Unreadable]]:
    """Write one shard with its index, and a receipt that it is done.

    Returns the result of `write_index`, or None if no sample could be read, and the bad samples.
    """
    name, entries = chunk
    finished = _finished(unfinished, name)
    if finished is not None:
        return finished, []
    for file in unfinished.glob(f"{name}*"):
        file.unlink()  # an interrupted call began it
    bad: list[Unreadable] = []
    write_tar(unfinished / name, _records(entries, keep, bad))
    indexed = None
    if len(bad) == len(entries) and not keep:
        (unfinished / name).unlink()
    else:
        indexed = write_index(unfinished, name)
    # The receipt of an incomplete shard is empty, so that it is written again on the next call:
    # the files may be there by then.
    receipt = {}
    if indexed is not None and not bad:
        shard, fields = indexed
        receipt = {"shard": asdict(shard), "fields": fields}
    write_whole(unfinished / _receipt(name), json.dumps(receipt).encode())
    return indexed, bad


def _finished(unfinished: Path, name: str) -> tuple[Shard, Counter[str]] | None:
    """Return what `write_index` returned for a shard that an earlier call completed, or None."""
    receipt = json.loads(_read(unfinished / _receipt(name)) or b"{}")
    tar = unfinished / name
    if not receipt or not tar.is_file() or tar.stat().st_size != receipt["shard"]["bytes"]:
        return None
    return Shard(**receipt["shard"]), Counter(receipt["fields"])


def _records(entries: Sequence[Entry], keep: bool, bad: list[Unreadable]) -> Iterator[Record]:
    """Read the files of entries; add those that cannot be read to `bad`, once per sample."""
    for entry in entries:
        members: dict[str, bytes] = {}
        problem = None
        for number, file in enumerate(entry.media):
            try:
                extension, data = _media(file)
            except (OSError, BadSample) as error:
                if problem is None:
                    problem = _unreadable(entry, file, _reason(file, error))
                extension, data = _as_it_is(file)
            name = extension if len(entry.media) == 1 else f"{number}.{extension}"
            members[name] = data
        if problem is not None:
            bad.append(problem)
        if problem is None or keep:
            members["json"] = annotations_member(entry.annotations)
            yield entry.key, members


def _reason(file: Path, error: OSError | BadSample) -> str:
    if not file.is_file():
        return "missing"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error)


def _as_it_is(file: Path) -> tuple[str, bytes]:
    """Return the member for a file that is missing or unreadable: its bytes, or none."""
    extension = file.suffix.lower().removeprefix(".")
    if extension not in (*IMAGE_EXTENSIONS, *VIDEO_EXTENSIONS):
        return "mp4", b""  # an AVI that cannot be encoded again
    try:
        return extension, file.read_bytes()
    except OSError:
        return extension, b""


def _media(file: Path) -> tuple[str, bytes]:
    """Read an image or video and check it; return the extension of its member and the bytes."""
    extension, data = file.suffix.lower().removeprefix("."), file.read_bytes()
    if extension in IMAGE_EXTENSIONS:
        decode(open_image(data))
        return extension, data
    if extension not in (*VIDEO_EXTENSIONS, "avi"):
        named = extension or "a file without an extension"
        raise BadSample("undecodable", f"{named} is not a format of images or videos")
    from data_pipeline.decode_video import open_clip  # loads FFmpeg, which images do not need

    if extension == "avi":
        from data_pipeline.importing.reencode import to_mp4

        extension, data = "mp4", to_mp4(data)
    with open_clip(data):
        return extension, data


def _unreadable(entry: Entry, file: Path, reason: str) -> Unreadable:
    return Unreadable(entry.key, str(file), reason, len(entry.annotations.get("questions", ())))


def _refusal(unreadable: Sequence[Unreadable], samples: int) -> UnreadableMedia:
    first = unreadable[0]
    affected = len({sample.key for sample in unreadable})
    return UnreadableMedia(
        f"{affected:,} of {samples:,} samples have an image or video that is missing or "
        f"unreadable; the first: {first.file} ({first.reason}). Put the files there (--resume "
        "keeps what is done), or choose with --unreadable what happens to these samples",
        unreadable,
    )


def _digest(entries: Sequence[Entry], source: dict[str, Any], samples_per_shard: int) -> str:
    digest = hashlib.sha256(json.dumps([source, samples_per_shard], sort_keys=True).encode())
    for entry in entries:
        files = [str(file) for file in entry.media]
        digest.update(json.dumps([entry.key, files, entry.annotations]).encode())
    return digest.hexdigest()


def _receipt(name: str) -> str:
    return f"{name}.receipt.json"


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None
