"""Processes that tests fork start cheaply and end in a defined way."""

import os
import signal
import sys
import time

import pytest
import torch.distributed as dist

from tests.ranks import Started, run_ranks


def _say_what_is_imported() -> None:
    print([name for name in ("torch", "transformers", "accelerate") if name in sys.modules])
    os.write(2, b"straight to the descriptor\n")


def _end_with_five() -> int:
    return 5


def _raise() -> None:
    raise ValueError("no luck")


def _wait_for_ever() -> None:
    signal.pause()


def _fail_on_rank_1() -> None:
    dist.init_process_group("gloo")
    if dist.get_rank() == 1:
        raise ValueError("no luck on rank 1")
    dist.barrier()


def _leave_at_different_times() -> None:
    dist.init_process_group("gloo")
    print(dist.get_rank(), dist.get_world_size())
    time.sleep(0.2 * dist.get_rank())


def test_a_process_starts_with_everything_heavy_imported() -> None:
    finished = Started(_say_what_is_imported).wait()
    assert finished.exit_code == 0
    assert finished.stdout == "['torch', 'transformers', 'accelerate']\n"
    assert finished.stderr == "straight to the descriptor\n"


def test_what_a_function_returns_is_the_exit_code_and_an_error_is_1() -> None:
    assert Started(_end_with_five).wait().exit_code == 5
    failed = Started(_raise).wait()
    assert failed.exit_code == 1 and failed.stderr.endswith("ValueError: no luck\n")


def test_a_process_that_does_not_end_is_killed() -> None:
    assert Started(_wait_for_ever).wait(timeout=0.2).exit_code == -signal.SIGKILL


def test_ranks_see_each_other_and_wait_for_each_other_at_the_end() -> None:
    finished = run_ranks(3, _leave_at_different_times)
    assert [rank.stdout for rank in finished] == ["0 3\n", "1 3\n", "2 3\n"]


def test_a_rank_that_fails_ends_the_others_and_its_error_is_shown() -> None:
    with pytest.raises(AssertionError, match="no luck on rank 1"):
        run_ranks(2, _fail_on_rank_1)
