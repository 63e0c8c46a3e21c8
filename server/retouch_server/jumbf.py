"""Of which boxes the C2PA manifests of a picture consist, by their labels alone (JUMBF, ISO 19566-5).

The library can list them too, and decodes each for it: some bytes of CBOR that claim to be gigabytes were allocated.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

DEPTH = 4  # the store, a manifest, its assertions, each of them
MOST_BOXES = 512
MOST_PIECES = 4096  # of a file: chunks or segments; the library takes 15 µs for each of a PNG


class Unreadable(Exception):
    """It is not what it should be; or too much, or compressed, which is rare, and not looked into."""


class Box(NamedTuple):
    """Labels, from the store's to its own, and bytes with all that is in it."""

    path: tuple[str, ...]
    size: int


def boxes(picture: bytes) -> list[Box]:
    """The store of an encoded PNG, JPEG or WebP, and the boxes in it, as deep as single assertions.

    Raises Unreadable, also where there is no store, or more than one.
    """
    try:
        found = list(islice(_superboxes(_store(picture)), MOST_BOXES + 1))
    except (struct.error, UnicodeDecodeError, ValueError) as error:
        raise Unreadable from error
    if not 0 < len(found) <= MOST_BOXES:
        raise Unreadable
    return found


def _superboxes(data: bytes, path: tuple[str, ...] = ()) -> Iterator[Box]:
    for kind, body in _boxes(data):
        if kind == b"brob":
            raise Unreadable
        if kind == b"jumb" and len(path) < DEPTH:
            own = (*path, _label(body))
            yield Box(own, len(body))
            yield from _superboxes(body, own)


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


def _store(picture: bytes) -> bytes:
    """The bytes of a picture's one store of manifests."""
    if picture.startswith(b"\x89PNG"):
        stores = _chunks(picture, 8, ">I4s", b"caBX", 4, 1)
    elif picture.startswith(b"\xff\xd8"):
        stores = (box for box in _segments(picture) if box[16:20] == b"c2pa")
    else:
        stores = _chunks(picture, 12, "<4sI", b"C2PA", 0, 2)
    (one,) = stores  # of two each program would take its own
    return one


def _chunks(
    data: bytes, at: int, head: str, wanted: bytes, after: int, multiple: int
) -> Iterator[bytes]:
    """The bodies of the chunks of that kind, of a PNG or WebP."""
    for _ in range(MOST_PIECES):
        if at >= len(data):
            return
        one, other = struct.unpack_from(head, data, at)
        kind, length = (one, other) if isinstance(one, bytes) else (other, one)
        if kind == wanted:
            yield data[at + 8 : at + 8 + length]
        at += 8 + -(-length // multiple) * multiple + after
    raise Unreadable


def _segments(data: bytes) -> Iterator[bytes]:
    """The boxes that APP11 segments of a JPEG have in parts (ISO 19566-5, annex D).

    A part: JP, the box's number (2 bytes), the part's (4), the box's head (8 bytes), and bytes of the box.
    """
    found: dict[bytes, list[tuple[bytes, bytes]]] = {}
    at = 2
    for _ in range(MOST_PIECES):
        marker, length = struct.unpack_from(">xBH", data, at)
        body = data[at + 4 : at + 2 + length]
        if marker == 0xEB and body.startswith(b"JP"):
            found.setdefault(body[2:4], []).append((body[4:8], body[8:]))
        if marker == 0xDA:
            break
        at += 2 + length
    else:
        raise Unreadable
    for numbered in found.values():
        (_, first), *others = sorted(numbered)
        yield first + b"".join(body[8:] for _, body in others)
