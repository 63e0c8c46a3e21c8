"""What every request gets: an id, its time in a header, one log line, its metrics."""

from __future__ import annotations

import logging
import re
import secrets
import time
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from retouch_gateway.errors import ClientGone
from retouch_gateway.metrics import METHODS, OTHER, Metrics

log = logging.getLogger(__name__)

PROBES = frozenset({"/healthz", "/readyz"})

# What is safe in a header, a log line and gRPC metadata.
_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


@dataclass(slots=True)
class Visit:
    """One request under way; `scope["state"]["visit"]`."""

    id: str
    started: float = field(default_factory=time.monotonic)
    status: int = 499  # until an answer starts
    bytes_in: int = 0
    bytes_out: int = 0

    @property
    def seconds(self) -> float:
        """Since the request's first byte."""
        return time.monotonic() - self.started


class Access:
    """ASGI middleware, outermost."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        visit = Visit(given if _SANE_ID.fullmatch(given) else f"req_{secrets.token_hex(16)}")
        scope.setdefault("state", {})["visit"] = visit

        async def receiving() -> Message:
            message = await receive()
            visit.bytes_in += len(message.get("body", b""))
            return message

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                visit.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = visit.id
                headers["openai-processing-ms"] = str(round(visit.seconds * 1000))
            if scope["method"] != "HEAD":
                visit.bytes_out += len(message.get("body", b""))
            await send(message)

        with self.metrics.in_flight.track_inprogress():
            try:
                await self.app(scope, receiving, sending)
            except Exception:
                # Answered already, by the handler for whatever is not foreseen.
                log.exception("unforeseen id=%s", visit.id)
            finally:
                self._record(scope, visit)

    def _record(self, scope: Scope, visit: Visit) -> None:
        route, method = _route(scope), scope["method"]
        method = method if method in METHODS else OTHER
        seconds = visit.seconds
        if visit.status == ClientGone.status:
            self.metrics.disconnects.inc()
        self.metrics.requests.labels(route, method, str(visit.status)).inc()
        self.metrics.request_seconds.labels(route).observe(seconds)
        log.log(
            # Probes come several times a minute, all day.
            logging.DEBUG if route in PROBES and visit.status == 200 else logging.INFO,
            "%s %s status=%d ms=%.0f bytes_in=%d bytes_out=%d id=%s",
            *(method, route, visit.status, seconds * 1000),
            *(visit.bytes_in, visit.bytes_out, visit.id),
        )


def _route(scope: Scope) -> str:
    """The matched route's template, without its converters."""
    path = getattr(scope.get("route"), "path", None)
    return re.sub(r":\w+\}", "}", path) if path else OTHER
