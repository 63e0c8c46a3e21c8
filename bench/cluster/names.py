"""A name server for one name, on loopback, whose answer may change at any time: the DNS of a headless Service."""

from __future__ import annotations

import socket
import socketserver
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

NAME = "servers.test"
HEADER = 12  # bytes
POINTER = 0xC000 | HEADER  # to the name in the question
A, IN = 1, 1
AUTHORITATIVE, NO_SUCH_NAME = 0x8400, 3


class NameServer(socketserver.UDPServer):
    """Answers NAME with `addresses` (IPv4, IN, A, to be kept for 0 s). `asked`: when it was, by time.monotonic."""

    addresses: Sequence[str] = ()

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Query)
        self.asked: list[float] = []

    def target(self, port: int) -> str:
        """What gRPC resolves by this server alone: `dns://authority/name:port`."""
        return f"dns://127.0.0.1:{self.server_address[1]}/{NAME}:{port}"


class _Query(socketserver.BaseRequestHandler):
    """One datagram: RFC 1035, 4.1."""

    server: NameServer

    def handle(self) -> None:
        query, client = self.request
        reply = self._reply(query)
        client.sendto(reply, self.client_address)

    def _reply(self, query: bytes) -> bytes:
        end = query.index(0, HEADER) + 1
        question = query[HEADER : end + 4]
        known = query[HEADER:end].lower() == _encoded(NAME)
        (kind,) = struct.unpack_from("!H", query, end)
        addresses = self.server.addresses if known and kind == A else ()
        if addresses:
            self.server.asked.append(time.monotonic())
        flags = AUTHORITATIVE | (0 if known else NO_SUCH_NAME)
        head = query[:2] + struct.pack("!5H", flags, 1, len(addresses), 0, 0)
        records = [
            struct.pack("!3HIH", POINTER, A, IN, 0, 4) + socket.inet_aton(address)
            for address in addresses
        ]
        return b"".join([head, question, *records])


def _encoded(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in [*name.split("."), ""])


@contextmanager
def name_server() -> Iterator[NameServer]:
    with NameServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
