"""Clip bytes (mp4, webm) -> RGB frames, with limits that are checked before anything is decoded.

FFmpeg (PyAV) reads the container and decodes from the first frame to the last that is wanted: to
seek to each frame costs more wherever key frames are far apart. A stored rotation is ignored, as it
is for images.
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
MAX_PIXELS = 8192 * 4320  # of a frame
MAX_FRAMES = 36_000
MAX_SECONDS = 600

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
# PyAV raises ValueError for what FFmpeg did not refuse but it cannot represent.
_FAILURES = (av.error.FFmpegError, ValueError)


class Clip:
    """A clip that passed the limits but is not decoded yet: so many frames of width x height pixels."""

    def __init__(self, container: InputContainer) -> None:
        """Use `open_clip`."""
        stream = container.streams.best("video")
        if not isinstance(stream, av.VideoStream) or stream.codec_context is None:
            raise BadSample("undecodable", "the clip holds no video that can be decoded")
        self._codec = stream.codec_context
        self.width, self.height = self._codec.width, self._codec.height
        if self.width * self.height > MAX_PIXELS:
            raise BadSample(
                "too-large",
                f"the clip has {self.width} x {self.height} pixels a frame, more than {MAX_PIXELS:,}",
            )
        # A stream may change its size later on; threads would only take cores from other workers.
        self._codec.options = {"max_pixels": str(MAX_PIXELS)}
        self._codec.thread_count = 1
        self._packets: list[av.Packet] = []
        for packet in container.demux(stream):
            if not packet.size:  # PyAV's sign of the end
                continue
            if packet.is_corrupt:
                raise BadSample("undecodable", "the clip ends inside a frame")
            self._packets.append(packet)
            if len(self._packets) > MAX_FRAMES:
                raise BadSample("too-large", f"the clip has more than {MAX_FRAMES:,} frames")
        times = [packet.pts for packet in self._packets if packet.pts is not None]
        seconds = (
            float((max(times) - min(times)) * stream.time_base)
            if times and stream.time_base
            else 0.0
        )
        if seconds > MAX_SECONDS:
            raise BadSample(
                "too-large", f"the clip lasts {seconds:,.0f} seconds, more than {MAX_SECONDS}"
            )
        # An edit list leaves out frames that others need.
        self.frames = sum(not packet.is_discard for packet in self._packets)
        if self.frames < 1 or self.width < 1 or self.height < 1:
            raise BadSample("undecodable", "the clip holds no frame")

    def decode(self, chosen: Sequence[int]) -> Iterator[Pixels]:
        """Yield the frames of some numbers, which rise and may repeat: RGB, uint8 (height, width, 3). Works once.

        Raises BadSample("undecodable") when a frame cannot be decoded.
        """
        waiting, number = deque(chosen), -1
        try:
            for packet in [*self._packets, None]:
                for frame in self._codec.decode(packet):
                    number += 1
                    pixels = self._rgb(frame) if waiting and waiting[0] == number else None
                    while pixels is not None and waiting and waiting[0] == number:
                        waiting.popleft()
                        yield pixels
                    if not waiting:
                        return
            if 2 * (number + 1) < self.frames:
                raise BadSample(
                    "undecodable", f"{number + 1} of the clip's {self.frames} frames can be decoded"
                )
            # A clip that was cut without encoding it again may lack what its first frames refer to,
            # and VP8 has frames that are only referred to: the last frame stands for those that do
            # not come.
            pixels = self._rgb(frame)
        except _FAILURES as error:
            raise BadSample("undecodable", f"the clip cannot be decoded: {error}") from error
        for _ in waiting:
            yield pixels

    def _rgb(self, frame: av.VideoFrame) -> Pixels:
        # The size is given for streams that change theirs.
        return np.asarray(
            frame.to_ndarray(format="rgb24", width=self.width, height=self.height), dtype=np.uint8
        )


@contextmanager
def open_clip(data: bytes) -> Iterator[Clip]:
    """Open a clip and check the limits.

    Raises BadSample: "too-large" above MAX_BYTES, MAX_PIXELS, MAX_FRAMES or MAX_SECONDS,
    "undecodable" when it is cut or no mp4 or webm at all.
    """
    if len(data) > MAX_BYTES:
        raise BadSample("too-large", f"the clip has {len(data):,} bytes, more than {MAX_BYTES:,}")
    # Named, because FFmpeg would otherwise try every format it knows, some of which open other
    # files.
    container_format = "matroska" if data.startswith(_EBML) else "mp4"
    try:
        container = av.open(
            io.BytesIO(data), "r", format=container_format, metadata_errors="ignore"
        )
    except _FAILURES as error:
        raise BadSample(
            "undecodable", f"not an mp4 or webm clip, or a cut one ({len(data):,} bytes)"
        ) from error
    with container:
        announced = (_matroska_bytes if container_format == "matroska" else _mp4_bytes)(data)
        if announced > len(data):
            raise BadSample(
                "undecodable",
                f"the clip is cut: {announced:,} bytes announced, {len(data):,} found",
            )
        try:
            clip = Clip(container)
        except _FAILURES as error:
            raise BadSample("undecodable", f"the clip cannot be read: {error}") from error
        yield clip


def _mp4_bytes(data: bytes) -> int:
    """Bytes that an mp4 should have by the sizes of its boxes (ISO/IEC 14496-12, 4.2); 0 where none is said."""
    place = 0
    while data[place + 4 : place + 8] in _BOXES:  # what follows the last box is forgiven
        size = int.from_bytes(data[place : place + 4], "big")
        if size == 1:  # a large box
            size = int.from_bytes(data[place + 8 : place + 16], "big")
        if size < 8:  # 0: up to the end
            return 0
        place += size
    return place


def _matroska_bytes(data: bytes) -> int:
    """Bytes that a Matroska file should have by the size of its segment (RFC 8794); 0 where none is said."""
    start = data.find(_SEGMENT, 0, 4096) + len(_SEGMENT)
    if start < len(_SEGMENT) or start >= len(data) or not data[start]:
        return 0
    length = 9 - data[start].bit_length()
    size = int.from_bytes(data[start : start + length], "big") & ((1 << 7 * length) - 1)
    return 0 if size == (1 << 7 * length) - 1 else start + length + size
