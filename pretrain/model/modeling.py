"""The GLSCL model: image tower, text tower, co-attention fusion, heads (glscl paper, section 3).

In: pixels, token ids and masks. Out: projected tokens of each side, fused states of pairs, and the
logits and features of the heads. Each step is a method of its own, so that training and evaluation
can encode every input once and share it between pairs.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import FRAME_ATTENTION
from .configuration import GLSCLConfig
from .fusion import CoAttention, Need
from .heads import MaskedLanguageHead, Pooler, TorchLinear, classifier, contrastive_head
from .text import encode_text
from .vision import Patches, embed_patches, encode_patches


@dataclass
class Fused:
    """Fused states of pairs.

    `text` (batch, tokens, width), `image` (batch, image tokens, width), `pooled` (batch, 2 width).
    """

    text: Tensor
    image: Tensor
    pooled: Tensor


@dataclass
class Side:
    """One side of pairs, prepared once for all pairs that it takes part in.

    `tokens` (batch, tokens, width) include the type embedding; `attended` is the first fusion
    layer's self-attention over them.
    """

    tokens: Tensor
    attended: Tensor

    def __getitem__(self, rows: slice | Tensor) -> Side:
        """Select samples."""
        return Side(self.tokens[rows], self.attended[rows])

    @staticmethod
    def cat(parts: Sequence[Side]) -> Side:
        """Join along the batch."""
        tokens = torch.cat([part.tokens for part in parts])
        return Side(tokens, torch.cat([part.attended for part in parts]))


class GLSCLModel(PreTrainedModel):
    """Two towers, a fusion encoder and the pre-training heads.

    `from_pretrained` loads a folder that training wrote. Images and videos go through the same
    image tower. Its tokens are (batch, frames + frames * patches, width): the class tokens of all
    frames, then the patches frame by frame. An image counts as one frame.
    """

    config_class = GLSCLConfig
    config: GLSCLConfig
    base_model_prefix = "glscl"
    main_input_name = "pixel_values"
    _supports_sdpa = True
    _no_split_modules = ["CoAttentionLayer"]  # transformers adds those of the towers

    def __init__(self, config: GLSCLConfig):
        super().__init__(config)
        width, vision_width = config.hidden_size, config.vision_config.hidden_size
        self.vision = AutoModel.from_config(config.vision_config)
        # Only sdpa knows videos. A user who chooses another attention can still encode images.
        if self.vision.config._attn_implementation == "sdpa":
            self.vision.config._attn_implementation = FRAME_ATTENTION
        self.text = AutoModel.from_config(config.text_config)
        # GLSCL has its own poolers. The towers keep theirs, unused, so that exported towers load
        # without a warning about missing weights.
        for pooler in (getattr(self.text, "pooler", None), getattr(self.vision, "head", None)):
            if pooler is not None:
                pooler.requires_grad_(False)
        # SigLIP's tower has no class token, so that the model adds its own.
        has_class_token = hasattr(self.vision.embeddings, "class_embedding")
        self.class_token = None if has_class_token else nn.Parameter(torch.zeros(vision_width))
        self.class_position = None if has_class_token else nn.Parameter(torch.zeros(vision_width))
        frames = config.max_frames
        self.temporal_embedding = (
            nn.Parameter(torch.zeros(frames, vision_width)) if frames else None
        )
        self.visual_mask_token = nn.Parameter(torch.zeros(vision_width))
        self.image_projection = nn.Linear(vision_width, width)
        self.text_projection = nn.Linear(config.text_config.hidden_size, width)
        self.token_type = nn.Embedding(1 + config.classifier_images, width)
        self.fusion = CoAttention(config)
        self.text_pooler = Pooler(width)
        self.image_pooler = Pooler(width)
        self.contrastive_text_head = contrastive_head(
            config.contrastive_head, width, config.projection_dim
        )
        self.contrastive_image_head = contrastive_head(
            config.contrastive_head, width, config.projection_dim
        )
        self.matching_head = nn.Linear(2 * width, 2)
        tied = self.text.get_input_embeddings() if config.tie_masked_language_head else None
        self.masked_language_head = MaskedLanguageHead(width, config.text_config.vocab_size, tied)
        images, labels = config.classifier_images, len(config.classifier_labels)
        self.classifier = classifier(width, images, labels) if labels else None
        self.temperature = nn.Parameter(torch.zeros(1))
        # Not saved: the configuration holds the values, and `_init_weights` fills the buffers.
        self.register_buffer("image_mean", torch.zeros(3), persistent=False)
        self.register_buffer("image_std", torch.ones(3), persistent=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        # Before the generic rule, which would use initializer_range.
        if isinstance(module, TorchLinear):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                init.uniform_(module.bias, -(module.in_features**-0.5), module.in_features**-0.5)
            return
        super()._init_weights(module)
        if isinstance(module, GLSCLModel):
            width = module.config.vision_config.hidden_size
            init.normal_(module.visual_mask_token, std=1.0)
            init.constant_(module.temperature, self.config.initial_temperature)
            init.copy_(module.image_mean, torch.tensor(self.config.image_mean))
            init.copy_(module.image_std, torch.tensor(self.config.image_std))
            if module.class_token is not None:  # like CLIP's class token
                init.normal_(module.class_token, std=width**-0.5)
                init.normal_(module.class_position, std=0.02)
            if module.temporal_embedding is not None:
                init.normal_(module.temporal_embedding, std=width**-0.5)

    def normalize(self, pixels: Tensor) -> Tensor:
        """Normalize bytes (batch, [frames,] height, width, 3) to floats (batch, [frames,] 3, ...).

        Floats count as normalized already and are returned unchanged.
        """
        if pixels.dtype != torch.uint8:
            return pixels
        scaled = pixels.movedim(-1, -3).to(self.image_mean.dtype) / 255
        return (scaled - self.image_mean[:, None, None]) / self.image_std[:, None, None]

    def embed_patches(self, pixels: Tensor) -> Patches:
        """Embed the patches of images or videos, the part that all views of a sample share.

        `pixels` are bytes (batch, [frames,] height, width, 3) or normalized floats (batch,
        [frames,] 3, height, width) of any size whose sides are multiples of the patch size. Raises
        ValueError for other sizes, and for videos longer than the temporal table.
        """
        if pixels.ndim == 5:
            self._temporal(pixels.shape[1])  # raises before anything is computed
        return embed_patches(self.vision, self.normalize(pixels), self.class_position)

    def mask_patches(self, patches: Patches, masked: Tensor) -> Patches:
        """Put the mask token where `masked` (batch, patches) is true, in every frame.

        This happens before positions are added, so that masked patches keep their positions.
        """
        # The same patches in every frame, or a neighbouring frame would reveal them.
        if patches.frames is not None:
            masked = masked[:, None]
        token = self.visual_mask_token.to(patches.values.dtype)
        return Patches(torch.where(masked[..., None], token, patches.values), patches.positions)

    def encode_patches(
        self,
        patches: Patches,
        keep_patches: Tensor | None = None,
        need: Literal["all", "first"] = "all",
    ) -> Tensor:
        """Encode patches into projected tokens (batch, frames + frames * kept, width).

        `keep_patches` (batch, kept) lists the patches to keep, the same in every frame. With need
        "first", only class tokens are returned, and the last block computes only them.
        """
        temporal = None if patches.frames is None else self._temporal(patches.frames)
        class_token = self.class_token
        if class_token is None:
            class_token = self.vision.embeddings.class_embedding
        tokens = encode_patches(self.vision, patches, class_token, temporal, keep_patches, need)
        return self.image_projection(tokens)

    def encode_image(
        self,
        pixels: Tensor,
        keep_patches: Tensor | None = None,
        masked_patches: Tensor | None = None,
        need: Literal["all", "first"] = "all",
    ) -> Tensor:
        """Encode images or videos: `embed_patches`, `mask_patches` and `encode_patches` in turn."""
        patches = self.embed_patches(pixels)
        if masked_patches is not None:
            patches = self.mask_patches(patches, masked_patches)
        return self.encode_patches(patches, keep_patches, need)

    def encode_text(
        self, text_ids: Tensor, text_mask: Tensor, need: Literal["all", "first"] = "all"
    ) -> Tensor:
        """Encode texts (batch, tokens) into projected tokens (batch, tokens, width), `<s>` first.

        With need "first", only `<s>` is returned.
        """
        return self.text_projection(encode_text(self.text, text_ids, text_mask, need))

    def contrastive_image(self, tokens: Tensor, frames: int = 1) -> Tensor:
        """Return contrastive image features (batch, projection), not normalized.

        The head reads the mean of the class tokens of the `frames`.
        """
        return self.contrastive_image_head(tokens[:, :frames].mean(1))

    def contrastive_text(self, tokens: Tensor) -> Tensor:
        """Return contrastive text features (batch, projection), not normalized."""
        return self.contrastive_text_head(tokens[:, 0])

    def text_side(self, tokens: Tensor, mask: Tensor) -> Side:
        """Prepare projected text tokens (batch, tokens, width) for fusion."""
        # Row 0 is text; 1 and 2 are the first and the second image.
        typed = tokens + self.token_type.weight[0]
        return Side(typed, self.fusion.attend_text(typed, mask))

    def image_side(self, tokens: Tensor, second: bool = False) -> Side:
        """Prepare projected image tokens (batch, image tokens, width) for fusion.

        With `second`, they belong to the second of two images. Raises ValueError for a model that
        takes one image only.
        """
        if second and self.config.classifier_images < 2:
            raise ValueError(
                "this model takes no second image: its configuration has classifier_images 1"
            )
        token_type = 2 if second else 1
        typed = tokens + self.token_type.weight[token_type]
        return Side(typed, self.fusion.attend_image(typed))

    def fuse_pairs(
        self, text: Side, text_mask: Tensor, image: Side, needs: Sequence[tuple[Need, Need]]
    ) -> list[tuple[Tensor, Tensor]]:
        """Fuse pairs; return per chunk its needed text and image states (chunk, states, width).

        The batch of `text`, `text_mask` (batch, tokens) and `image` is a stack of `len(needs)`
        chunks of equal size. A need is "all", "none", or token positions (chunk, k); the last layer
        computes only these. Raises ValueError if the batch does not divide into the chunks.
        """
        texts, images = len(text.tokens), len(image.tokens)
        if texts % len(needs) or texts != images:
            raise ValueError(
                f"{texts} texts and {images} images do not make {len(needs)} chunks of equal size"
            )
        return self.fusion(
            text.tokens, text_mask, image.tokens, text.attended, image.attended, needs
        )

    def text_to_image_attention(self, text: Side, text_mask: Tensor, image: Side) -> Tensor:
        """Return the cross-attention of the last fusion layer from texts to images.

        The result is (batch, heads, text tokens, image tokens). Each row is a distribution over the
        image's tokens, with the class tokens of all frames first.
        """
        return self.fusion.text_to_image(
            text.tokens, text_mask, image.tokens, text.attended, image.attended
        )

    def pool(self, text_first: Tensor, image_first: Tensor) -> Tensor:
        """Pool pairs to (batch, 2 width).

        `text_first` (batch, >= 1, width) are fused text states, `<s>` first; `image_first` (batch,
        frames, width) are the fused class tokens of all frames.
        """
        text, image = self.text_pooler(text_first[:, :1]), self.image_pooler(image_first)
        return torch.cat([text, image], dim=-1)

    def pool_with_images(self, text: Side, text_mask: Tensor, images: Sequence[Side]) -> Tensor:
        """Fuse every text with each of its images; return pooled pairs (texts, images * 2 width).

        `images` holds one `Side` per image of a text: one for VQA, two for NLVR2. The result is
        the input of `classify`.
        """
        texts, count = len(text.tokens), len(images)
        first = torch.zeros(texts, 1, dtype=torch.long, device=text.tokens.device)
        # All pairs in one call. The last layer computes only their first tokens.
        states = self.fuse_pairs(
            Side.cat([text] * count),
            text_mask.repeat(count, 1),
            Side.cat(images),
            [(first, first)] * count,
        )
        return torch.cat([self.pool(*pair) for pair in states], dim=-1)

    def fuse(
        self, text_tokens: Tensor, text_mask: Tensor, image_tokens: Tensor, frames: int = 1
    ) -> Fused:
        """Fuse projected tokens of both sides; `frames` of the image tokens are class tokens."""
        text, image = self.text_side(text_tokens, text_mask), self.image_side(image_tokens)
        [(text_states, image_states)] = self.fuse_pairs(text, text_mask, image, [("all", "all")])
        return Fused(text_states, image_states, self.pool(text_states, image_states[:, :frames]))

    def match(self, pooled: Tensor) -> Tensor:
        """Return matching logits (batch, 2); index 1 means that text and image belong together."""
        return self.matching_head(pooled)

    def classify(self, pooled: Tensor) -> Tensor:
        """Return logits (batch, labels) of pooled pairs (batch, images * 2 width).

        The pair with the first image comes before the pair with the second. Raises ValueError for a
        model without a classifier.
        """
        if self.classifier is None:
            raise ValueError(
                "this model has no classifier: its configuration has no classifier_labels"
            )
        return self.classifier(pooled)

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Fused:
        """Fuse pairs of pixels (batch, [frames,] 3, height, width) and texts (batch, tokens)."""
        frames = pixel_values.shape[1] if pixel_values.ndim == 5 else 1
        text = self.encode_text(input_ids, attention_mask)
        return self.fuse(text, attention_mask, self.encode_image(pixel_values), frames)

    def checkpoint_activations(
        self, towers: Collection[Literal["vision", "text", "fusion"]]
    ) -> None:
        """Recompute these towers' layers in the backward pass instead of storing activations.

        Raises ValueError for another name.
        """
        parts = {"vision": self.vision, "text": self.text, "fusion": self.fusion}
        for name in towers:
            if name not in parts:
                raise ValueError(
                    f"activations can be checkpointed in {', '.join(parts)}, not in {name!r}"
                )
            for layer in parts[name].modules():
                if isinstance(layer, GradientCheckpointingLayer):
                    layer.gradient_checkpointing = True
                    # The reentrant form would give no gradients below a frozen tower's input.
                    layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)

    def _temporal(self, frames: int) -> Tensor:
        if self.temporal_embedding is None:
            raise ValueError("this model takes images only: its configuration has max_frames 0")
        if frames > len(self.temporal_embedding):
            raise ValueError(
                f"a video of {frames} frames is longer than the temporal table of "
                f"{len(self.temporal_embedding)}: take fewer frames, or start a model with a "
                "larger max_frames from these weights"
            )
        return self.temporal_embedding[:frames]

    @classmethod
    def from_authors(cls, path: str, config: GLSCLConfig | None = None) -> GLSCLModel:
        """Load a checkpoint of the authors' release (`.ckpt`, `.pt`, `.safetensors`).

        Without `config`, the sizes are inferred from the tensors.
        """
        from .convert import from_authors

        return from_authors(path, config)
