"""`accelerate launch -m pretrain CONFIG.yaml [--dotted.key value ...]`."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Sequence

from data_pipeline.errors import IncompleteError, UserError

from .run.signals import StopFlag


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as a configuration file says; returns the exit code of docs/training.md."""
    parser = argparse.ArgumentParser(
        prog="pretrain",
        description="Pre-train a GLSCL model. Any key of the configuration can be overridden: --optimizer.lr 1e-4",
        epilog="example: accelerate launch -m pretrain launch/recipes/demo.yaml --steps 100",
        allow_abbrev=False,
    )
    parser.add_argument("config", help="YAML file; see launch/recipes")
    parser.add_argument("--resume", default="auto", metavar="auto|never|PATH", help="default: auto")
    parser.add_argument("--init-from", metavar="PATH", help="start from the weights of a run, checkpoint or model")
    parser.add_argument("--allow-change", action="append", default=[], metavar="KEY", help="on resume, may differ")
    known, overrides = parser.parse_known_args(arguments)
    if known.init_from:
        overrides += ["--init_from", known.init_from]
    stop = StopFlag()
    try:
        from .config_file import load_config

        config = load_config(known.config, overrides)
        from .loop import train

        return train(config, stop, resume=known.resume, allow_change=tuple(known.allow_change))
    except UserError as error:
        print(f"pretrain: error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"pretrain: error: {error}: make room and run the same command again", file=sys.stderr)
        return IncompleteError.exit_code
    finally:
        stop.restore()


if __name__ == "__main__":
    sys.exit(main())
