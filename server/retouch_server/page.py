"""The metrics port: Prometheus' page, and two probes for whoever cannot ask by gRPC or, as Kubernetes, not by TLS.

`GET /healthz` is 200 while the event loop runs, `GET /readyz` while edits are taken, each else 503; any other path is
the page.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from socketserver import ThreadingMixIn
from threading import Event, Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app

STILL_SECONDS = 5.0


def serve(
    host: str,
    port: int,
    registry: CollectorRegistry,
    loop: asyncio.AbstractEventLoop,
    ready: Callable[[], bool],
) -> WSGIServer:
    """Answer on threads of its own until `shutdown`; `loop` is the one whose life is told.

    Raises OSError where it cannot listen there.
    """
    app = _app(make_wsgi_app(registry), {"/healthz": lambda: _runs(loop), "/readyz": ready})
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    server = make_server(
        host, port, app, _Server6 if family == socket.AF_INET6 else _Server, _Handler
    )
    Thread(target=server.serve_forever, name="metrics page", daemon=True).start()
    return server


def _runs(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether the loop runs a callback within 5 s."""
    ran = Event()
    try:
        loop.call_soon_threadsafe(ran.set)
    except RuntimeError:  # it is closed
        return False
    return ran.wait(STILL_SECONDS)


def _app(metrics: WSGIApplication, probes: dict[str, Callable[[], bool]]) -> WSGIApplication:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        probe = probes.get(environ["PATH_INFO"])
        if probe is None or environ["REQUEST_METHOD"] != "GET":
            return metrics(environ, start_response)
        status, word = ("200 OK", b"ok\n") if probe() else ("503 Service Unavailable", b"no\n")
        start_response(status, [("Content-Type", "text/plain")])
        return [word]

    return app


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = 10  # seconds that a caller may be silent

    def handle(self) -> None:
        """One request. Of who is silent or leaves there is nothing to say: socketserver would print a traceback."""
        with suppress(OSError):
            super().handle()

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: Prometheus and probes ask all the time."""
