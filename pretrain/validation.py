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
    """The part of a task that encodes and ranks a validation split.

    `validation_size` is the side of images or frames in pixels; None: the model's.
    """

    def __init__(
        self,
        validation: ValidationConfig | None,
        tokenizer: Tokenizer | None,
        validation_size: int | None = None,
    ):
        self.validation, self.tokenizer = validation, tokenizer
        self.validation_size = validation_size

    def encode_images(self, model: GLSCLModel, pixels: Tensor) -> Tensor:
        """Compute contrastive features (batch, projection) of images or videos."""
        frames = pixels.shape[1] if pixels.ndim == 5 else 1
        # All states, though only the class states are used: a sharded engine gathers the weights of
        # a layer only when the whole layer runs.
        return model.contrastive_image(model.encode_image(pixels), frames)

    def encode_texts(self, model: GLSCLModel, ids: Tensor, mask: Tensor) -> Tensor:
        """Compute contrastive features (batch, projection) of texts."""
        return model.contrastive_text(model.encode_text(ids, mask))

    @torch.no_grad()
    def validate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Measure recalls of the contrastive score on the validation split, in percent.

        Each sample is encoded by one rank; all ranks return the same.
        """
        config = self.validation
        assert config is not None and self.tokenizer is not None
        manifest = Manifest.load(config.path)
        size = self.validation_size or model_config(model).image_size
        total = manifest.samples if config.limit is None else min(config.limit, manifest.samples)
        # Batches of the rank that has the most samples.
        calls = math.ceil(math.ceil(total / world_size()) / config.batch_size)
        images, texts = [], []
        image_indices: list[int] = []  # of each encoded image
        text_indices: list[int] = []  # of the image that each encoded text describes
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
            image_indices += batch.indices
            captions: list[str] = []
            for index, sample in zip(batch.indices, batch.samples, strict=True):
                captions += sample.captions
                text_indices += [index] * len(sample.captions)
            longest = model_config(model).max_text_length
            ids, mask = encode(self.tokenizer, captions, longest, device)
            texts.append(model("encode_texts", ids, mask).float())
            calls -= 1
        if calls:
            # A sharded engine waits in every forward pass for all ranks, and another rank has one
            # batch more: this rank encodes an empty sample meanwhile.
            frames = () if config.frames is None else (config.frames,)
            blank = torch.zeros(1, *frames, size, size, 3, dtype=torch.uint8, device=device)
            model("encode_images", blank)
            filler = torch.full((1, 3), self.tokenizer.cls_id, device=device)
            model("encode_texts", filler, torch.ones_like(filler))
        image_rows, image_ids = _gather(images, image_indices, model, device)
        text_rows, text_ids = _gather(texts, text_indices, model, device)
        return _recalls(image_rows, image_ids, text_rows, text_ids)


def _recalls(
    images: Tensor, image_ids: list[int], texts: Tensor, text_ids: list[int]
) -> dict[str, float]:
    """Recall at 1, 5 and 10 in both directions; ids name the image that a row belongs to."""
    row_of_image = {index: row for row, index in enumerate(image_ids)}
    image_of_text = [row_of_image[index] for index in text_ids]
    texts_of_image: list[list[int]] = [[] for _ in image_ids]
    for row, image in enumerate(image_of_text):
        texts_of_image[image].append(row)
    ranked = {
        "text_to_image": ranks_of_features(texts, images, [[image] for image in image_of_text]),
        "image_to_text": ranks_of_features(images, texts, texts_of_image),
    }
    recalls = {}
    for direction, ranks in ranked.items():
        for k in (1, 5, 10):
            recalls[f"{direction}/R@{k}"] = 100 * ranks.recall(k)
    return recalls


def model_config(model: nn.Module) -> GLSCLConfig:
    """Find the configuration of the GLSCL model inside an engine's wrapper."""
    return next(module.config for module in model.modules() if isinstance(module, GLSCLModel))


def encode(
    tokenizer: Tokenizer, texts: list[str], longest: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Encode texts as ids and mask (texts, tokens), cut to `longest` tokens and padded."""
    encodings = tokenizer.encode(texts, longest)
    ids = [torch.tensor(encoding.ids, device=device) for encoding in encodings]
    mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
    return pad_sequence(ids, batch_first=True, padding_value=tokenizer.pad_id), mask


def _gather(
    rows: list[Tensor], ids: list[int], model: nn.Module, device: torch.device
) -> tuple[Tensor, list[int]]:
    """Gather normalized features of all ranks with their ids."""
    width = model_config(model).projection_dim
    local_rows = torch.cat(rows) if rows else torch.zeros(0, width, device=device)
    counts = gather_counts([len(ids)])[0]
    own_ids = torch.tensor(ids, dtype=torch.int64, device=device)[:, None]
    features = F.normalize(gather_rows(local_rows, counts), dim=-1).cpu()
    return features, gather_rows(own_ids, counts)[:, 0].tolist()
