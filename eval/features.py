"""Encode a test set once: pictures and texts in, unit features for the contrastive score and tokens for fusion out.

Under `accelerate launch` every process encodes a share; what they found is put together by position, so that their
number changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.errors import DataError, UsageError
from data_pipeline.loader import evaluation_batches
from data_pipeline.manifest import Manifest
from data_pipeline.text import Tokenizer
from pretrain.model import GLSCLModel
from pretrain.ranking import unit_features
from pretrain.run.checkpoint import load_model

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to encode, in eval mode; ``description`` is what a result says about it."""

    model: GLSCLModel
    tokenizer: Tokenizer
    device: torch.device
    precision: str
    description: dict[str, Any]

    def autocast(self) -> torch.autocast:
        """Return the context in which the networks run; heads and similarities stay outside it, in float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def kept(self, tokens: Tensor) -> Tensor:
        """Move tokens to where they wait for fusion, in the precision that fusion computes in."""
        return tokens.to("cpu", PRECISIONS[self.precision])


@dataclass(frozen=True)
class Images:
    """Encoded pictures.

    ``row`` (images,) leads to the first picture with the same file, so that copies tie exactly. ``features`` (images,
    projection) have length one; ``tokens`` (images, 1 + patches, width) are what fusion reads.
    """

    keys: list[str]
    captions: list[tuple[str, ...]]
    annotations: list[dict[str, Any]]
    row: NDArray[np.int64]
    features: NDArray[np.float32]
    tokens: Tensor


@dataclass(frozen=True)
class Texts:
    """Encoded texts.

    ``row`` (texts,) leads to the distinct text, of which ``features`` (distinct, projection), ``tokens`` (distinct,
    length, width) and ``mask`` (distinct, length) hold one row each.
    """

    row: NDArray[np.int64]
    features: NDArray[np.float32]
    tokens: Tensor
    mask: Tensor


def processes() -> PartialState:
    """Return the processes that evaluate together; where there is no CUDA they use the CPU."""
    return PartialState(cpu=not torch.cuda.is_available())


def load(path: Path | str, precision: str = "fp32") -> LoadedModel:
    """Load a run folder, checkpoint, model folder or authors' checkpoint (its tokenizer beside it) for evaluation.

    Raises
    ------
    UsageError
        If ``precision`` is neither `fp32` nor `bf16`, or there is no such model.
    DataError
        If the model is damaged, or there is no tokenizer of its own beside it.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"precision is {precision!r}, must be one of {', '.join(PRECISIONS)}")
    device = processes().device
    model = load_model(path).to(device)
    source = Path(model.name_or_path)
    folder = source.parent if source.is_file() else source
    description = {
        "path": str(path),
        "folder": str(folder),
        "hash": _weights_hash(source),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "image_size": model.config.image_size,
        "max_text_length": model.config.max_text_length,
    }
    try:
        tokenizer = Tokenizer.load(folder)
    except DataError as error:
        raise DataError(f"{error} (`glscl convert --tokenizer FOLDER` puts one beside a converted model)") from error
    if tokenizer.vocab_size > model.config.text_config.vocab_size:
        raise DataError(
            f"the tokenizer in {folder} has {tokenizer.vocab_size:,} entries, the model knows "
            f"{model.config.text_config.vocab_size:,}: it is another model's"
        )
    return LoadedModel(model, tokenizer, device, precision, description)


@torch.inference_mode()
def encode_images(loaded: LoadedModel, manifest: Manifest, *, batch_size: int = 64, limit: int | None = None) -> Images:
    """Encode the first ``limit`` pictures of a data set (all by default), in the order of its shards.

    Raises
    ------
    DataError
        If there is no picture, or one cannot be read.
    NumericsError
        If a feature is not finite; the message names the sample.
    """
    model, state = loaded.model, processes()
    batches = evaluation_batches(
        manifest,
        size=model.config.image_size,
        batch_size=batch_size,
        rank=state.process_index,
        world=state.num_processes,
        limit=limit,
    )
    found: list[tuple[Any, ...]] = []
    for batch in batches:
        pixels = model.normalize(batch.pixels.to(loaded.device))
        with loaded.autocast():
            tokens = model.encode_image(pixels)
        features = model.contrastive_image(tokens.float()).cpu()
        found += zip(batch.indices, batch.samples, features, loaded.kept(tokens), strict=True)
    found = sorted(gather_object(found), key=lambda item: item[0])
    if not found:
        raise DataError(f"{manifest.root} holds no sample to evaluate on")
    _, samples, every_feature, every_token = zip(*found, strict=True)
    keys = [sample.key for sample in samples]
    first: dict[bytes, int] = {}
    return Images(
        keys=keys,
        captions=[sample.captions for sample in samples],
        annotations=[sample.annotations for sample in samples],
        row=np.array([first.setdefault(sample.media, i) for i, sample in enumerate(samples)]),
        features=unit_features(torch.stack(every_feature), keys),
        tokens=torch.stack(every_token),
    )


@torch.inference_mode()
def encode_texts(loaded: LoadedModel, texts: Sequence[str], *, batch_size: int = 64) -> Texts:
    """Encode every distinct text once; texts of a length travel together, so that little padding is computed.

    Raises
    ------
    NumericsError
        If a feature is not finite; the message names the text.
    """
    model = loaded.model
    distinct = sorted(set(texts))
    ids = [torch.tensor(e.ids) for e in loaded.tokenizer.encode(distinct, model.config.max_text_length)]
    lengths = torch.tensor([len(row) for row in ids])
    padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=loaded.tokenizer.pad_id)
    mask = (torch.arange(padded.shape[1]) < lengths[:, None]).long()
    found: list[tuple[Any, ...]] = []
    for rows in share(torch.argsort(lengths, stable=True), batch_size):
        longest = int(lengths[rows].max())
        with loaded.autocast():
            tokens = model.encode_text(padded[rows, :longest].to(loaded.device), mask[rows, :longest].to(loaded.device))
        features = model.contrastive_text(tokens.float()).cpu()
        found += zip(rows.tolist(), features, loaded.kept(tokens), strict=True)
    _, every_feature, every_token = zip(*sorted(gather_object(found), key=lambda item: item[0]), strict=True)
    states = torch.nn.utils.rnn.pad_sequence(list(every_token), batch_first=True)
    place = {text: row for row, text in enumerate(distinct)}
    return Texts(
        row=np.array([place[text] for text in texts]),
        features=unit_features(torch.stack(every_feature), distinct),
        tokens=states * mask[..., None].to(states.dtype),
        mask=mask,
    )


def share(rows: Any, at_once: int) -> Iterator[Any]:
    """Yield the chunks of ``rows`` that are this process's to compute."""
    state = processes()
    for number, start in enumerate(range(0, len(rows), at_once)):
        if number % state.num_processes == state.process_index:
            yield rows[start : start + at_once]


def _weights_hash(source: Path) -> str:
    digest = hashlib.sha256()
    for file in [source] if source.is_file() else sorted(source.glob("*.safetensors")):
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"
