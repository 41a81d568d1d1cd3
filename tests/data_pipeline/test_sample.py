"""What the members of one key mean, and the messages about members that mean nothing."""

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.sample import BadSample, parse_sample


def members(**json_fields):
    return {"jpg": b"pixels", "json": json.dumps(json_fields).encode()}


def reason_of(given_members):
    with pytest.raises(BadSample) as caught:
        parse_sample("000123", given_members)
    assert "000123" in str(caught.value)
    return caught.value.reason


def test_captions_of_the_json_win_over_the_text():
    sample = parse_sample("7", {**members(captions=["one", "two"]), "txt": b"three"})
    assert sample.captions == ("one", "two")


def test_a_single_caption_as_img2dataset_writes_it_is_read():
    assert parse_sample("7", members(caption="a dog", url="http://x")).captions == ("a dog",)


def test_a_null_caption_falls_back_to_the_text():
    assert parse_sample("7", {**members(caption=None), "txt": b"a cat\n"}).captions == ("a cat",)


def test_text_alone_is_enough_and_the_key_is_the_image_id():
    sample = parse_sample("7", {"png": b"pixels", "txt": "ein Fuß".encode(), "cls": b"3"})
    assert (sample.extension, sample.captions, sample.image_id, sample.annotations) == (
        "png",
        ("ein Fuß",),
        "7",
        {},
    )


def test_the_image_id_may_be_a_number():
    assert parse_sample("7", members(captions=["a"], image_id=42)).image_id == "42"


def test_the_whole_json_is_kept_as_annotations():
    sample = parse_sample("7", members(captions=["a"], questions=[{"id": 1}]))
    assert sample.annotations["questions"] == [{"id": 1}]


def test_empty_captions_beside_others_are_left_out():
    assert parse_sample("7", members(captions=["", "a dog", " "])).captions == ("a dog",)


@pytest.mark.parametrize(
    ("given_members", "reason"),
    [
        ({"txt": b"a dog"}, "missing-field"),
        ({"mp4": b"frames", "txt": b"a dog"}, "missing-field"),
        ({"jpg": b"pixels"}, "missing-field"),
        ({"jpg": b"pixels", "json": b"{}"}, "missing-field"),
        ({"jpg": b"", "txt": b"a dog"}, "undecodable"),
        ({"jpg": b"pixels", "txt": b" \n"}, "empty-text"),
        ({"jpg": b"pixels", "txt": b"\xff\xfe"}, "undecodable"),
        (members(captions=[]), "empty-text"),
        (members(captions=[""]), "empty-text"),
        (members(captions="a dog"), "bad-json"),
        (members(captions=[1]), "bad-json"),
        ({"jpg": b"pixels", "json": b'{"captions": ["\\ud800"]}'}, "bad-json"),
        ({"jpg": b"pixels", "json": b"{"}, "bad-json"),
        ({"jpg": b"pixels", "json": b"\xff"}, "bad-json"),
        ({"jpg": b"pixels", "json": b"[]"}, "bad-json"),
        ({"jpg": b"pixels", "json": b"[" * 200_000}, "bad-json"),
        ({"jpg": b"pixels", "json": b" " * (16 * 2**20 + 1)}, "too-large"),
        ({"jpg": b"pixels", "txt": b" " * (16 * 2**20 + 1)}, "too-large"),
    ],
)
def test_a_bad_sample_says_its_key_and_reason(given_members, reason):
    assert reason_of(given_members) == reason


def test_a_bad_sample_crosses_processes_with_its_reason():
    error = pickle.loads(pickle.dumps(BadSample("checksum", "sample 7 changed")))
    assert (error.reason, str(error), isinstance(error, DataError)) == (
        "checksum",
        "sample 7 changed",
        True,
    )


@given(
    st.dictionaries(
        st.sampled_from(["jpg", "png", "json", "txt", "mp4", "cls"]), st.binary(max_size=40)
    )
)
def test_any_bytes_give_a_sample_or_a_bad_sample(given_members):
    try:
        sample = parse_sample("7", given_members)
    except BadSample:
        return
    assert sample.media and all(caption.strip() == caption != "" for caption in sample.captions)
