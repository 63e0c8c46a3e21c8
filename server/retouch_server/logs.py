"""One line a record on stderr, whoever's it is: JSON for machines, or text for people."""

from __future__ import annotations

import json
import logging

from pythonjsonlogger.core import RESERVED_ATTRS, merge_record_extra
from pythonjsonlogger.json import JsonFormatter


def configure(level: str, style: str) -> None:
    """Log everything from `level` up, `style` json or text; warnings of Python's too."""
    handler = logging.StreamHandler()
    handler.setFormatter(_json() if style == "json" else _Text())
    logging.basicConfig(level=level, handlers=[handler])
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


def _json() -> logging.Formatter:
    """`time` (ISO 8601, UTC), `level`, `logger`, `message`, then the record's own fields."""
    return JsonFormatter(
        ["levelname", "name", "message"],
        rename_fields={"levelname": "level", "name": "logger"},
        timestamp="time",
    )


class _Text(logging.Formatter):
    """The same to read: the fields as name=value, the values as in JSON, so that none can forge a line."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        fields = merge_record_extra(record, {}, RESERVED_ATTRS)
        said = (f"{name}={json.dumps(value, default=str)}" for name, value in fields.items())
        return " ".join([super().formatMessage(record), *said])
