"""HTTP over plain sockets, for what no client would send."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator

from tests.gateway.conftest import Live, b64, picture

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
BODY = json.dumps({"images": [b64(picture())], "prompt": "x"}).encode()
CHUNKED = "transfer-encoding: chunked\r\n"
JSON, FORM = "application/json", "multipart/form-data; boundary=b"
PARTS = [(b'image"; filename="blob', picture()), (b"prompt", b"x")]
BODIES = {
    JSON: BODY,
    FORM: b"".join(
        b'--b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % part for part in PARTS
    )
    + b"--b--\r\n",
}


def head(extra: str, kind: str = JSON) -> bytes:
    return (
        f"POST /v1/images/edits HTTP/1.1\r\nhost: x\r\ncontent-type: {kind}\r\n{extra}\r\n"
    ).encode()


def whole(kind: str = JSON, body: bytes = b"", extra: str = "") -> bytes:
    body = body or BODIES[kind]
    return head(f"{extra}content-length: {len(body)}\r\n", kind) + body


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@contextlib.asynccontextmanager
async def dialled(gateway: Live) -> AsyncIterator[Streams]:
    """A connection that takes little before it is read."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**14)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", gateway.port))
    reader, writer = await asyncio.open_connection(sock=sock)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of one answer."""
    raw = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in raw[1:] if line)
    return int(raw[0].split()[1]), headers, await reader.readexactly(int(headers["content-length"]))
