"""Regions: run lengths decode to the mask they were made from; malformed ones are named."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from data_pipeline.regions import decode_mask, encode_mask, parse_regions
from data_pipeline.sample import BadSample

MASK = {"size": [2, 3], "counts": [1, 2, 3]}


@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12)))
def test_a_mask_survives_its_run_lengths(mask):
    rle = encode_mask(mask)
    assert (decode_mask(rle) == mask).all()
    assert rle["size"] == list(mask.shape) and sum(rle["counts"]) == mask.size
    assert all(count > 0 for count in rle["counts"][1:])  # runs as long as they can be
    assert sum(rle["counts"][1::2]) == mask.sum()


def test_runs_go_down_the_columns_and_begin_outside_as_in_coco():
    mask = np.array([[1, 0, 0], [1, 1, 0]], dtype=bool)
    assert encode_mask(mask) == {"size": [2, 3], "counts": [0, 2, 1, 1, 2]}
    assert encode_mask(np.zeros((2, 2), bool))["counts"] == [4]


def regions(*entries, captions=("a dog", " ", "a cat")):
    return parse_regions("7", {"captions": list(captions), "regions": list(entries)})


def test_regions_are_read_with_boxes_masks_or_both():
    box, mask, both = regions(
        {"phrase": " dog", "caption": 0, "boxes": [[0, 1, 2.5, 3]]},
        {"phrase": "cat", "caption": 2, "masks": [MASK]},
        {"phrase": "cat", "boxes": [[0, 0, 0, 0]], "masks": [MASK, MASK]},
    )
    assert (box.phrase, box.caption, box.boxes, box.masks) == ("dog", 0, ((0, 1, 2.5, 3),), ())
    assert mask.caption == 1  # the empty caption between is none of the sample's
    assert both.caption is None and len(both.masks) == 2
    assert parse_regions("7", {"captions": ["a"]}) == ()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("dog", "is not an object"),
        ({"boxes": [[0, 0, 1, 1]]}, "phrase"),
        ({"phrase": " ", "boxes": [[0, 0, 1, 1]]}, "phrase"),
        ({"phrase": "dog"}, "boxes"),
        ({"phrase": "dog", "boxes": {}}, "boxes"),
        ({"phrase": "dog", "boxes": [[0, 0, 1]]}, "x1, y1, x2, y2"),
        ({"phrase": "dog", "boxes": [[2, 0, 1, 1]]}, "x1 <= x2"),
        ({"phrase": "dog", "boxes": [[0, 0, 1, float("nan")]]}, "x1, y1, x2, y2"),
        ({"phrase": "dog", "boxes": [[0, 0, 1, 10**400]]}, "x1, y1, x2, y2"),
        ({"phrase": "dog", "boxes": [[0, 0, 1, True]]}, "x1, y1, x2, y2"),
        ({"phrase": "dog", "boxes": [[0, 0, 1, 1]], "caption": 3}, "one of the 3 captions"),
        ({"phrase": "dog", "boxes": [[0, 0, 1, 1]], "caption": True}, "one of the 3 captions"),
        ({"phrase": "dog", "boxes": [[0, 0, 1, 1]], "caption": 1}, "caption 1 is empty"),
        ({"phrase": "dog", "masks": [{"size": [2, 3], "counts": "PPYo1"}]}, "compressed"),
        ({"phrase": "dog", "masks": [{"size": [2, 3], "counts": [5]}]}, "runs of 5 pixels"),
        ({"phrase": "dog", "masks": [{"size": [2, 3], "counts": [-1, 7]}]}, "counts"),
        ({"phrase": "dog", "masks": [{"size": [6], "counts": [6]}]}, "size"),
        ({"phrase": "dog", "masks": [[1]]}, "size"),
        ({"phrase": "dog", "masks": [{"size": [2**20, 2**20], "counts": [2**30]}]}, "more than"),
        ({"phrase": "dog", "masks": [MASK, {"size": [1, 1], "counts": [1]}]}, "different sizes"),
    ],
)
def test_a_malformed_region_is_a_bad_sample_that_says_where(entry, message):
    with pytest.raises(BadSample, match=message) as caught:
        regions({"phrase": "cat", "boxes": [[0, 0, 1, 1]]}, entry)
    assert "sample 7: region 1" in str(caught.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["phrase", "boxes", "masks", "size", "counts", "caption"]), inner
        )
    ),
    max_leaves=12,
)


@settings(max_examples=50, deadline=None)
@given(json_values)
def test_any_json_gives_regions_or_a_bad_sample(value):
    try:
        parse_regions("7", {"captions": ["a dog"], "regions": value})
    except BadSample:
        return


def test_regions_that_are_not_a_list_are_refused():
    with pytest.raises(BadSample, match="must be a list"):
        parse_regions("7", {"regions": {}})
