"""The episodes of an evaluation: for every form those that may share pictures, and disjoint ones beside them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.errors import UsageError
from data_pipeline.files import write_whole
from eval.stages.few_shot.episodes import EpisodeList, read_episodes

from .scores import KINDS
from .splits import Split

# Of a class in a disjoint episode: with fewer queries there are more episodes, and the expected
# accuracy is the same.
DISJOINT_QUERIES = 5
_WRITTEN = re.compile(r"episodes-\d+way-\d+shot-(closed|open)-world\.json")


@dataclass(frozen=True)
class Lists:
    """Episodes of one form: ``closed`` may share pictures, ``apart`` share none."""

    closed: EpisodeList
    apart: EpisodeList

    @property
    def name(self) -> str:
        """Name of the form, such as `5way-1shot`."""
        return f"{self.closed.way}way-{self.closed.shot}shot"

    def by_kind(self) -> dict[str, EpisodeList]:
        """Return both by the kind that records have."""
        return dict(zip(KINDS, (self.closed, self.apart), strict=True))

    def described(self) -> dict[str, dict[str, Any]]:
        """Say what a result must of the episodes."""
        return {
            kind: {
                "episodes": len(listed.episodes),
                "queries": listed.queries,
                "file": self.file(kind),
                "hash": listed.hash,
            }
            for kind, listed in self.by_kind().items()
        }

    def file(self, kind: str) -> str:
        """Name of the file that holds the episodes of a kind."""
        return f"episodes-{self.name}-{kind.replace('_', '-')}.json"


def write_lists(out: Path, lists: Sequence[Lists]) -> None:
    """Write a file for each list, and remove those of an earlier evaluation, which the result would not name."""
    out.mkdir(parents=True, exist_ok=True)
    texts = {
        both.file(kind): listed.text for both in lists for kind, listed in both.by_kind().items()
    }
    for file in out.iterdir():
        if _WRITTEN.fullmatch(file.name) and file.name not in texts:
            file.unlink()
    for name, text in texts.items():
        write_whole(out / name, text)


def drawn_lists(
    split: Split, way: int, shots: Sequence[int], queries: int, episodes: int, seed: int
) -> list[Lists]:
    """Draw episodes for each number of support pictures; raises as `EpisodeSampler` does."""
    if not shots or len(set(shots)) < len(shots):
        raise UsageError(f"shot must name different numbers of support pictures, not {list(shots)}")
    keys = split.world.tokens.keys
    drawn = []
    for shot in shots:
        closed = EpisodeList.of(split.sampler(way, shot, queries, episodes, seed), keys)
        drawn.append(Lists(closed, _apart(split, closed, seed)))
    return drawn


def given_lists(paths: Sequence[Path | str], split: Split, seed: int) -> list[Lists]:
    """Read episodes from files; where none of a form are disjoint, those are drawn.

    Raises
    ------
    UsageError, DataError
        As `read_episodes` does, for a form that two files hold, and for one that only has disjoint
        episodes.
    """
    tokens = split.world.tokens
    found: dict[tuple[int, int, bool], EpisodeList] = {}
    for path in paths:
        listed = read_episodes(path, tokens.keys, labels=split.world.labels, media=tokens.media)
        form = (listed.way, listed.shot, listed.disjoint)
        if form in found:
            raise UsageError(
                f"{path} holds {listed.way}-way {listed.shot}-shot episodes, as another list does"
            )
        found[form] = listed
    for way, shot, disjoint in found:
        if disjoint and (way, shot, False) not in found:
            raise UsageError(
                f"there are only disjoint {way}-way {shot}-shot episodes: give a list of others too"
            )
    return [
        Lists(closed, found.get((way, shot, True)) or _apart(split, closed, seed))
        for (way, shot, disjoint), closed in found.items()
        if not disjoint
    ]


def _apart(split: Split, closed: EpisodeList, seed: int) -> EpisodeList:
    queries = min(closed.queries, DISJOINT_QUERIES)
    sampler = split.sampler(closed.way, closed.shot, queries, len(split.rows), seed, disjoint=True)
    return EpisodeList.of(sampler, split.world.tokens.keys)
