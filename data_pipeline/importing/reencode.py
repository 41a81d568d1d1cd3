"""AVI clips, which shards do not hold, encoded again as H.264 in mp4; equal bytes for equal bytes."""

from __future__ import annotations

import io

import av

from data_pipeline.decode_video import MAX_BYTES, MAX_FRAMES, MAX_PIXELS
from data_pipeline.sample import BadSample

CRF = 18  # of x264: hardly told from the original


def to_mp4(data: bytes) -> bytes:
    """Encode the video of a clip again, frame by frame, without sound; sides are cut to even numbers.

    Raises `BadSample`: "too-large" as for other clips, "undecodable" for what FFmpeg refuses.
    """
    if len(data) > MAX_BYTES:
        raise BadSample("too-large", f"the clip has {len(data):,} bytes, more than {MAX_BYTES:,}")
    announced = 8 + int.from_bytes(data[4:8], "little")  # of its first RIFF list
    if announced > len(data):
        raise BadSample(
            "undecodable", f"the clip is cut: {announced:,} bytes announced, {len(data):,} found"
        )
    buffer = io.BytesIO()
    try:
        with av.open(io.BytesIO(data), "r", format="avi", metadata_errors="ignore") as read:
            _encode(read, buffer)
    except (av.error.FFmpegError, ValueError, IndexError) as error:
        raise BadSample("undecodable", f"the clip cannot be decoded: {error}") from error
    return buffer.getvalue()


def _encode(read: av.container.InputContainer, buffer: io.BytesIO) -> None:
    given = read.streams.video[0]
    codec = given.codec_context
    if codec.width * codec.height > MAX_PIXELS:
        raise BadSample("too-large", f"the clip has {codec.width} x {codec.height} pixels a frame")
    codec.thread_count = 1
    codec.options = {"max_pixels": str(MAX_PIXELS)}
    width, height, rate = codec.width // 2 * 2, codec.height // 2 * 2, given.average_rate or 25
    x264 = {"crf": str(CRF), "preset": "fast", "x264-params": "threads=1:cpu-independent=1"}
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as written:
        stream = written.add_stream("libx264", rate=rate, options=x264)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        number = -1
        for number, frame in enumerate(read.decode(given)):
            if number >= MAX_FRAMES:
                raise BadSample("too-large", f"the clip has more than {MAX_FRAMES:,} frames")
            plain = frame.reformat(width=width, height=height, format="yuv420p")
            plain.pts, plain.time_base, plain.pict_type = number, 1 / stream.codec_context.rate, 0
            written.mux(stream.encode(plain))
        if number < 0:
            raise BadSample("undecodable", "the clip holds no frame")
        written.mux(stream.encode())
