"""Frames of a generated clip to mp4 bytes (H.264), equal for equal frames.

In: RGB frames. Out: the bytes of the file. Only video data sets import this, because it loads
FFmpeg.
"""

from __future__ import annotations

import io

import av
import cv2
import numpy as np


def encode_clip(frames: np.ndarray, *, frames_per_second: int, crf: int) -> bytes:
    """Encode RGB frames with even sides, uint8 (frames, height, width, 3).

    `crf` is x264's quality; lower is better.
    """
    buffer = io.BytesIO()
    # One thread, no choices by processor and no version or time in the header, so that bytes are
    # equal everywhere.
    x264 = {"crf": str(crf), "preset": "fast", "x264-params": "threads=1:cpu-independent=1"}
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=frames_per_second, options=x264)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for pixels in frames:
            converted = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2YUV_I420)
            planes = converted.astype(np.uint8, copy=False)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
        container.mux(stream.encode())
    return buffer.getvalue()
