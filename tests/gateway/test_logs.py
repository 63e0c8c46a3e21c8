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

# Errors whose words are a caller's: caught, chained, in a group; in a thread, in a task, and by nobody.
FAILS = """
import asyncio, gc, logging, sys, threading
from retouch_gateway import logs
logs.configure("DEBUG", sys.argv[1])
log, secret = logging.getLogger("ours"), sys.argv[2]
def fail(secret):
    try:
        open("/" + secret)
    except OSError as error:
        raise ValueError(secret) from error
try:
    fail(secret)
except ValueError:
    log.exception("chained")
log.error("group", exc_info=ExceptionGroup(secret, [KeyError(secret)]))
thread = threading.Thread(target=fail, args=(secret,))
thread.start()
thread.join()
async def lost():
    asyncio.get_running_loop().set_exception_handler(logs.on_loop_error)
    async def inner():
        raise ValueError(secret)
    task = asyncio.ensure_future(inner())
    await asyncio.sleep(0)
    del task
    gc.collect()
asyncio.run(lost())
fail(secret)
"""


def written(style: str, program: str = WRITES, status: int = 0) -> list[str]:
    """Lines on stderr; none on stdout."""
    run = subprocess.run(
        [sys.executable, "-c", program, style, "my-words"], capture_output=True, text=True
    )
    assert (run.stdout, run.returncode) == ("", status)
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
    assert failed["exc_info"].endswith("\nZeroDivisionError")


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


@pytest.mark.parametrize("style", ["json", "text"])
def test_an_errors_own_words_are_not_written_but_its_kind_and_place_are(style: str) -> None:
    lines = written(style, FAILS, status=1)
    text = "\n".join(lines)
    assert text.count("in fail") >= 6
    assert text.count("FileNotFoundError: No such file or directory") == 3
    for kind in ("ValueError", "ExceptionGroup", "KeyError"):
        assert kind in text
    assert "never retrieved" in text
    assert "my-words" not in text
