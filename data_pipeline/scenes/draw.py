"""A scene graph to pixels: background, shadows, anti-aliased objects, light, blur and noise.

In: the scene of `graph.py`. Out: uint8 RGB pixels (height, width, 3). Everything random is in the
scene, so the same scene gives the same pixels again.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import cv2
import numpy as np

from data_pipeline.randomness import generator_at
from data_pipeline.scenes.motion import still_at

_FINE = 4  # subpixels per pixel side in an object's mask

Silhouette = tuple[tuple[slice, slice], np.ndarray, np.ndarray]
"""Window, covered share and dark share of an object; see `silhouette`."""


def draw(scene: dict[str, Any], silhouettes: list[Silhouette] | None = None) -> np.ndarray:
    """Return the RGB pixels of a scene, uint8 (size, size, 3).

    `silhouettes` are those of its objects, if the caller has them already.
    """
    return _exposed(scene, *_surroundings(scene), silhouettes)


def silhouettes_of(scene: dict[str, Any]) -> list[Silhouette]:
    """Return the silhouettes of a scene's objects in their order; they never overlap."""
    return [silhouette(item, scene["size"]) for item in scene["objects"]]


def mask_of(shown: Silhouette, size: int) -> np.ndarray:
    """Return the pixels that an object covers by half or more, bool (size, size)."""
    window, alpha, _ = shown
    mask = np.zeros((size, size), dtype=bool)
    mask[window] = alpha >= 0.5
    return mask


def draw_clip(scene: dict[str, Any]) -> np.ndarray:
    """Return the RGB pixels of a clip's frames, uint8 (frames, size, size, 3).

    Background, light and noise are the same in every frame.
    """
    surroundings = _surroundings(scene)
    frames = []
    for frame in range(scene["frames"]):
        frames.append(_exposed(still_at(scene, frame), *surroundings))
    return np.stack(frames)


def _surroundings(scene: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return background and sensor noise, all that is drawn at random, float32 (size, size, 3)."""
    rng = generator_at(scene["background"]["seed"])
    background = _background(rng, scene["background"], scene["size"])
    noise = rng.standard_normal(background.shape, dtype=np.float32)
    return background, scene["camera"]["noise"] * noise


def _exposed(
    scene: dict[str, Any],
    background: np.ndarray,
    noise: np.ndarray,
    silhouettes: list[Silhouette] | None = None,
) -> np.ndarray:
    size = scene["size"]
    pixels = background.copy()
    silhouettes = silhouettes_of(scene) if silhouettes is None else silhouettes
    _cast_shadows(pixels, silhouettes, scene["light"])
    for item, (window, alpha, dark) in zip(scene["objects"], silhouettes, strict=True):
        rgb = np.array(item["rgb"], np.float32)
        paint = rgb * (1 - 0.7 * dark[..., None])
        pixels[window] += alpha[..., None] * (paint - pixels[window])
    pixels *= (1 + 0.08 * _ramp(size, scene["light"]["angle"]))[..., None]
    pixels = cv2.GaussianBlur(pixels, (0, 0), scene["camera"]["blur"]) + noise
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def silhouette(item: dict[str, Any], size: int) -> Silhouette:
    """Return where an object covers the image.

    These are the (rows, columns) of its window, and in that window the covered share of each pixel
    and the share of dark stripe in it, float32 in 0..1.
    """
    reach = item["extent"] / 2 + 1
    left, top = max(math.floor(item["x"] - reach), 0), max(math.floor(item["y"] - reach), 0)
    right, bottom = min(math.ceil(item["x"] + reach), size), min(math.ceil(item["y"] + reach), size)
    width, height = right - left, bottom - top
    center = (item["x"] - left, item["y"] - top)
    points = _outline(item["shape"], item["rotation"]) * item["extent"] + center
    fixed = np.rint(points * _FINE * 16).astype(np.int32)  # cv2 takes 4 fractional bits
    mask = np.zeros((height * _FINE, width * _FINE), np.uint8)
    cv2.fillPoly(mask, [fixed], 255, cv2.LINE_8, shift=4)
    if item["fill"] == "hollow":
        stroke = max(0.11 * item["extent"], size / 48)
        line = np.zeros_like(mask)
        cv2.polylines(line, [fixed], True, 255, round(2 * stroke * _FINE), cv2.LINE_8, shift=4)
        # Only the inner half of the line, so that hollow objects are as large as solid ones.
        mask &= line
    alpha = cv2.resize(mask, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    if item["fill"] != "striped":
        return (slice(top, bottom), slice(left, right)), alpha, np.zeros_like(alpha)
    angle, period = math.radians(item["stripe_angle"]), max(0.25 * item["extent"], size / 16)
    along_x = np.arange(width * _FINE, dtype=np.float32) / _FINE * (math.cos(angle) / period)
    along_y = np.arange(height * _FINE, dtype=np.float32) / _FINE * (math.sin(angle) / period)
    dark = (np.add.outer(along_y, along_x) % 1 < 0.45).astype(np.float32)
    dark = cv2.resize(dark, (width, height), interpolation=cv2.INTER_AREA)
    return (slice(top, bottom), slice(left, right)), alpha, dark


def _outline(shape: str, rotation: float) -> np.ndarray:
    """Return the corners of a shape turned by `rotation` degrees.

    Its box is centered at 0, and its longest side is 1.
    """
    angle = math.radians(rotation)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    points = _corners(shape) @ turn
    low, high = points.min(0), points.max(0)
    return (points - (low + high) / 2) / (high - low).max()


@cache
def _corners(shape: str) -> np.ndarray:
    """Return the corners of an upright shape in any units, y downwards."""
    turn = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    circle = np.stack([np.sin(turn), -np.cos(turn)], 1)
    if shape == "circle":
        return circle
    if shape == "star":
        tips = np.arange(10)
        radius = np.where(tips % 2, 0.42, 1.0)
        directions = np.stack([np.sin(tips * np.pi / 5), -np.cos(tips * np.pi / 5)], 1)
        return radius[:, None] * directions
    if shape == "heart":
        x = 16 * np.sin(turn) ** 3
        y = 13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)
        return np.stack([x, -y], 1)
    if shape == "moon":
        # The outer arc leaves out the mouth at the right; the inner arc returns between the same
        # two tips.
        outer = np.linspace(0.25 * np.pi, 1.75 * np.pi, 36)
        tip = np.array([math.cos(0.25 * np.pi), math.sin(0.25 * np.pi)])
        center = np.array([0.62, 0.0])
        reach = np.hypot(*(tip - center))
        start = math.atan2(*(tip - center)[::-1])
        inner = np.linspace(2 * np.pi - start, start, 28)
        outer_arc = np.stack([np.cos(outer), np.sin(outer)], 1)
        inner_arc = center + reach * np.stack([np.cos(inner), np.sin(inner)], 1)
        return np.concatenate([outer_arc, inner_arc])
    polygons = {
        "square": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
        "triangle": [(0, -1), (1.1, 0.9), (-1.1, 0.9)],
        "diamond": [(0, -1), (0.68, 0), (0, 1), (-0.68, 0)],
        "cross": [
            *[(-0.36, -1), (0.36, -1), (0.36, -0.36), (1, -0.36), (1, 0.36), (0.36, 0.36)],
            *[(0.36, 1), (-0.36, 1), (-0.36, 0.36), (-1, 0.36), (-1, -0.36), (-0.36, -0.36)],
        ],
        "arrow": [(0, -1), (0.9, 0), (0.4, 0), (0.4, 1), (-0.4, 1), (-0.4, 0), (-0.9, 0)],
    }
    return np.array(polygons[shape], np.float64)


def _background(rng: np.random.Generator, look: dict[str, Any], size: int) -> np.ndarray:
    """Mix two colors by a gradient and by value noise, whose octaves fall off with `roughness`."""
    noise: np.ndarray = np.zeros((size, size), np.float32)
    weight, total = 1.0, 0.0
    for cells in (3, 6, 12, 24, 48):
        grid = rng.standard_normal((cells, cells), dtype=np.float32)
        noise += weight * cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)
        total += weight**2
        weight *= look["roughness"]
    mix = 0.5 + 0.5 * (1 - look["texture"]) * _ramp(size, look["gradient_angle"])
    # The octaves are independent, so their variances add up to `total`.
    mix += 0.5 * look["texture"] * noise / math.sqrt(total)
    first, second = np.array(look["rgb"], np.float32)
    pixels = first + mix[..., None] * (second - first)
    return pixels + (10 * look["texture"] / math.sqrt(total)) * noise[..., None]


def _ramp(size: int, angle: float) -> np.ndarray:
    """Return a ramp over the image from about -1 to 1 along `angle` (degrees), (size, size)."""
    steps = np.linspace(-1, 1, size, dtype=np.float32)
    turn = math.radians(angle)
    return np.add.outer(steps * np.float32(math.sin(turn)), steps * np.float32(math.cos(turn)))


def _cast_shadows(pixels: np.ndarray, silhouettes: list[Silhouette], light: dict[str, Any]) -> None:
    size = len(pixels)
    shade = np.zeros((size, size), np.float32)
    for window, alpha, _ in silhouettes:
        shade[window] = np.maximum(shade[window], alpha)
    angle, distance = math.radians(light["angle"]), 0.02 * size
    # The light comes from where the ramp is bright, so shadows fall on the opposite side.
    x, y = -distance * math.cos(angle), -distance * math.sin(angle)
    shifted = cv2.warpAffine(shade, np.array([[1, 0, x], [0, 1, y]], np.float32), (size, size))
    soft = cv2.GaussianBlur(shifted, (0, 0), 0.018 * size)
    pixels *= (1 - light["shadow"] * soft)[..., None]
