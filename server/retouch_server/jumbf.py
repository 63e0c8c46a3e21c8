"""Which assertions the C2PA manifests of a picture have, by the names of their boxes alone (JUMBF, ISO 19566-5).

The library can list them too, and decodes each for it: some bytes of CBOR that claim to be gigabytes were allocated.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

DEPTH = 4  # the store, a manifest, its assertions, each of them


class Unreadable(Exception):
    """It is not what it should be; or compressed, which is rare, and not looked into."""


def assertions(picture: bytes) -> list[tuple[str, str]]:
    """Labels of manifests, and of an assertion each, of an encoded PNG, JPEG or WebP. Raises Unreadable."""
    try:
        return [
            (path[1], path[3])
            for path in _labels(_manifests(picture))
            if len(path) == DEPTH and path[2] == "c2pa.assertions"
        ]
    except (struct.error, UnicodeDecodeError, ValueError) as error:
        raise Unreadable from error


def _labels(data: bytes, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of labels to each superbox, so deep."""
    for kind, body in _boxes(data):
        if kind == b"brob":
            raise Unreadable
        if kind == b"jumb" and len(path) < DEPTH:
            own = (*path, _label(body))
            yield own
            yield from _labels(body, own)


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        head = 8
        if length == 1:
            (length,), head = struct.unpack_from(">Q", data, at + 8), 16
        length = length or len(data) - at
        if length < head or at + length > len(data):
            raise Unreadable
        yield kind, data[at + head : at + length]
        at += length


def _label(superbox: bytes) -> str:
    """By its description: 16 bytes of type, a byte of flags, and the label up to a zero."""
    kind, description = next(_boxes(superbox), (b"", b""))
    if kind != b"jumd" or len(description) < 18 or not description[16] & 2:
        raise Unreadable
    return description[17 : description.index(b"\0", 17)].decode()


def _manifests(picture: bytes) -> bytes:
    """The bytes of a picture's manifest store."""
    if picture.startswith(b"\x89PNG"):
        return _chunk(picture, 8, ">I4s", b"caBX", 4, 1)
    if picture.startswith(b"\xff\xd8"):
        return _segments(picture)
    return _chunk(picture, 12, "<4sI", b"C2PA", 0, 2)


def _chunk(data: bytes, at: int, head: str, wanted: bytes, after: int, multiple: int) -> bytes:
    """The body of the first chunk of that kind, of a PNG or WebP."""
    while at < len(data):
        one, other = struct.unpack_from(head, data, at)
        kind, length = (one, other) if isinstance(one, bytes) else (other, one)
        if kind == wanted:
            return data[at + 8 : at + 8 + length]
        at += 8 + -(-length // multiple) * multiple + after
    raise Unreadable


def _segments(data: bytes) -> bytes:
    """A box that APP11 segments of a JPEG have in parts, each with the box's head (ISO 19566-5, annex D)."""
    found, at, marker = b"", 2, 0
    while marker != 0xDA:
        marker, length = struct.unpack_from(">xBH", data, at)
        body = data[at + 4 : at + 2 + length]
        if marker == 0xEB and body.startswith(b"JP"):
            # JP, the box's number (2 bytes), the part's (4), then the head of 8 bytes, or 16.
            head = 16 if body[8:12] == b"\0\0\0\1" else 8
            found += body[8 + head :] if found else body[8:]
        at += 2 + length
    return found
