"""HTTP/2 by hand, RFC 9113: frames as they are wanted, right or wrong."""

from __future__ import annotations

import struct
from collections.abc import Iterable

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END_STREAM, END_HEADERS, ACK = 1, 4, 1
EDIT = "/retouch.v1.ImageEdit/Edit"


def frame(kind: int, payload: bytes = b"", stream: int = 0, flags: int = 0) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def opening(*settings: tuple[int, int]) -> bytes:
    """The preface, and the caller's settings."""
    return PREFACE + frame(SETTINGS, b"".join(struct.pack(">HI", *each) for each in settings))


def packed(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """HPACK (RFC 7541): literals without indexing, names spelled out."""
    return b"".join(b"\0" + _string(name) + _string(value) for name, value in fields)


def _string(text: bytes) -> bytes:
    return _integer(len(text)) + text


def _integer(value: int, first: int = 0, bits: int = 7) -> bytes:
    most = 2**bits - 1
    if value < most:
        return bytes([first | value])
    out, value = [first | most], value - most
    while value >= 128:
        out.append(value % 128 + 128)
        value //= 128
    return bytes([*out, value])


def call(
    path: str = EDIT,
    more: Iterable[tuple[bytes, bytes]] = (),
    content_type: bytes = b"application/grpc",
) -> bytes:
    """The fields of a call, packed."""
    where = [(b":scheme", b"http"), (b":path", path.encode()), (b":authority", b"x")]
    kind = [(b"te", b"trailers"), (b"content-type", content_type)]
    return packed([(b":method", b"POST"), *where, *kind, *more])


def begun(stream: int, block: bytes | None = None, flags: int = END_HEADERS) -> bytes:
    """HEADERS of a call."""
    return frame(HEADERS, call() if block is None else block, stream, flags)


def message(data: bytes, compressed: int = 0, length: int | None = None) -> bytes:
    """A gRPC message; `length` where it is to lie."""
    return struct.pack(">BI", compressed, len(data) if length is None else length) + data
