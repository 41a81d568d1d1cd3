"""Encoded image or video to square uint8 pixels: a random crop for training, all of it otherwise.

In: a sample's bytes and an array to write to. The crop is chosen before decoding, from the width
and height in the header, by a generator that belongs to the sample alone. All frames of a clip get
the same crop. Evaluation squashes the whole image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from PIL import Image

from data_pipeline.decode import Pixels, decode, open_image
from data_pipeline.errors import UsageError
from data_pipeline.frames import random_frames, uniform_frames
from data_pipeline.sample import BadSample, Sample

ATTEMPTS = 10  # at a random crop, as in RandomResizedCrop
# Up to this reduction two neighboring pixels are enough; above it INTER_LINEAR skips pixels and
# aliases.
LINEAR_REDUCTION = 1.3
# A short Gaussian cannot smooth for a larger reduction. Averaging can, but it is slower.
LARGEST_SMOOTHED = 3.0


@dataclass(frozen=True)
class AugmentConfig:
    """The random crop: its share of the area, its aspect ratio, and whether half are mirrored.

    Mirroring is off by default, because captions say left and right.
    """

    scale: tuple[float, float] = (0.8, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = False

    def __post_init__(self) -> None:
        """Raise UsageError for an impossible range."""
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UsageError(f"augment.scale must rise within 0 .. 1, not {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise UsageError(f"augment.ratio must rise and be positive, not {self.ratio}")


@dataclass(frozen=True)
class Box:
    """A crop in pixels of the stored image."""

    left: int
    top: int
    width: int
    height: int


def write_training_view(
    data: bytes, random: np.random.Generator, config: AugmentConfig, out: Pixels
) -> None:
    """Write a random crop of an encoded image, resized, to `out`, uint8 (size, size, 3).

    Raises BadSample if the image is too large or cannot be decoded.
    """
    encoded = open_image(data)
    box = random_box(random, encoded.width, encoded.height, config)
    mirrored = config.flip and random.random() < 0.5
    # Decoding at half size is faster, and loses nothing if the crop is reduced further anyway.
    halve = encoded.turbo and min(box.width, box.height) >= 2 * len(out)
    pixels = decode(encoded, halve=halve)
    # Look at the size, because a JPEG that only Pillow reads comes in full even so.
    factor = 2 if pixels.shape[0] < encoded.height else 1
    top, left = box.top // factor, box.left // factor
    crop = pixels[top : top + box.height // factor, left : left + box.width // factor]
    resize_into(crop, out)
    if mirrored:
        # A copy, because source and target are the same memory.
        out[:] = out[:, ::-1].copy()


def write_training_clip(
    data: bytes, random: np.random.Generator, config: AugmentConfig, out: Pixels
) -> None:
    """Write a random crop of an encoded video to `out`, uint8 (F, size, size, 3).

    The frames come from F equal segments, one from each. Raises BadSample if the video is too large
    or cannot be decoded.
    """
    from data_pipeline.decode_video import open_clip  # loads FFmpeg, which images do not need

    with open_clip(data) as clip:
        box = random_box(random, clip.width, clip.height, config)
        mirrored = config.flip and random.random() < 0.5
        rows, columns = slice(box.top, box.top + box.height), slice(box.left, box.left + box.width)
        frames = clip.decode(random_frames(random, clip.frames, len(out)))
        for view, pixels in zip(out, frames, strict=True):
            resize_into(pixels[rows, columns], view)
    if mirrored:
        out[:] = out[:, :, ::-1].copy()


def write_training_pixels(
    sample: Sample, random: np.random.Generator, config: AugmentConfig, out: Pixels
) -> None:
    """Write a sample for training.

    `out` is (size, size, 3) for an image, (2, ...) for a pair and (F, ...) for a clip. Each image
    of a pair gets its own crop. Raises BadSample as the functions for one image and one video do.
    """
    if out.ndim == 3:
        write_training_view(sample.media, random, config, out)
    elif sample.second is None:
        write_training_clip(sample.media, random, config, out)
    else:
        for data, view in zip((sample.media, sample.second), out, strict=True):
            write_training_view(data, random, config, view)


def write_evaluation_pixels(sample: Sample, out: Pixels, *, boxes: bool = False) -> None:
    """Write a sample for evaluation, with the shapes and errors of `write_training_pixels`.

    With `boxes` an image whose annotations have a "box" is cropped to it.
    """
    if out.ndim == 3:
        write_evaluation_view(sample.media, out, sample.annotations.get("box") if boxes else None)
    elif sample.second is None:
        write_evaluation_clip(sample.media, out)
    else:
        for data, view in zip((sample.media, sample.second), out, strict=True):
            write_evaluation_view(data, view)


def write_evaluation_view(data: bytes, out: Pixels, box: Any = None) -> None:
    """Write the whole image, squashed to `out`, uint8 (size, size, 3), with bicubic interpolation.

    Pillow resizes, as in transformers' CLIPImageProcessor, so exported processors give the same
    pixels. With a box, only its inside is written. Raises BadSample if the image is too large or
    cannot be decoded, or if the box is bad.
    """
    pixels = decode(open_image(data))
    if box is not None:
        pixels = cropped(pixels, box)
    _squash_into(pixels, out)


def cropped(pixels: Pixels, box: Any) -> Pixels:
    """Cut out a box of a sample's annotations: [x1, y1, x2, y2] in pixels.

    It is rounded, and clipped to the image. Raises BadSample if it is not a box or contains nothing
    of the image.
    """
    numbers = box if isinstance(box, list) and len(box) == 4 else []
    finite = [type(side) in (int, float) and math.isfinite(side) for side in numbers]
    if not numbers or not all(finite):
        raise BadSample("bad-json", f'"box" must be [x1, y1, x2, y2] in pixels, not {box!r}')
    left, top, right, bottom = (max(round(side), 0) for side in numbers)
    inside = pixels[top:bottom, left:right]
    if not inside.size:
        high, wide = pixels.shape[:2]
        raise BadSample(
            "bad-json", f"the box {box} contains no pixel of the image, which has {wide} x {high}"
        )
    return inside


def write_evaluation_clip(data: bytes, out: Pixels) -> None:
    """Write F evenly spaced frames, squashed like images, to `out`, uint8 (F, size, size, 3).

    The first and the last frame are among them. Raises BadSample if the video is too large or
    cannot be decoded.
    """
    from data_pipeline.decode_video import open_clip  # loads FFmpeg, which images do not need

    with open_clip(data) as clip:
        frames = clip.decode(uniform_frames(clip.frames, len(out)))
        for view, pixels in zip(out, frames, strict=True):
            _squash_into(pixels, view)


def random_box(random: np.random.Generator, width: int, height: int, config: AugmentConfig) -> Box:
    """Choose a crop as RandomResizedCrop does (Szegedy et al., 2015).

    Area and log ratio are uniform. After 10 attempts that do not fit, it is the largest crop in the
    middle whose ratio is allowed.
    """
    lowest, highest = (math.log(ratio) for ratio in config.ratio)
    smallest, largest = config.scale
    for _ in range(ATTEMPTS):
        for_area, for_ratio, for_left, for_top = random.random(4).tolist()
        area = width * height * (smallest + for_area * (largest - smallest))
        ratio = math.exp(lowest + for_ratio * (highest - lowest))
        box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            left = int(for_left * (width - box_width + 1))
            top = int(for_top * (height - box_height + 1))
            return Box(left, top, box_width, box_height)
    box_width = min(width, max(1, round(height * config.ratio[1])))
    box_height = min(height, max(1, round(width / config.ratio[0])))
    return Box((width - box_width) // 2, (height - box_height) // 2, box_width, box_height)


def resize_into(pixels: Pixels, out: Pixels) -> None:
    """Resize without aliasing; writes to `out` in place.

    Linear interpolation is enough for nearly the same size. Up to LARGEST_SMOOTHED the image is
    first smoothed by a Gaussian with the variance that the usual antialiased interpolation adds.
    """
    # Smoothing first agrees with torch's antialiased result to 50 dB, in a third of the time that
    # INTER_AREA takes.
    if pixels.shape == out.shape:
        out[:] = pixels
        return
    high, wide = pixels.shape[0] / out.shape[0], pixels.shape[1] / out.shape[1]
    reduction, interpolation = max(high, wide), cv2.INTER_LINEAR
    if reduction > LARGEST_SMOOTHED:
        interpolation = cv2.INTER_AREA
    elif reduction > LINEAR_REDUCTION:
        taps = 3 if reduction <= 2 else 5
        smoothed = np.empty_like(pixels)
        cv2.GaussianBlur(
            pixels, (taps, taps), _smoothing(wide), dst=smoothed, sigmaY=_smoothing(high)
        )
        pixels = smoothed
    cv2.resize(pixels, (out.shape[1], out.shape[0]), dst=out, interpolation=interpolation)


def _squash_into(pixels: Pixels, out: Pixels) -> None:
    if pixels.shape != out.shape:
        size = (out.shape[1], out.shape[0])
        pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
    out[:] = pixels


def _smoothing(reduction: float) -> float:
    # A triangle as wide as the reduction has the variance reduction^2 / 6, and interpolation itself
    # gives 1 / 6 of it. The minimum is for sides that do not shrink: OpenCV takes 0 as "choose".
    return math.sqrt(max(reduction**2 - 1, 1e-4) / 6)
