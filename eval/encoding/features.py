"""Load a model and encode a test set once.

In: images, videos or texts. Out: unit features for the contrastive score, and tokens for fusion.
The work is divided into blocks of consecutive images or texts, which can be cached (see
`eval/encoding/cache.py`). Under `accelerate launch`, every process encodes some of the blocks; the
number of processes does not change the results.
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
from eval.encoding.cache import Block, encoded_blocks, joined
from pretrain.model import GLSCLModel
from pretrain.ranking import unit_features
from pretrain.run.checkpoint import load_model

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
IMAGES_PER_BLOCK = 64
UNREADABLE = ("undecodable", "too-large")  # faults of one image, not of the data set
TEXTS_PER_BLOCK = 256


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to encode, in eval mode.

    ``description`` is its description in results, ``cache`` the folder for encoded blocks, if any.
    """

    model: GLSCLModel
    tokenizer: Tokenizer
    device: torch.device
    precision: str
    description: dict[str, Any]
    cache: Path | None = None

    def identity(self) -> dict[str, Any]:
        """Return everything that features depend on besides images and texts, but no paths."""
        return {
            "weights": self.description["hash"],
            "config": portable_config(self.model.config),
            "tokenizer": hashlib.sha256(self.tokenizer.to_str().encode()).hexdigest(),
            "precision": self.precision,
            "device": self.device.type,
            **environment_of_features(),
        }

    def autocast(self) -> torch.autocast:
        """Return the context for the networks; heads and similarities stay outside, in float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def offload(self, tokens: Tensor) -> Tensor:
        """Move tokens to the CPU until fusion, in the precision of fusion."""
        return tokens.to("cpu", PRECISIONS[self.precision])


@dataclass(frozen=True)
class Unreadable:
    """A sample whose image or video cannot be decoded, with its captions and the reason."""

    key: str
    captions: tuple[str, ...]
    problem: str


@dataclass(frozen=True)
class Images:
    """Encoded images or videos.

    ``row`` (images,) is the position of the first image with the same file, so that copies tie
    exactly. ``features`` (images, projection) have unit length; ``tokens`` (images, frames + frames
    * patches, width) are the input of fusion.
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

    ``features`` (distinct, projection), ``tokens`` (distinct, length, width) and ``mask``
    (distinct, length) hold one row per distinct text; ``row`` (texts,) is the row of each text.
    """

    row: NDArray[np.int64]
    features: NDArray[np.float32]
    tokens: Tensor
    mask: Tensor


def processes() -> PartialState:
    """Return the processes that evaluate together; without CUDA they use the CPU."""
    return PartialState(cpu=not torch.cuda.is_available())


def load(path: Path | str, precision: str = "fp32", cache: Path | str | None = None) -> LoadedModel:
    """Load a model for evaluation.

    ``path`` is a run folder, a checkpoint, a model folder, or a checkpoint file of the authors with
    its tokenizer in the same folder. ``cache`` is the folder for encoded blocks, if any.

    Raises
    ------
    UsageError
        If ``precision`` is neither `fp32` nor `bf16`, or there is no such model.
    DataError
        If the model is damaged, or its tokenizer is missing or another model's.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"precision is {precision!r}, must be one of {', '.join(PRECISIONS)}")
    # Under accelerate, each process has its own device.
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
        # The model's own tokenizer: another one would give every word another embedding.
        tokenizer = Tokenizer.load(folder)
    except DataError as error:
        raise DataError(
            f"{error} (`glscl convert --tokenizer FOLDER` writes one with the converted model)"
        ) from error
    # A smaller tokenizer is possible, because vocabularies are padded to round sizes.
    if tokenizer.vocab_size > model.config.text_config.vocab_size:
        raise DataError(
            f"the tokenizer in {folder} has {tokenizer.vocab_size:,} entries, the model "
            f"{model.config.text_config.vocab_size:,}: it is another model's"
        )
    cache = None if cache is None else Path(cache)
    return LoadedModel(model, tokenizer, device, precision, description, cache)


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
    """Encode the first ``limit`` images of a data set (default: all), in the order of its shards.

    With ``frames``, the samples are videos: that number of evenly spaced frames is encoded, and a
    shorter video repeats some. A sample that cannot be read is an error, or is listed with
    ``skip_unreadable``. With ``captioned``, every sample must have a caption.

    Raises
    ------
    UsageError
        If the model takes no videos, or only shorter ones.
    DataError
        If there is no image, or one cannot be read.
    NumericsError
        If a feature is not finite; the message names the sample.
    """
    if frames is not None and frames > loaded.model.config.max_frames:
        raise UsageError(
            f"the model takes videos of at most {loaded.model.config.max_frames} frames "
            f"(max_frames), not {frames}"
        )
    total = manifest.samples if limit is None else min(limit, manifest.samples)
    ranges = block_ranges(total, IMAGES_PER_BLOCK)
    data = {"data": manifest.digest, "name": manifest.name, "frames": frames}

    def compute(number: int) -> Block:
        block = ranges[number]
        batches, problems = _readable(
            loaded,
            manifest,
            block.start,
            block.stop,
            batch_size,
            frames,
            skip_unreadable,
            captioned,
        )
        return _image_block(loaded, batches, problems, frames or 1)

    block_keys = [data | {"start": block.start, "stop": block.stop} for block in ranges]
    blocks = encoded_blocks(processes(), loaded.cache, loaded.identity(), block_keys, compute)
    items: list[dict[str, Any]] = []
    unreadable: list[Unreadable] = []
    for block in blocks:
        for item in block.items:
            if "problem" in item:
                bad = Unreadable(item["key"], tuple(item["captions"]), item["problem"])
                unreadable.append(bad)
            else:
                items.append(item)
    # Blocks from the cache may come from an evaluation that skipped unreadable samples, or that
    # needed no captions: both are checked again here.
    if unreadable and not skip_unreadable:
        raise DataError(unreadable[0].problem)
    if not items:
        raise DataError(f"{manifest.root} holds no sample to evaluate on")
    if captioned:
        captions = [(item["key"], item["captions"]) for item in items]
        captions += [(bad.key, bad.captions) for bad in unreadable]
        for key, of_sample in captions:
            if not of_sample:
                raise DataError(f"sample {key} cannot be evaluated: it has no caption")
    # Copies of a file share a row, so that their features and scores tie exactly.
    keys = [item["key"] for item in items]
    first_row: dict[str, int] = {}
    rows = [first_row.setdefault(item["media"], row) for row, item in enumerate(items)]
    return Images(
        keys=keys,
        captions=[tuple(item["captions"]) for item in items],
        annotations=[item["annotations"] for item in items],
        row=np.array(rows),
        # Raises for features that are not finite, with the key of the image.
        features=unit_features(joined(blocks, "features"), keys),
        tokens=joined(blocks, "tokens"),
        frames=frames or 1,
        unreadable=unreadable,
    )


@torch.inference_mode()
def encode_texts(loaded: LoadedModel, texts: Sequence[str], *, batch_size: int = 64) -> Texts:
    """Encode every distinct text once.

    Raises
    ------
    NumericsError
        If a feature is not finite; the message names the text.
    """
    # Sorted, so that the blocks and their cache keys do not depend on the order of the texts.
    distinct = sorted(set(texts))
    longest = loaded.model.config.max_text_length
    ids = token_ids(loaded, distinct)
    lengths = torch.tensor([len(row) for row in ids])
    # Texts of similar length share a block, so that little padding is computed.
    chunks = list(torch.argsort(lengths, stable=True).split(TEXTS_PER_BLOCK))
    block_keys = []
    for rows in chunks:
        texts_of_block = [distinct[row] for row in rows.tolist()]
        block_keys.append({"longest": longest, "texts": texts_of_block})

    def compute(number: int) -> Block:
        return _text_block(loaded, [ids[row] for row in chunks[number].tolist()], batch_size)

    blocks = encoded_blocks(processes(), loaded.cache, loaded.identity(), block_keys, compute)
    mask = _mask(lengths)
    # Blocks have different lengths, so that their tokens are copied into one padded tensor.
    features = torch.empty(len(distinct), blocks[0].arrays["features"].shape[1])
    tokens = blocks[0].arrays["tokens"].new_zeros(*mask.shape, blocks[0].arrays["tokens"].shape[2])
    for rows, block in zip(chunks, blocks, strict=True):
        features[rows] = block.arrays["features"]
        tokens[rows, : block.arrays["tokens"].shape[1]] = block.arrays["tokens"]
    row_of_text = {text: row for row, text in enumerate(distinct)}
    return Texts(
        row=np.array([row_of_text[text] for text in texts]),
        features=unit_features(features, distinct),
        # Zeros at padding, so that the length of a block does not show in the result.
        tokens=tokens * mask[..., None].to(tokens.dtype),
        mask=mask,
    )


def block_ranges(total: int, size: int) -> list[range]:
    """Cut 0, ..., total - 1 into consecutive ranges of ``size``; the last may be shorter."""
    return [range(start, min(start + size, total)) for start in range(0, total, size)]


def token_ids(loaded: LoadedModel, texts: Sequence[str]) -> list[Tensor]:
    """Tokenize texts, cut to the model's length; return the ids of each."""
    encodings = loaded.tokenizer.encode(texts, loaded.model.config.max_text_length)
    return [torch.tensor(encoding.ids) for encoding in encodings]


def padded_texts(loaded: LoadedModel, ids: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Pad token ids to the longest text; return ids and a 1/0 mask (texts, tokens) on the CPU."""
    padded = torch.nn.utils.rnn.pad_sequence(
        list(ids), batch_first=True, padding_value=loaded.tokenizer.pad_id
    )
    return padded, _mask(torch.tensor([len(row) for row in ids]))


def _mask(lengths: Tensor) -> Tensor:
    return (torch.arange(int(lengths.max())) < lengths[:, None]).long()


def chunks_of_process(rows: Any, at_once: int) -> Iterator[Any]:
    """Yield the chunks of ``rows`` that this process computes."""
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
    """Read the samples from ``start`` to ``stop``.

    With ``skip_unreadable``, and if one of them is unreadable, they are read one by one.
    """
    size = loaded.model.config.image_size
    texts: Literal["captions", "none"] = "captions" if captioned else "none"

    def read(first: int, last: int) -> list[EvaluationBatch]:
        batches = evaluation_batches(
            manifest,
            size=size,
            batch_size=batch_size,
            start=first,
            limit=last,
            frames=frames,
            texts=texts,
        )
        return list(batches)

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
                key, captions = store.key(0, index), store.captions(0, index)
                problems.append(Unreadable(key, captions, str(error)))
    return batches, problems


def _is_unreadable(error: DataError) -> bool:
    """Whether the image or video is at fault, not its shard, which can be repaired."""
    return isinstance(error.__cause__, BadSample) and error.__cause__.reason in UNREADABLE


def _image_block(
    loaded: LoadedModel,
    batches: Sequence[EvaluationBatch],
    problems: Sequence[Unreadable],
    frames: int,
) -> Block:
    model = loaded.model
    features, tokens = [], []
    items: list[dict[str, Any]] = []
    for batch in batches:
        pixels = model.normalize(batch.pixels.to(loaded.device))
        with loaded.autocast():
            encoded = model.encode_image(pixels)
        # The head runs in float32: its features decide ranks, which bf16 would tie.
        features.append(model.contrastive_image(encoded.float(), frames).cpu())
        tokens.append(loaded.offload(encoded))
        for sample in batch.samples:
            items.append(
                {
                    "key": sample.key,
                    "captions": list(sample.captions),
                    "annotations": sample.annotations,
                    "media": hashlib.sha256(sample.media).hexdigest(),
                }
            )
    for bad in problems:
        captions = list(bad.captions)
        items.append({"key": bad.key, "captions": captions, "problem": bad.problem})
    arrays = {"features": torch.cat(features), "tokens": torch.cat(tokens)} if features else {}
    return Block(arrays, items)


def _text_block(loaded: LoadedModel, ids: Sequence[Tensor], batch_size: int) -> Block:
    """Encode texts that are sorted by length."""
    model = loaded.model
    features: list[Tensor] = []
    tokens: list[Tensor] = []
    for start in range(0, len(ids), batch_size):
        padded, mask = padded_texts(loaded, ids[start : start + batch_size])
        with loaded.autocast():
            encoded = model.encode_text(padded.to(loaded.device), mask.to(loaded.device))
        features.append(model.contrastive_text(encoded.float()).cpu())
        tokens += list(loaded.offload(encoded))
    padded_tokens = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True)
    return Block({"features": torch.cat(features), "tokens": padded_tokens}, [])


def portable_config(config: PreTrainedConfig) -> dict[str, Any]:
    """Return a model's configuration without the folder that it comes from."""
    return {name: value for name, value in config.to_dict().items() if name != "_name_or_path"}


@functools.cache
def environment_of_features() -> dict[str, Any]:
    """Return the versions of libraries and a hash of this project's code that make features.

    They are part of every cache key, so that features of other code are never read.
    """
    libraries = ["torch", "transformers", "tokenizers"]
    libraries += ["pillow", "simplejpeg", "opencv-python-headless", "av"]
    root = Path(__file__).parents[2]
    # Every file whose change may change a feature. Add files here when code moves.
    files = sorted((root / "pretrain" / "model").glob("*.py"))
    for name in ("encoders", "features", "labelled_images"):
        files.append(root / "eval" / "encoding" / f"{name}.py")
    for name in ("augment", "decode", "decode_video", "frames", "loader", "sample", "text"):
        files.append(root / "data_pipeline" / f"{name}.py")
    code = json.dumps([file.read_text("utf-8") for file in files])
    return {
        "versions": {name: importlib.metadata.version(name) for name in libraries},
        "code": hashlib.sha256(code.encode()).hexdigest(),
    }


def weights_hash(source: Path) -> str:
    """Hash the weights of a model: a file, or the safetensors files of a folder."""
    digest = hashlib.sha256()
    for file in [source] if source.is_file() else sorted(source.glob("*.safetensors")):
        # The hash of the file hashes, because the names of the files do not matter.
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"
