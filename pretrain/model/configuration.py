"""Sizes of the GLSCL model; the defaults are those of the published ViT-B/16 model (glscl paper, section 4.1)."""

from __future__ import annotations

from typing import Any

from transformers import CLIPVisionConfig, PreTrainedConfig, RobertaConfig


class GLSCLConfig(PreTrainedConfig):
    """Everything that decides the shape of a `GLSCLModel`.

    Parameters
    ----------
    vision_config : dict or CLIPVisionConfig
        The image tower. Default: CLIP ViT-B/16 at 288 pixels with 11 blocks (the authors leave the last one out).
    text_config : dict or RobertaConfig
        The text tower. Default: RoBERTa base.
    hidden_size : int
        Width of the fusion encoder, to which both towers are projected.
    fusion_layers, fusion_heads, fusion_intermediate_size, fusion_dropout, fusion_layer_norm_eps
        The co-attention encoder, per stream.
    projection_dim : int
        Width of the contrastive features.
    max_text_length : int
        Tokens to which texts are cut, special tokens included.
    initial_temperature : float
        First value of the learnt contrastive temperature, which divides the cosine.
    image_mean, image_std : tuple of float
        Per-channel statistics of pixels in [0, 1].
    initializer_range : float
        Standard deviation of the new linear layers and embeddings.
    """

    model_type = "glscl"
    sub_configs_defaults = {"vision_config": CLIPVisionConfig, "text_config": RobertaConfig}

    vision_config: Any = None
    text_config: Any = None
    hidden_size: int = 768
    fusion_layers: int = 6
    fusion_heads: int = 12
    fusion_intermediate_size: int = 3072
    fusion_dropout: float = 0.1
    fusion_layer_norm_eps: float = 1e-12
    projection_dim: int = 512
    max_text_length: int = 50
    initial_temperature: float = 0.07
    image_mean: tuple[float, ...] | list[float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, ...] | list[float] = (0.26862954, 0.26130258, 0.27577711)
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        if self.vision_config is None:
            self.vision_config = CLIPVisionConfig(
                hidden_size=768, intermediate_size=3072, num_hidden_layers=11, patch_size=16, image_size=288
            )
        if self.text_config is None:
            self.text_config = RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1)
        super().__post_init__(**kwargs)

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        return int(self.vision_config.image_size)

    @property
    def num_patches(self) -> int:
        """Patches of one image."""
        return int(self.vision_config.image_size // self.vision_config.patch_size) ** 2
