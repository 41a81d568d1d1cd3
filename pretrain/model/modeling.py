"""The GLSCL model: CLIP image tower, RoBERTa text tower, co-attention fusion, heads (glscl paper, section 3)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import CLIPVisionModel, PreTrainedModel, RobertaModel
from transformers import initialization as init

from .configuration import GLSCLConfig
from .fusion import CoAttention, Need
from .heads import ContrastiveHead, MaskedLanguageHead, Pooler, TorchLinear
from .vision import embed_patches, encode_patches


@dataclass
class Fused:
    """Fused states: text (batch, tokens, width), image (batch, 1 + patches, width), pooled (batch, 2 width)."""

    text: Tensor
    image: Tensor
    pooled: Tensor


@dataclass
class Side:
    """One side of pairs: tokens (batch, tokens, width) with their type, and the first self-attention over them."""

    tokens: Tensor
    attended: Tensor

    def __getitem__(self, rows: slice | Tensor) -> Side:
        """Select samples."""
        return Side(self.tokens[rows], self.attended[rows])


class GLSCLModel(PreTrainedModel):
    """Two towers, a fusion encoder and the pre-training heads; `from_pretrained` loads a folder that training wrote."""

    config_class = GLSCLConfig
    config: GLSCLConfig
    base_model_prefix = "glscl"
    main_input_name = "pixel_values"
    _supports_sdpa = True
    _no_split_modules = ["CLIPEncoderLayer", "RobertaLayer"]

    def __init__(self, config: GLSCLConfig):
        super().__init__(config)
        width = config.hidden_size
        self.vision = CLIPVisionModel._from_config(config.vision_config)
        self.text = RobertaModel._from_config(config.text_config)
        # GLSCL has its own poolers; RoBERTa's stays, unused, so that an exported text tower loads without a warning.
        self.text.pooler.requires_grad_(False)
        self.visual_mask_token = nn.Parameter(torch.zeros(config.vision_config.hidden_size))
        self.image_projection = nn.Linear(config.vision_config.hidden_size, width)
        self.text_projection = nn.Linear(config.text_config.hidden_size, width)
        self.token_type = nn.Embedding(2, width)
        self.fusion = CoAttention(config)
        self.text_pooler = Pooler(width)
        self.image_pooler = Pooler(width)
        self.contrastive_text_head = ContrastiveHead(width, config.projection_dim)
        self.contrastive_image_head = ContrastiveHead(width, config.projection_dim)
        self.matching_head = nn.Linear(2 * width, 2)
        self.masked_language_head = MaskedLanguageHead(width, config.text_config.vocab_size)
        self.temperature = nn.Parameter(torch.zeros(1))
        self.register_buffer("image_mean", torch.zeros(3), persistent=False)
        self.register_buffer("image_std", torch.ones(3), persistent=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, TorchLinear):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            init.uniform_(module.bias, -(module.in_features**-0.5), module.in_features**-0.5)
            return
        super()._init_weights(module)
        if isinstance(module, GLSCLModel):
            init.normal_(module.visual_mask_token, std=1.0)
            init.constant_(module.temperature, self.config.initial_temperature)
            init.copy_(module.image_mean, torch.tensor(self.config.image_mean))
            init.copy_(module.image_std, torch.tensor(self.config.image_std))

    def normalize(self, pixels: Tensor) -> Tensor:
        """Bytes (batch, height, width, 3) -> normalised floats (batch, 3, height, width); floats pass unchanged."""
        if pixels.dtype != torch.uint8:
            return pixels
        scaled = pixels.permute(0, 3, 1, 2).to(self.image_mean.dtype) / 255
        return (scaled - self.image_mean[:, None, None]) / self.image_std[:, None, None]

    def embed_patches(self, pixels: Tensor) -> Tensor:
        """Normalised or byte pixels -> patch embeddings (batch, patches, vision width), the part that views share."""
        return embed_patches(self.vision, self.normalize(pixels))

    def encode_patches(self, patches: Tensor, keep_patches: Tensor | None = None) -> Tensor:
        """Patch embeddings -> projected tokens (batch, 1 + kept, width); without `keep_patches` all are kept."""
        return self.image_projection(encode_patches(self.vision, patches, keep_patches))

    def mask_patches(self, patches: Tensor, masked: Tensor) -> Tensor:
        """Put the mask token at the patches where `masked` (batch, patches) is true, before positions are added."""
        return torch.where(masked[..., None], self.visual_mask_token.to(patches.dtype), patches)

    def encode_image(
        self, pixels: Tensor, keep_patches: Tensor | None = None, masked_patches: Tensor | None = None
    ) -> Tensor:
        """Encode images (batch, 3, height, width): projected tokens (batch, 1 + patches, width), class token first."""
        patches = self.embed_patches(pixels)
        if masked_patches is not None:
            patches = self.mask_patches(patches, masked_patches)
        return self.encode_patches(patches, keep_patches)

    def encode_text(self, text_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Encode texts (batch, tokens): projected tokens (batch, tokens, width), `<s>` first."""
        return self.text_projection(self.text(input_ids=text_ids, attention_mask=text_mask).last_hidden_state)

    def contrastive_image(self, tokens: Tensor) -> Tensor:
        """Contrastive image features (batch, projection), not normalised, of projected tokens."""
        return self.contrastive_image_head(tokens[:, 0])

    def contrastive_text(self, tokens: Tensor) -> Tensor:
        """Contrastive text features (batch, projection), not normalised, of projected tokens."""
        return self.contrastive_text_head(tokens[:, 0])

    def text_side(self, tokens: Tensor, mask: Tensor) -> Side:
        """Prepare projected text tokens (batch, tokens, width) for the pairs they take part in."""
        typed = tokens + self.token_type.weight[0]
        return Side(typed, self.fusion.attend_text(typed, mask))

    def image_side(self, tokens: Tensor) -> Side:
        """Prepare projected image tokens (batch, 1 + patches, width) for the pairs they take part in."""
        typed = tokens + self.token_type.weight[1]
        return Side(typed, self.fusion.attend_image(typed))

    def fuse_sides(
        self, text: Side, text_mask: Tensor, image: Side, text_need: Need = "all", image_need: Need = "all"
    ) -> tuple[Tensor, Tensor]:
        """Fused text and image states, those that are needed, without poolers."""
        return self.fusion(
            text.tokens,
            text_mask,
            image.tokens,
            text_attended=text.attended,
            image_attended=image.attended,
            text_need=text_need,
            image_need=image_need,
        )

    def pool(self, text: Tensor, image: Tensor) -> Tensor:
        """Pooled pair (batch, 2 width) of fused states."""
        return torch.cat([self.text_pooler(text), self.image_pooler(image)], dim=-1)

    def fuse(self, text_tokens: Tensor, text_mask: Tensor, image_tokens: Tensor) -> Fused:
        """Fuse projected tokens of both sides."""
        sides = self.text_side(text_tokens, text_mask), self.image_side(image_tokens)
        text, image = self.fuse_sides(sides[0], text_mask, sides[1])
        return Fused(text, image, self.pool(text, image))

    def match(self, pooled: Tensor) -> Tensor:
        """Score pairs: logits (batch, 2); index 1 says that text and image belong together."""
        return self.matching_head(pooled)

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Fused:
        """Fused states of pairs: pixels (batch, 3, height, width), ids and mask (batch, tokens)."""
        return self.fuse(self.encode_text(input_ids, attention_mask), attention_mask, self.encode_image(pixel_values))

    @classmethod
    def from_authors(cls, path: str, config: GLSCLConfig | None = None) -> GLSCLModel:
        """Load weights under the authors' names (`.ckpt`, `.pt`, `.safetensors`); sizes are read off the tensors."""
        from .convert import from_authors

        return from_authors(path, config)
