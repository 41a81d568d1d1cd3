"""Clips: formats, limits before decoding, and no traceback whatever the bytes are."""

from __future__ import annotations

from collections.abc import Sequence

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import decode_video
from data_pipeline.decode_video import open_clip
from data_pipeline.sample import BadSample
from tests.data_pipeline.conftest import encoded_clip, frame_of, number_of

KINDS = [("mp4", "libx264"), ("mp4", "mpeg4"), ("webm", "libvpx"), ("webm", "libvpx-vp9")]


def decoded(data: bytes, chosen: Sequence[int] | None = None) -> list[np.ndarray]:
    with open_clip(data) as clip:
        return list(clip.decode(range(clip.frames) if chosen is None else chosen))


def reason_of(data: bytes, message: str) -> str:
    with pytest.raises(BadSample, match=message) as error:
        decoded(data)
    return error.value.reason


@pytest.fixture(scope="module")
def streamable(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An mp4 whose header comes first, so that a cut one can still be opened."""
    path = tmp_path_factory.mktemp("streamable") / "clip.mp4"
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        random = np.random.default_rng(0)
        for _ in range(12):
            pixels = random.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path.read_bytes()


@pytest.mark.parametrize(("kind", "codec"), KINDS)
def test_every_frame_comes_in_order_and_in_color(kind, codec):
    data = encoded_clip(5, frames=30, kind=kind, codec=codec)
    with open_clip(data) as clip:
        assert (clip.frames, clip.width, clip.height) == (30, 64, 48)
    frames = decoded(data)
    assert all((pixels.shape, pixels.dtype) == ((48, 64, 3), np.uint8) for pixels in frames)
    assert [frame_of(pixels) for pixels in frames] == [number % 12 for number in range(30)]
    assert {number_of(pixels) for pixels in frames} == {5}
    assert abs(frames[7].mean((0, 1)) - [30 + 16 * 7, 30 + 16 * 5, 128]).max() <= 4


def test_chosen_frames_may_repeat_and_skip():
    assert [frame_of(pixels) for pixels in decoded(encoded_clip(0), [0, 0, 3, 9, 9])] == [
        0,
        0,
        3,
        9,
        9,
    ]
    assert decoded(encoded_clip(0), []) == []


def test_a_clip_of_one_frame_is_a_clip():
    assert [frame_of(pixels) for pixels in decoded(encoded_clip(3, frames=1), [0, 0, 0])] == [
        0,
        0,
        0,
    ]


@pytest.mark.parametrize(("kind", "codec"), KINDS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_a_cut_clip_is_bad(kind, codec, share):
    data = encoded_clip(0, kind=kind, codec=codec)
    assert reason_of(data[: int(len(data) * share)], "cut") == "undecodable"


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.9999])
def test_a_cut_clip_is_bad_though_its_header_is_whole(streamable, share):
    assert len(decoded(streamable)) == 12
    assert reason_of(streamable[: int(len(streamable) * share)], "cut") == "undecodable"


def test_bytes_after_the_end_are_ignored():
    assert len(decoded(encoded_clip(0) + b"junk and more junk")) == 12


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a clip, but a text in a file named mp4\n" * 30,
        bytes(5000),
        b"#EXTM3U\nfile:///etc/passwd\n",
    ],
)
def test_bytes_that_are_not_a_video_are_a_bad_sample(data):
    assert reason_of(data, "not an mp4 or webm video") == "undecodable"


def test_a_clip_without_video_is_bad(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert reason_of(path.read_bytes(), "holds no video") == "undecodable"


@pytest.mark.parametrize(
    ("limit", "value", "message"),
    [
        ("MAX_BYTES", 500, "bytes, more than 500"),
        ("MAX_PIXELS", 64 * 48 - 1, "64 x 48 pixels per frame, more than 3,071"),
        ("MAX_FRAMES", 11, "more than 11 frames"),
        ("MAX_SECONDS", 1, "more than 1"),
    ],
)
def test_limits_are_checked_before_decoding(monkeypatch, limit, value, message):
    data = encoded_clip(0)
    monkeypatch.setattr(decode_video, limit, value)
    with pytest.raises(BadSample, match=message) as error, open_clip(data):
        pass
    assert error.value.reason == "too-large"


def test_a_clip_at_its_limits_is_decoded(monkeypatch):
    monkeypatch.setattr(decode_video, "MAX_FRAMES", 12)
    monkeypatch.setattr(decode_video, "MAX_PIXELS", 64 * 48)
    assert len(decoded(encoded_clip(0))) == 12


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    changes=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=20
    ),
    end=st.floats(0, 1),
)
def test_damaged_bytes_give_frames_or_a_bad_sample(kind, changes, end):
    data = bytearray(CLIPS[kind])
    for place, value in changes:
        data[int(place * len(data))] = value
    try:
        frames = decoded(bytes(data[: int(end * len(data)) + 1]), [0, 5])
    except BadSample as error:
        assert error.reason in ("undecodable", "too-large")
    else:
        assert len(frames) == 2


CLIPS = {(kind, codec): encoded_clip(0, kind=kind, codec=codec) for kind, codec in KINDS}


def test_decoding_prints_nothing_on_standard_error(capfd):
    for data in CLIPS.values():
        damaged = data[: len(data) // 2] + bytes(20) + data[len(data) // 2 + 20 :]
        try:
            decoded(damaged)
        except BadSample:
            continue
    assert capfd.readouterr().err == ""
