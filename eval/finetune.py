"""`accelerate launch -m eval.finetune CONFIG.yaml [--dotted.key value ...]`: fine-tune a model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pretrain.__main__ import run

if TYPE_CHECKING:
    from eval.finetuning.job import Finetuning


def main(arguments: Sequence[str] | None = None) -> int:
    """Fine-tune from a configuration file; return an exit code (see docs/training.md)."""
    parser = argparse.ArgumentParser(
        prog="finetune",
        description="Fine-tune a GLSCL model for a task. "
        "Any key of the configuration can be overridden, for example --steps 100.",
        epilog="example: accelerate launch -m eval.finetune launch/recipes/demo_vqa.yaml "
        "--init-from runs/demo",
        allow_abbrev=False,
    )
    return run(parser, _job, arguments)


def _job(path: str, overrides: Sequence[str]) -> Finetuning:
    from eval.finetuning.config import load_finetune_config
    from eval.finetuning.job import Finetuning

    return Finetuning(load_finetune_config(path, overrides))


if __name__ == "__main__":
    sys.exit(main())
