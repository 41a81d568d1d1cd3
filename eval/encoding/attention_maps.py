"""Cross-attention maps from a text's tokens to an image's patches, and the tokens of a phrase.

In: tokens of both sides, captions and phrases. Out: one map per text token, from the last fusion
layer of the text stream: the largest attention probability over the heads for each patch, without
the image's class token (ALIGN-BENCH of the glscl paper). The map of a phrase is the sum of the maps
of its tokens; the map of the text's class token is the global map.
"""

from __future__ import annotations

import re
import string

import torch
from torch import Tensor

from data_pipeline.text import Tokenizer
from eval.encoding.features import LoadedModel

CLASS_TOKEN = 0  # its position in every text


@torch.inference_mode()
def attention_maps(
    loaded: LoadedModel, image_tokens: Tensor, text_tokens: Tensor, text_mask: Tensor
) -> Tensor:
    """Return maps (pairs, text tokens, rows, columns) on the grid of patches, float32 on the CPU.

    `image_tokens` (pairs, 1 + patches, width) must be those of square images; `text_mask` (pairs,
    text tokens) is 1 for real tokens.
    """
    model, device = loaded.model, loaded.device
    mask = text_mask.to(device)
    with loaded.autocast():
        text = model.text_side(text_tokens.to(device), mask)
        image = model.image_side(image_tokens.to(device))
        probabilities = model.text_to_image_attention(text, mask, image)
    side = model.config.image_size // model.config.vision_config.patch_size
    return probabilities[..., 1:].amax(dim=1).unflatten(-1, (side, side)).float().cpu()


def phrase_tokens(tokenizer: Tokenizer, caption: str, phrase: str, max_length: int) -> list[int]:
    """Return the positions of the tokens of a phrase's first occurrence in the caption.

    Only whole words match; case, spacing and punctuation around the phrase do not matter. The list
    is empty if the phrase is not in the caption, or the caption is cut to `max_length` tokens
    before the phrase ends.
    """
    occurrence = find_phrase(caption, phrase)
    if occurrence is None:
        return []
    offsets = tokenizer.offsets(caption, max_length)
    if max(end for _, end in offsets) < occurrence.end():
        return []
    positions = []
    for position, (start, end) in enumerate(offsets):
        # A token may begin before the phrase, with the space in front of it.
        if max(start, occurrence.start()) < min(end, occurrence.end()):
            positions.append(position)
    return positions


def find_phrase(caption: str, phrase: str) -> re.Match[str] | None:
    """Return the first occurrence of a phrase as whole words; case and spacing do not matter."""
    words = phrase.strip(string.punctuation + string.whitespace).split()
    if not words:
        return None
    pattern = r"(?<!\w)" + r"\s+".join(map(re.escape, words)) + r"(?!\w)"
    return re.search(pattern, caption, re.IGNORECASE)
