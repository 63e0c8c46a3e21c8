"""Callers, as cheap as they can be, in a process of their own; and what they reach when nothing is done for them.

Threads on blocking sockets: sending and receiving megabytes is the kernel's work, and lets the others run. Only the
standard library, so that the process is up at once.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

CHUNK = 2**20
PATIENCE = 60.0  # seconds for any one read or write


@dataclass
class Load:
    """What callers saw. Seconds throughout."""

    seconds: float
    # Of the callers' own process.
    cpu: float
    latencies: list[float]


class Refused(Exception):
    """An answer that is not 200."""


def connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def exchange(connection: socket.socket, request: bytes, buffer: bytearray) -> None:
    """One request and its whole answer. Raises Refused."""
    _, left = _begin(connection, request, buffer)
    while left > 0:
        left -= connection.recv_into(buffer, min(left, CHUNK)) or _hung_up()


def ask(port: int, request: bytes) -> bytes:
    """The body of one answer. Raises Refused."""
    with connect(port) as connection:
        start, left = _begin(connection, request, bytearray(CHUNK))
        return start + connection.makefile("rb").read(left)


def _begin(connection: socket.socket, request: bytes, buffer: bytearray) -> tuple[bytes, int]:
    """Send it; the first bytes of the answer's body, and how many are to come."""
    connection.sendall(request)
    start = b""
    while b"\r\n\r\n" not in start:
        start += _read(connection, buffer)
    if not start.startswith(b"HTTP/1.1 200"):
        raise Refused(" ".join(start[:2000].decode(errors="replace").split()))
    head, _, body = start.partition(b"\r\n\r\n")
    return body, _length(head) - len(body)


def _read(connection: socket.socket, buffer: bytearray) -> bytes:
    return bytes(memoryview(buffer)[: connection.recv_into(buffer) or _hung_up()])


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    raise Refused("an answer without a length")


def _hung_up() -> int:
    raise ConnectionResetError("the connection was closed in the middle of an answer")


def load(port: int, request: bytes, clients: int, seconds: float) -> Load:
    """`clients` callers, each asking again as soon as it has its answer, for so long."""
    ready = threading.Barrier(clients)
    latencies: list[float] = []

    def client() -> None:
        buffer = bytearray(CHUNK)
        with connect(port) as connection:
            ready.wait(PATIENCE)
            until = time.perf_counter() + seconds
            while (started := time.perf_counter()) < until:
                exchange(connection, request, buffer)
                latencies.append(time.perf_counter() - started)

    started, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(clients) as pool:
        for done in [pool.submit(client) for _ in range(clients)]:
            done.result()
    return Load(time.perf_counter() - started, time.process_time() - cpu, latencies)


def wire(port: int, answer: bytes) -> None:
    """Read requests whole and give each the same answer, looking at nothing: the callers' ceiling."""
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(answer)}\r\n\r\n".encode()

    def serve(connection: socket.socket) -> None:
        buffer = bytearray(CHUNK)
        with connection:
            while size := connection.recv_into(buffer):
                start = bytes(memoryview(buffer)[:size])
                asked, _, body = start.partition(b"\r\n\r\n")
                left = _length(asked) - len(body)
                while left > 0:
                    left -= connection.recv_into(buffer, min(left, CHUNK)) or _hung_up()
                connection.sendall(head + answer)

    with socket.create_server(("127.0.0.1", port), backlog=256) as listener:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=serve, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    what, at, file, *numbers = sys.argv[1:]
    content = Path(file).read_bytes()
    if what == "wire":
        wire(int(at), content)
    else:
        print(json.dumps(asdict(load(int(at), content, int(numbers[0]), float(numbers[1])))))
