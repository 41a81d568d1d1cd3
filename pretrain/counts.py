"""Row counts that ranks exchange before a step, for losses over masked positions.

Every rank masks as many words as its captions have, so a rank cannot know how many rows the others
bring to a gather, or how many masked tokens the whole step has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from data_pipeline.collate import Batch

from .parallel.gather import gather_counts, world_size


@dataclass(frozen=True)
class RowCounts:
    """Rows that each rank brings to a local completion loss, and how many of them are negatives."""

    rows: list[int]
    chosen: list[int]


@dataclass(frozen=True)
class TokenCounts:
    """Row counts of one micro-batch on every rank."""

    patches: RowCounts
    tokens: RowCounts
    words: list[int]
    """Word positions of each rank, padding included."""
    masked_language_tokens: float
    """Tokens to predict, as a mean over the ranks and the step's micro-batches of this kind."""

    @staticmethod
    def join(parts: Sequence[TokenCounts]) -> TokenCounts:
        """Count several micro-batches of one kind as if they were one."""
        words = []
        for places in zip(*(part.words for part in parts), strict=True):
            # `join_features` pads the texts of all micro-batches to the longest one.
            words.append(len(parts) * max(places))
        return TokenCounts(
            patches=_join_rows([part.patches for part in parts]),
            tokens=_join_rows([part.tokens for part in parts]),
            words=words,
            # Already a mean over the micro-batches.
            masked_language_tokens=parts[0].masked_language_tokens,
        )


def count_tokens(batches: Sequence[Batch]) -> list[TokenCounts]:
    """Count the rows of each micro-batch on every rank, with one collective for the whole step."""
    local_counts: list[int] = []
    for batch in batches:
        local_counts += _local_counts(batch)
    gathered = gather_counts(local_counts)
    width = len(local_counts) // len(batches)
    by_batch = [gathered[i : i + width] for i in range(0, len(gathered), width)]

    predicted: dict[str, list[int]] = {}
    for batch, counts in zip(batches, by_batch, strict=True):
        predicted.setdefault(batch.kind, []).append(sum(counts[-1]))

    result = []
    for batch, counts in zip(batches, by_batch, strict=True):
        patches, chosen_patches, tokens, chosen_tokens, words, _ = counts
        of_kind = predicted[batch.kind]
        result.append(
            TokenCounts(
                patches=RowCounts(patches, chosen_patches),
                tokens=RowCounts(tokens, chosen_tokens),
                words=words,
                masked_language_tokens=sum(of_kind) / (world_size() * len(of_kind)),
            )
        )
    return result


def _local_counts(batch: Batch) -> list[int]:
    """Masked patches in all frames and how many are negatives, likewise tokens, words, targets."""
    frames = batch.pixels.shape[1] if batch.kind == "video" else 1
    chosen_patches = 0 if batch.negative_patches is None else len(batch.negative_patches)
    chosen_tokens = 0 if batch.negative_tokens is None else len(batch.negative_tokens)
    return [
        len(batch.masked_patches) * frames,
        chosen_patches * frames,
        len(batch.masked_tokens),
        chosen_tokens,
        batch.text_mask[:, 1:].numel(),
        len(batch.mlm_positions),
    ]


def _join_rows(parts: Sequence[RowCounts]) -> RowCounts:
    return RowCounts(
        rows=_sum_by_rank([part.rows for part in parts]),
        chosen=_sum_by_rank([part.chosen for part in parts]),
    )


def _sum_by_rank(parts: Sequence[list[int]]) -> list[int]:
    return [sum(values) for values in zip(*parts, strict=True)]
