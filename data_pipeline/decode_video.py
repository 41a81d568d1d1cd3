"""Video bytes (mp4, webm) to RGB frames, with limits that are checked before decoding.

FFmpeg (PyAV) reads the container and decodes from the first frame to the last one needed: seeking
to each frame costs more wherever key frames are far apart. A stored rotation is ignored, as it is
for images.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import av
import numpy as np
from av.container import InputContainer

from data_pipeline.decode import Pixels
from data_pipeline.sample import BadSample

MAX_BYTES = 256 * 2**20
MAX_PIXELS = 8192 * 4320  # per frame
MAX_FRAMES = 36_000
MAX_SECONDS = 600

# The boxes that the top level of an mp4 file may hold.
_BOXES = (
    b"ftyp",
    b"moov",
    b"mdat",
    b"moof",
    b"free",
    b"skip",
    b"wide",
    b"sidx",
    b"styp",
    b"mfra",
    b"meta",
    b"uuid",
)
_EBML = b"\x1a\x45\xdf\xa3"  # Matroska and WebM begin with it
_SEGMENT = b"\x18\x53\x80\x67"
# PyAV raises ValueError for what FFmpeg accepts but PyAV cannot represent.
_FAILURES = (av.error.FFmpegError, ValueError)


class Clip:
    """A video that passed the limits but is not decoded yet.

    It has `frames` frames of `width` x `height` pixels.
    """

    def __init__(self, container: InputContainer) -> None:
        """Use `open_clip`."""
        stream = container.streams.best("video")
        if not isinstance(stream, av.VideoStream) or stream.codec_context is None:
            raise BadSample("undecodable", "the file holds no video that can be decoded")
        self._codec = stream.codec_context
        self.width, self.height = self._codec.width, self._codec.height
        if self.width * self.height > MAX_PIXELS:
            raise BadSample(
                "too-large",
                f"the video has {self.width} x {self.height} pixels per frame, "
                f"more than {MAX_PIXELS:,}",
            )
        # FFmpeg checks the size too, because a stream may change its size later on.
        self._codec.options = {"max_pixels": str(MAX_PIXELS)}
        self._codec.thread_count = 1  # more threads would take cores from other workers
        self._packets: list[av.Packet] = []
        for packet in container.demux(stream):
            if not packet.size:  # PyAV's sign of the end
                continue
            if packet.is_corrupt:
                raise BadSample("undecodable", "the video ends inside a frame")
            self._packets.append(packet)
            if len(self._packets) > MAX_FRAMES:
                raise BadSample("too-large", f"the video has more than {MAX_FRAMES:,} frames")
        times = [packet.pts for packet in self._packets if packet.pts is not None]
        seconds = 0.0
        if times and stream.time_base:
            seconds = float((max(times) - min(times)) * stream.time_base)
        if seconds > MAX_SECONDS:
            raise BadSample(
                "too-large", f"the video lasts {seconds:,.0f} seconds, more than {MAX_SECONDS}"
            )
        # An edit list can discard frames that others refer to: they are decoded but not shown.
        self.frames = sum(not packet.is_discard for packet in self._packets)
        if self.frames < 1 or self.width < 1 or self.height < 1:
            raise BadSample("undecodable", "the video holds no frame")

    def decode(self, chosen: Sequence[int]) -> Iterator[Pixels]:
        """Yield the frames of these numbers, which rise and may repeat. Works once.

        Frames are RGB, uint8 (height, width, 3). Raises BadSample("undecodable") when a frame
        cannot be decoded.
        """
        waiting, number = deque(chosen), -1
        try:
            for packet in [*self._packets, None]:  # None makes the codec return its last frames
                for frame in self._codec.decode(packet):
                    number += 1
                    if waiting and waiting[0] == number:
                        pixels = self._rgb(frame)
                    while waiting and waiting[0] == number:
                        waiting.popleft()
                        yield pixels
                    if not waiting:
                        return
            if 2 * (number + 1) < self.frames:
                raise BadSample(
                    "undecodable",
                    f"only {number + 1} of the video's {self.frames} frames can be decoded",
                )
            # Frames may be missing in a good video: one that was cut without re-encoding lacks what
            # its first frames refer to, and VP8 has frames that are only referred to. The last
            # frame stands for those.
            pixels = self._rgb(frame)
        except _FAILURES as error:
            raise BadSample("undecodable", f"the video cannot be decoded: {error}") from error
        for _ in waiting:
            yield pixels

    def _rgb(self, frame: av.VideoFrame) -> Pixels:
        # The size is set for streams that change theirs.
        return np.asarray(
            frame.to_ndarray(format="rgb24", width=self.width, height=self.height), dtype=np.uint8
        )


@contextmanager
def open_clip(data: bytes) -> Iterator[Clip]:
    """Open a video and check the limits.

    Raises BadSample: "too-large" above MAX_BYTES, MAX_PIXELS, MAX_FRAMES or MAX_SECONDS,
    "undecodable" if it is cut or neither mp4 nor webm.
    """
    if len(data) > MAX_BYTES:
        raise BadSample("too-large", f"the video has {len(data):,} bytes, more than {MAX_BYTES:,}")
    # The format is named, because FFmpeg would otherwise try every format it knows, and some of
    # them open other files.
    container_format = "matroska" if data.startswith(_EBML) else "mp4"
    try:
        container = av.open(
            io.BytesIO(data), "r", format=container_format, metadata_errors="ignore"
        )
    except _FAILURES as error:
        raise BadSample(
            "undecodable", f"not an mp4 or webm video, or a cut one ({len(data):,} bytes)"
        ) from error
    with container:
        # FFmpeg plays a cut file up to the cut, so the announced size is compared here.
        is_matroska = container_format == "matroska"
        announced = _matroska_bytes(data) if is_matroska else _mp4_bytes(data)
        if announced > len(data):
            raise BadSample(
                "undecodable",
                f"the video is cut: {announced:,} bytes announced, {len(data):,} found",
            )
        try:
            clip = Clip(container)
        except _FAILURES as error:
            raise BadSample("undecodable", f"the video cannot be read: {error}") from error
        yield clip


def _mp4_bytes(data: bytes) -> int:
    """Return the bytes that an mp4 should have by the sizes of its boxes; 0 if it does not say.

    Source: ISO/IEC 14496-12, 4.2.
    """
    place = 0
    while data[place + 4 : place + 8] in _BOXES:  # bytes after the last box are ignored
        size = int.from_bytes(data[place : place + 4], "big")
        if size == 1:  # the size has 64 bits and follows the name
            size = int.from_bytes(data[place + 8 : place + 16], "big")
        if size < 8:  # 0 means "up to the end of the file"
            return 0
        place += size
    return place


def _matroska_bytes(data: bytes) -> int:
    """Return the bytes that a Matroska file should have by its segment; 0 if it does not say.

    Source: RFC 8794.
    """
    start = data.find(_SEGMENT, 0, 4096) + len(_SEGMENT)
    if start < len(_SEGMENT) or start >= len(data) or not data[start]:
        return 0
    # The number of leading zero bits says how many bytes the number has; 7 bits of each count, and
    # all of them set means an unknown size.
    length = 9 - data[start].bit_length()
    unknown = (1 << 7 * length) - 1
    size = int.from_bytes(data[start : start + length], "big") & unknown
    return 0 if size == unknown else start + length + size
