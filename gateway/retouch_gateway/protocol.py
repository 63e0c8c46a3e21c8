"""HTTP below the routes: the envelope for what does not parse, and heads bounded in bytes and time."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from retouch_gateway.errors import envelope

HEAD_BYTES = 64 * 2**10
HEAD_SECONDS = 30.0
REASONS = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}


class EnvelopeProtocol(HttpToolsProtocol):
    """uvicorn's httptools protocol, which bounds neither how long a head is nor how long it takes."""

    _head_bytes = 0
    _in_head = True
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_in()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        # Counted whole chunks at a time: what is over by less than a chunk does no harm.
        self._head_bytes += len(data) if self._in_head else 0
        super().data_received(data)
        if self._in_head and self._head_bytes > HEAD_BYTES:
            self._refuse(431, f"The request's head is larger than {HEAD_BYTES} bytes.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if not self._head_timer:
            self._await_head()

    def on_headers_complete(self) -> None:
        self._head_is_in()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, msg)

    def _await_head(self) -> None:
        self._in_head, self._head_bytes = True, 0
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._head_is_late)

    def _head_is_in(self) -> None:
        self._in_head = False
        if self._head_timer:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._refuse(408, f"The request's head had not all come after {HEAD_SECONDS:g} s.")

    def _refuse(self, status: int, message: str) -> None:
        self._head_is_in()
        if self.transport.is_closing():
            return
        body = orjson.dumps(envelope(status, message))
        head = (
            f"HTTP/1.1 {status} {REASONS[status]}\r\n"
            "content-type: application/json\r\n"
            f"content-length: {len(body)}\r\n"
            f"x-request-id: req_{secrets.token_hex(16)}\r\n"
            "openai-processing-ms: 0\r\n"
            "connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
