"""`accelerate launch -m pretrain CONFIG.yaml [--dotted.key value ...]`."""

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
    """Pre-train as a configuration file says; returns the exit code of docs/training.md."""
    parser = argparse.ArgumentParser(
        prog="pretrain",
        description="Pre-train a GLSCL model. Any key of the configuration can be overridden: --optimizer.lr 1e-4",
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
    """Train the job that `make` reads from a file and overrides; returns the exit code of docs/training.md.

    Everything slow is imported inside `make` and here, once signals are heard.
    """
    parser.add_argument("config", help="YAML file; see launch/recipes")
    parser.add_argument("--resume", default="auto", metavar="auto|never|PATH", help="default: auto")
    parser.add_argument(
        "--init-from", metavar="PATH", help="start from the weights of a run, checkpoint or model"
    )
    parser.add_argument(
        "--allow-change", action="append", default=[], metavar="KEY", help="on resume, may differ"
    )
    known, overrides = parser.parse_known_args(arguments)
    if known.init_from:
        overrides += ["--init_from", known.init_from]
    stop = StopFlag()
    try:
        job = make(known.config, overrides)
        from .loop import train_job

        return train_job(job, stop, resume=known.resume, allow_change=tuple(known.allow_change))
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
