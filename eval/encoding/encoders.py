"""Image encoders that recognition from few examples can stand on: this project's models and stock CLIP ones.

In: the path of a model. Out: one interface to its tokens, to those of its intermediate blocks, and
where it has a space that pictures share with texts, to the features there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel, CLIPVisionModel
from transformers.utils import logging as transformers_logging

from data_pipeline.errors import DataError, UsageError
from eval.encoding.features import (
    PRECISIONS,
    TEXTS_PER_BLOCK,
    LoadedModel,
    encode_texts,
    environment_of_features,
    load,
    portable_config,
    processes,
    weights_hash,
)
from pretrain.export.towers import EXPORT_NAME
from pretrain.ranking import unit_features


@dataclass(frozen=True)
class Encoded:
    """Encoded pictures: ``tokens`` (batch, 1 + patches, width), class token first, as the encoder hands them on.

    ``proj`` (batch, projection) are unit features of the joint space, None without one; ``layers``
    maps a block to its raw tokens (batch, 1 + patches, width of the tower).
    """

    tokens: Tensor
    proj: Tensor | None
    layers: dict[int, Tensor] = field(default_factory=dict)


class Encoder(Protocol):
    """A model that encodes square pictures of ``image_size`` pixels into ``grid`` (rows, columns) patches.

    ``depth`` is the number of its blocks, ``joint`` says whether pictures and texts share a space,
    ``module`` holds the weights, ``cache`` is the folder that keeps what it encodes,
    ``description`` what a result says about it.
    """

    description: dict[str, Any]
    device: torch.device
    cache: Path | None
    image_size: int
    depth: int
    grid: tuple[int, int]
    module: nn.Module
    joint: bool

    def identity(self) -> dict[str, Any]:
        """Return all that tokens depend on besides the pictures, as JSON."""

    def encode(self, pixels: Tensor, layers: Sequence[int] = ()) -> Encoded:
        """Encode bytes (batch, height, width, 3), with gradients where they are enabled.

        ``layers`` are 1-based. Raises UsageError for a block that the tower has not.
        """

    def project(self, tokens: Tensor) -> Tensor:
        """Map last tokens (..., width), patches or class tokens, into the joint space (..., projection), of any length.

        Raises UsageError where there is no joint space.
        """

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return unit features (texts, projection); raises UsageError where there is no joint space."""


def load_encoder(
    path: Path | str, precision: str = "fp32", cache: Path | str | None = None
) -> Encoder:
    """Load a model of this project, a folder that `glscl export` wrote, or a CLIP model of transformers.

    Parameters
    ----------
    path
        Run folder, checkpoint, model folder or authors' checkpoint; or a folder with `vision/` and
        `text/`; or one that holds a `CLIPModel` with its tokenizer and image processor.
    precision
        `fp32` or `bf16`.
    cache
        Folder that keeps tokens, if any.

    Raises
    ------
    UsageError
        For another precision, and where there is no model, or one of another kind.
    DataError
        If the model is damaged or incomplete.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"precision is {precision!r}, must be one of {', '.join(PRECISIONS)}")
    path, cache = Path(path), None if cache is None else Path(cache)
    if (path / EXPORT_NAME).is_file() or (path / "vision" / "config.json").is_file():
        return _exported(path, precision, cache)
    kind = _model_type(path)
    if kind == "clip":
        return _clip(path, precision, cache)
    if kind == "clip_vision_model" and (path.resolve().parent / EXPORT_NAME).is_file():
        raise UsageError(f"{path} is one tower of an export: name {path.resolve().parent}")
    if kind not in (None, "glscl"):
        raise UsageError(
            f"{path} holds a {kind} model: name a GLSCL model, a folder that `glscl export` wrote, or a CLIP model"
        )
    return GLSCLEncoder(load(path, precision, cache))


def equally_spaced(depth: int, count: int = 4) -> tuple[int, ...]:
    """Choose ``count`` of ``depth`` blocks, the last among them: 3, 6, 9, 12 of 12; all where there are fewer."""
    count = min(count, depth)
    return tuple(-(-depth * number // count) for number in range(1, count + 1))


class GLSCLEncoder:
    """A model of this project: tokens as fusion reads them (projected), features of the contrastive heads."""

    joint = True

    def __init__(self, loaded: LoadedModel) -> None:
        vision: Any = loaded.model.config.vision_config
        self._loaded = loaded
        self.description, self.device, self.cache = loaded.description, loaded.device, loaded.cache
        self.module: nn.Module = loaded.model
        self.image_size, self.depth = loaded.model.config.image_size, vision.num_hidden_layers
        self.grid = _grid(vision)

    def identity(self) -> dict[str, Any]:
        """Return all that tokens depend on besides the pictures."""
        return self._loaded.identity()

    def encode(self, pixels: Tensor, layers: Sequence[int] = ()) -> Encoded:
        """Encode bytes (batch, height, width, 3)."""
        model, vision = self._loaded.model, self._loaded.model.vision
        with _outputs_of(vision.encoder.layers, layers) as outputs:
            normalized = model.normalize(pixels.to(self.device))
            with self._loaded.autocast():
                tokens = model.encode_image(normalized)
        tokens = tokens.float()
        return Encoded(tokens, F.normalize(model.contrastive_image(tokens), dim=-1), outputs)

    def project(self, tokens: Tensor) -> Tensor:
        """Map last tokens (..., width) by the contrastive head, which was trained on class tokens alone."""
        return self._loaded.model.contrastive_image_head(tokens.to(self.device))

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return unit features (texts, projection)."""
        found = encode_texts(self._loaded, texts)
        return found.features[found.row]


class CLIPEncoder:
    """A stock CLIP image tower, alone or in its `CLIPModel`: tokens are all post-normalised, as GLSCL's tower has them.

    CLIP itself normalises its class token only. Pictures are squashed to the tower's square, never
    cropped.
    """

    def __init__(
        self,
        module: CLIPModel | CLIPVisionModel,
        description: dict[str, Any],
        statistics: tuple[Sequence[float], Sequence[float]],
        tokenizer: Any | None,
        precision: str,
        cache: Path | None,
    ) -> None:
        self.device, self.cache, self.description = processes().device, cache, description
        self.module: nn.Module = module.to(self.device)
        self._model: Any = module
        self._tower: Any = module.vision_model if isinstance(module, CLIPModel) else module
        self._mean, self._std = (
            torch.tensor(list(values), device=self.device) for values in statistics
        )
        self._tokenizer: Any = tokenizer
        self._precision = precision
        self.joint = tokenizer is not None
        vision = self._tower.config
        self.image_size, self.depth, self.grid = (
            vision.image_size,
            vision.num_hidden_layers,
            _grid(vision),
        )

    def identity(self) -> dict[str, Any]:
        """Return all that tokens depend on besides the pictures."""
        return {
            "weights": self.description["hash"],
            "config": portable_config(self._model.config),
            "statistics": [self._mean.tolist(), self._std.tolist()],
            "precision": self._precision,
            "device": self.device.type,
            **environment_of_features(),
        }

    def encode(self, pixels: Tensor, layers: Sequence[int] = ()) -> Encoded:
        """Encode bytes (batch, height, width, 3)."""
        scaled = pixels.to(self.device).movedim(-1, -3) / 255
        normalized = (scaled - self._mean[:, None, None]) / self._std[:, None, None]
        with _outputs_of(self._tower.encoder.layers, layers) as outputs, self._autocast():
            tokens = self._tower.post_layernorm(
                self._tower(pixel_values=normalized).last_hidden_state
            )
        tokens = tokens.float()
        proj = (
            F.normalize(self._model.visual_projection(tokens[:, 0]), dim=-1) if self.joint else None
        )
        return Encoded(tokens, proj, outputs)

    def project(self, tokens: Tensor) -> Tensor:
        """Map last tokens (..., width) by the visual projection; raises UsageError where there is no joint space."""
        self._refuse_without_joint_space()
        return self._model.visual_projection(tokens.to(self.device))

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return unit features (texts, projection); raises UsageError where there is no joint space."""
        self._refuse_without_joint_space()
        longest = self._model.config.text_config.max_position_embeddings
        features = []
        for start in range(0, len(texts), TEXTS_PER_BLOCK):
            chunk = list(texts[start : start + TEXTS_PER_BLOCK])
            # Always as long as may be: a text's features then do not depend on those beside it.
            ids = self._tokenizer(
                chunk,
                padding="max_length",
                truncation=True,
                max_length=longest,
                return_tensors="pt",
            ).to(self.device)
            with self._autocast():
                pooled = self._model.text_model(
                    ids["input_ids"], ids["attention_mask"]
                ).pooler_output
            features.append(self._model.text_projection(pooled.float()).cpu().numpy())
        return unit_features(np.concatenate(features), texts)

    def _refuse_without_joint_space(self) -> None:
        if not self.joint:
            raise UsageError(
                f"{self.description['path']} has no space that pictures share with texts (`glscl export` writes the "
                "towers without the contrastive heads): name the run folder that it was exported from"
            )

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._precision == "bf16")


@contextmanager
def _outputs_of(blocks: nn.ModuleList, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Collect what blocks (1 is the first) return while the tower runs, in float32."""
    outputs: dict[int, Tensor] = {}

    def keep(number: int) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(block: nn.Module, inputs: Any, output: Tensor) -> None:
            outputs[number] = output.float()

        return hook

    for number in layers:
        if not 1 <= number <= len(blocks):
            raise UsageError(f"the image tower has blocks 1 to {len(blocks)}, not {number}")
    hooks = [
        blocks[number - 1].register_forward_hook(keep(number)) for number in sorted(set(layers))
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def _exported(path: Path, precision: str, cache: Path | None) -> CLIPEncoder:
    vision = path / "vision"
    if _model_type(vision) != "clip_vision_model":
        raise DataError(f"{vision} holds no CLIPVisionModel: export the model again")
    model = _from_pretrained(CLIPVisionModel, vision)
    return CLIPEncoder(
        model, _description(path, vision, model), _statistics(vision), None, precision, cache
    )


def _clip(path: Path, precision: str, cache: Path | None) -> CLIPEncoder:
    model = _from_pretrained(CLIPModel, path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"the tokenizer of {path} cannot be loaded: {_short(error)}") from error
    if len(tokenizer) > model.config.text_config.vocab_size:
        raise DataError(
            f"the tokenizer in {path} has more entries than the model knows: it is another model's"
        )
    return CLIPEncoder(
        model, _description(path, path, model), _statistics(path), tokenizer, precision, cache
    )


def _description(path: Path, folder: Path, model: nn.Module) -> dict[str, Any]:
    return {
        "path": str(path),
        "folder": str(folder),
        "hash": weights_hash(folder),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "image_size": _vision_config(model).image_size,
    }


def _vision_config(model: Any) -> Any:
    return model.config.vision_config if isinstance(model, CLIPModel) else model.config


def _statistics(folder: Path) -> tuple[Sequence[float], Sequence[float]]:
    try:
        processor: Any = CLIPImageProcessorPil.from_pretrained(folder)
        return processor.image_mean, processor.image_std
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{folder} does not say how pictures are normalised: {_short(error)}"
        ) from error


def _from_pretrained(kind: Any, folder: Path) -> Any:
    transformers_logging.disable_progress_bar()
    try:  # safetensors alone: a pickle could run anything
        model, found = kind.from_pretrained(folder, output_loading_info=True, use_safetensors=True)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise DataError(f"the model in {folder} cannot be loaded: {_short(error)}") from error
    if missing := sorted(found["missing_keys"]):
        raise DataError(
            f"the model in {folder} lacks {len(missing)} weights, the first is {missing[0]}"
        )
    return model.eval()


def _model_type(folder: Path) -> str | None:
    """Return what `config.json` says the model is; None where there is none."""
    try:
        config: Any = json.loads((folder / "config.json").read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / 'config.json'} cannot be read: {_short(error)}") from error
    return str(config.get("model_type")) if isinstance(config, Mapping) else None


def _grid(vision: Any) -> tuple[int, int]:
    side = vision.image_size // vision.patch_size
    return side, side


def _short(error: Exception) -> str:
    return " ".join(str(error).split())
