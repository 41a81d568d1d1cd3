"""Configurations as text: YAML, a preset under it, the command line over it -> one object, and back again.

Unknown keys are errors with a suggestion.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from data_pipeline.errors import UsageError

from .config import PRESETS, RunConfig, TrainingConfig


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read the YAML file of a pre-training run and apply `--dotted.key value` pairs.

    Raises UsageError that names the file, the key and the closest known key.
    """
    values = read_values(path, overrides)
    if values.get("preset") is not None:
        if values["preset"] not in list(PRESETS):
            raise UsageError(
                f"{path}: unknown preset {values['preset']!r}; there is {', '.join(PRESETS)}"
            )
        values = _merge(PRESETS[values["preset"]], values)
    return parse_config(RunConfig, values, str(path))


def read_values(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read the nested values of a YAML file with `--dotted.key value` pairs over them; raises UsageError."""
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise UsageError(f"cannot read the configuration {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not YAML: it is no text") from None
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path} must hold a mapping of keys to values")
    apply_overrides(values, overrides)
    return values


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> None:
    """Write `--dotted.key value` and `--dotted.key=value` into nested mappings; values are read as YAML."""
    words = list(overrides)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise UsageError(f"expected --dotted.key value, found {word!r}")
        key, found, text = word[2:].partition("=")
        if not found:
            if not words:
                raise UsageError(f"--{key} needs a value")
            text = words.pop(0)
        *parents, last = key.split(".")
        place: Any = values
        for parent in parents:
            place = (
                place.setdefault(parent, {})
                if isinstance(place, dict)
                else _element(place, parent, key)
            )
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UsageError(f"--{key}: {text!r} is not YAML") from None
        if isinstance(place, list):
            _element(place, last, key)
            place[int(last)] = value
        elif isinstance(place, dict):
            place[last] = value
        else:
            raise UsageError(f"--{key}: {'.'.join(parents)} holds a single value")


def parse_config(kind: type, values: dict[str, Any], name: str) -> Any:
    """Make a configuration dataclass of nested mappings; `name` is the file that messages point to."""
    _refuse_unknown(kind, values, name, "")
    try:
        return TypeAdapter(kind).validate_python(values)
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing":
            raise UsageError(f"{name}: {key} is missing") from None
        raise UsageError(f"{name}: {key}: {first['msg']} (found {first['input']!r})") from None


def to_yaml(config: Any) -> str:
    """Write a configuration as YAML that `load_config` reads back."""
    return yaml.safe_dump(_plain(dataclasses.asdict(config)), sort_keys=False)


def keys(config: TrainingConfig) -> set[str]:
    """Dotted keys of a configuration."""
    return set(_flatten(dataclasses.asdict(config)))


def differences(config: TrainingConfig, saved: TrainingConfig) -> list[str]:
    """Dotted keys whose change on resume would change what the run computes."""
    now, then = _flatten(dataclasses.asdict(config)), _flatten(dataclasses.asdict(saved))
    keys = [key for key in sorted(now.keys() | then.keys()) if now.get(key) != then.get(key)]
    exact = config.accumulation == saved.accumulation == "exact"
    free = (*config.free_on_resume, "micro_batches") if exact else config.free_on_resume
    return [
        key for key in keys if not any(key == name or key.startswith(name + ".") for name in free)
    ]


def _merge(preset: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Values over a preset, key by key at every level."""
    merged = dict(preset)
    for key, value in values.items():
        inner = preset.get(key)
        merged[key] = (
            _merge(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
        )
    return merged


def _element(place: Any, index: str, key: str) -> Any:
    if isinstance(place, list) and index.isdigit() and int(index) < len(place):
        return place[int(index)]
    raise UsageError(f"--{key}: there is no element {index}")


def _refuse_unknown(kind: Any, values: Any, name: str, prefix: str) -> None:
    for inner in typing.get_args(kind):
        if isinstance(values, list | tuple) and dataclasses.is_dataclass(inner):
            for number, value in enumerate(values):
                _refuse_unknown(inner, value, name, f"{prefix}{number}.")
        elif dataclasses.is_dataclass(inner):
            kind = inner
    if not dataclasses.is_dataclass(kind) or not isinstance(values, dict):
        return
    types = typing.get_type_hints(kind)
    for key, value in values.items():
        if key not in types:
            close = difflib.get_close_matches(str(key), list(types), n=1)
            hint = (
                f"; did you mean {prefix}{close[0]}?"
                if close
                else f"; known keys: {', '.join(types)}"
            )
            raise UsageError(f"{name}: unknown key {prefix}{key}{hint}")
        _refuse_unknown(types[key], value, name, f"{prefix}{key}.")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {
            k: v
            for key, inner in value.items()
            for k, v in _flatten(inner, f"{prefix}{key}.").items()
        }
    return {prefix.removesuffix("."): _plain(value)}
