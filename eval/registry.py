"""Which stages exist: every folder of `eval/stages` is one, and nothing else names them.

A stage's folder holds `options.py` (the dataclass `Options`, which imports nothing heavy) and
`stage.py` (`measure(options, manifest)` and `metrics(records)`, and `table(result)` where the
command line prints more than a path).
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

from data_pipeline.errors import UsageError
from eval import stages
from eval.results.options import StageOptions


def stage_names() -> list[str]:
    """Return the names of all stages, as the command line spells them, in alphabetical order."""
    names = []
    for module in iter_modules(stages.__path__):
        if module.ispkg:
            names.append(module.name.replace("_", "-"))
    return names


def stage_options(name: str) -> type[StageOptions]:
    """Return the options dataclass of a stage; raises UsageError for an unknown name."""
    options: type[StageOptions] = _import(name, "options").Options
    return options


def stage_module(name: str) -> ModuleType:
    """Import the module of a stage that measures; raises UsageError for an unknown name."""
    return _import(name, "stage")


def _import(name: str, part: str) -> ModuleType:
    if name not in stage_names():
        raise UsageError(f"unknown stage {name!r}; choose one of {', '.join(stage_names())}")
    return import_module(f"{stages.__name__}.{name.replace('-', '_')}.{part}")
