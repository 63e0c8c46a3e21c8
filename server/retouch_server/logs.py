"""One line a record on stderr, whoever's it is: JSON for machines, or text for people."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import threading
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Any, TypeAlias

from pythonjsonlogger.core import RESERVED_ATTRS, merge_record_extra
from pythonjsonlogger.json import JsonFormatter

ExcInfo: TypeAlias = (
    "tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]"
)
log = logging.getLogger(__name__)


def configure(level: str, style: str) -> None:
    """Log everything from `level` up, `style` json or text; warnings of Python's, and what nobody caught, too."""
    handler = logging.StreamHandler()
    handler.setFormatter(_json() if style == "json" else _Text())
    logging.basicConfig(level=level, handlers=[handler])
    sys.excepthook = lambda *raised: log.critical("nobody caught this", exc_info=raised)
    threading.excepthook = lambda thrown: _uncaught(thrown.exc_value)
    # At DEBUG it writes what is in a picture's EXIF.
    logging.getLogger("PIL").setLevel(max(logging.INFO, logging.root.level))
    logging.captureWarnings(True)


def adopt() -> None:
    """Let records of libraries that write by themselves (torch, transformers, diffusers) come out like all others.

    To be called when they have been imported, for that is when they begin to.
    """
    for logger in logging.root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger) and logger.handlers:
            logger.handlers.clear()
            logger.propagate = True


def on_loop_error(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """asyncio's own would write out the objects that it is about, an error's words among them."""
    log.error(str(context["message"]), exc_info=context.get("exception"))


def _uncaught(error: BaseException | None) -> None:
    log.critical("nobody caught this", exc_info=error)


def _json() -> logging.Formatter:
    """`time` (ISO 8601, UTC), `level`, `logger`, `message`, then the record's own fields."""
    return _Json(
        ["levelname", "name", "message"],
        rename_fields={"levelname": "level", "name": "logger"},
        timestamp="time",
    )


class _Wordless(logging.Formatter):
    """Errors by kind and place. Their words may be a caller's: a prompt, a field, an address."""

    def formatException(self, exc_info: ExcInfo) -> str:
        return "".join(_traceback(exc_info[1], set())).rstrip() if exc_info[1] else ""


def _traceback(error: BaseException, seen: set[int]) -> Iterator[str]:
    seen.add(id(error))
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before and id(before) not in seen:
        yield from _traceback(before, seen)
        yield "\nThen:\n\n"
    yield "Traceback (most recent call last):\n"
    yield from traceback.format_tb(error.__traceback__)
    words = _words(error)
    yield f"{type(error).__qualname__}{': ' if words else ''}{words}\n"
    for each in error.exceptions if isinstance(error, BaseExceptionGroup) else ():
        yield "\nOf which:\n\n"
        yield from _traceback(each, seen)


def _words(error: BaseException) -> str:
    """What the system says, or torch, which knows of sizes and devices and of no caller."""
    if isinstance(error, OSError):
        return error.strerror or ""
    frames = list(traceback.walk_tb(error.__traceback__))
    theirs = frames[-1][0].f_globals.get("__name__", "") if frames else ""
    either = {theirs.partition(".")[0], type(error).__module__.partition(".")[0]}
    return str(error) if "torch" in either else ""


class _Json(_Wordless, JsonFormatter):
    pass


class _Text(_Wordless):
    """The same to read: the fields as name=value, the values as in JSON, so that none can forge a line."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        fields = merge_record_extra(record, {}, RESERVED_ATTRS)
        said = (f"{name}={json.dumps(value, default=str)}" for name, value in fields.items())
        return " ".join([super().formatMessage(record), *said])
