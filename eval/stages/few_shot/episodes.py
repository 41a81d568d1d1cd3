"""Few-shot episodes: images that show the classes (support), and images to classify (query).

In: the class of every image. Out: episodes that depend on seed and number alone, drawn from all
images or so that no two episodes share an image; lists of episodes as JSON, so that anyone can run
the very same ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError, UsageError
from data_pipeline.randomness import generator_at

FORMAT = "glscl-episodes/1"
# Most classes that a message names, so that it stays readable.
_NAMED_CLASSES = 5


@dataclass(frozen=True)
class Episode:
    """Rows of the images of ``classes``, class after class, and the index of each image's class.

    ``support`` and ``support_y`` are (way * shot,), ``query`` and ``query_y`` (way * queries,).
    """

    support: NDArray[np.int64]
    support_y: NDArray[np.int64]
    query: NDArray[np.int64]
    query_y: NDArray[np.int64]
    classes: tuple[str, ...]

    @classmethod
    def of(cls, rows: NDArray[np.int64], shot: int, classes: tuple[str, ...]) -> Episode:
        """Divide the images (way, shot + queries) of each class into support and queries."""
        way, images_per_class = rows.shape
        class_indices = np.arange(way)
        return cls(
            support=rows[:, :shot].ravel(),
            support_y=class_indices.repeat(shot),
            query=rows[:, shot:].ravel(),
            query_y=class_indices.repeat(images_per_class - shot),
            classes=classes,
        )


class EpisodeSampler:
    """Sequence of episodes of ``way`` classes with ``shot`` support and ``queries`` query images.

    Episode i depends on (seed, i) alone. With ``disjoint`` no two episodes share an image, and
    there are as many as the data allow, up to ``episodes``. Copies (same ``media``) count as one
    image, the first of them.

    Parameters
    ----------
    labels
        Class of every image.
    media
        Hash of every image's file.
    name
        What messages call the data set, such as `--val`.

    Raises
    ------
    UsageError
        If a number is not positive, or there are fewer classes than ways.
    DataError
        If a class has too few images; the message names it and says what to choose.
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
        # An episode of a single class has nothing to tell apart.
        for option, value, least in (
            ("way", way, 2),
            ("shot", shot, 1),
            ("queries", queries, 1),
            ("episodes", episodes, 1),
            ("seed", seed, 0),
        ):
            if value < least:
                raise UsageError(f"{option} is {value}, must be at least {least}")
        self.way, self.shot, self.queries = way, shot, queries
        self.seed, self.disjoint, self._episodes = seed, disjoint, episodes
        if media is None:
            distinct = np.arange(len(labels))
        else:
            # Two copies of an image, one as support and one as query, would give the answer away.
            distinct = np.sort(np.unique(np.asarray(media), return_index=True)[1])
        distinct_labels = np.asarray(labels)[distinct]
        # Sorted, so that an episode does not depend on the order in which classes appear.
        self.classes = tuple(sorted(set(distinct_labels.tolist())))
        self._rows = []
        for label in self.classes:
            self._rows.append(distinct[distinct_labels == label].astype(np.int64))
        self._check(name)

    def __len__(self) -> int:
        return len(self._disjoint_episodes) if self.disjoint else self._episodes

    def __getitem__(self, number: int) -> Episode:
        if not 0 <= number < len(self):
            raise IndexError(number)
        if self.disjoint:
            return self._disjoint_episodes[number]
        # A generator of its own for each episode: more episodes do not change the earlier ones.
        rng = generator_at(self.seed, number)
        chosen = rng.choice(len(self.classes), self.way, replace=False)
        rows = []
        for index in chosen:
            rows.append(rng.choice(self._rows[index], self.shot + self.queries, replace=False))
        return self._episode(chosen, rows)

    def __iter__(self) -> Iterator[Episode]:
        return (self[number] for number in range(len(self)))

    @property
    def smallest_class(self) -> int:
        """Number of images of the class that has fewest."""
        return min(len(rows) for rows in self._rows)

    @cached_property
    def _disjoint_episodes(self) -> list[Episode]:
        rng = generator_at(self.seed)
        per_class = self.shot + self.queries
        # Each class is cut into blocks of the images that it needs in an episode.
        blocks = []
        for rows in self._rows:
            usable = len(rows) // per_class * per_class
            blocks.append(rng.permutation(rows)[:usable].reshape(-1, per_class))
        blocks_left = np.array([len(of_class) for of_class in blocks])
        episodes: list[Episode] = []
        while len(episodes) < self._episodes and (blocks_left > 0).sum() >= self.way:
            # Take the classes with most blocks left, ties at random: otherwise a few large classes
            # could remain, too few for an episode. The order in the episode is random as well.
            by_blocks = np.lexsort((rng.random(len(blocks_left)), -blocks_left))
            chosen = rng.permutation(by_blocks[: self.way])
            blocks_left[chosen] -= 1
            rows_of_classes = [blocks[index][blocks_left[index]] for index in chosen]
            episodes.append(self._episode(chosen, rows_of_classes))
        return episodes

    def _episode(self, chosen: NDArray[Any], rows: Sequence[NDArray[np.int64]]) -> Episode:
        names = tuple(self.classes[index] for index in chosen)
        return Episode.of(np.stack(rows), self.shot, names)

    def _check(self, name: str) -> None:
        classes = len(self.classes)
        if classes < self.way:
            advice = "an episode needs at least two"
            if classes > 1:
                advice = f"choose way {classes}"
            raise UsageError(
                f"{name} has {classes} classes, fewer than the {self.way} ways: {advice}"
            )
        per_class = self.shot + self.queries
        too_few = []
        for label, rows in zip(self.classes, self._rows, strict=True):
            if len(rows) < per_class:
                too_few.append(f"{label!r} ({len(rows)})")
        if not too_few:
            return
        listed = ", ".join(too_few[:_NAMED_CLASSES])
        if len(too_few) > _NAMED_CLASSES:
            listed += f" and {len(too_few) - _NAMED_CLASSES} more"
        if self.smallest_class > self.shot:
            advice = f"choose at most {self.smallest_class - self.shot} queries"
        elif self.smallest_class > 1:
            advice = f"choose at most {self.smallest_class - 1} shots"
        else:
            advice = "add images"
        raise DataError(
            f"{name} has too few images of {listed}: {self.shot} shots and {self.queries} queries "
            f"need {per_class} of each class: {advice}, or leave these classes out"
        )


@dataclass(frozen=True)
class EpisodeList:
    """Episodes of one form, and the JSON ``text`` of the file that holds them.

    The file names images by their keys, so that it can be used with another copy of the data set.
    """

    episodes: list[Episode]
    way: int
    shot: int
    queries: int
    disjoint: bool
    text: str

    @classmethod
    def of(cls, sampler: EpisodeSampler, keys: Sequence[str]) -> EpisodeList:
        """List all episodes of a sampler; ``keys`` name the images."""
        episodes = list(sampler)
        # Every key is written once; episodes name images by their positions in that list, which
        # keeps the file of a thousand episodes small.
        entries = []
        for episode in episodes:
            entries.append(
                {
                    "classes": list(episode.classes),
                    "support": episode.support.reshape(sampler.way, -1).tolist(),
                    "query": episode.query.reshape(sampler.way, -1).tolist(),
                }
            )
        content = {
            "format": FORMAT,
            "way": sampler.way,
            "shot": sampler.shot,
            "queries": sampler.queries,
            "disjoint": sampler.disjoint,
            "seed": sampler.seed,
            "pictures": list(keys),
            "episodes": entries,
        }
        return cls(
            episodes=episodes,
            way=sampler.way,
            shot=sampler.shot,
            queries=sampler.queries,
            disjoint=sampler.disjoint,
            text=json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n",
        )

    @property
    def hash(self) -> str:
        """sha256 of the text."""
        return f"sha256:{hashlib.sha256(self.text.encode()).hexdigest()}"


class _Form(NamedTuple):
    """Numbers of classes, and of support and query images of each; all episodes of a list agree."""

    way: int
    shot: int
    queries: int


def read_episodes(
    path: Path | str,
    keys: Sequence[str],
    *,
    labels: Sequence[str] | None = None,
    media: Sequence[str] | None = None,
) -> EpisodeList:
    """Read a file of episodes; rows of the episodes are positions in ``keys``.

    Parameters
    ----------
    path
        File as an evaluation writes it.
    keys
        Key of every image of the data set.
    labels
        Class of every image; by default classes are not checked.
    media
        Hash of every image's file; by default copies are not noticed.

    Raises
    ------
    UsageError
        If the file cannot be read.
    DataError
        If the file has another format, names an image that the data set does not have, holds
        episodes of different forms, an image or its copy twice in one episode or in two disjoint
        ones, or an image of another class than the file says.
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
        episodes, form = _parse(path, content, keys)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(f"{path} is not a list of episodes: {error!r}") from None
    # Without hashes every image counts as a file of its own.
    file_of = dict(zip(keys, keys if media is None else media, strict=True))
    label_of = {} if labels is None else dict(zip(keys, labels, strict=True))
    first_episode_with: dict[str, int] = {}
    for number, episode in enumerate(episodes):
        _check_episode(f"{path}, episode {number}", episode, keys, file_of, label_of)
        if not disjoint:
            continue
        for row in (*episode.support, *episode.query):
            earlier = first_episode_with.setdefault(file_of[keys[row]], number)
            if earlier != number:
                raise DataError(
                    f"{path}: episodes {earlier} and {number} share {keys[row]}, "
                    "but the list says that they are disjoint"
                )
    return EpisodeList(episodes, *form, disjoint, text)


def _parse(path: Path, content: Any, keys: Sequence[str]) -> tuple[list[Episode], _Form]:
    row_of = {key: row for row, key in enumerate(keys)}
    listed_keys = [str(key) for key in content["pictures"]]
    forms: set[_Form] = set()
    episodes = []
    for number, entry in enumerate(content["episodes"]):
        classes = tuple(str(name) for name in entry["classes"])
        if len(classes) < 2:
            raise ValueError(
                f"episode {number} has {len(classes)} classes, an episode needs at least two"
            )
        positions = _positions(number, entry, len(classes), len(listed_keys))
        rows = np.empty_like(positions)
        for place, position in np.ndenumerate(positions):
            key = listed_keys[position]
            if key not in row_of:
                raise DataError(
                    f"{path}, episode {number}: the data has no image {key!r} with exactly one "
                    "label"
                )
            rows[place] = row_of[key]
        shot = len(entry["support"][0])
        forms.add(_Form(len(classes), shot, rows.shape[1] - shot))
        episodes.append(Episode.of(rows, shot, classes))
    if len(forms) != 1:
        raise ValueError(
            f"its episodes have {len(forms)} forms (way, shot, queries) instead of one: "
            f"{[tuple(form) for form in sorted(forms)[:3]]}"
        )
    return episodes, forms.pop()


def _positions(number: int, entry: Mapping[str, Any], way: int, images: int) -> NDArray[np.int64]:
    """Return positions in the list of keys (way, shot + queries); ValueError for any other form."""
    parts = []
    for part in ("support", "query"):
        for of_class in entry[part]:
            for position in of_class:
                # Compared by type: JSON's true is an int in Python, and 1.0 equals 1.
                if type(position) is not int or not 0 <= position < images:
                    raise ValueError(
                        f"episode {number} must name images by whole numbers from 0 to {images - 1}"
                    )
        # Raises ValueError if classes have different numbers of images.
        table = np.array(entry[part], dtype=np.int64)
        if table.ndim != 2 or len(table) != way or not table.size:
            raise ValueError(f"episode {number} must list images of each of its {way} classes")
        parts.append(table)
    return np.concatenate(parts, axis=1)


def _check_episode(
    where: str,
    episode: Episode,
    keys: Sequence[str],
    file_of: Mapping[str, str],
    label_of: Mapping[str, str],
) -> None:
    if len(set(episode.classes)) < len(episode.classes):
        raise DataError(f"{where} names a class twice")
    part_with: dict[str, str] = {}
    for part, rows, class_indices in (
        ("support", episode.support, episode.support_y),
        ("query", episode.query, episode.query_y),
    ):
        for row, class_index in zip(rows, class_indices, strict=True):
            key, label = keys[row], episode.classes[class_index]
            if label_of and label_of[key] != label:
                raise DataError(f"{where}: {key} is {label_of[key]!r}, not {label!r}")
            if file_of[key] in part_with:
                raise DataError(
                    f"{where}: {key} or a copy of it is in {part_with[file_of[key]]} and in "
                    f"{part}: list it once"
                )
            part_with[file_of[key]] = part
