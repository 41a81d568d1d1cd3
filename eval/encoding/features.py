"""Encode a test set once: pictures and texts in, unit features for the contrastive score and tokens for fusion out.

The work is divided into blocks of consecutive pictures or texts, which a cache may keep (see
`eval/encoding/cache.py`); under `accelerate launch` every process encodes some of them, and their
number changes nothing.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import PartialState
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedConfig

from data_pipeline.errors import DataError, UsageError
from data_pipeline.loader import EvaluationBatch, evaluation_batches
from data_pipeline.sample import BadSample
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.store import Store
from data_pipeline.text import Tokenizer
from eval.encoding.cache import Block, encoded_blocks
from pretrain.model import GLSCLModel
from pretrain.ranking import unit_features
from pretrain.run.checkpoint import load_model

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
IMAGES_PER_BLOCK = 64  # of a block
UNREADABLE = ("undecodable", "too-large")  # what is wrong with a picture, not with the data set
TEXTS_PER_BLOCK = 256


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to encode, in eval mode.

    ``description`` is what a result says about it, ``cache`` the folder that keeps what it encodes,
    if any.
    """

    model: GLSCLModel
    tokenizer: Tokenizer
    device: torch.device
    precision: str
    description: dict[str, Any]
    cache: Path | None = None

    def identity(self) -> dict[str, Any]:
        """Return all that features depend on besides pictures and texts, wherever the model lies."""
        return {
            "weights": self.description["hash"],
            "config": portable_config(self.model.config),
            "tokenizer": hashlib.sha256(self.tokenizer.to_str().encode()).hexdigest(),
            "precision": self.precision,
            "device": self.device.type,
            **environment_of_features(),
        }

    def autocast(self) -> torch.autocast:
        """Return the context in which the networks run; heads and similarities stay outside it, in float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def offload(self, tokens: Tensor) -> Tensor:
        """Move tokens to where they wait for fusion, in the precision that fusion computes in."""
        return tokens.to("cpu", PRECISIONS[self.precision])


@dataclass(frozen=True)
class Unreadable:
    """A sample that is listed because its picture or clip cannot be decoded, with its captions and the reason."""

    key: str
    captions: tuple[str, ...]
    problem: str


@dataclass(frozen=True)
class Images:
    """Encoded pictures or clips.

    ``row`` (images,) leads to the first picture with the same file, so that copies tie exactly.
    ``features`` (images, projection) have length one; ``tokens`` (images, frames + frames *
    patches, width) are what fusion reads.
    """

    keys: list[str]
    captions: list[tuple[str, ...]]
    annotations: list[dict[str, Any]]
    row: NDArray[np.int64]
    features: NDArray[np.float32]
    tokens: Tensor
    frames: int = 1
    unreadable: list[Unreadable] = field(default_factory=list)


@dataclass(frozen=True)
class Texts:
    """Encoded texts.

    ``row`` (texts,) leads to the distinct text, of which ``features`` (distinct, projection),
    ``tokens`` (distinct, length, width) and ``mask`` (distinct, length) hold one row each.
    """

    row: NDArray[np.int64]
    features: NDArray[np.float32]
    tokens: Tensor
    mask: Tensor


def processes() -> PartialState:
    """Return the processes that evaluate together; where there is no CUDA they use the CPU."""
    return PartialState(cpu=not torch.cuda.is_available())


def load(path: Path | str, precision: str = "fp32", cache: Path | str | None = None) -> LoadedModel:
    """Load a run folder, checkpoint, model folder or authors' checkpoint (its tokenizer beside it) for evaluation.

    What it encodes is kept in the folder ``cache``, where one is given.

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
        "hash": weights_hash(source),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "image_size": model.config.image_size,
        "max_text_length": model.config.max_text_length,
    }
    try:
        tokenizer = Tokenizer.load(folder)
    except DataError as error:
        raise DataError(
            f"{error} (`glscl convert --tokenizer FOLDER` puts one beside a converted model)"
        ) from error
    if tokenizer.vocab_size > model.config.text_config.vocab_size:
        raise DataError(
            f"the tokenizer in {folder} has {tokenizer.vocab_size:,} entries, the model knows "
            f"{model.config.text_config.vocab_size:,}: it is another model's"
        )
    return LoadedModel(
        model, tokenizer, device, precision, description, None if cache is None else Path(cache)
    )


@torch.inference_mode()
def encode_images(
    loaded: LoadedModel,
    manifest: Manifest,
    *,
    batch_size: int = 64,
    limit: int | None = None,
    frames: int | None = None,
    skip_unreadable: bool = False,
    captioned: bool = True,
) -> Images:
    """Encode the first ``limit`` pictures of a data set (all by default), in the order of its shards.

    With ``frames`` they are clips, of which so many evenly spaced frames are taken; a shorter clip
    repeats some. What cannot be read is an error, or with ``skip_unreadable`` listed. All must have
    captions, unless not ``captioned``.

    Raises
    ------
    UsageError
        If the model takes no clips, or shorter ones.
    DataError
        If there is no picture, or one cannot be read.
    NumericsError
        If a feature is not finite; the message names the sample.
    """
    if frames is not None and frames > loaded.model.config.max_frames:
        raise UsageError(
            f"the model takes clips of at most {loaded.model.config.max_frames} frames (max_frames), not {frames}"
        )
    total = manifest.samples if limit is None else min(limit, manifest.samples)
    ranges = [
        (start, min(start + IMAGES_PER_BLOCK, total)) for start in range(0, total, IMAGES_PER_BLOCK)
    ]
    data = {"data": manifest.digest, "name": manifest.name, "frames": frames}

    def compute(number: int) -> Block:
        batches, problems = _readable(
            loaded, manifest, *ranges[number], batch_size, frames, skip_unreadable, captioned
        )
        return _image_block(loaded, batches, problems, frames or 1)

    wanted = [data | {"start": start, "stop": stop} for start, stop in ranges]
    blocks = encoded_blocks(processes(), loaded.cache, loaded.identity(), wanted, compute)
    items = [item for block in blocks for item in block.items if "problem" not in item]
    unreadable = [
        Unreadable(item["key"], tuple(item["captions"]), item["problem"])
        for block in blocks
        for item in block.items
        if "problem" in item
    ]
    if unreadable and not skip_unreadable:  # an earlier evaluation listed it
        raise DataError(unreadable[0].problem)
    if not items:
        raise DataError(f"{manifest.root} holds no sample to evaluate on")
    bare = next((item["key"] for item in items if captioned and not item["captions"]), None)
    if bare is not None:  # an earlier evaluation needed none
        raise DataError(f"sample {bare} cannot be evaluated: it has no caption")
    keys = [item["key"] for item in items]
    first: dict[str, int] = {}
    return Images(
        keys=keys,
        captions=[tuple(item["captions"]) for item in items],
        annotations=[item["annotations"] for item in items],
        row=np.array([first.setdefault(item["media"], i) for i, item in enumerate(items)]),
        features=unit_features(_joined(blocks, "features"), keys),
        tokens=_joined(blocks, "tokens"),
        frames=frames or 1,
        unreadable=unreadable,
    )


@torch.inference_mode()
def encode_texts(loaded: LoadedModel, texts: Sequence[str], *, batch_size: int = 64) -> Texts:
    """Encode every distinct text once; texts of a length travel together, so that little padding is computed.

    Raises
    ------
    NumericsError
        If a feature is not finite; the message names the text.
    """
    distinct = sorted(set(texts))
    longest = loaded.model.config.max_text_length
    ids = [torch.tensor(e.ids) for e in loaded.tokenizer.encode(distinct, longest)]
    lengths = torch.tensor([len(row) for row in ids])
    order = torch.argsort(lengths, stable=True)
    chunks = list(order.split(TEXTS_PER_BLOCK))
    wanted = [
        {"longest": longest, "texts": [distinct[row] for row in rows.tolist()]} for rows in chunks
    ]

    def compute(number: int) -> Block:
        return _text_block(loaded, [ids[row] for row in chunks[number].tolist()], batch_size)

    blocks = encoded_blocks(processes(), loaded.cache, loaded.identity(), wanted, compute)
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    features = torch.empty(len(distinct), blocks[0].arrays["features"].shape[1])
    tokens = blocks[0].arrays["tokens"].new_zeros(*mask.shape, blocks[0].arrays["tokens"].shape[2])
    for rows, block in zip(chunks, blocks, strict=True):
        features[rows] = block.arrays["features"]
        tokens[rows, : block.arrays["tokens"].shape[1]] = block.arrays["tokens"]
    place = {text: row for row, text in enumerate(distinct)}
    return Texts(
        row=np.array([place[text] for text in texts]),
        features=unit_features(features, distinct),
        tokens=tokens * mask[..., None].to(tokens.dtype),
        mask=mask,
    )


def chunks_of_process(rows: Any, at_once: int) -> Iterator[Any]:
    """Yield the chunks of ``rows`` that are this process's to compute."""
    state = processes()
    for number, start in enumerate(range(0, len(rows), at_once)):
        if number % state.num_processes == state.process_index:
            yield rows[start : start + at_once]


def _readable(
    loaded: LoadedModel,
    manifest: Manifest,
    start: int,
    stop: int,
    batch_size: int,
    frames: int | None,
    skip_unreadable: bool,
    captioned: bool,
) -> tuple[list[EvaluationBatch], list[Unreadable]]:
    """Read the samples from ``start`` to ``stop``, one by one where one of them is unreadable and may be."""
    size = loaded.model.config.image_size
    texts: Literal["captions", "none"] = "captions" if captioned else "none"

    def read(first: int, last: int) -> list[EvaluationBatch]:
        which: dict[str, Any] = {"start": first, "limit": last, "frames": frames, "texts": texts}
        return list(evaluation_batches(manifest, size=size, batch_size=batch_size, **which))

    try:
        return read(start, stop), []
    except DataError as error:
        if not skip_unreadable or not _is_unreadable(error):
            raise
    batches, problems = [], []
    with closing(Store([manifest])) as store:
        for index in range(start, stop):
            try:
                batches += read(index, index + 1)
            except DataError as error:
                if not _is_unreadable(error):
                    raise
                problems.append(
                    Unreadable(store.key(0, index), store.captions(0, index), str(error))
                )
    return batches, problems


def _is_unreadable(error: DataError) -> bool:
    """Whether a picture or clip is to blame; a damaged shard is not, which can be mended."""
    return isinstance(error.__cause__, BadSample) and error.__cause__.reason in UNREADABLE


def _image_block(
    loaded: LoadedModel,
    batches: Sequence[EvaluationBatch],
    problems: Sequence[Unreadable],
    frames: int,
) -> Block:
    model = loaded.model
    features, tokens, items = [], [], []
    for batch in batches:
        pixels = model.normalize(batch.pixels.to(loaded.device))
        with loaded.autocast():
            encoded = model.encode_image(pixels)
        features.append(model.contrastive_image(encoded.float(), frames).cpu())
        tokens.append(loaded.offload(encoded))
        items += [
            {
                "key": sample.key,
                "captions": list(sample.captions),
                "annotations": sample.annotations,
            }
            | {"media": hashlib.sha256(sample.media).hexdigest()}
            for sample in batch.samples
        ]
    listed = [
        {"key": bad.key, "captions": list(bad.captions), "problem": bad.problem} for bad in problems
    ]
    arrays = {"features": torch.cat(features), "tokens": torch.cat(tokens)} if features else {}
    return Block(arrays, items + listed)


def _text_block(loaded: LoadedModel, ids: Sequence[Tensor], batch_size: int) -> Block:
    """Encode texts that are sorted by their length."""
    model, features, tokens = loaded.model, [], []
    for start in range(0, len(ids), batch_size):
        rows = ids[start : start + batch_size]
        padded = torch.nn.utils.rnn.pad_sequence(
            list(rows), batch_first=True, padding_value=loaded.tokenizer.pad_id
        )
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(padded.shape[1]) < lengths[:, None]).long()
        with loaded.autocast():
            encoded = model.encode_text(padded.to(loaded.device), mask.to(loaded.device))
        features.append(model.contrastive_text(encoded.float()).cpu())
        tokens += list(loaded.offload(encoded))
    return Block(
        {
            "features": torch.cat(features),
            "tokens": torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True),
        },
        [],
    )


def _joined(blocks: Sequence[Block], name: str) -> Tensor:
    return torch.cat([block.arrays[name] for block in blocks if block.arrays])


def portable_config(config: PreTrainedConfig) -> dict[str, Any]:
    """Return a model's configuration without the folder that it was read from."""
    return {name: value for name, value in config.to_dict().items() if name != "_name_or_path"}


@functools.cache
def environment_of_features() -> dict[str, Any]:
    """Return versions of libraries and a hash of the code that turn bytes into features: a change never meets old ones.

    The hash is of this project's files.
    """
    libraries = (
        "torch",
        "transformers",
        "tokenizers",
        "pillow",
        "simplejpeg",
        "opencv-python-headless",
        "av",
    )
    root = Path(__file__).parents[2]
    names = ("augment", "decode", "decode_video", "frames", "loader", "sample", "text")
    files = [*sorted((root / "pretrain" / "model").glob("*.py"))]
    files += [
        root / "eval" / "encoding" / f"{name}.py"
        for name in ("encoders", "features", "labelled_images")
    ]
    files += [root / "data_pipeline" / f"{name}.py" for name in names]
    return {
        "versions": {name: importlib.metadata.version(name) for name in libraries},
        "code": hashlib.sha256(
            json.dumps([file.read_text("utf-8") for file in files]).encode()
        ).hexdigest(),
    }


def weights_hash(source: Path) -> str:
    """Hash the weights of a model: of a file, or of the safetensors files of a folder."""
    digest = hashlib.sha256()
    for file in [source] if source.is_file() else sorted(source.glob("*.safetensors")):
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"
