"""The process of a gateway: settings, sockets, run until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import secrets
import socket
import sys
from collections.abc import Sequence
from typing import Any, NoReturn
from wsgiref.simple_server import WSGIRequestHandler

import uvicorn
from prometheus_client import disable_created_metrics, start_http_server

from retouch_gateway import logs, memory, otlp
from retouch_gateway.app import create_app
from retouch_gateway.drain import Server
from retouch_gateway.keys import KeysError
from retouch_gateway.metrics import Metrics
from retouch_gateway.protocol import EnvelopeProtocol
from retouch_gateway.settings import (
    PREFIX,
    Settings,
    SettingsError,
    load,
    unknown_variables,
)
from retouch_gateway.stores import Store, kept_key, open_store
from retouch_gateway.tracing import Tracing

log = logging.getLogger("retouch_gateway")


def main() -> None:
    """Serve until SIGTERM or SIGINT, then finish what is in flight.

    Exit status: 0 stopped, 1 a port is taken, 2 a setting is wrong.
    """
    try:
        settings = load(sys.argv[1:])
    except SettingsError as error:
        _leave(2, *error.lines)
    logs.configure(settings.log_level, settings.log_format)
    memory.configure()
    _allow_connections()
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    for name in unknown_variables():
        log.warning("%s is not a setting", name)
    serve(settings)


def serve(settings: Settings) -> None:
    """Listen on both ports and serve."""
    # When each series began is no figure of ours, and doubles the page.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    metrics = Metrics()
    listener = _listen(settings)
    store, signing_keys = _store(settings)
    tracing = Tracing(otlp.connect("retouch-gateway"))
    try:
        app = create_app(settings, store, signing_keys, metrics, tracing)
    except KeysError as error:
        _leave(2, *(f"{PREFIX}KEYS: {line}" for line in error.lines))
    except SettingsError as error:
        _leave(2, *error.lines)
    if settings.metrics_port:
        _serve_metrics(settings, metrics)
    config = uvicorn.Config(
        app,
        http=EnvelopeProtocol,
        loop="uvloop",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # origin.py reads them
        timeout_keep_alive=settings.keep_alive,
        timeout_graceful_shutdown=int(settings.timeout) + 5,
    )
    host, port = listener.getsockname()[:2]
    log.info(
        "listening on http://%s:%d upstream=%s store=%s ttl=%d",
        *(f"[{host}]" if ":" in host else host, port),
        *(settings.upstream, settings.store, settings.ttl),
    )
    try:
        Server(config, settings.drain_wait).run([listener])
    finally:
        tracing.close()


def _allow_connections() -> None:
    """Raise the soft limit of descriptors, each a connection, to what may be had: a shell's is often 1024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _serve_metrics(settings: Settings, metrics: Metrics) -> None:
    try:
        page, _ = start_http_server(settings.metrics_port, settings.host, metrics.registry)
    except OSError as error:
        _taken("METRICS_PORT", settings.host, settings.metrics_port, error)
    page.RequestHandlerClass = _Handler


class _Handler(WSGIRequestHandler):
    """Of who asks for metrics. Each has a thread."""

    timeout = 10  # seconds that a caller may be silent

    def handle(self) -> None:
        """One request. Of who is silent or leaves there is nothing to say: socketserver would print a traceback."""
        with contextlib.suppress(OSError):
            super().handle()

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: Prometheus asks all the time."""


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        _taken("PORT", settings.host, settings.port, error)


def _store(settings: Settings) -> tuple[Store, Sequence[bytes]]:
    """The store, and the keys of its URLs; none where a file has them."""
    try:
        store = open_store(settings.store)
    except OSError as error:
        _leave(2, f"{PREFIX}STORE: {error}")
    if settings.signing_keys or settings.signing_key_file:
        return store, settings.signing_keys
    try:
        return store, [asyncio.run(kept_key(store))]
    except OSError as error:
        reason = error.strerror or error
        if "://" in settings.store:  # others use it too, and would know none of our URLs
            _leave(1, f"{PREFIX}STORE: no signing key can be kept there: {reason}")
        log.warning("store: %s; image URLs will not survive a restart", reason)
        return store, [secrets.token_bytes(32)]


def _taken(variable: str, host: str, port: int, error: OSError) -> NoReturn:
    reason = str(error.strerror).partition(" (")[0]  # socket appends what is said here anyway
    _leave(1, f"{PREFIX}{variable}: cannot listen on {host} port {port}: {reason}")


def _leave(status: int, *lines: str) -> NoReturn:
    for line in lines:
        print(line, file=sys.stderr)
    sys.exit(status)
