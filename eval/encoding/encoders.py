"""Image encoders for recognition from few examples: this project's models and stock CLIP models.

In: the path of a model. Out: one interface to its tokens, to the tokens of its intermediate blocks,
and to the features of the space that images and texts share, if the model has one.
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
    """Encoded images.

    ``tokens`` (batch, 1 + patches, width) are the encoder's output, class token first; ``proj``
    (batch, projection) are unit features of the joint space, None without one; ``layers`` maps a
    block to its raw tokens (batch, 1 + patches, width of the tower).
    """

    tokens: Tensor
    proj: Tensor | None
    layers: dict[int, Tensor] = field(default_factory=dict)


class Encoder(Protocol):
    """A model that encodes square images of ``image_size`` pixels into ``grid`` (rows, columns).

    ``depth`` is the number of its blocks, ``joint`` is true if images and texts share a space,
    ``module`` holds the weights, ``cache`` is the folder for encoded images, and ``description`` is
    the description of the model in results.
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
        """Return everything that tokens depend on besides the images, as JSON."""

    def encode(self, pixels: Tensor, layers: Sequence[int] = ()) -> Encoded:
        """Encode bytes (batch, height, width, 3), with gradients where they are enabled.

        ``layers`` are numbered from 1. Raises UsageError for a block that does not exist.
        """

    def project(self, tokens: Tensor) -> Tensor:
        """Map last tokens (..., width) of any kind into the joint space (..., projection).

        The results do not have unit length. Raises UsageError if there is no joint space.
        """

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return unit features (texts, projection); raise UsageError without a joint space."""


def load_encoder(
    path: Path | str, precision: str = "fp32", cache: Path | str | None = None
) -> Encoder:
    """Load a model of this project, an export of `glscl export`, or a CLIP model of transformers.

    Parameters
    ----------
    path
        Run folder, checkpoint, model folder or authors' checkpoint; or a folder with `vision/` and
        `text/`; or one that holds a `CLIPModel` with its tokenizer and image processor.
    precision
        `fp32` or `bf16`.
    cache
        Folder for encoded tokens, if any.

    Raises
    ------
    UsageError
        For another precision, and if there is no model or one of another kind.
    DataError
        If the model is damaged or incomplete.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"precision is {precision!r}, must be one of {', '.join(PRECISIONS)}")
    path, cache = Path(path), None if cache is None else Path(cache)
    # An export first: it has no config.json of its own.
    if (path / EXPORT_NAME).is_file() or (path / "vision" / "config.json").is_file():
        return _exported(path, precision, cache)
    kind = _model_type(path)
    if kind == "clip":
        return _clip(path, precision, cache)
    # A common mistake: naming the folder of one tower.
    if kind == "clip_vision_model" and (path.resolve().parent / EXPORT_NAME).is_file():
        raise UsageError(f"{path} is one tower of an export: name {path.resolve().parent}")
    if kind not in (None, "glscl"):
        raise UsageError(
            f"{path} holds a {kind} model: name a GLSCL model, a folder that `glscl export` wrote, "
            "or a CLIP model"
        )
    return GLSCLEncoder(load(path, precision, cache))


def equally_spaced(depth: int, count: int = 4) -> tuple[int, ...]:
    """Pick ``count`` of ``depth`` blocks, including the last: 3, 6, 9, 12 of 12."""
    # Fewer blocks than requested if the tower is shallow.
    count = min(count, depth)
    return tuple(-(-depth * number // count) for number in range(1, count + 1))


class GLSCLEncoder:
    """A model of this project, with tokens as fusion reads them and contrastive features."""

    joint = True

    def __init__(self, loaded: LoadedModel) -> None:
        vision: Any = loaded.model.config.vision_config
        self._loaded = loaded
        self.description, self.device, self.cache = loaded.description, loaded.device, loaded.cache
        self.module: nn.Module = loaded.model
        self.image_size, self.depth = loaded.model.config.image_size, vision.num_hidden_layers
        self.grid = _grid(vision)

    def identity(self) -> dict[str, Any]:
        """Return everything that tokens depend on besides the images."""
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
        """Map last tokens (..., width) by the contrastive head, trained on class tokens only."""
        return self._loaded.model.contrastive_image_head(tokens.to(self.device))

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return unit features (texts, projection)."""
        encoded = encode_texts(self._loaded, texts)
        return encoded.features[encoded.row]


class CLIPEncoder:
    """A stock CLIP image tower, alone or in its `CLIPModel`.

    All tokens are post-normalized, as in GLSCL's tower; CLIP itself does so for its class token
    only. Images are resized to the tower's square and never cropped.
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
        # A CLIPVisionModel is the tower itself, a CLIPModel has it inside.
        self._tower: Any = module.vision_model if isinstance(module, CLIPModel) else module
        mean, std = statistics
        self._mean = torch.tensor(list(mean), device=self.device)
        self._std = torch.tensor(list(std), device=self.device)
        self._tokenizer: Any = tokenizer
        self._precision = precision
        self.joint = tokenizer is not None
        vision = self._tower.config
        self.image_size, self.depth = vision.image_size, vision.num_hidden_layers
        self.grid = _grid(vision)

    def identity(self) -> dict[str, Any]:
        """Return everything that tokens depend on besides the images."""
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
        # Hooks, because output_hidden_states would keep the tokens of all layers.
        with _outputs_of(self._tower.encoder.layers, layers) as outputs, self._autocast():
            states = self._tower(pixel_values=normalized).last_hidden_state
            tokens = self._tower.post_layernorm(states)
        # Projection and normalization run in float32.
        tokens = tokens.float()
        if not self.joint:
            return Encoded(tokens, None, outputs)
        features = self._model.visual_projection(tokens[:, 0])
        return Encoded(tokens, F.normalize(features, dim=-1), outputs)

    def project(self, tokens: Tensor) -> Tensor:
        """Map last tokens (..., width) by the visual projection of the joint space."""
        self._refuse_without_joint_space()
        return self._model.visual_projection(tokens.to(self.device))

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return unit features (texts, projection) of the joint space."""
        self._refuse_without_joint_space()
        longest = self._model.config.text_config.max_position_embeddings
        features = []
        for start in range(0, len(texts), TEXTS_PER_BLOCK):
            chunk = list(texts[start : start + TEXTS_PER_BLOCK])
            # Always padded to the full length, so that the features of a text do not depend on the
            # other texts of its batch.
            padding = {"padding": "max_length", "max_length": longest, "truncation": True}
            words = self._tokenizer(chunk, return_tensors="pt", **padding).to(self.device)
            with self._autocast():
                states = self._model.text_model(words["input_ids"], words["attention_mask"])
            projected = self._model.text_projection(states.pooler_output.float())
            features.append(projected.cpu().numpy())
        return unit_features(np.concatenate(features), texts)

    def _refuse_without_joint_space(self) -> None:
        if not self.joint:
            raise UsageError(
                f"{self.description['path']} has no space that images share with texts "
                "(`glscl export` writes the towers without the contrastive heads): "
                "name the run folder that it was exported from"
            )

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._precision == "bf16")


@contextmanager
def _outputs_of(blocks: nn.ModuleList, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Collect the outputs of blocks, numbered from 1, in float32 while the tower runs."""
    outputs: dict[int, Tensor] = {}

    def keep(number: int) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(block: nn.Module, inputs: Any, output: Tensor) -> None:
            outputs[number] = output.float()

        return hook

    for number in layers:
        if not 1 <= number <= len(blocks):
            raise UsageError(f"the image tower has blocks 1 to {len(blocks)}, not {number}")
    hooks = []
    for number in sorted(set(layers)):
        hooks.append(blocks[number - 1].register_forward_hook(keep(number)))
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def _exported(path: Path, precision: str, cache: Path | None) -> CLIPEncoder:
    vision = path / "vision"
    if _model_type(vision) != "clip_vision_model":
        raise DataError(f"{vision} does not hold a CLIPVisionModel: export the model again")
    model = _from_pretrained(CLIPVisionModel, vision)
    description = _description(path, vision, model)
    return CLIPEncoder(model, description, _statistics(vision), None, precision, cache)


def _clip(path: Path, precision: str, cache: Path | None) -> CLIPEncoder:
    model = _from_pretrained(CLIPModel, path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"the tokenizer of {path} cannot be loaded: {_short(error)}") from error
    # A smaller tokenizer is possible, because vocabularies are padded to round sizes.
    if len(tokenizer) > model.config.text_config.vocab_size:
        raise DataError(
            f"the tokenizer in {path} has more entries than the model: it is another model's"
        )
    description = _description(path, path, model)
    return CLIPEncoder(model, description, _statistics(path), tokenizer, precision, cache)


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
            f"{folder} does not say how images are normalized: {_short(error)}"
        ) from error


def _from_pretrained(kind: Any, folder: Path) -> Any:
    # Progress bars of transformers would mix with the lines of the command.
    transformers_logging.disable_progress_bar()
    try:  # safetensors only: a pickle could run any code
        model, loading = kind.from_pretrained(
            folder, output_loading_info=True, use_safetensors=True
        )
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise DataError(f"the model in {folder} cannot be loaded: {_short(error)}") from error
    if missing := sorted(loading["missing_keys"]):
        raise DataError(
            f"the model in {folder} lacks {len(missing)} weights, the first is {missing[0]}"
        )
    # Without dropout, so that encoding twice gives the same tokens.
    return model.eval()


def _model_type(folder: Path) -> str | None:
    """Return the model type of `config.json`; None without that file."""
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
