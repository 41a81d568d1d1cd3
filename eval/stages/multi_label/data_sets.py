"""The data sets of an evaluation by role: `data` is measured, `base` trained on, `val` chosen on.

In: encoded data sets and a list of labels. Out: images with their labels and features of the
labels' names, and a description for result.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline.shards.manifest import Manifest
from eval.encoding.encoders import Encoder
from eval.encoding.labelled_images import ImageTokens
from eval.encoding.prompts import label_features
from eval.results.schema import data_hash

from .joint_space import Labelled
from .label_sets import read_label_lists, refuse_shared_labels, select_images
from .options import Filter


def labelled_sets(
    encoder: Encoder,
    tokens: Mapping[str, ImageTokens],
    manifests: Mapping[str, Manifest],
    labels: Path | str | None,
    label_filter: Filter,
) -> dict[str, Labelled]:
    """Select labels and images of every role.

    Parameters
    ----------
    encoder
        Encodes the names of labels.
    tokens, manifests
        Images and data sets by role.
    labels
        A list of labels, see `read_label_lists`. A role without a list has the labels that its
        data set was imported for, or all labels of its data set.
    label_filter
        See `select_images`.

    Raises
    ------
    UsageError, DataError
        For an unknown list, a label that no image has, or a label of two roles.
    """
    lists = read_label_lists(labels)
    selections = {}
    for role, role_tokens in tokens.items():
        names = lists.get(role) or _imported_labels(manifests[role], role_tokens)
        where = f"--{role} {manifests[role].root}"
        selections[role] = select_images(role_tokens.labels, names, label_filter, where)
    refuse_shared_labels(selections)
    sets = {}
    for role, role_tokens in tokens.items():
        rows = selections[role].rows
        assert role_tokens.proj is not None
        sets[role] = Labelled(
            names=selections[role].names,
            keys=[role_tokens.keys[row] for row in rows],
            media=[role_tokens.media[row] for row in rows],
            patch=role_tokens.patch[rows],
            proj=role_tokens.proj[rows].float(),
            truth=selections[role].truth,
            text=label_features(encoder, selections[role].names),
        )
    return sets


def _imported_labels(manifest: Manifest, tokens: ImageTokens) -> list[str] | None:
    """Return the labels that a data set was imported for, as far as its images have them."""
    imported = manifest.source.get("label_split", {}).get("labels")
    if not imported:
        return None
    # With a limit, or after quarantine, the remaining images may not show all of these labels.
    available: set[str] = set()
    for of_image in tokens.labels:
        available.update(of_image)
    return [name for name in imported if name in available]


def describe_sets(
    manifests: Mapping[str, Manifest],
    tokens: Mapping[str, ImageTokens],
    sets: Mapping[str, Labelled],
    limit: int | None,
) -> dict[str, Any]:
    """Describe the data sets for result.json: the measured one, and the others by role."""
    described: dict[str, Any] = {}
    for role, labelled in sets.items():
        images_by_label = labelled.truth.sum(axis=0).tolist()
        counts = {
            "images": len(labelled.keys),
            "left_out_by_labels": len(tokens[role]) - len(labelled.keys),
            "classes": dict(zip(labelled.names, images_by_label, strict=True)),
        }
        if role == "data":
            described |= counts  # the stage runner adds path, name and hash
        else:
            described[role] = {
                "path": str(manifests[role].root),
                "name": manifests[role].name,
                "hash": data_hash(manifests[role], limit),
                **counts,
            }
    return described
