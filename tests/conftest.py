"""Settings for every test: no hub, one thread per process, a worker per core, no silent skips.

A test that skips itself is not a test: under CI (the variable `CI` is set) a skip whose reason is
not in `ALLOWED_SKIPS` fails the run.
"""

import os

import pytest
from _pytest.terminal import TerminalReporter

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Processes share the cores instead of each taking all of them. Libraries read this when they are
# imported, so it stands before any other import of the tests.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Reasons that a test may give for skipping itself, and why that is acceptable.
ALLOWED_SKIPS = {
    # Chromium cannot be installed without root; .ci/run sets GLSCL_REQUIRE_BROWSER where it is.
    "no Chromium found",
}
MOST_WORKERS = 8  # each holds torch and transformers: about a gigabyte of memory


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Give `-n auto` the cores this process may use; on one core, none beside the main process."""
    # macOS does not say which cores a process may use.
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return min(cores, MOST_WORKERS) if cores > 1 else 0


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run under CI when a test skipped itself for an unlisted reason."""
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    if terminal and _unlisted_skips(terminal) and os.environ.get("CI") and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Name the tests that skipped themselves for an unlisted reason."""
    for line in _unlisted_skips(terminalreporter):
        terminalreporter.write_line(f"skipped for a reason not in tests/conftest.py: {line}")


def _unlisted_skips(terminal: TerminalReporter) -> list[str]:
    """List test and reason of each skip that is not allowed."""
    unlisted = []
    for report in terminal.stats.get("skipped", []):
        # A skip's longrepr is (file, line, "Skipped: reason").
        reason = str(report.longrepr[2]).removeprefix("Skipped: ")
        if reason not in ALLOWED_SKIPS:
            unlisted.append(f"{report.nodeid}: {reason}")
    return unlisted
