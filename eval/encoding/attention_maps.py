"""Where a text looks: cross-attention from its tokens to a picture's patches, and which tokens a phrase is made of.

The map of a token is what the text stream's last fusion layer gives the patches: of each patch the
largest probability over the heads, with the picture's class token left out (glscl paper,
ALIGN-BENCH). A phrase's map is the sum of its tokens'; the text's class token has the global map.
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

    `image_tokens` (pairs, 1 + patches, width) are those of square pictures, `text_mask` (pairs,
    text tokens) is 1 for real tokens.
    """
    model, device = loaded.model, loaded.device
    mask = text_mask.to(device)
    with loaded.autocast():
        text, image = (
            model.text_side(text_tokens.to(device), mask),
            model.image_side(image_tokens.to(device)),
        )
        probabilities = model.text_to_image_attention(text, mask, image)
    side = model.config.image_size // model.config.vision_config.patch_size
    return probabilities[..., 1:].amax(dim=1).unflatten(-1, (side, side)).float().cpu()


def phrase_tokens(tokenizer: Tokenizer, caption: str, phrase: str, max_length: int) -> list[int]:
    """Positions of the tokens that a phrase's first occurrence in the caption is made of, whole words only.

    Case, spacing and punctuation around the phrase do not count. None are returned where the
    caption does not hold the phrase, or is cut to `max_length` tokens before the phrase ends.
    """
    found = find_phrase(caption, phrase)
    if found is None:
        return []
    offsets = tokenizer.offsets(caption, max_length)
    if max(end for _, end in offsets) < found.end():
        return []
    return [
        n
        for n, (start, end) in enumerate(offsets)
        if max(start, found.start()) < min(end, found.end())
    ]


def find_phrase(caption: str, phrase: str) -> re.Match[str] | None:
    """First occurrence of a phrase as whole words; case, spacing and punctuation around it do not count."""
    words = phrase.strip(string.punctuation + string.whitespace).split()
    if not words:
        return None
    pattern = r"(?<!\w)" + r"\s+".join(map(re.escape, words)) + r"(?!\w)"
    return re.search(pattern, caption, re.IGNORECASE)
