"""`retouch-gateway`: settings, sockets, run until told to stop."""

from __future__ import annotations

import ctypes
import logging
import secrets
import signal
import socket
import sys
from typing import NoReturn

import uvicorn
from prometheus_client import disable_created_metrics, start_http_server

from retouch_gateway.app import create_app
from retouch_gateway.hosting import Store, kept_key
from retouch_gateway.metrics import Metrics
from retouch_gateway.protocol import EnvelopeProtocol
from retouch_gateway.settings import (
    PREFIX,
    Settings,
    SettingsError,
    load,
    unknown_variables,
)

log = logging.getLogger("retouch_gateway")

M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # malloc.h


def main() -> None:
    """Serve until SIGTERM or SIGINT, then finish what is in flight.

    Exit status: 0 stopped, 1 a port is taken, 2 a setting is wrong.
    """
    # uvicorn hands the signal on once it has stopped; that is an orderly end.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stopped)
    try:
        settings = load(sys.argv[1:])
    except SettingsError as error:
        _leave(2, *error.lines)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    _give_memory_back()
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
    store = Store(settings.store, settings.ttl, _keys(settings), metrics)
    if settings.metrics_port:
        try:
            start_http_server(settings.metrics_port, settings.host, metrics.registry)
        except OSError as error:
            _taken("METRICS_PORT", settings.host, settings.metrics_port, error)
    config = uvicorn.Config(
        create_app(settings, store, metrics),
        http=EnvelopeProtocol,
        loop="uvloop",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # behind a proxy, PUBLIC_URL says what it is called
        timeout_graceful_shutdown=int(settings.timeout) + 5,
    )
    host, port = listener.getsockname()[:2]
    log.info(
        "listening on http://%s:%d upstream=%s store=%s ttl=%d",
        *(f"[{host}]" if ":" in host else host, port),
        *(settings.upstream, settings.store, settings.ttl),
    )
    uvicorn.Server(config).run([listener])


def _give_memory_back() -> None:
    """Have glibc map large blocks alone, so that freed images leave the process.

    By itself it raises its threshold with each large block that is freed, and keeps the rest in per-thread heaps: after
    sixteen edits of 4 MiB at once 191 MiB stayed; so, 99 do.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's alone
    if mallopt:
        mallopt(M_ARENA_MAX, 2)
        mallopt(M_MMAP_THRESHOLD, 256 * 1024)


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        _taken("PORT", settings.host, settings.port, error)


def _keys(settings: Settings) -> list[bytes]:
    if settings.signing_keys:
        return settings.signing_keys
    try:
        return [kept_key(settings.store)]
    except OSError as error:
        log.warning("store: %s; image URLs will not survive a restart", error.strerror or error)
        return [secrets.token_bytes(32)]


def _taken(variable: str, host: str, port: int, error: OSError) -> NoReturn:
    reason = str(error.strerror).partition(" (")[0]  # socket appends what is said here anyway
    _leave(1, f"{PREFIX}{variable}: cannot listen on {host} port {port}: {reason}")


def _leave(status: int, *lines: str) -> NoReturn:
    for line in lines:
        print(line, file=sys.stderr)
    sys.exit(status)


def _stopped(_signal: int, _frame: object) -> NoReturn:
    sys.exit(0)


if __name__ == "__main__":
    main()
