"""`accelerate launch -m eval STAGE CONFIG.yaml [--key value ...]`: one stage on one or several processes.

The configuration holds `model`, `data`, `out` and the stage's own options (the arguments of its
`evaluate`).
"""

from __future__ import annotations

import difflib
import inspect
import json
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import yaml
from pydantic import ValidationError, validate_call

from data_pipeline.errors import UsageError, UserError, report
from eval import stages
from pretrain.config_file import apply_overrides

# A file of eval/stages is a stage; the baseline is none, because it takes no model.
STAGES = {
    module.name.replace("_", "-"): f"eval.stages.{module.name}"
    for module in iter_modules(stages.__path__)
}
STAGES["baseline"] = "eval.baselines"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one stage; prints its metrics as one line of JSON and returns the exit code of the process."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if len(arguments) < 2 or arguments[0] not in STAGES:
            raise UsageError(
                f"usage: python -m eval {{{','.join(STAGES)}}} CONFIG.yaml [--key value ...]"
            )
        stage, path, *overrides = arguments
        evaluate = import_module(STAGES[stage]).evaluate
        result = _call(evaluate, _values(Path(path), overrides), path)
        from accelerate import PartialState

        if PartialState().is_main_process:
            print(json.dumps(result.model_dump(mode="json", by_alias=True)), flush=True)
        return 0
    except (UserError, OSError) as error:
        return report(error, "eval")


def _values(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the configuration {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path} must hold a mapping of keys to values")
    apply_overrides(values, overrides)
    return values


def _call(evaluate: Callable[..., Any], values: dict[str, Any], name: str) -> Any:
    known = inspect.signature(evaluate).parameters
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(known)}"
            raise UsageError(f"{name}: unknown key {key}; {hint}")
    for key, parameter in known.items():
        if parameter.default is parameter.empty and key not in values:
            raise UsageError(f"{name}: {key} is missing")
    try:
        return validate_call(evaluate)(**values)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(
            f"{name}: {first['loc'][0]}: {first['msg']} (found {first['input']!r})"
        ) from None


if __name__ == "__main__":
    sys.exit(main())
