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
from retouch_gateway.tracing import NONE, OFF, Span, Tracing, answered, current

log = logging.getLogger(__name__)

PROBES = frozenset({"/healthz", "/readyz"})

# What is safe in a header, a log line and gRPC metadata.
_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# https://www.w3.org/TR/trace-context: version ff and ids of zeros alone are invalid.
_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)
_TRACESTATE = re.compile(r"[ -~]{1,512}")


@dataclass(slots=True)
class Visit:
    """One request under way; `scope["state"]["visit"]`.

    `traceparent`, `tracestate`: the caller's, where they are sane, else empty; where requests are traced, its span's.
    `key`: the id of its API key; `model`, `images`: who edited, how many came of it; `error`: the kind of what went
    wrong. For the log, once they are known.
    `headers`: are put on the answer, whatever it is.
    """

    id: str
    traceparent: str = ""
    tracestate: str = ""
    key: str = ""
    model: str = ""
    images: int = 0
    error: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    span: Span = NONE
    status: int = ClientGone.status  # until an answer starts
    ended: bool = False
    bytes_in: int = 0
    bytes_out: int = 0

    @classmethod
    def of(cls, headers: Headers) -> Visit:
        """What the caller's headers make of it."""
        given = headers.get("x-request-id", "")
        visit = cls(given if _SANE_ID.fullmatch(given) else _new_id())
        parents, state = headers.getlist("traceparent"), ",".join(headers.getlist("tracestate"))
        if len(parents) == 1 and _TRACEPARENT.fullmatch(parents[0]):
            visit.traceparent = parents[0]
            visit.tracestate = state if _TRACESTATE.fullmatch(state) else ""
        return visit

    def trace(self, span: Span) -> None:
        """Let its span be the parent of what comes of it."""
        self.span = span
        if carrier := span.carrier:
            self.traceparent = carrier["traceparent"]
            self.tracestate = carrier.get("tracestate", "")

    @property
    def seconds(self) -> float:
        """Since the request's first byte."""
        return time.monotonic() - self.started

    @property
    def trace_id(self) -> str:
        return self.traceparent[3:35]

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What travels to the server."""
        sent = {
            "x-request-id": self.id,
            "traceparent": self.traceparent,
            "tracestate": self.tracestate,
        }
        return tuple((name, value) for name, value in sent.items() if value)


class Access:
    """ASGI middleware, outermost."""

    def __init__(self, app: ASGIApp, metrics: Metrics, tracing: Tracing = OFF) -> None:
        self.app = app
        self.metrics = metrics
        self.tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        visit = Visit.of(Headers(scope=scope))
        scope.setdefault("state", {})["visit"] = visit
        if scope["path"] not in PROBES:
            visit.trace(self.tracing.request(visit.traceparent, visit.tracestate))
        spanned = current.set(visit.span)

        async def receiving() -> Message:
            message = await receive()
            visit.bytes_in += len(message.get("body", b""))
            return message

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                visit.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.update(visit.headers)
                headers["x-request-id"] = visit.id
                headers["openai-processing-ms"] = str(round(visit.seconds * 1000))
            elif not message.get("more_body", False):
                visit.ended = True
            if scope["method"] != "HEAD":
                visit.bytes_out += len(message.get("body", b""))
            await send(message)

        with self.metrics.in_flight.track_inprogress():
            try:
                await self.app(scope, receiving, sending)
            except Exception:
                # Answered already, by the handler for whatever is not foreseen.
                log.exception("unforeseen", extra={"request_id": visit.id})
            finally:
                current.reset(spanned)
                self._record(scope, visit)

    def refused(self, status: int) -> Visit:
        """Record an answer given to what never became a request: no route, no method, no time."""
        visit = Visit(_new_id(), status=status, ended=True)
        self._record({"method": OTHER}, visit)
        return visit

    def _record(self, scope: Scope, visit: Visit) -> None:
        route, method = _route(scope), scope["method"]
        method = method if method in METHODS else OTHER
        seconds = visit.seconds
        status = visit.status if visit.ended else ClientGone.status
        if status == ClientGone.status:
            self.metrics.disconnects.inc()
        self.metrics.requests.labels(route, method, str(status)).inc()
        self.metrics.request_seconds.labels(route).observe(seconds)
        _end_span(visit, method, route, status)
        known = {
            "trace_id": visit.trace_id,
            "key": visit.key,
            "model": visit.model,
            "images": visit.images,
            "error": visit.error,
        }
        log.log(
            # Probes come several times a minute, all day.
            logging.DEBUG if route in PROBES and status == 200 else logging.INFO,
            "request",
            extra={
                "method": method,
                "route": route,
                "status": status,
                "ms": round(seconds * 1000),
                "bytes_in": visit.bytes_in,
                "bytes_out": visit.bytes_out,
                "request_id": visit.id,
                **{name: value for name, value in known.items() if value},
            },
        )


def _end_span(visit: Visit, method: str, route: str, status: int) -> None:
    visit.span.set({"retouch.request_id": visit.id})
    if visit.model:
        visit.span.set({"retouch.model": visit.model, "retouch.images": visit.images})
    method, route = ("" if each == OTHER else each for each in (method, route))
    answered(visit.span, method, route, status)


def _new_id() -> str:
    return f"req_{secrets.token_hex(16)}"


def _route(scope: Scope) -> str:
    """The matched route's template, without its converters."""
    path = getattr(scope.get("route"), "path", None)
    return re.sub(r":\w+\}", "}", path) if path else OTHER
