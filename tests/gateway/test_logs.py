"""Log lines, as a process of its own writes them: one a record, whoever's it is."""

from __future__ import annotations

import datetime
import json
import re
import subprocess
import sys
from typing import Any

import pytest

WRITES = """
import logging, sys, warnings
from retouch_gateway import logs
logs.configure("INFO", sys.argv[1])
log = logging.getLogger("retouch_gateway.access")
log.debug("unheard")
log.info("request", extra={"status": 200, "request_id": "mine-1", "route": "/images/{name}"})
log.warning("two\\nlines", extra={"details": "a\\nb", "what": {"x": object}})
logging.getLogger("uvicorn.error").error("theirs %d", 5, extra={"color_message": "theirs"})
warnings.warn("careful")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("failed", extra={"request_id": "mine-2"})
"""


def written(style: str) -> list[str]:
    """Lines on stderr; none on stdout."""
    run = subprocess.run(
        [sys.executable, "-c", WRITES, style], capture_output=True, text=True, check=True
    )
    assert run.stdout == ""
    return run.stderr.splitlines()


def test_json_is_one_object_a_line() -> None:
    lines: list[dict[str, Any]] = [json.loads(line) for line in written("json")]
    for line in lines:
        assert datetime.datetime.fromisoformat(line.pop("time")).utcoffset() is not None
    request, two, theirs, warned, failed = lines
    assert request == {
        "level": "INFO",
        "logger": "retouch_gateway.access",
        "message": "request",
        "status": 200,
        "request_id": "mine-1",
        "route": "/images/{name}",
    }
    assert (two["level"], two["message"], two["details"]) == ("WARNING", "two\nlines", "a\nb")
    assert theirs == {"level": "ERROR", "logger": "uvicorn.error", "message": "theirs 5"}
    assert warned["logger"] == "py.warnings"
    assert "careful" in warned["message"]
    assert failed["request_id"] == "mine-2"
    assert failed["exc_info"].endswith("ZeroDivisionError: division by zero")


def test_text_says_the_same() -> None:
    request, *_, failed = (line for line in written("text") if re.match(r"\d{4}-\d\d-\d\d ", line))
    assert re.fullmatch(
        r'[\d-]+ [\d:,]+ INFO retouch_gateway.access: request status=200 request_id="mine-1" '
        r'route="/images/\{name\}"',
        request,
    )
    assert failed.endswith('ERROR retouch_gateway.access: failed request_id="mine-2"')


@pytest.mark.parametrize("style", ["json", "text"])
def test_a_field_forges_no_line(style: str) -> None:
    assert "b" not in [line[:1] for line in written(style)]
