"""The episodes of an evaluation: for each form a list for the closed and one for the open world.

In: a data set and the form of the episodes to draw, or files of an earlier evaluation. Out: lists
of episodes, and a file for each of them beside the result.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.errors import UsageError
from data_pipeline.files import write_whole
from eval.stages.few_shot.episodes import EpisodeList, read_episodes

from .options import Options
from .records import Kind
from .splits import Split

# Query images of a class in a disjoint episode. Fewer queries leave images for more episodes, and
# the expected accuracy is the same.
DISJOINT_QUERIES = 5
_FILE_NAME = re.compile(r"episodes-\d+way-\d+shot-(closed|open)-world\.json")


@dataclass(frozen=True)
class FormLists:
    """Episodes of one form: those that may share images, and disjoint ones."""

    closed_world: EpisodeList
    open_world: EpisodeList

    @property
    def name(self) -> str:
        """Name of the form, such as `5way-1shot`."""
        return f"{self.closed_world.way}way-{self.closed_world.shot}shot"

    def by_kind(self) -> dict[Kind, EpisodeList]:
        """Return both lists by the kind that their records have."""
        return {"closed_world": self.closed_world, "open_world": self.open_world}

    def description(self) -> dict[str, dict[str, Any]]:
        """Describe the episodes for result.json."""
        described = {}
        for kind, episode_list in self.by_kind().items():
            described[str(kind)] = {
                "episodes": len(episode_list.episodes),
                "queries": episode_list.queries,
                "file": self.file_name(kind),
                "hash": episode_list.hash,
            }
        return described

    def file_name(self, kind: Kind) -> str:
        """Name of the file that holds the episodes of a kind."""
        return f"episodes-{self.name}-{kind.replace('_', '-')}.json"


def write_lists(out: Path, lists: Sequence[FormLists]) -> None:
    """Write a file for each list, and remove the lists of the result that is replaced."""
    out.mkdir(parents=True, exist_ok=True)
    texts = {}
    for form_lists in lists:
        for kind, episode_list in form_lists.by_kind().items():
            texts[form_lists.file_name(kind)] = episode_list.text
    for file in out.iterdir():
        # The pattern spares lists that a person has put there under other names.
        if _FILE_NAME.fullmatch(file.name) and file.name not in texts:
            file.unlink()
    for name, text in texts.items():
        write_whole(out / name, text)


def drawn_lists(split: Split, options: Options) -> list[FormLists]:
    """Draw episodes for each number of support images; raises as `EpisodeSampler` does."""
    if not options.shot or len(set(options.shot)) < len(options.shot):
        raise UsageError(
            f"shot must name different numbers of support images, not {list(options.shot)}"
        )
    lists = []
    for shot in options.shot:
        sampler = split.sampler(options.way, shot, options.queries, options.episodes, options.seed)
        closed_world = EpisodeList.of(sampler, split.world.tokens.keys)
        lists.append(FormLists(closed_world, _open_world(split, closed_world, options.seed)))
    return lists


def given_lists(paths: Sequence[Path | str], split: Split, seed: int) -> list[FormLists]:
    """Read episodes from files; disjoint episodes of a form that no file holds are drawn.

    Raises
    ------
    UsageError, DataError
        As `read_episodes` does, and for a form that two files hold or that has only disjoint
        episodes.
    """
    tokens = split.world.tokens
    by_form: dict[tuple[int, int, bool], EpisodeList] = {}
    for path in paths:
        episode_list = read_episodes(
            path, tokens.keys, labels=split.world.labels, media=tokens.media
        )
        form = (episode_list.way, episode_list.shot, episode_list.disjoint)
        if form in by_form:
            raise UsageError(
                f"{path} holds {episode_list.way}-way {episode_list.shot}-shot episodes, "
                "as another list does"
            )
        by_form[form] = episode_list
    lists = []
    for (way, shot, disjoint), episode_list in by_form.items():
        if not disjoint:
            open_world = by_form.get((way, shot, True))
            if open_world is None:
                open_world = _open_world(split, episode_list, seed)
            lists.append(FormLists(episode_list, open_world))
        elif (way, shot, False) not in by_form:
            raise UsageError(
                f"there are only disjoint {way}-way {shot}-shot episodes: give a list of others too"
            )
    return lists


def _open_world(split: Split, closed_world: EpisodeList, seed: int) -> EpisodeList:
    """Draw as many disjoint episodes of the same form as the data allow."""
    queries = min(closed_world.queries, DISJOINT_QUERIES)
    sampler = split.sampler(
        closed_world.way, closed_world.shot, queries, len(split.rows), seed, disjoint=True
    )
    return EpisodeList.of(sampler, split.world.tokens.keys)
