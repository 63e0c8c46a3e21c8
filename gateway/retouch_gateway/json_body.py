"""A JSON body, parsed without its images: a long string stays where it is, and is decoded from there.

A parser checks and copies each string, an image's base64 as well, and nothing else runs meanwhile: a tenth of a second
for what is as long as a body may be.
"""

from __future__ import annotations

import secrets
from typing import Any

import orjson

from retouch_gateway.errors import BadRequest

# Bytes. Whatever is longer is an image or of no use: the 4000 characters of a prompt are 48,000 bytes at most, all of
# them written as `\ud83d\ude00`.
LONG = 48 * 2**10
# Of all but the long strings: an edit's other texts, and images that are shorter, come to half of it.
MAX_SHORT = 2 * 2**20
MAX_QUOTES = 10_000  # an edit has some dozens, and a prompt its own
# Commas and brackets: an edit has some dozens, and a prompt its own. Parsed, each `{}` takes thirty times the memory
# that it takes in the body.
MAX_STRUCTURE = 10_000
SLASHES = (64, 1024, 2**14)  # in a row: few, or some; more are in no prompt
DEPTH = 4  # of `{"images": [{"image_url": {"url": …}}]}`
SHOWN = 256  # bytes of a long name


def parse(body: bytes | bytearray) -> Any:
    """The body's value, in which a long string is a memoryview of it, as it is written there. Raises BadRequest.

    What is in a long string is not looked at: it need be neither UTF-8 nor JSON until `text` is called, or never if
    its name comes again. A name that is long is cut.
    """
    short, long = _parted(body)
    if len(short) > MAX_SHORT or _is_crowded(short):
        raise _crowded()
    return _whole(_loads(short), long, DEPTH)


def text(long: memoryview) -> str:
    """The string that a memoryview stands for. Raises BadRequest."""
    return str(_loads(b"".join((b'"', long, b'"'))))


def _loads(json: bytes | bytearray) -> Any:
    try:
        return orjson.loads(json)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"The body is not JSON: {error.msg}.") from None


def _crowded() -> BadRequest:
    return BadRequest("Besides its images the body has too much to be an edit.")


def _parted(body: bytes | bytearray) -> tuple[bytes | bytearray, dict[str, memoryview]]:
    """The body with a name in place of each long string, and what the names stand for."""
    view, token = memoryview(body), secrets.token_hex(8)
    long: dict[str, memoryview] = {}
    pieces: list[bytes | memoryview] = []
    done = quotes = 0
    start: int | None = None  # of the string that is open
    quote = body.find(b'"')
    while quote >= 0:
        quotes += 1
        if quotes > MAX_QUOTES:
            raise _crowded()
        if start is None:
            start = quote + 1
        elif _slashes(body, quote) % 2 == 0:  # else the quote is the string's own
            if quote - start > LONG:
                name = f"{token}-{len(long)}"
                long[name] = view[start:quote]
                pieces += (view[done:start], name.encode())
                done = quote
            start = None
        quote = body.find(b'"', quote + 1)
    return b"".join((*pieces, view[done:])) if long else body, long


def _slashes(body: bytes | bytearray, end: int) -> int:
    """How many there are right before `end`."""
    for size in SLASHES:
        before = body[max(0, end - size) : end]
        count = len(before) - len(before.rstrip(b"\\"))
        if count < size:
            return count
    raise _crowded()


def _is_crowded(json: bytes | bytearray) -> bool:
    """Whether it has more than MAX_STRUCTURE commas and brackets; what has none is passed over at once."""
    count = 0
    for sign in b",[{":
        at = json.find(sign)
        while at >= 0 and count <= MAX_STRUCTURE:
            count += 1
            at = json.find(sign, at + 1)
    return count > MAX_STRUCTURE


def _whole(value: Any, long: dict[str, memoryview], depth: int) -> Any:
    """`value` with the long strings for their names, as deep as an edit goes: below, all is refused anyway."""
    if isinstance(value, str):
        return long.get(value, value)
    if isinstance(value, list) and depth:
        return [_whole(item, long, depth - 1) for item in value]
    if isinstance(value, dict) and depth:
        return {
            _start(long[name]) if name in long else name: _whole(item, long, depth - 1)
            for name, item in value.items()
        }
    return value


def _start(long: memoryview) -> str:
    return bytes(long[:SHOWN]).decode(errors="replace")
