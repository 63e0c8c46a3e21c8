"""One line a record on stderr, whoever's it is: JSON for machines, or text for people."""

from __future__ import annotations

import json
import logging

from pythonjsonlogger.core import RESERVED_ATTRS, merge_record_extra
from pythonjsonlogger.json import JsonFormatter

_NO_FIELDS = [*RESERVED_ATTRS, "color_message"]  # uvicorn's, in its own colours


def configure(level: str, style: str) -> None:
    """Log everything from `level` up, `style` json or text; warnings of Python's too."""
    handler = logging.StreamHandler()
    handler.setFormatter(_json() if style == "json" else _Text())
    logging.basicConfig(level=level, handlers=[handler])
    logging.captureWarnings(True)


def _json() -> logging.Formatter:
    """`time` (ISO 8601, UTC), `level`, `logger`, `message`, then the record's own fields."""
    return JsonFormatter(
        ["levelname", "name", "message"],
        rename_fields={"levelname": "level", "name": "logger"},
        timestamp="time",
        reserved_attrs=_NO_FIELDS,
    )


class _Text(logging.Formatter):
    """The same to read: the fields as name=value, the values as in JSON, so that none can forge a line."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        fields = merge_record_extra(record, {}, _NO_FIELDS)
        said = (f"{name}={json.dumps(value, default=str)}" for name, value in fields.items())
        return " ".join([super().formatMessage(record), *said])
