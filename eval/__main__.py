"""`accelerate launch -m eval STAGE CONFIG.yaml [--key value ...]`: one stage on some processes.

The configuration holds the stage's options, such as `model`, `data` and `out`; `--key value`
changes some of them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from data_pipeline.errors import UsageError, UserError, report
from eval.registry import stage_names, stage_options
from eval.results.options import build_options
from eval.results.run_stage import run
from pretrain.config_file import apply_overrides


def main(argv: Sequence[str] | None = None) -> int:
    """Run one stage, print its result as one line of JSON, and return an exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if len(arguments) < 2 or arguments[0] not in stage_names():
            stages = ",".join(stage_names())
            raise UsageError(f"usage: python -m eval {{{stages}}} CONFIG.yaml [--key value ...]")
        stage, path, *overrides = arguments
        values = _values(Path(path), overrides)
        result = run(build_options(stage_options(stage), values, where=path))
        # Under several processes only one may print.
        from accelerate import PartialState

        if PartialState().is_main_process:
            print(json.dumps(result.model_dump(mode="json", by_alias=True)), flush=True)
        from pretrain.parallel.join import leave

        # Only after success: after an error, the others may never come.
        leave()
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


if __name__ == "__main__":
    sys.exit(main())
