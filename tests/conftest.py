"""A clean environment; and in CI a skipped test is a failed run: RETOUCH_TESTS_NO_SKIP=1."""

from __future__ import annotations

import os

import pytest

# The suite sets what it needs; what the person who runs it has set for their own servers is not it.
for _name in list(os.environ):
    if (
        _name.upper() in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
        or _name.startswith("OTEL_")
        or (_name.startswith("RETOUCH_") and not _name.startswith("RETOUCH_TESTS_"))
    ):
        del os.environ[_name]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("RETOUCH_TESTS_NO_SKIP") != "1" or reporter is None:
        return
    for report in reporter.stats.get("skipped", []):
        reporter.write_line(f"skipped, which CI does not allow: {report.nodeid}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
