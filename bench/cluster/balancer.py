"""A balancer of TCP connections, as a Service is one: it chooses for new ones, and those that stand stay."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

CHUNK = 2**16


class Balancer:
    """Listens on a `port` of loopback. New connections go to the `backends` (ports of loopback) in turn."""

    def __init__(self) -> None:
        self.backends: Sequence[int] = ()
        self._turn = itertools.count()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = int(self._listener.getsockname()[1])

    def serve(self) -> None:
        """Until it is closed."""
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            backends = self.backends
            chosen = backends[next(self._turn) % len(backends)]
            try:
                backend = socket.create_connection(("127.0.0.1", chosen))
            except OSError:
                client.close()  # which the caller sees, as it would of a Service
                continue
            threading.Thread(target=_join, args=(client, backend), daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def _join(client: socket.socket, backend: socket.socket) -> None:
    with client, backend:
        back = threading.Thread(target=_pump, args=(backend, client), daemon=True)
        back.start()
        _pump(client, backend)
        back.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    """Bytes from one to the other, and then the end of them; whoever resets is passed on as an end."""
    with contextlib.suppress(OSError):
        while data := source.recv(CHUNK):
            sink.sendall(data)
    for each, how in ((sink, socket.SHUT_WR), (source, socket.SHUT_RD)):
        with contextlib.suppress(OSError):
            each.shutdown(how)


@contextmanager
def balancer() -> Iterator[Balancer]:
    made = Balancer()
    thread = threading.Thread(target=made.serve)
    thread.start()
    try:
        yield made
    finally:
        made.close()
        thread.join()
