"""Decoding: formats, limits before decoding, and a second opinion before an image is called bad."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from data_pipeline import decode as decoding
from data_pipeline.decode import decode, open_image
from data_pipeline.sample import BadSample


def image(width: int = 60, height: int = 40) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    end = b"IEND"
    chunks = []
    for part in (body, end):
        chunks.append(struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    ("kind", "mode"), [("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "P"), ("WEBP", "RGB")]
)
def test_other_formats_become_rgb(kind, mode):
    data = encoded(image().convert(mode), kind, **({"lossless": True} if kind == "WEBP" else {}))
    pixels = decode(open_image(data))
    assert (pixels.shape, pixels.dtype) == ((40, 60, 3), np.uint8)
    if mode == "RGB":
        assert (pixels == np.asarray(image())).all()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpegs_of_every_kind_become_rgb(mode):
    data = encoded(image().convert(mode), "JPEG", quality=95)
    pixels = decode(open_image(data))
    reference = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert pixels.shape == (40, 60, 3)
    assert np.abs(pixels.astype(int) - reference).max() <= 2


def test_half_size_is_half_the_size():
    data = encoded(image(401, 301), "JPEG", quality=95)
    half = decode(open_image(data), halve=True)
    reference = image(401, 301).resize((201, 151), Image.Resampling.BOX)
    assert half.shape == (151, 201, 3)
    assert np.abs(half.astype(int) - np.asarray(reference)).mean() < 5


def test_a_stored_orientation_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by a quarter
    assert decode(open_image(encoded(image(), "JPEG", exif=exif))).shape == (40, 60, 3)


def test_bytes_after_the_end_are_ignored():
    assert decode(open_image(encoded(image(), "JPEG") + b"junk")).shape == (40, 60, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_cut_image_is_bad(kind):
    data = encoded(image(200, 200), kind)
    with pytest.raises(BadSample) as error:
        decode(open_image(data[: len(data) // 2]))
    assert error.value.reason == "undecodable"


@pytest.mark.parametrize(
    "data", [b"", b"not a picture", bytes(1000), b"\xff\xd8" + bytes(range(256)) * 4, b"GIF89a" * 9]
)
def test_random_bytes_are_bad(data):
    with pytest.raises(BadSample, match="not a JPEG, PNG or WebP image"):
        decode(open_image(data))


@pytest.mark.parametrize("sides", [(8001, 8000), (10_000, 10_000), (100_000, 100_000)])
def test_too_many_pixels_are_refused_before_decoding(sides):
    with pytest.raises(BadSample) as error:
        open_image(png_header(*sides))
    assert error.value.reason == "too-large"


def test_too_many_bytes_or_scans_are_refused(monkeypatch):
    data = encoded(image(), "JPEG", progressive=True)
    assert decode(open_image(data)).shape == (40, 60, 3)
    monkeypatch.setattr(decoding, "MAX_SCANS", 3)
    with pytest.raises(BadSample, match="scans"):
        open_image(data)
    monkeypatch.setattr(decoding, "MAX_BYTES", 100)
    with pytest.raises(BadSample, match="bytes"):
        open_image(data)
