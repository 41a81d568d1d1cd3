"""The demo's reading of how its training ended."""

import json

import pytest

from data_pipeline.errors import DataError, IncompleteError, UsageError
from launch.demo import _check_status


def write(run, state, reason=""):
    (run / "status.json").write_text(json.dumps({"state": state, "step": 7, "reason": reason}))


def test_a_complete_run_is_not_an_error(tmp_path):
    write(tmp_path, "complete")
    _check_status(tmp_path, 0)


@pytest.mark.parametrize(
    ("state", "reason", "kind"),
    [
        ("preempted", "SIGTERM", IncompleteError),
        ("running", "", IncompleteError),
        ("failed", "DataError: shard x ends inside sample y", DataError),
        ("failed", "RuntimeError: something", IncompleteError),
    ],
)
def test_every_other_end_is_an_error_of_its_kind(tmp_path, state, reason, kind):
    write(tmp_path, state, reason)
    with pytest.raises(kind, match=f"{state} at step 7"):
        _check_status(tmp_path, 1)


def test_a_run_that_never_started_says_so(tmp_path):
    with pytest.raises(UsageError, match="did not start"):
        _check_status(tmp_path, 2)
