"""Bodies of edits, as JSON and as forms, and what comes of them; for tests of the dialects."""

from __future__ import annotations

import json
from typing import Any

import pytest

from retouch_gateway.dialects import Edit, from_form, from_json
from retouch_gateway.errors import BadRequest
from retouch_gateway.multipart import Part
from tests.gateway.conftest import b64, picture

PNG = picture()
OTHER = picture((8, 8))
LIMIT = 2**22
ADDRESS = "https://example.com/a.png?x=1"


def read(**body: Any) -> Edit:
    given = {"images": [b64(PNG)], "prompt": "x"} | body
    return from_json(json.dumps(given).encode(), LIMIT)


def part(name: str, data: bytes | str, filename: bytes | None = None) -> Part:
    return Part(name, filename, bytearray(data.encode() if isinstance(data, str) else data))


def form(*parts: tuple[str, bytes | str], **fields: bytes | str) -> Edit:
    """`parts` and `fields` are text; bytes are a file."""
    given = [*parts, *fields.items()]
    return from_form(
        [part(name, data, b"a" if isinstance(data, bytes) else None) for name, data in given], LIMIT
    )


def refused(make: Any, *parts: Any, **fields: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        make(*parts, **fields)
    return caught.value
