"""Sizes of the GLSCL model, checked when they are set.

The defaults are those of the published ViT-B/16 model (glscl paper, section 4.1).
"""

from __future__ import annotations

from typing import Any, Literal

from transformers import AutoConfig, CLIPVisionConfig, PreTrainedConfig, RobertaConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

VISION_TOWERS = ("clip_vision_model", "siglip_vision_model")
"""`model_type` of supported image towers; the second includes SigLIP 2 of a fixed resolution."""


class GLSCLConfig(PreTrainedConfig):
    """Everything that decides the shape of a `GLSCLModel`.

    Parameters
    ----------
    vision_config : dict, CLIPVisionConfig or SiglipVisionConfig
        The image tower. Default: CLIP ViT-B/16 at 288 pixels with 11 blocks (the authors leave
        out the last one). A dict names its kind as `model_type` (`clip_vision_model`,
        `siglip_vision_model`).
    text_config : dict or PreTrainedConfig
        The text tower, any bidirectional encoder of transformers (`roberta`, `xlm-roberta`, `bert`,
        `modernbert`, ...), by its `model_type`. Default: RoBERTa base.
    max_frames : int
        Most frames of a video: rows of the temporal table. 0: the model takes images only.
    hidden_size : int
        Width of the fusion encoder, to which both towers are projected.
    fusion_layers, fusion_heads, fusion_intermediate_size, fusion_dropout, fusion_layer_norm_eps
        The co-attention encoder, per stream.
    projection_dim : int
        Width of the contrastive features.
    contrastive_head : str
        "mlp" (the authors') or "linear" (one matrix, as stock dual encoders have it).
    tie_masked_language_head : bool
        Use the word embedding as decoder of the masked-language head; the text tower must then be
        `hidden_size` wide.
    max_text_length : int
        Tokens to which texts are cut, special tokens included.
    initial_temperature : float
        First value of the learned contrastive temperature, which divides the cosine.
    image_mean, image_std : tuple of float
        Per-channel statistics of pixels in [0, 1].
    initializer_range : float
        Standard deviation of the new linear layers and embeddings.
    classifier_labels : sequence of str
        Classes of the classifier: answers, or false and true. Empty (default): no classifier.
    classifier_images : int
        Images that a text is classified with, 1 or 2. With 2 there is a third token type, for the
        second image.

    Raises
    ------
    ValueError
        For a kind of tower that this model cannot hold, or fields that do not fit together.
    """

    model_type = "glscl"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="clip_vision_model"),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="roberta"),
    }

    vision_config: Any = None
    text_config: Any = None
    max_frames: int = 0
    hidden_size: int = 768
    fusion_layers: int = 6
    fusion_heads: int = 12
    fusion_intermediate_size: int = 3072
    fusion_dropout: float = 0.1
    fusion_layer_norm_eps: float = 1e-12
    projection_dim: int = 512
    contrastive_head: Literal["mlp", "linear"] = "mlp"
    tie_masked_language_head: bool = False
    max_text_length: int = 50
    initial_temperature: float = 0.07
    image_mean: tuple[float, ...] | list[float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, ...] | list[float] = (0.26862954, 0.26130258, 0.27577711)
    initializer_range: float = 0.02
    classifier_labels: tuple[str, ...] | list[str] = ()
    classifier_images: int = 1

    def __post_init__(self, **kwargs: Any) -> None:
        if self.vision_config is None:
            self.vision_config = CLIPVisionConfig(
                hidden_size=768,
                intermediate_size=3072,
                num_hidden_layers=11,
                patch_size=16,
                image_size=288,
            )
        if self.text_config is None:
            self.text_config = RobertaConfig(
                vocab_size=50265, max_position_embeddings=514, type_vocab_size=1
            )
        # Checked before the towers' configurations are built below, for which transformers would
        # raise an error that does not name the field.
        if (kind := _kind(self.vision_config, "clip_vision_model")) not in VISION_TOWERS:
            raise ValueError(
                f"{kind!r} is not a supported image tower: choose {' or '.join(VISION_TOWERS)}"
            )
        if (kind := _kind(self.text_config, "roberta")) not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
            raise ValueError(
                f"{kind!r} is not a bidirectional text encoder such as roberta or modernbert"
            )
        # Builds the towers' configurations if they are dicts.
        super().__post_init__(**kwargs)
        vision, text = self.vision_config, self.text_config
        if text.is_encoder_decoder:
            raise ValueError(
                f"{text.model_type!r} is an encoder-decoder: choose a text encoder such as roberta"
            )
        if not isinstance(vision.image_size, int) or not isinstance(vision.patch_size, int):
            raise ValueError(
                "image_size and patch_size of the image tower must be one number each "
                "(images of other shapes are still accepted)"
            )
        if vision.patch_size < 1 or vision.image_size < 1:
            raise ValueError("image_size and patch_size of the image tower must be at least 1")
        # Otherwise pixels at the border would silently be ignored.
        if vision.image_size % vision.patch_size:
            raise ValueError(
                f"image_size {vision.image_size} is not a multiple of patch_size "
                f"{vision.patch_size}"
            )
        if not isinstance(self.max_frames, int) or self.max_frames < 0:
            raise ValueError(
                f"max_frames must be a whole number of at least 0, not {self.max_frames!r}"
            )
        if not isinstance(self.tie_masked_language_head, bool):
            raise ValueError(
                f"tie_masked_language_head must be true or false, "
                f"not {self.tie_masked_language_head!r}"
            )
        for name, tower in (("image", vision), ("text", text)):
            if tower.num_hidden_layers < 1:
                raise ValueError(f"num_hidden_layers of the {name} tower must be at least 1")
        if len(set(self.classifier_labels)) < len(self.classifier_labels):
            raise ValueError("classifier_labels must differ from each other")
        if self.classifier_images not in (1, 2):
            raise ValueError(f"classifier_images must be 1 or 2, it is {self.classifier_images!r}")
        if self.contrastive_head not in ("mlp", "linear"):
            raise ValueError(
                f"contrastive_head must be mlp or linear, it is {self.contrastive_head!r}"
            )
        # The head scores fused states with the word embedding, so that widths must agree.
        if self.tie_masked_language_head and text.hidden_size != self.hidden_size:
            raise ValueError(
                "tie_masked_language_head needs a text tower as wide as the fusion encoder: "
                f"hidden_size is {self.hidden_size}, the text tower's {text.hidden_size}"
            )

    @property
    def image_size(self) -> int:
        """Side in pixels of the square images that the position table is made for."""
        return int(self.vision_config.image_size)

    @property
    def num_patches(self) -> int:
        """Number of patches of an image of `image_size`."""
        return int(self.vision_config.image_size // self.vision_config.patch_size) ** 2


def _kind(tower: Any, default: str) -> str:
    return tower.get("model_type", default) if isinstance(tower, dict) else tower.model_type
