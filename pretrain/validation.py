"""Retrieval by contrastive score on a validation split while training, by all ranks together."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from data_pipeline.loader import evaluation_batches
from data_pipeline.shards.manifest import Manifest
from data_pipeline.text import Tokenizer

from .config import ValidationConfig
from .model import GLSCLConfig, GLSCLModel
from .parallel.gather import gather_counts, gather_rows, rank, world_size
from .ranking import ranks_of_features


class ContrastiveRetrieval:
    """What a task needs to be validated so; `validation_size` is the side of pictures or frames, None: the model's."""

    def __init__(
        self,
        validation: ValidationConfig | None,
        tokenizer: Tokenizer | None,
        validation_size: int | None = None,
    ):
        self.validation, self.tokenizer, self.validation_size = (
            validation,
            tokenizer,
            validation_size,
        )

    def encode_images(self, model: GLSCLModel, pixels: Tensor) -> Tensor:
        """Contrastive features (batch, projection) of images or clips."""
        frames = pixels.shape[1] if pixels.ndim == 5 else 1
        # All states, though the first would do: an engine gathers a layer's weights only for the
        # layer's own forward.
        return model.contrastive_image(model.encode_image(pixels), frames)

    def encode_texts(self, model: GLSCLModel, ids: Tensor, mask: Tensor) -> Tensor:
        """Contrastive text features (batch, projection)."""
        return model.contrastive_text(model.encode_text(ids, mask))

    @torch.no_grad()
    def validate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Retrieve by contrastive score on the validation split, each sample encoded by one rank; percentages."""
        config = self.validation
        assert config is not None and self.tokenizer is not None
        images, texts, positions, owners = [], [], [], []
        manifest, size = (
            Manifest.load(config.path),
            self.validation_size or model_config(model).image_size,
        )
        total = manifest.samples if config.limit is None else min(config.limit, manifest.samples)
        calls = math.ceil(math.ceil(total / world_size()) / config.batch_size)
        for batch in evaluation_batches(
            manifest,
            size=size,
            batch_size=config.batch_size,
            rank=rank(),
            world=world_size(),
            limit=config.limit,
            frames=config.frames,
        ):
            images.append(model("encode_images", batch.pixels.to(device)).float())
            positions += batch.indices
            captions = [caption for sample in batch.samples for caption in sample.captions]
            owners += [
                i for i, s in zip(batch.indices, batch.samples, strict=True) for _ in s.captions
            ]
            ids, mask = encode(
                self.tokenizer, captions, model_config(model).max_text_length, device
            )
            texts.append(model("encode_texts", ids, mask).float())
            calls -= 1
        if calls:  # a sharded engine waits in every forward for all ranks, and another one has a batch more
            frames = () if config.frames is None else (config.frames,)
            model(
                "encode_images",
                torch.zeros(1, *frames, size, size, 3, dtype=torch.uint8, device=device),
            )
            filler = torch.full((1, 3), self.tokenizer.cls_id, device=device)
            model("encode_texts", filler, torch.ones_like(filler))
        image_rows, image_ids = _gather(images, positions, model, device)
        text_rows, text_ids = _gather(texts, owners, model, device)
        place = {index: row for row, index in enumerate(image_ids)}
        to_image = ranks_of_features(text_rows, image_rows, [[place[owner]] for owner in text_ids])
        captions_of: list[list[int]] = [[] for _ in image_ids]
        for row, owner in enumerate(text_ids):
            captions_of[place[owner]].append(row)
        to_text = ranks_of_features(image_rows, text_rows, captions_of)
        return {
            f"{direction}/R@{k}": 100 * ranked.recall(k)
            for direction, ranked in (("text_to_image", to_image), ("image_to_text", to_text))
            for k in (1, 5, 10)
        }


def model_config(model: nn.Module) -> GLSCLConfig:
    """Find the configuration of a GLSCL model inside any wrapper."""
    return next(module.config for module in model.modules() if isinstance(module, GLSCLModel))


def encode(
    tokenizer: Tokenizer, texts: list[str], longest: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Ids and mask (texts, tokens) of texts, cut to `longest` tokens and padded to the longest among them."""
    ids = [
        torch.tensor(encoding.ids, device=device) for encoding in tokenizer.encode(texts, longest)
    ]
    mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
    return pad_sequence(ids, batch_first=True, padding_value=tokenizer.pad_id), mask


def _gather(
    rows: list[Tensor], ids: list[int], model: nn.Module, device: torch.device
) -> tuple[Tensor, list[int]]:
    width = model_config(model).projection_dim
    own = torch.cat(rows) if rows else torch.zeros(0, width, device=device)
    counts = gather_counts([len(ids)])[0]
    numbers = torch.tensor(ids, dtype=torch.int64, device=device)[:, None]
    return F.normalize(gather_rows(own, counts), dim=-1).cpu(), gather_rows(numbers, counts)[
        :, 0
    ].tolist()
