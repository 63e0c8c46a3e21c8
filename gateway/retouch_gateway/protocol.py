"""HTTP so broken that no route sees it still gets the envelope."""

from __future__ import annotations

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from retouch_gateway.errors import envelope


class EnvelopeProtocol(HttpToolsProtocol):
    """uvicorn's httptools protocol, its one plain-text answer replaced."""

    def send_400_response(self, msg: str) -> None:
        body = orjson.dumps(envelope(400, msg))
        head = (
            "HTTP/1.1 400 Bad Request\r\n"
            "content-type: application/json\r\n"
            f"content-length: {len(body)}\r\n"
            "connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
