"""Show where a caption, or a word of it, looks in an image.

In: an image file, a caption and a model. Out: a PNG with the image, and the map of attention over
it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image

from data_pipeline.augment import write_evaluation_view
from data_pipeline.decode import Pixels, decode, open_image
from data_pipeline.errors import DataError, NumericsError, UsageError
from data_pipeline.sample import BadSample
from eval.encoding.attention_maps import CLASS_TOKEN, attention_maps, find_phrase, phrase_tokens
from eval.encoding.features import LoadedModel, encode_texts, load
from eval.metrics.grounding import Array

from .overlays import COLORS, overlay

WIDTH = 5.0  # inches of the image in the figure, at DPI
DPI = 120
LARGEST = 1200  # pixels of a side that are drawn
FLATTEST, TALLEST = 0.2, 3.0  # height over width of an image in the figure


@dataclass(frozen=True)
class Explanation:
    """A map (rows, columns) and its PNG; the map of a word is the sum of its tokens' maps."""

    out: Path
    caption: str
    word: str | None
    heat: Array

    @property
    def peak(self) -> tuple[int, int]:
        """Row and column of the highest cell."""
        row, column = np.unravel_index(self.heat.argmax(), self.heat.shape)
        return int(row), int(column)


def explain(
    image: Path | str, caption: str, model: Path | str, out: Path | str, *, word: str | None = None
) -> Explanation:
    """Draw where a caption, or a word or phrase of it, looks, into the PNG file ``out``.

    Raises
    ------
    UsageError
        If the caption is empty, or does not contain the word: the message lists its words.
    DataError
        If the image cannot be read.
    NumericsError
        If attention is not finite.
    """
    caption = caption.strip()
    if not caption:
        raise UsageError("the caption is empty: describe the image")
    if word is not None and find_phrase(caption, word) is None:
        raise UsageError(f"the caption has no {word!r}; its words are: {' '.join(caption.split())}")
    pixels, file = _read(Path(image))
    loaded = load(model)
    heat = map_of(loaded, file, caption, word)
    _draw(pixels, heat, caption, word, Path(out))
    return Explanation(Path(out), caption, word, heat)


@torch.inference_mode()
def map_of(loaded: LoadedModel, image_file: bytes, caption: str, word: str | None) -> Array:
    """Return the map (rows, columns) of a caption, or of words in it, over an image.

    ``image_file`` is the content of a JPEG, PNG or WebP file.
    """
    model, longest = loaded.model, loaded.model.config.max_text_length
    tokens = [CLASS_TOKEN]
    if word is not None:
        tokens = phrase_tokens(loaded.tokenizer, caption, word, longest)
    if not tokens:
        raise UsageError(
            f"the model reads only {longest} tokens of the caption, and {word!r} comes later: "
            "shorten the caption"
        )
    # The model sees the whole image squashed to a square, so the map covers all of it.
    squashed = np.empty((model.config.image_size, model.config.image_size, 3), dtype=np.uint8)
    write_evaluation_view(image_file, squashed)
    batch = torch.from_numpy(squashed)[None].to(loaded.device)
    with loaded.autocast():
        image = model.encode_image(model.normalize(batch))
    texts = encode_texts(loaded, [caption])
    [maps] = attention_maps(loaded, image, texts.tokens, texts.mask)
    heat: Array = maps[tokens].sum(dim=0).double().numpy()
    if not np.isfinite(heat).all():
        raise NumericsError("attention is not finite: the model's weights are broken")
    return heat


def _read(path: Path) -> tuple[Pixels, bytes]:
    try:
        file = path.read_bytes()
        return decode(open_image(file)), file
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except BadSample as error:
        raise DataError(f"{path}: {error}") from None


def _draw(pixels: Pixels, heat: Array, caption: str, word: str | None, out: Path) -> None:
    image = Image.fromarray(pixels)
    image.thumbnail((LARGEST, LARGEST), Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    # A panorama or a strip must not make the figure too flat for its title, or endless.
    height = WIDTH * min(max(pixels.shape[0] / pixels.shape[1], FLATTEST), TALLEST)
    figure = Figure(figsize=(2 * WIDTH + 1, height + 1), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.imshow(pixels)
    right.imshow(overlay(pixels, heat))
    for axes in (left, right):
        axes.set_axis_off()
    scale = ScalarMappable(Normalize(0, float(heat.max())), COLORS)
    bar = figure.colorbar(scale, ax=right, shrink=0.9)
    bar.set_label("attention of a patch")
    source = "the whole caption" if word is None else f"“{word}”"
    title = f"“{caption}”\nwhere {source} looks"
    # Text between two dollar signs would be read as a formula.
    figure.suptitle(title.replace("$", r"\$"), wrap=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.set_canvas(FigureCanvasAgg(figure))
    figure.savefig(out, format="png", dpi=DPI)
