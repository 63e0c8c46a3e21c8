"""Requests with two ends: read one way there is one, read another way a second hides in it."""

from __future__ import annotations

HIDDEN = b"GET /images/HIDDEN.png HTTP/1.1\r\nhost: x\r\n\r\n"
_POST = b"POST /v1/images/edits HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
_EMPTY = b"0\r\n\r\n"


def _both(length: bytes, coding: bytes, body: bytes) -> bytes:
    return _POST + length + b"\r\n" + coding + b"\r\n\r\n" + body


def _long(body: bytes) -> bytes:
    return b"content-length: %d" % len(body)


_TE = b"transfer-encoding: chunked"
# RFC 9112, 6.3: each must be refused, or read in the one way that the RFC says and the connection be closed. So what is
# hidden must never be answered.
PAIRS: dict[str, bytes] = {
    "CL.TE": _both(_long(_EMPTY + HIDDEN), _TE, _EMPTY + HIDDEN),
    "TE.CL": _both(_TE, b"content-length: 4", b"%x\r\n" % len(HIDDEN) + HIDDEN + b"\r\n" + _EMPTY),
    **{
        f"TE.TE {coding!r}": _both(_long(_EMPTY + HIDDEN), coding, _EMPTY + HIDDEN)
        for coding in (
            b"transfer-encoding: xchunked",
            b"transfer-encoding : chunked",
            b"transfer-encoding:\tchunked",
            b"transfer-encoding: chunked\r\ntransfer-encoding: x",
            b"transfer-encoding: x\r\ntransfer-encoding: chunked",
            b"transfer-encoding: chunked, identity",
            b"transfer-encoding: identity, chunked",
            b" transfer-encoding: chunked",
            b"x: y\n transfer-encoding: chunked",
            b"x: y\r transfer-encoding: chunked",
            b"transfer-encoding: \x0bchunked",
            b"transfer-encoding: chunked\x00",
            b"transfer-encoding\x00: chunked",
            b"transfer\xadencoding: chunked",
            b"transfer_encoding: chunked",
            b"Transfer-Encoding: CHUNKED",
            b'transfer-encoding: "chunked"',
            b"transfer-encoding:\r\n chunked",
            b"transfer-encoding: chunked;x=1",
            b"x: y\r\n\r\ntransfer-encoding: chunked",
        )
    },
    **{
        f"CL.CL {lines!r}": _POST + lines + b"\r\n\r\n" + HIDDEN
        for lines in (
            b"content-length: 0\r\ncontent-length: %d" % len(HIDDEN),
            b"content-length: %d\r\ncontent-length: 0" % len(HIDDEN),
            b"content-length: 0, %d" % len(HIDDEN),
            b"content-length: +%d" % len(HIDDEN),
            b"content-length: -1",
            b"content-length: 0x2b",
            b"content-length: 4 3",
            b"content-length: 43abc",
            b"content-length: 18446744073709551659",
            b"content-length: 99999999999999999999999",
            b"content-length:",
            b"content-length: \xc2\xb2",
            b"content-length : %d" % len(HIDDEN),
            b"content-length: %d\x00" % len(HIDDEN),
            b"content_length: 0\r\ncontent-length: %d" % len(HIDDEN),
        )
    },
    **{
        f"chunk {size!r}": _POST + _TE + b"\r\n\r\n" + size + b"\r\n" + HIDDEN
        for size in (
            b"0x2b",
            b"-1",
            b"+2b",
            b"2b ",
            b" 2b",
            b"2b;a=\n",
            b"ffffffffffffffff",
            b"1000000000000002b",
            b"",
            b"zz",
            b"2b\r",
            b"0\r\nx: y",
            b"\xc2\xb2b",
        )
    },
    "a chunk without its end": _POST + _TE + b"\r\n\r\n1\r\nxx\r\n" + _EMPTY + HIDDEN,
    "bare line feeds": (_POST + _long(HIDDEN)).replace(b"\r\n", b"\n") + b"\n\n" + HIDDEN,
    "bare carriage returns": (_POST + _long(HIDDEN)).replace(b"\r\n", b"\r") + b"\r\r" + HIDDEN,
    "a folded line": _POST
    + b"x: y\r\n content-length: 0\r\n"
    + _long(HIDDEN)
    + b"\r\n\r\n"
    + HIDDEN,
    "a null in a name": _POST + b"x\0y: z\r\n" + _long(HIDDEN) + b"\r\n\r\n" + HIDDEN,
    "a line without a colon": _POST + b"nothing\r\n" + _long(HIDDEN) + b"\r\n\r\n" + HIDDEN,
    "an upgrade": _POST
    + b"connection: upgrade\r\nupgrade: h2c\r\n"
    + _long(HIDDEN)
    + b"\r\n\r\n"
    + HIDDEN,
    "HTTP/0.9": b"GET /\r\n" + HIDDEN,
    "HTTP/1.0 with a coding": b"POST /v1/images/edits HTTP/1.0\r\n"
    + _TE
    + b"\r\n"
    + _long(_EMPTY + HIDDEN)
    + b"\r\n\r\n"
    + _EMPTY
    + HIDDEN,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0" + HIDDEN,
    "HTTP/9.9": b"GET / HTTP/9.9\r\nhost: x\r\n\r\n" + HIDDEN,
    "two requests in a line": b"GET / HTTP/1.1 HTTP/1.1\r\nhost: x\r\n\r\n" + HIDDEN,
    "two hosts": b"GET / HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n" + HIDDEN,
    "no host": b"GET / HTTP/1.1\r\n\r\n" + HIDDEN,
    "a tunnel": b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n" + HIDDEN,
    "TLS": b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(300),
    "SSH": b"SSH-2.0-OpenSSH_9.9\r\n",
    "a proxy's line": b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n" + HIDDEN,
    "nulls": bytes(9000),
    "line ends": b"\r\n" * 40_000,
}
