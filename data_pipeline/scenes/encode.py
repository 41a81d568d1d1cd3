"""Frames of a generated clip to mp4 bytes (H.264), equal for equal frames."""

from __future__ import annotations

import io

import av
import cv2
import numpy as np


def encode_clip(frames: np.ndarray, *, frames_per_second: int, crf: int) -> bytes:
    """Encode frames, uint8 (frames, height, width, 3) RGB with even sides; `crf` is x264's quality (less is better)."""
    buffer = io.BytesIO()
    # One thread and no choices by processor; no version or time in the header.
    x264 = {"crf": str(crf), "preset": "fast", "x264-params": "threads=1:cpu-independent=1"}
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=frames_per_second, options=x264)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for pixels in frames:
            planes = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2YUV_I420).astype(
                np.uint8, copy=False
            )
            container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
        container.mux(stream.encode())
    return buffer.getvalue()
