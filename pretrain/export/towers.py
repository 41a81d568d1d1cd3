"""Export the two encoders as stock transformers classes with their preprocessing.

In: a run, checkpoint or model folder. Out: a folder with `vision/` (a CLIPVisionModel), `text/`
(such as a RobertaModel) and a model card, which is complete or not there.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from transformers import CLIPImageProcessorPil

from data_pipeline.errors import DataError, UsageError
from data_pipeline.files import sha256, write_json
from pretrain.model import GLSCLModel
from pretrain.run.checkpoint import load_model

from .card import model_card
from .check import check_export

EXPORT_NAME = "export.json"
FORMAT = "glscl-export/1"


def export(model: Path | str, out: Path | str, *, check: bool = False) -> Path:
    """Write the encoders of ``model`` into folder ``out`` and return it.

    Parameters
    ----------
    model
        Run folder, checkpoint or model folder.
    out
        A new or empty folder, or an earlier export, which is replaced.
    check
        Load the result in a process that cannot import this project and compare its outputs, before
        ``out`` is replaced.

    Raises
    ------
    UsageError
        If ``model`` does not exist, is a checkpoint file of the authors or has an image tower that
        no stock class computes, or ``out`` holds anything but an earlier export.
    DataError
        If the model is damaged.
    NumericsError
        If ``check`` finds a difference from the model's outputs.
    """
    out = Path(out)
    _refuse_other_content(out)
    loaded = load_model(model)
    # SigLIP's stock class would compute other tokens than this model.
    if loaded.class_token is not None:
        raise UsageError(
            f"the image tower of {model} is a {type(loaded.vision).__name__} with a class token, "
            "for which that class has no place: only CLIP towers can be exported"
        )
    folder = Path(loaded.name_or_path)
    if not folder.is_dir():
        raise UsageError(
            f"{folder} is a file without a tokenizer: "
            f"run `glscl convert {folder} OUT --tokenizer ...` first"
        )
    beside = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)  # left by an export that was killed
    try:
        beside.mkdir(parents=True)
        _write(loaded, folder, beside)
        (beside / "README.md").write_text(model_card(loaded, folder), encoding="utf-8")
        if check:
            check_export(loaded, beside)
        write_json(
            beside / EXPORT_NAME,
            {
                "format": FORMAT,
                "model": str(folder),
                "weights_sha256": sha256(folder / "model.safetensors"),
            },
        )
        # Only now, after everything else has succeeded.
        shutil.rmtree(out, ignore_errors=True)
        beside.rename(out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return out


def _refuse_other_content(out: Path) -> None:
    if out.is_dir() and any(out.iterdir()) and not (out / EXPORT_NAME).is_file():
        raise UsageError(
            f"{out} is not empty and not an earlier export: choose another folder or remove it"
        )
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file: choose a folder")


def _write(model: GLSCLModel, source: Path, out: Path) -> None:
    config = model.config
    # transformers 4 reads the tower only with this prefix, and would otherwise silently leave it at
    # random weights. transformers 5 reads both.
    state = model.vision.state_dict()
    prefixed = {f"vision_model.{name}": tensor for name, tensor in state.items()}
    model.vision.save_pretrained(out / "vision", state_dict=prefixed)
    model.text.save_pretrained(out / "text")
    CLIPImageProcessorPil(
        size={"height": config.image_size, "width": config.image_size},
        do_center_crop=False,
        image_mean=list(config.image_mean),
        image_std=list(config.image_std),
    ).save_pretrained(out / "vision")
    _write_tokenizer(source, out / "text", config.max_text_length)


def _write_tokenizer(source: Path, out: Path, max_length: int) -> None:
    """Copy the tokenizer, without its link to this project's processor, and set its text length."""
    if not (source / "tokenizer.json").is_file():
        raise DataError(f"{source} holds no tokenizer.json: the tokenizer cannot be exported")
    shutil.copyfile(source / "tokenizer.json", out / "tokenizer.json")
    settings = json.loads((source / "tokenizer_config.json").read_text("utf-8"))
    settings.pop("processor_class", None)
    write_json(out / "tokenizer_config.json", settings | {"model_max_length": max_length})
