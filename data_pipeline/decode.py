"""Image bytes (JPEG, PNG, WebP) to RGB pixels, with limits that are checked before decoding.

JPEG is decoded by libjpeg-turbo. Whatever it refuses, and every other format, goes to Pillow, which
decides whether an image is readable. The EXIF orientation is ignored, as webdataset and torchvision
do: boxes refer to the pixels as stored.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from data_pipeline.sample import BadSample

MAX_PIXELS = 64_000_000
MAX_BYTES = 64 * 2**20
# A progressive JPEG of a few kB can hold thousands of scans, each as slow as a whole decode.
MAX_SCANS = 100

Pixels = NDArray[np.uint8]

_JPEG = b"\xff\xd8"
_START_OF_SCAN = b"\xff\xda"


@dataclass(frozen=True)
class Encoded:
    """An image that passed the limits but is not decoded yet; width and height are in pixels."""

    data: bytes
    width: int
    height: int
    turbo: bool  # libjpeg-turbo can decode it straight to RGB


def open_image(data: bytes) -> Encoded:
    """Read an image's header and check the limits.

    Raises BadSample: "too-large" above MAX_PIXELS, MAX_BYTES or MAX_SCANS, "undecodable" if it is
    not an image.
    """
    if len(data) > MAX_BYTES:
        raise BadSample("too-large", f"the image has {len(data):,} bytes, more than {MAX_BYTES:,}")
    encoded = _open_jpeg(data) or _open_with_pillow(data)
    if encoded.width * encoded.height > MAX_PIXELS:
        raise BadSample(
            "too-large",
            f"the image has {encoded.width} x {encoded.height} pixels, more than {MAX_PIXELS:,}",
        )
    if data.startswith(_JPEG) and data.count(_START_OF_SCAN) > MAX_SCANS:
        raise BadSample("too-large", f"the progressive JPEG has more than {MAX_SCANS} scans")
    return encoded


def decode(encoded: Encoded, *, halve: bool = False) -> Pixels:
    """Decode to RGB, uint8 (height, width, 3).

    `halve` requests half the size, rounded up, which only JPEG gives; other images come in full.
    Raises BadSample("undecodable") if Pillow cannot read the image either.
    """
    if encoded.turbo:
        try:
            if halve:
                height, width = -(-encoded.height // 2), -(-encoded.width // 2)
                return simplejpeg.decode_jpeg(
                    encoded.data, "RGB", min_height=height, min_width=width, min_factor=2
                )
            return simplejpeg.decode_jpeg(encoded.data, "RGB")
        except ValueError:
            pass  # it is strict about harmless faults, such as bytes after the end: ask Pillow
    return _decode_with_pillow(encoded.data)


def _open_jpeg(data: bytes) -> Encoded | None:
    if not data.startswith(_JPEG):
        return None
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    # It cannot convert CMYK to RGB.
    return Encoded(data, width, height, turbo=colors in ("YCbCr", "RGB", "Gray"))


def _open_with_pillow(data: bytes) -> Encoded:
    with _pillow(data) as image:
        return Encoded(data, image.width, image.height, turbo=False)


def _decode_with_pillow(data: bytes) -> Pixels:
    with _pillow(data) as image:
        try:
            return np.asarray(image.convert("RGB"))
        except Exception as error:
            # Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error and others.
            raise BadSample("undecodable", f"the image cannot be decoded: {error}") from error


def _pillow(data: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Our own limit, checked by the caller, is lower than Pillow's.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP"))
    except Image.DecompressionBombError as error:
        raise BadSample("too-large", str(error)) from error
    except Exception as error:
        raise BadSample(
            "undecodable", f"not a JPEG, PNG or WebP image ({len(data):,} bytes)"
        ) from error
