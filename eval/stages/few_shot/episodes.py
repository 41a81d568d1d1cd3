"""Few-shot episodes: which pictures show the classes (support), and which are to be recognised (query).

In: the class of every picture. Out: episodes that depend on seed and number alone, drawn from all
pictures or from pictures that no other episode has; lists of episodes on disk, so that anyone can
run the very same ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError, UsageError
from data_pipeline.files import write_whole
from data_pipeline.randomness import generator_at

FORMAT = "glscl-episodes/1"
_NAMED = 5  # classes that a message names


@dataclass(frozen=True)
class Episode:
    """Rows of the pictures of ``classes``, class after class, and the place of each one's class.

    ``support`` and ``support_y`` are (way * shot,), ``query`` and ``query_y`` (way * queries,).
    """

    support: NDArray[np.int64]
    support_y: NDArray[np.int64]
    query: NDArray[np.int64]
    query_y: NDArray[np.int64]
    classes: tuple[str, ...]

    @classmethod
    def of(cls, rows: NDArray[np.int64], shot: int, classes: tuple[str, ...]) -> Episode:
        """Divide pictures (way, shot + queries) of the classes."""
        way, several = rows.shape
        own = np.arange(way)
        support, query = rows[:, :shot].ravel(), rows[:, shot:].ravel()
        return cls(support, own.repeat(shot), query, own.repeat(several - shot), classes)


class EpisodeSampler:
    """Episodes of ``way`` classes with ``shot`` support and ``queries`` query pictures each; a sequence.

    Episode i depends on (seed, i) alone. With ``disjoint`` no two episodes share a picture, and
    there are as many as the data allow, up to ``episodes``. Copies (same ``media``) count as one
    picture, the first of them.

    Parameters
    ----------
    labels
        Class of every picture.
    media
        Hash of every picture's file.
    name
        What messages call the pictures, such as `--val`.

    Raises
    ------
    UsageError
        If a number is not positive, or there are fewer classes than ways.
    DataError
        If a class has too few pictures; the message names it and says what to choose.
    """

    def __init__(
        self,
        labels: Sequence[str],
        *,
        way: int,
        shot: int,
        queries: int,
        episodes: int,
        seed: int,
        disjoint: bool = False,
        media: Sequence[str] | None = None,
        name: str = "the data",
    ) -> None:
        for option, value in {
            "way": way,
            "shot": shot,
            "queries": queries,
            "episodes": episodes,
        }.items():
            if value < 1 + (option == "way"):
                raise UsageError(f"{option} must be at least {1 + (option == 'way')}, not {value}")
        if seed < 0:
            raise UsageError(f"seed must be 0 or more, not {seed}")
        self.way, self.shot, self.queries = way, shot, queries
        self.seed, self.disjoint, self._episodes = seed, disjoint, episodes
        first = (
            np.arange(len(labels))
            if media is None
            else np.unique(np.asarray(media), return_index=True)[1]
        )
        first = np.sort(first)
        own = np.asarray(labels)[first]
        self.classes = tuple(sorted(set(own.tolist())))
        self._rows = [first[own == label].astype(np.int64) for label in self.classes]
        self._check(name)

    def __len__(self) -> int:
        return len(self._disjoint) if self.disjoint else self._episodes

    def __getitem__(self, number: int) -> Episode:
        if not 0 <= number < len(self):
            raise IndexError(number)
        if self.disjoint:
            return self._disjoint[number]
        rng = generator_at(self.seed, number)
        chosen = rng.choice(len(self.classes), self.way, replace=False)
        each = self.shot + self.queries
        rows = np.stack([rng.choice(self._rows[one], each, replace=False) for one in chosen])
        return Episode.of(rows, self.shot, tuple(self.classes[one] for one in chosen))

    def __iter__(self) -> Iterator[Episode]:
        return (self[number] for number in range(len(self)))

    @property
    def smallest_class(self) -> int:
        """Number of pictures of the class that has fewest."""
        return min(len(rows) for rows in self._rows)

    @cached_property
    def _disjoint(self) -> list[Episode]:
        rng = generator_at(self.seed)
        each = self.shot + self.queries
        parts = [
            rng.permutation(rows)[: len(rows) // each * each].reshape(-1, each)
            for rows in self._rows
        ]
        left = np.array([len(part) for part in parts])
        found: list[Episode] = []
        while len(found) < self._episodes and (left > 0).sum() >= self.way:
            # The classes with most pictures left, so that none remain that could still make an
            # episode.
            chosen = rng.permutation(np.lexsort((rng.random(len(left)), -left))[: self.way])
            left[chosen] -= 1
            rows = np.stack([parts[one][left[one]] for one in chosen])
            found.append(Episode.of(rows, self.shot, tuple(self.classes[one] for one in chosen)))
        return found

    def _check(self, name: str) -> None:
        if len(self.classes) < self.way:
            found = f"{name} has {len(self.classes)} classes, fewer than the {self.way} ways"
            best = (
                f"choose way {len(self.classes)}"
                if len(self.classes) > 1
                else "an episode needs at least two"
            )
            raise UsageError(f"{found}: {best}")
        counts = [len(rows) for rows in self._rows]
        each = self.shot + self.queries
        few = [
            f"{label!r} ({count})"
            for label, count in zip(self.classes, counts, strict=True)
            if count < each
        ]
        if few:
            others = f" and {len(few) - _NAMED} more" if len(few) > _NAMED else ""
            room = min(counts) - self.shot
            advice = (
                f"choose at most {room} queries"
                if room > 0
                else f"choose at most {min(counts) - 1} shots"
            )
            raise DataError(
                f"{name} has too few pictures of {', '.join(few[:_NAMED])}{others}: {self.shot} shots and "
                f"{self.queries} queries need {each} of each class: "
                f"{advice if min(counts) > 1 else 'add pictures'}, or leave these classes out"
            )


@dataclass(frozen=True)
class EpisodeList:
    """Episodes of one form, and the JSON ``text`` that they are on disk, with pictures by their sample's key."""

    episodes: list[Episode]
    way: int
    shot: int
    queries: int
    disjoint: bool
    text: str

    @classmethod
    def of(cls, sampler: EpisodeSampler, keys: Sequence[str]) -> EpisodeList:
        """List all episodes of a sampler.

        The text holds each key once; its episodes hold classes and, class after class, places in
        that list.
        """
        episodes = list(sampler)
        form = {name: getattr(sampler, name) for name in ("way", "shot", "queries", "disjoint")}
        content = {
            "format": FORMAT,
            **form,
            "seed": sampler.seed,
            "pictures": list(keys),
            "episodes": [
                {
                    "classes": list(episode.classes),
                    "support": episode.support.reshape(sampler.way, -1).tolist(),
                    "query": episode.query.reshape(sampler.way, -1).tolist(),
                }
                for episode in episodes
            ],
        }
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n"
        return cls(episodes, **form, text=text)

    @property
    def hash(self) -> str:
        """sha256 of the text."""
        return f"sha256:{hashlib.sha256(self.text.encode()).hexdigest()}"


def write_episodes(path: Path | str, sampler: EpisodeSampler, keys: Sequence[str]) -> EpisodeList:
    """Write all episodes of a sampler as JSON, and return them."""
    listed = EpisodeList.of(sampler, keys)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_whole(Path(path), listed.text)
    return listed


def read_episodes(
    path: Path | str,
    keys: Sequence[str],
    *,
    labels: Sequence[str] | None = None,
    media: Sequence[str] | None = None,
) -> EpisodeList:
    """Read episodes of the pictures ``keys``, whose rows they then hold.

    Raises
    ------
    UsageError
        If the file cannot be read.
    DataError
        If it is not of this format, names a picture that is not there, holds episodes of different
        forms, a picture twice or (by ``media``) a copy in one episode, or in two where they are
        disjoint, or a picture that has not the class (``labels``) it is said to have.
    """
    path = Path(path)
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the episode list {path}: {error}") from None
    try:
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}, not {FORMAT!r}")
        disjoint = bool(content.get("disjoint", False))
        listed, forms = _parsed(path, content, keys)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(f"{path} is not a list of episodes: {error!r}") from None
    same = {key: key for key in keys} if media is None else dict(zip(keys, media, strict=True))
    names = dict(zip(keys, labels, strict=True)) if labels is not None else {}
    before: dict[str, int] = {}
    for number, episode in enumerate(listed):
        _check_episode(f"{path}, episode {number}", episode, keys, same, names)
        for row in (*episode.support, *episode.query) if disjoint else ():
            other = before.setdefault(same[keys[row]], number)
            if other != number:
                raise DataError(
                    f"{path}: episodes {other} and {number} share {keys[row]}, and are said to be disjoint"
                )
    way, shot, queries = forms
    return EpisodeList(listed, way, shot, queries, disjoint, text)


def _parsed(
    path: Path, content: Any, keys: Sequence[str]
) -> tuple[list[Episode], tuple[int, int, int]]:
    place = {key: row for row, key in enumerate(keys)}
    pictures = [str(key) for key in content["pictures"]]
    forms: set[tuple[int, int, int]] = set()
    listed = []
    for number, entry in enumerate(content["episodes"]):
        classes = tuple(str(name) for name in entry["classes"])
        if len(classes) < 2:
            raise ValueError(
                f"episode {number} has {len(classes)} classes, an episode needs at least two"
            )
        places = [
            one for part in ("support", "query") for several in entry[part] for one in several
        ]
        if any(
            type(one) is not int or not 0 <= one < len(pictures) for one in places
        ):  # true is an int, 1.0 equals 1
            raise ValueError(
                f"episode {number} must name pictures by whole numbers from 0 to {len(pictures) - 1}"
            )
        parts = [
            np.array(entry[part], dtype=np.int64) for part in ("support", "query")
        ]  # ValueError if uneven
        if any(part.ndim != 2 or len(part) != len(classes) or not part.size for part in parts):
            raise ValueError(
                f"episode {number} must list pictures of each of its {len(classes)} classes"
            )
        forms.add((len(classes), parts[0].shape[1], parts[1].shape[1]))
        named = np.concatenate(parts, axis=1)
        missing = [pictures[one] for one in named.ravel() if pictures[one] not in place]
        if missing:
            raise DataError(
                f"{path}, episode {number}: there is no picture {missing[0]!r} of one class in the data"
            )
        rows = np.vectorize(lambda one: place[pictures[one]], otypes=[np.int64])(named)
        listed.append(Episode.of(rows, parts[0].shape[1], classes))
    if len(forms) != 1:
        raise ValueError(
            f"its episodes have {len(forms)} forms (way, shot, queries), not one: {sorted(forms)[:3]}"
        )
    return listed, forms.pop()


def _check_episode(
    where: str, episode: Episode, keys: Sequence[str], same: dict[str, str], names: dict[str, str]
) -> None:
    seen: dict[str, str] = {}
    if len(set(episode.classes)) < len(episode.classes):
        raise DataError(f"{where} names a class twice")
    for part, rows, own in (
        ("support", episode.support, episode.support_y),
        ("query", episode.query, episode.query_y),
    ):
        for row, number in zip(rows, own, strict=True):
            key, label = keys[row], episode.classes[number]
            if names and names[key] != label:
                raise DataError(f"{where}: {key} is {names[key]!r}, not {label!r}")
            if same[key] in seen:
                raise DataError(
                    f"{where}: {key} or a copy stands in {seen[same[key]]} and {part}: list it once"
                )
            seen[same[key]] = part
