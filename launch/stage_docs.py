"""`python -m launch.stage_docs`: write docs/stages.md from the options of every stage.

A test compares the page with what this module would write, so that it cannot fall behind.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

from data_pipeline.files import write_whole
from eval.registry import stage_names, stage_options
from eval.results.options import OptionDescription, StageOptions, describe

PAGE = Path(__file__).parents[1] / "docs" / "stages.md"
# Prose of the page is wider than code.
_HEAD = (
    "# Stages and their options\n\n"
    "This page is written by `make docs` from the option dataclasses in "
    "`eval/stages/*/options.py`. The same\n"
    "names are the arguments of `eval.stages.STAGE.evaluate`, "
    "the options of `glscl eval STAGE` (with dashes)\n"
    "and the keys of a YAML file for `accelerate launch -m eval STAGE CONFIG.yaml`.\n"
)


def page() -> str:
    """Return the whole page as Markdown."""
    return _HEAD + "".join(_section(stage_options(name)) for name in stage_names())


def _section(options: type[StageOptions]) -> str:
    command = options.example.replace(" --", " \\\n    --")
    lines = [
        f"\n## {options.stage}",
        "\n" + textwrap.fill(f"{options.about[0].upper()}{options.about[1:]}.", 120),
        f"\n```\n{command}\n```",
        "\n| option | value | default | what it does |",
        "|---|---|---|---|",
    ]
    for described in describe(options):
        cells = (f"`{described.name}`", _value(described), _default(described), described.help)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _value(described: OptionDescription) -> str:
    if described.choices:
        return ", ".join(f"`{choice}`" for choice in described.choices)
    names = {bool: "flag", int: "integer", float: "number", str: "text", Path: "path"}
    name = names[described.kind]
    return f"one or more of {name}" if described.several else name


def _default(described: OptionDescription) -> str:
    if described.required:
        return "required"
    if described.default is None or described.kind is bool:
        return ""
    values = described.default if described.several else [described.default]
    return "`" + " ".join(str(value) for value in values) + "`"


def main() -> int:
    """Write the page; returns the exit code of the process."""
    write_whole(PAGE, page())
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
