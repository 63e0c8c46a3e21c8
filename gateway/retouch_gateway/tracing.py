"""The spans of a request: one for all of it, and one for each part that may take long.

By OpenTelemetry's conventions for HTTP and RPC, but for one: the path and the query of a URL are left out, because an
image's is a capability. Spans hold what the log holds: no prompt, picture, key or URL.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from retouch_gateway.otlp import Otlp

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span as OtelSpan
    from opentelemetry.trace import Tracer

Value: TypeAlias = str | int


@dataclass(frozen=True)
class Span:
    """A span of OpenTelemetry's; or none, and then each method does nothing."""

    otel: OtelSpan | None = None
    tracer: Tracer | None = None

    @property
    def carrier(self) -> dict[str, str]:
        """The W3C's `traceparent` and `tracestate` for who is called in it; empty where there is none."""
        if self.otel is None:
            return {}
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier, self._context)
        return carrier

    def onto(self, metadata: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
        """Metadata of a call that is made in it: the same where there is none."""
        return tuple({**dict(metadata), **self.carrier}.items())

    def set(self, attributes: Mapping[str, Value]) -> None:
        if self.otel:
            self.otel.set_attributes(attributes)

    def event(self, name: str, attributes: Mapping[str, Value]) -> None:
        if self.otel:
            self.otel.add_event(name, attributes)

    def fail(self, kind: str) -> None:
        """It ended by an error of that kind: a status, or a class's name; never its message, which may quote."""
        if self.otel and self.otel.is_recording():
            from opentelemetry.trace import StatusCode

            self.otel.set_attribute("error.type", kind)
            self.otel.set_status(StatusCode.ERROR)

    def begin(self, name: str) -> Span:
        """A part of it, until `end`; none where it is not recorded itself."""
        return self._begin(name, {}, client=False)

    def call(self, method: str, address: str) -> Span:
        """A gRPC call in it, until `called`. `method`: with its service; `address`: as gRPC resolves it."""
        where = {"rpc.system.name": "grpc", "rpc.method": method, "server.address": address}
        return self._begin(method, where, client=True)

    def called(self, code: str) -> None:
        """End the span of a gRPC call that came to that status."""
        self.set({"rpc.response.status_code": code})
        if code != "OK":
            self.fail(code)
        self.end()

    def _begin(self, name: str, attributes: Mapping[str, Value], *, client: bool) -> Span:
        if self.tracer is None or self.otel is None or not self.otel.is_recording():
            return NONE
        from opentelemetry.trace import SpanKind

        kind = SpanKind.CLIENT if client else SpanKind.INTERNAL
        return Span(self.tracer.start_span(name, self._context, kind, attributes), self.tracer)

    def end(self) -> None:
        if self.otel:
            self.otel.end()

    @property
    def _context(self) -> Context | None:
        from opentelemetry.trace import set_span_in_context

        return set_span_in_context(self.otel) if self.otel else None


NONE = Span()
# That of the request which this code serves. Set by `access.Access` alone; tasks that a request starts inherit it.
current: ContextVar[Span] = ContextVar("span", default=NONE)


@contextlib.contextmanager
def part(name: str) -> Iterator[None]:
    """A part of the request that may take long, as long as the block; what is raised in there is its error."""
    span = current.get().begin(name)
    try:
        yield
    except BaseException as error:
        span.fail(type(error).__name__)
        raise
    finally:
        span.end()


class Tracing:
    """What begins the spans of requests; without `otlp`, none."""

    def __init__(self, otlp: Otlp | None = None) -> None:
        self._otlp = otlp
        self._tracer = otlp.tracer() if otlp else None

    def request(self, traceparent: str, tracestate: str) -> Span:
        """The span of a request, until `answered`; its parent the caller's, if that has sent one."""
        if self._tracer is None:
            return NONE
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        sent = {"traceparent": traceparent, "tracestate": tracestate}
        parent = TraceContextTextMapPropagator().extract(sent, context=_nowhere())
        return Span(self._tracer.start_span("HTTP", parent, SpanKind.SERVER), self._tracer)

    def close(self) -> None:
        """Send what is left, within seconds."""
        if self._otlp:
            self._otlp.close()


def answered(span: Span, method: str, route: str, status: int) -> None:
    """End the span of a request. `method`, `route`: empty where unknown. `status`: 499 where its caller left."""
    if span.otel is None:
        return
    if route:
        span.set({"http.route": route})
    span.otel.update_name(f"{method or 'HTTP'} {route}".rstrip())
    span.set({"http.request.method": method or "_OTHER", "http.response.status_code": status})
    if status >= 500:
        span.fail(str(status))
    span.end()


def _nowhere() -> Context:
    from opentelemetry.context import Context

    return Context()


OFF = Tracing()
