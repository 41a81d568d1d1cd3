"""The command of pre-training: `accelerate launch -m pretrain CONFIG.yaml [--dotted.key value]`.

`run` also serves fine-tuning, which passes its own parser and job.
"""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from data_pipeline.errors import IncompleteError, UserError

from .run.signals import StopFlag

if TYPE_CHECKING:
    from .job import Job


def main(arguments: Sequence[str] | None = None) -> int:
    """Pre-train from a configuration file; return an exit code (see docs/training.md)."""
    parser = argparse.ArgumentParser(
        prog="pretrain",
        description="Pre-train a GLSCL model. "
        "Any key of the configuration can be overridden: --optimizer.lr 1e-4",
        epilog="example: accelerate launch -m pretrain launch/recipes/demo.yaml --steps 100",
        allow_abbrev=False,
    )
    return run(parser, _job, arguments)


def _job(path: str, overrides: Sequence[str]) -> Job:
    from .config_file import load_config
    from .job import Pretraining

    return Pretraining(load_config(path, overrides))


def run(
    parser: argparse.ArgumentParser,
    make: Callable[[str, Sequence[str]], Job],
    arguments: Sequence[str] | None = None,
) -> int:
    """Train the job that `make` builds from a file and overrides; return an exit code.

    docs/training.md lists the exit codes.
    """
    parser.add_argument("config", help="YAML file; see launch/recipes")
    parser.add_argument(
        "--resume",
        default="auto",
        metavar="auto|never|PATH",
        help="checkpoint to resume from (default: auto)",
    )
    parser.add_argument(
        "--init-from", metavar="PATH", help="start from the weights of a run, checkpoint or model"
    )
    parser.add_argument(
        "--allow-change",
        action="append",
        default=[],
        metavar="KEY",
        help="key of the configuration that may change on resume",
    )
    options, overrides = parser.parse_known_args(arguments)
    if options.init_from:
        overrides += ["--init_from", options.init_from]
    # Before the imports of torch and transformers, which take seconds: a signal that arrives
    # meanwhile must not be lost.
    stop = StopFlag()
    try:
        job = make(options.config, overrides)
        from .loop import train_job

        return train_job(job, stop, resume=options.resume, allow_change=tuple(options.allow_change))
    except UserError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(
            f"{parser.prog}: error: {error}: make room and run the same command again",
            file=sys.stderr,
        )
        return IncompleteError.exit_code
    finally:
        stop.restore()


if __name__ == "__main__":
    sys.exit(main())
