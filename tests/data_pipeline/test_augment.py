"""Views: the random crop depends on the sample's generator alone, evaluation resizes as Pillow."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_pipeline.augment import (
    AugmentConfig,
    random_box,
    resize_into,
    write_evaluation_view,
    write_training_view,
)
from data_pipeline.errors import UsageError

WHOLE = AugmentConfig(scale=(1.0, 1.0), ratio=(4 / 3, 4 / 3))


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))


def image(width: int, height: int) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return buffer.getvalue()


def view(data: bytes, size: int, config: AugmentConfig, seed: int = 0) -> np.ndarray:
    out = np.zeros((size, size, 3), dtype=np.uint8)
    write_training_view(data, generator(seed), config, out)
    return out


@given(width=st.integers(1, 700), height=st.integers(1, 700), seed=st.integers(0, 99))
def test_a_crop_lies_inside_the_image(width, height, seed):
    box = random_box(generator(seed), width, height, AugmentConfig(scale=(0.1, 1.0)))
    assert 0 <= box.left <= box.left + box.width <= width and box.width > 0
    assert 0 <= box.top <= box.top + box.height <= height and box.height > 0


def test_crops_have_the_configured_areas_and_ratios():
    random = generator()
    boxes = [random_box(random, 640, 480, AugmentConfig(scale=(0.3, 0.8))) for _ in range(500)]
    areas = [box.width * box.height / (640 * 480) for box in boxes]
    ratios = [box.width / box.height for box in boxes]
    assert 0.29 < min(areas) < 0.35 and 0.75 < max(areas) < 0.81
    assert 0.74 < min(ratios) < 0.8 and 1.25 < max(ratios) < 1.35


def test_a_view_depends_on_the_generator_alone():
    data = encoded(image(64, 48))
    assert (view(data, 32, AugmentConfig()) == view(data, 32, AugmentConfig())).all()
    assert (view(data, 32, AugmentConfig()) != view(data, 32, AugmentConfig(), seed=1)).any()


@pytest.mark.parametrize(
    ("width", "height"), [(64, 48), (80, 60), (128, 96), (400, 300), (640, 480)]
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_the_view_of_the_whole_image_looks_like_the_image(width, height, kind):
    whole = image(width, height)
    reference = np.asarray(whole.resize((64, 64), Image.Resampling.BILINEAR))
    assert np.abs(view(encoded(whole, kind), 64, WHOLE).astype(int) - reference).mean() < 4


@pytest.mark.parametrize(("side", "contrast"), [(112, 50), (150, 25), (256, 1)])
def test_a_shrunk_view_does_not_alias(side, contrast):
    """Stripes finer than a pixel become gray; interpolation alone leaves a contrast of 120."""
    stripes = np.zeros((side, side, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    square = AugmentConfig(scale=(1.0, 1.0), ratio=(1.0, 1.0))
    shown = view(encoded(Image.fromarray(stripes)), 64, square).astype(int)
    assert np.abs(shown[:, 1:-1] - 127).max() <= contrast


@pytest.mark.parametrize(("width", "height"), [(100, 60), (110, 100), (150, 120), (180, 100)])
def test_a_shrunk_view_is_close_to_antialiased_interpolation(width, height):
    pixels = np.asarray(image(width, height))
    out = np.zeros((64, 64, 3), dtype=np.uint8)
    resize_into(pixels, out)
    channels_first = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float()
    exact = torch.nn.functional.interpolate(
        channels_first, (64, 64), mode="bilinear", antialias=True
    )
    assert np.abs(out - exact[0].permute(1, 2, 0).numpy()).mean() < 1.5


def test_half_of_the_views_are_mirrored_with_flip():
    data = encoded(image(64, 48))
    mirrored = []
    for seed in range(40):
        mirrored.append(
            (
                view(data, 32, AugmentConfig((1.0, 1.0), (4 / 3, 4 / 3), flip=True), seed)
                == view(data, 32, WHOLE)[:, ::-1]
            ).all()
        )
    assert 8 < sum(mirrored) < 32


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_the_evaluation_view_is_pillows_bicubic_squash(kind):
    data = encoded(image(123, 77), kind)
    out = np.zeros((48, 48, 3), dtype=np.uint8)
    write_evaluation_view(data, out)
    reference = (
        Image.open(io.BytesIO(data)).convert("RGB").resize((48, 48), Image.Resampling.BICUBIC)
    )
    assert np.abs(out.astype(int) - np.asarray(reference)).max() <= (0 if kind == "PNG" else 2)


def test_impossible_ranges_are_refused():
    with pytest.raises(UsageError, match="augment.scale"):
        AugmentConfig(scale=(0.5, 1.5))
    with pytest.raises(UsageError, match="augment.ratio"):
        AugmentConfig(ratio=(2.0, 1.0))
