"""Read configurations from text and write them back.

In: a YAML file, a preset for the keys that it leaves out, and overrides from the command line. Out:
one configuration object. Unknown keys are errors with a suggestion.
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
        # The file's own values win over those of the preset.
        values = _merge(PRESETS[values["preset"]], values)
    return parse_config(RunConfig, values, str(path))


def read_values(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read the nested values of a YAML file and apply `--dotted.key value` pairs.

    Raises UsageError for a file that cannot be read or is not YAML.
    """
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise UsageError(f"cannot read the configuration {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not YAML: it is not a text file") from None
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path} must hold a mapping of keys to values")
    apply_overrides(values, overrides)
    return values


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set `--dotted.key value` and `--dotted.key=value` in nested mappings.

    Values are parsed as YAML. Raises UsageError for a key that has no place or a missing value.
    """
    words = list(overrides)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise UsageError(f"expected --dotted.key value, found {word!r}")
        key, equals, text = word[2:].partition("=")
        if not equals:
            if not words:
                raise UsageError(f"--{key} needs a value")
            text = words.pop(0)
        *parents, last = key.split(".")
        place: Any = values
        for parent in parents:
            if isinstance(place, dict):
                place = place.setdefault(parent, {})
            else:
                place = _element(place, parent, key)
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UsageError(f"--{key}: {text!r} is not YAML") from None
        if isinstance(place, list):
            _element(place, last, key)
            # An element of a list, such as --data.train.0.path.
            place[int(last)] = value
        elif isinstance(place, dict):
            place[last] = value
        else:
            raise UsageError(f"--{key}: {'.'.join(parents)} holds a single value")


def parse_config(kind: type, values: dict[str, Any], name: str) -> Any:
    """Make a configuration dataclass from nested mappings; `name` is the file that errors name."""
    # Before pydantic, whose message for an unknown key suggests nothing.
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
    # In the order of the fields, in which a reader looks for them.
    return yaml.safe_dump(_plain(dataclasses.asdict(config)), sort_keys=False)


def keys(config: TrainingConfig) -> set[str]:
    """Return the dotted keys of a configuration."""
    return set(_flatten(dataclasses.asdict(config)))


def differences(config: TrainingConfig, saved: TrainingConfig) -> list[str]:
    """Return the dotted keys whose change on resume would change the results of a run."""
    now, then = _flatten(dataclasses.asdict(config)), _flatten(dataclasses.asdict(saved))
    # Under exact accumulation, the number of micro-batches does not change the mathematics.
    exact = config.accumulation == saved.accumulation == "exact"
    free = (*config.free_on_resume, "micro_batches") if exact else config.free_on_resume
    changed = []
    for key in sorted(now.keys() | then.keys()):
        is_free = any(key == name or key.startswith(name + ".") for name in free)
        if now.get(key) != then.get(key) and not is_free:
            changed.append(key)
    return changed


def _merge(preset: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Lay values over a preset, key by key at every level."""
    merged = dict(preset)
    for key, value in values.items():
        inner = preset.get(key)
        if isinstance(inner, dict) and isinstance(value, dict):
            value = _merge(inner, value)
        merged[key] = value
    return merged


def _element(place: Any, index: str, key: str) -> Any:
    if isinstance(place, list) and index.isdigit() and int(index) < len(place):
        return place[int(index)]
    raise UsageError(f"--{key}: there is no element {index}")


def _refuse_unknown(kind: Any, values: Any, name: str, prefix: str) -> None:
    # Find the dataclass inside of unions such as `Config | None` and lists such as `list[Config]`.
    for inner in typing.get_args(kind):
        if isinstance(values, list | tuple) and dataclasses.is_dataclass(inner):
            for number, value in enumerate(values):
                _refuse_unknown(inner, value, name, f"{prefix}{number}.")
        elif dataclasses.is_dataclass(inner):
            kind = inner
    if not dataclasses.is_dataclass(kind) or not isinstance(values, dict):
        return
    # Hints are strings under postponed evaluation; this resolves them.
    types = typing.get_type_hints(kind)
    for key, value in values.items():
        if key not in types:
            close = difflib.get_close_matches(str(key), list(types), n=1)
            hint = f"; known keys: {', '.join(types)}"
            if close:
                hint = f"; did you mean {prefix}{close[0]}?"
            raise UsageError(f"{name}: unknown key {prefix}{key}{hint}")
        _refuse_unknown(types[key], value, name, f"{prefix}{key}.")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix.removesuffix("."): _plain(value)}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flatten(inner, f"{prefix}{key}.")
    return flat
