"""Convert a checkpoint of the authors' release to a folder that `from_pretrained` loads.

In: the checkpoint file, and the tokenizer that it was trained with. Out: one folder, which is
complete or not there.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from data_pipeline.errors import DataError, IncompleteError, UsageError
from data_pipeline.files import sync
from pretrain.model import GLSCLConfig, GLSCLModel, GLSCLProcessor
from pretrain.run.checkpoint import load_authors


def convert(
    checkpoint: Path | str, out: Path | str, *, tokenizer: Path | str | None = None
) -> GLSCLModel:
    """Write the folder `OUT/full` and return the model.

    With a folder as `tokenizer`, its tokenizer and an image processor are written too.

    Raises
    ------
    UsageError
        If there is no such checkpoint or tokenizer folder, or `out` is not empty.
    DataError
        If the checkpoint is damaged or not from the authors' pre-training, or was trained with
        another tokenizer.
    IncompleteError
        If the disk is full; nothing is left behind.
    """
    out = Path(out).resolve()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"{out} is not an empty folder: choose another")
    # Read before the checkpoint, which takes minutes.
    words = None if tokenizer is None else _load_tokenizer(Path(tokenizer))
    model = load_authors(Path(checkpoint))
    processor = None if words is None else _processor(model.config, words, tokenizer)
    beside = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)  # left by a conversion that was killed
    try:
        full = beside / "full"
        full.mkdir(parents=True)
        model.save_pretrained(full)
        if processor is not None:
            processor.save_pretrained(full)
        for path in [*full.iterdir(), full, beside]:
            sync(path)
        beside.rename(out)
    except SafetensorError as error:  # safetensors' error for a full disk
        raise IncompleteError(
            f"cannot write {out}: {error}: make room and run the same command again"
        ) from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return model


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    if not folder.is_dir():  # transformers would look up another name on the hub
        problem = "a file, name its folder" if folder.exists() else "no such folder"
        raise UsageError(f"no tokenizer at {folder}: {problem}")
    files = ("tokenizer.json", "vocab.json", "tokenizer_config.json")
    if not any((folder / name).is_file() for name in files):
        raise DataError(f"no tokenizer at {folder}: it holds no tokenizer.json")
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare Exception
        raise DataError(
            f"no tokenizer at {folder}: {' '.join(str(error).split())[:300]}"
        ) from error


def _processor(
    config: GLSCLConfig, tokenizer: PreTrainedTokenizerBase, folder: Path | str | None
) -> GLSCLProcessor:
    ours = {"entries": len(tokenizer), "padding id": tokenizer.pad_token_id}
    theirs = {
        "entries": config.text_config.vocab_size,
        "padding id": config.text_config.pad_token_id,
    }
    for name, value in ours.items():
        if value != theirs[name]:
            raise DataError(
                f"{folder} is not the tokenizer that the checkpoint was trained with: "
                f"{name} {value} instead of {theirs[name]}"
            )
    return GLSCLProcessor.build(config, tokenizer)
