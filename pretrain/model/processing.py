"""Image processor and tokenizer as one object, saved beside the model."""

from __future__ import annotations

from typing import Any

from transformers import CLIPImageProcessorPil, PreTrainedTokenizerBase, ProcessorMixin

from .configuration import GLSCLConfig


class GLSCLProcessor(ProcessorMixin):
    """Prepares pairs for `GLSCLModel`: normalized pixels, resized without crop, and token ids."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, **kwargs: Any):
        super().__init__(image_processor, tokenizer, **kwargs)

    @classmethod
    def build(cls, config: GLSCLConfig, tokenizer: PreTrainedTokenizerBase) -> GLSCLProcessor:
        """Make the processor of a model with this configuration and tokenizer."""
        side = config.image_size
        image_processor = CLIPImageProcessorPil(
            size={"height": side, "width": side},
            do_center_crop=False,
            image_mean=list(config.image_mean),
            image_std=list(config.image_std),
        )
        return cls(image_processor, tokenizer)
