"""In CI a skipped test is a failed run: RETOUCH_TESTS_NO_SKIP=1."""

from __future__ import annotations

import os

import pytest


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("RETOUCH_TESTS_NO_SKIP") != "1" or reporter is None:
        return
    for report in reporter.stats.get("skipped", []):
        reporter.write_line(f"skipped, which CI does not allow: {report.nodeid}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
