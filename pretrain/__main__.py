"""Command line of every training run: `accelerate launch -m pretrain CONFIG.yaml [--key value]`."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from data_pipeline.errors import IncompleteError, UserError

from .run.signals import StopFlag

if TYPE_CHECKING:
    from .protocols import Job


def main(arguments: Sequence[str] | None = None) -> int:
    """Pre-train as a configuration file says; returns an exit code of docs/training.md."""
    parser = argparse.ArgumentParser(
        prog="pretrain",
        description="Pre-train a GLSCL model. Any key of the configuration can be overridden, "
        "for example --optimizer.lr 1e-4.",
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
    """Train the job that `make` reads from a file and overrides; returns an exit code.

    Everything slow is imported inside `make` and here, after the signal handlers are installed.
    """
    parser.add_argument("config", help="YAML file; examples in launch/recipes")
    parser.add_argument(
        "--resume",
        default="auto",
        metavar="auto|never|PATH",
        help="continue from the last checkpoint (auto, the default), refuse a used folder (never), "
        "or continue from the checkpoint at PATH",
    )
    parser.add_argument(
        "--init-from",
        metavar="PATH",
        help="start a new run from the weights of a run, checkpoint or model",
    )
    parser.add_argument(
        "--allow-change",
        action="append",
        default=[],
        metavar="KEY",
        help="configuration key that may differ on resume; repeat for several",
    )
    # Everything that is not an option here is an override of the configuration.
    options, overrides = parser.parse_known_args(arguments)
    if options.init_from:
        overrides += ["--init_from", options.init_from]
    stop = StopFlag()
    try:
        job = make(options.config, overrides)
        from .loop import train_job
        from .parallel.join import leave

        code = train_job(job, stop, resume=options.resume, allow_change=tuple(options.allow_change))
        # Only here, where every rank has the same code. After an error, the others may never come.
        leave()
        return code
    except UserError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        # Other errors of the system are unexpected and keep their traceback.
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
