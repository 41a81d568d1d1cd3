"""Encode AVI videos, which shards do not hold, again as H.264 in mp4.

In: the bytes of an AVI file. Out: the bytes of an mp4 file, equal for equal input.
"""

from __future__ import annotations

import io

import av

from data_pipeline.decode_video import MAX_BYTES, MAX_FRAMES, MAX_PIXELS
from data_pipeline.sample import BadSample

CRF = 18  # of x264; hardly to be told from the original


def to_mp4(data: bytes) -> bytes:
    """Encode a video again, frame by frame and without sound; odd sides lose one pixel.

    Raises `BadSample`: "too-large" as for other videos, "undecodable" for what FFmpeg refuses.
    """
    if len(data) > MAX_BYTES:
        raise BadSample("too-large", f"the video has {len(data):,} bytes, more than {MAX_BYTES:,}")
    # FFmpeg plays a cut file up to the cut, so compare the size of its first RIFF list.
    announced = 8 + int.from_bytes(data[4:8], "little")
    if announced > len(data):
        raise BadSample(
            "undecodable", f"the video is cut: {announced:,} bytes announced, {len(data):,} found"
        )
    buffer = io.BytesIO()
    try:
        with av.open(io.BytesIO(data), "r", format="avi", metadata_errors="ignore") as read:
            _encode(read, buffer)
    except (av.error.FFmpegError, ValueError, IndexError) as error:
        raise BadSample("undecodable", f"the video cannot be decoded: {error}") from error
    return buffer.getvalue()


def _encode(read: av.container.InputContainer, buffer: io.BytesIO) -> None:
    video = read.streams.video[0]
    codec = video.codec_context
    if codec.width * codec.height > MAX_PIXELS:
        raise BadSample(
            "too-large", f"the video has {codec.width} x {codec.height} pixels per frame"
        )
    codec.thread_count = 1
    codec.options = {"max_pixels": str(MAX_PIXELS)}
    # H.264 with yuv420p needs even sides.
    width, height, rate = codec.width // 2 * 2, codec.height // 2 * 2, video.average_rate or 25
    # One thread, no choices by processor and no version in the header, so that bytes are equal.
    x264 = {"crf": str(CRF), "preset": "fast", "x264-params": "threads=1:cpu-independent=1"}
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as written:
        stream = written.add_stream("libx264", rate=rate, options=x264)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        number = -1
        for number, frame in enumerate(read.decode(video)):
            if number >= MAX_FRAMES:
                raise BadSample("too-large", f"the video has more than {MAX_FRAMES:,} frames")
            plain = frame.reformat(width=width, height=height, format="yuv420p")
            # Frames are numbered in the time base of the new stream. Their type is cleared, because
            # x264 would otherwise take over the key frames of the original.
            plain.pts, plain.time_base, plain.pict_type = number, 1 / stream.codec_context.rate, 0
            written.mux(stream.encode(plain))
        if number < 0:
            raise BadSample("undecodable", "the video holds no frame")
        written.mux(stream.encode())  # the frames that the encoder still holds
