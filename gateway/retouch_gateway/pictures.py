"""One picture as a caller gives it -> its bytes, or the address to fetch it from."""

from __future__ import annotations

import re
from typing import Any

import pybase64

from retouch_gateway import json_body
from retouch_gateway.values import Wrong, kind, text

MAX_ADDRESS = 8192
MAX_PREFIX = 300  # characters: what comes before the base64 of a data URL
# How many times as long as the largest image its text may be: base64 takes 4/3, line breaks and escapes some.
TEXT = 2
BLANKS = b" \t\r\n\f\v"

_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]{0,30})://", re.IGNORECASE)
# Printable ASCII but commas and backslashes: so written it is the same in JSON and out of it.
_DATA_URL = re.compile(r"data:[ -+\--\[\]-~]{0,200};base64,", re.IGNORECASE)


def read(name: str, given: Any, most: int) -> bytes | str:
    """The encoded image, or its https address.

    `given`: a form's bytes; or a string, maybe a long one of json_body's: base64, a base64 data URL or an address; or
    that string as the `image_url` of an object. `most`: bytes, decoded. Raises Wrong, and BadRequest for no JSON.
    """
    if isinstance(given, dict):
        given = _held(name, given)
    if isinstance(given, bytes):
        return checked(name, given, most)
    encoded = given if isinstance(given, memoryview) else text(name, given)
    address = _ADDRESS.match(_start(encoded))
    if not address:
        return checked(name, _decoded(name, encoded, most), most)
    if address[1].lower() != "https":
        raise Wrong(name, "must be an https address, if it is one")
    if isinstance(encoded, memoryview) or len(encoded) > MAX_ADDRESS:
        raise Wrong(name, f"is an address of more than {MAX_ADDRESS} characters")
    return encoded


def checked(name: str, data: bytes, most: int) -> bytes:
    """`data`, of an allowed size and told by its content to be an image. Raises Wrong."""
    if not data:
        raise Wrong(name, "is empty")
    if len(data) > most:
        raise Wrong(name, f"has {len(data)} bytes; at most {most} are allowed")
    if not is_image(data):
        raise Wrong(name, "is not a PNG, JPEG or WebP image")
    return data


def is_image(data: bytes) -> bool:
    """By its first bytes: media types and file names are not believed."""
    return data.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")) or (
        data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    )


def _held(name: str, given: dict[str, Any]) -> Any:
    """What `{"image_url": …}` or `{"image_url": {"url": …}}` holds."""
    for key in ("image_url", "url"):
        given = {inner: value for inner, value in given.items() if value is not None}
        if "file_id" in given:
            raise Wrong(name, "files are not kept here, so a file_id names none; send the image")
        if list(given) != [key]:
            raise Wrong(name, f"must be an object with {key} alone, if it is one")
        if not isinstance(given[key], dict):
            return given[key]
        given = given[key]
    raise Wrong(name, f"must be a string, not {kind(given)}")


def _decoded(name: str, encoded: str | memoryview, most: int) -> bytes:
    """Whitespace is allowed, missing padding is not: it is how a cut-off upload looks."""
    if len(encoded) > TEXT * most:
        raise Wrong(name, f"is {len(encoded)} characters long; an image has at most {most} bytes")
    data = _base64(encoded)
    if data is None:
        # Escapes or line breaks, maybe: looked for only now, for it costs more than decoding.
        plain = json_body.text(encoded) if isinstance(encoded, memoryview) else encoded
        data = _base64(plain.encode().translate(None, BLANKS))
    if data is None:
        raise Wrong(name, "is not whole base64 (with its padding), a base64 data URL or an address")
    return data


def _base64(encoded: str | bytes | memoryview) -> bytes | None:
    """What base64, or a base64 data URL, encodes."""
    prefix = _DATA_URL.match(_start(encoded))
    try:
        return pybase64.b64decode(encoded[prefix.end() :] if prefix else encoded, validate=True)
    except ValueError:
        return None


def _start(encoded: str | bytes | memoryview) -> str:
    """Its first few hundred characters."""
    start = encoded[:MAX_PREFIX]
    return start if isinstance(start, str) else bytes(start).decode("latin-1")
