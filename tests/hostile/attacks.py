"""What is said to a gRPC port by who does not speak gRPC, or all too well. Each is all the bytes of one connection."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from functools import partial

from tests.hostile.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    PING,
    PREFACE,
    PRIORITY,
    PUSH,
    RST,
    SETTINGS,
    WINDOW,
    begun,
    call,
    frame,
    message,
    opening,
    packed,
)

MANY = 2000
_CANCEL = struct.pack(">I", 8)


def _streams(count: int = MANY) -> range:
    return range(1, 2 * count, 2)


def _called(data: bytes, *more: tuple[bytes, bytes], block: bytes | None = None) -> bytes:
    """A whole call with that DATA."""
    head = call(more=more) if block is None else block
    return opening() + begun(1, head) + frame(DATA, data, 1, END_STREAM)


def _gzipped(count: int) -> bytes:
    """gzip of that many zeros."""
    squeeze = zlib.compressobj(9, wbits=-15)
    piece = squeeze.compress(bytes(2**20)) + squeeze.flush(zlib.Z_FULL_FLUSH)
    crc = 0
    for _ in range(count // 2**20):
        crc = zlib.crc32(bytes(2**20), crc)
    head = b"\x1f\x8b\x08\0\0\0\0\0\0\x03"
    return head + piece * (count // 2**20) + b"\x03\0" + struct.pack("<II", crc, count % 2**32)


def gzip_bomb() -> bytes:
    """A call of a megabyte that is a gigabyte."""
    data = message(_gzipped(2**30), compressed=1)
    pieces = [data[i : i + 16384] for i in range(0, len(data), 16384)]
    frames = [frame(DATA, piece, 1) for piece in pieces[:-1]]
    head = begun(1, call(more=[(b"grpc-encoding", b"gzip")]))
    return opening() + head + b"".join(frames) + frame(DATA, pieces[-1], 1, END_STREAM)


def _table_bomb() -> bytes:
    """A long field into HPACK's table once, then named by one byte again and again."""
    entry = b"\x40" + packed([(b"x", b"a" * 4000)])[1:]
    return opening() + begun(1, call() + entry + b"\xbe" * 12_000)


def _cut_off(*pieces: bytes) -> Callable[[], bytes]:
    return lambda: b"".join(pieces)


# Floods: each of many frames, all of them right by themselves.
FLOODS: dict[str, Callable[[], bytes]] = {
    "rapid reset": lambda: (
        opening() + b"".join(begun(s) + frame(RST, _CANCEL, s) for s in _streams())
    ),
    "rapid reset of whole calls": lambda: (
        opening()
        + b"".join(
            begun(s) + frame(DATA, message(b"\x12\x01x"), s, END_STREAM) + frame(RST, _CANCEL, s)
            for s in _streams()
        )
    ),
    "settings": lambda: opening() + frame(SETTINGS) * 20_000,
    "settings' acknowledgements": lambda: opening() + frame(SETTINGS, flags=ACK) * 20_000,
    "pings": lambda: opening() + frame(PING, bytes(8)) * 20_000,
    "priorities": lambda: (
        opening() + b"".join(frame(PRIORITY, bytes(5), s) for s in _streams(10_000))
    ),
    "windows": lambda: opening() + frame(WINDOW, struct.pack(">I", 1)) * 20_000,
    "data of nothing": lambda: opening() + begun(1) + frame(DATA, stream=1) * 20_000,
    "continuations": lambda: (
        opening()
        + begun(1, flags=0)
        + frame(CONTINUATION, packed([(b"x", b"a" * 8000)]) * 2, 1) * 300
    ),
    "continuations of nothing": lambda: (
        opening() + begun(1, flags=0) + frame(CONTINUATION, stream=1) * 20_000
    ),
    "calls that never go on": lambda: opening() + b"".join(begun(s) for s in _streams()),
    "calls whose answers nobody takes": lambda: (
        opening((4, 0))
        + b"".join(begun(s) + frame(DATA, message(b""), s, END_STREAM) for s in _streams(500))
    ),
    "HPACK's table": _table_bomb,
    "gzip": gzip_bomb,
    "HTTP/1.1": lambda: b"GET / HTTP/1.1\r\nhost: x\r\n\r\n" * 500,
    "rubbish": lambda: os.urandom(2**20),
}
_TIMES = (b"", b"x", b"-1S", b"99999999999H", b"1", b"0n", b"1e9S", b"\xff", b"9" * 400 + b"S")


def _timed(value: bytes) -> bytes:
    return _called(message(b""), (b"grpc-timeout", value))


# Single frames that are wrong, RFC 9113's numbers in brackets.
WRONG: dict[str, Callable[[], bytes]] = {
    "nothing": _cut_off(b""),
    "half a preface": _cut_off(PREFACE[:10]),
    "another preface": _cut_off(b"PRI * HTTP/3.0\r\n\r\nSM\r\n\r\n", frame(SETTINGS)),
    "no settings [3.4]": _cut_off(PREFACE, begun(1)),
    "TLS": _cut_off(b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(300)),
    "a stream of the server's [5.1.1]": _cut_off(opening(), begun(2)),
    "an older stream [5.1.1]": _cut_off(opening(), begun(5), begun(3)),
    "stream 0 [6.2]": _cut_off(opening(), begun(0)),
    "stream 2^31-1": _cut_off(opening(), begun(2**31 - 1)),
    "a frame of no kind [5.5]": _cut_off(opening(), frame(99, b"x" * 100, 1)),
    "a frame too large [4.2]": _cut_off(opening(), frame(DATA, bytes(2**20), 1)),
    "a frame of 2^24-1 that does not come": _cut_off(opening(), b"\xff\xff\xff\0\0\0\0\0\x01"),
    "padding beyond the frame [6.1]": _cut_off(opening(), begun(1), frame(DATA, b"\xff", 1, 8)),
    "a promise from a client [8.4]": _cut_off(opening(), frame(PUSH, bytes(8), 1, END_HEADERS)),
    "a goodbye": _cut_off(opening(), frame(GOAWAY, bytes(8)), begun(1)),
    "a window of 0 [6.9]": _cut_off(opening(), frame(WINDOW, bytes(4))),
    "a window too far [6.9.1]": _cut_off(opening(), frame(WINDOW, b"\x7f\xff\xff\xff") * 3),
    "half a setting [6.5]": _cut_off(opening(), frame(SETTINGS, b"\0")),
    "settings with an answer [6.5]": _cut_off(opening(), frame(SETTINGS, bytes(6), flags=ACK)),
    "a frame of 1 byte, most [6.5.2]": _cut_off(opening((5, 1))),
    "a window of 2^32-1, at first [6.5.2]": _cut_off(opening((4, 2**32 - 1))),
    "tables of 2^32-1": _cut_off(opening((1, 2**32 - 1)), begun(1)),
    "half a ping [6.7]": _cut_off(opening(), frame(PING, b"\0")),
    "data before a head [5.1]": _cut_off(opening(), frame(DATA, message(b""), 1)),
    "data within a head [6.10]": _cut_off(opening(), begun(1, flags=0), frame(DATA, b"x", 1)),
    "a head going on for another [6.10]": _cut_off(
        opening(), begun(1, flags=0), frame(CONTINUATION, b"", 3, END_HEADERS)
    ),
    "a reset of nothing [6.4]": _cut_off(opening(), frame(RST, _CANCEL, 1)),
    "half a reset [6.4]": _cut_off(opening(), begun(1), frame(RST, b"\0", 1)),
    "HPACK: no such entry": _cut_off(opening(), begun(1, b"\xff\xff\xff\xff\x0f")),
    "HPACK: a number without end": _cut_off(opening(), begun(1, b"\xff" * 50)),
    "HPACK: a text beyond the end": _cut_off(opening(), begun(1, b"\0\x7f\xff\xff\xff\xff\x07x")),
    "HPACK: Huffman's rubbish": _cut_off(
        opening(), begun(1, b"\0\x84\xff\xff\xff\xff\x84\xff\xff\xff\xff")
    ),
    "HPACK: rubbish": lambda: opening() + begun(1, os.urandom(200)),
    "no fields": _cut_off(opening(), begun(1, b"", END_HEADERS | END_STREAM)),
    "a pseudo-field at the end [8.3]": _cut_off(
        opening(), begun(1, call(more=[(b":path", b"/x")]))
    ),
    "capitals [8.2]": _cut_off(opening(), begun(1, call(more=[(b"X-Request-ID", b"x")]))),
    "a line's end in a field [8.2.1]": _cut_off(
        opening(), begun(1, call(more=[(b"x-request-id", b"a\r\nb: c")]))
    ),
    "connection [8.2.2]": _cut_off(opening(), begun(1, call(more=[(b"connection", b"close")]))),
    "a head of 200 KB": lambda: (
        opening()
        + begun(1, flags=0)
        + frame(CONTINUATION, packed([(b"x", b"a" * 16_000)]), 1) * 12
        + frame(CONTINUATION, b"", 1, END_HEADERS)
    ),
    "GET": lambda: _called(
        b"",
        block=packed(
            [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"x")]
        ),
    ),
    "another content type": lambda: _called(message(b""), block=call(content_type=b"text/html")),
    "no path": lambda: _called(message(b""), block=call(path="")),
    "another path": lambda: _called(message(b""), block=call(path="/" + "a" * 5000)),
    "a path with a null": lambda: _called(
        message(b""), block=call(path="/retouch.v1.ImageEdit/Edit\0")
    ),
    "no message": lambda: _called(b""),
    "half a message": lambda: _called(message(b"")[:3]),
    "a message cut off": lambda: _called(message(b"abc", length=99)),
    "a message of 2^32-1": lambda: _called(message(b"abc", length=2**32 - 1)),
    "two messages": lambda: _called(message(b"") * 2),
    "a thousand messages": lambda: _called(message(b"") * 1000),
    "a flag of 255": lambda: _called(message(b"", compressed=255)),
    "compressed as nothing says": lambda: _called(message(b"x", compressed=1)),
    "compressed as nobody knows": lambda: _called(
        message(b"x", compressed=1), (b"grpc-encoding", b"zstd")
    ),
    "gzip's rubbish": lambda: _called(
        message(b"x" * 99, compressed=1), (b"grpc-encoding", b"gzip")
    ),
    **{f"time {value[:12]!r}": partial(_timed, value) for value in _TIMES},
}
