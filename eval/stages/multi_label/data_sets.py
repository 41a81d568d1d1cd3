"""The data sets of an evaluation as labelled pictures by role: what is measured, learned from and chosen on.

In: encoded data sets and a list of labels. Out: pictures with their labels and the labels' texts,
and a description.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline.shards.manifest import Manifest
from eval.encoding.encoders import Encoder
from eval.encoding.labelled_images import ImageTokens
from eval.encoding.prompts import label_features

from .joint_space import Labelled
from .label_sets import choose, read_label_lists, refuse_overlap
from .options import Filter


def labelled_sets(
    encoder: Encoder,
    tokens: Mapping[str, ImageTokens],
    manifests: Mapping[str, Manifest],
    labels: Path | str | None,
    keep: Filter,
) -> dict[str, Labelled]:
    """Choose labels and pictures of every role (`data`, `base`, `val`).

    Parameters
    ----------
    encoder
        Encodes the labels' names.
    tokens, manifests
        Of the roles' data sets.
    labels
        A list of labels, see `read_label_lists`; a data set without one is asked what it was
        imported for.
    keep
        See `choose`.

    Raises
    ------
    UsageError, DataError
        For an unknown list, for labels that are missing or of two roles.
    """
    lists = read_label_lists(labels)
    chosen = {}
    for role, found in tokens.items():
        imported = (
            manifests[role].source.get("label_split", {}).get("labels")
            if role not in lists
            else None
        )
        there = {name for several in found.labels for name in several}
        wanted = lists.get(role) or (
            [name for name in imported if name in there] if imported else None
        )
        chosen[role] = choose(found.labels, wanted, keep, f"--{role} {manifests[role].root}")
    refuse_overlap(chosen)
    sets = {}
    for role, found in tokens.items():
        rows = chosen[role].rows
        assert found.proj is not None
        sets[role] = Labelled(
            names=chosen[role].names,
            keys=[found.keys[row] for row in rows],
            media=[found.media[row] for row in rows],
            patch=found.patch[rows],
            proj=found.proj[rows].float(),
            truth=chosen[role].truth,
            text=label_features(encoder, chosen[role].names),
        )
    return sets


def described(
    manifests: Mapping[str, Manifest],
    tokens: Mapping[str, ImageTokens],
    sets: Mapping[str, Labelled],
) -> dict[str, Any]:
    """Describe the data sets for a result: the measured one, and under their roles the others."""
    parts: dict[str, Any] = {}
    for role, labelled in sets.items():
        counts = labelled.truth.sum(axis=0)
        part = {
            "images": len(labelled.keys),
            "left_out_by_labels": len(tokens[role]) - len(labelled.keys),
            "classes": {
                name: int(count) for name, count in zip(labelled.names, counts, strict=True)
            },
        }
        if role == "data":  # the runner says where it lies
            parts |= part
        else:
            parts[role] = {
                "path": str(manifests[role].root),
                "name": manifests[role].name,
                "hash": f"sha256:{manifests[role].digest}",
                **part,
            }
    return parts
