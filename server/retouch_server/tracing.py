"""The spans of a call: it, its edits with their phases, and the forwards of the denoiser that these shared.

By OpenTelemetry's conventions for RPC. What the engine does becomes spans when it is done, from times that are kept
anyway, on a thread of its own: neither the engine nor an answer waits. A forward serves edits of several traces, so it
is the root of one of its own, linked with each. Spans hold what the log holds: no prompt and no picture.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import grpc

from .engine.edit import Edit
from .engine.trace import Forward, Trace
from .otlp import Otlp

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Link, SpanContext
    from opentelemetry.trace import Span as OtelSpan

Value: TypeAlias = str | int
_SERVICE = "retouch.v1.ImageEdit"
# By the conventions these are a server's errors; the others are its caller's.
_FAILURES = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)


@dataclass(frozen=True)
class Span:
    """A span of OpenTelemetry's, and what makes others; or none that is recorded, and then each method does nothing."""

    otel: OtelSpan | None = None
    tracing: Tracing | None = None

    @property
    def trace_id(self) -> str:
        """In hexadecimal; empty where there is no trace."""
        return f"{self.otel.get_span_context().trace_id:032x}" if self.otel else ""

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A part of the call that may take long, as long as the block; what is raised in there is its error."""
        if self.otel is None or self.tracing is None:
            yield
            return
        span = self.tracing.start(name, self.otel)
        try:
            yield
        except BaseException as error:
            _fail(span, type(error).__name__)
            raise
        finally:
            span.end()

    def watch(self, edits: Sequence[Edit], model: str) -> None:
        """Begin the spans of edits that are about to be submitted."""
        if self.otel is None or self.tracing is None:
            return
        for i, edit in enumerate(edits):
            attributes: dict[str, Value] = {"retouch.model": model, "retouch.image": i}
            span = self.tracing.start("edit", self.otel, edit.queued_at, attributes)
            edit.trace = Trace(span, model)

    def answered(
        self, code: grpc.StatusCode, edits: Sequence[Edit], attributes: Mapping[str, Value]
    ) -> None:
        """End the span of a call, and those of its edits."""
        if self.otel is None or self.tracing is None:
            return
        self.otel.set_attributes({"rpc.response.status_code": code.name, **attributes})
        if code in _FAILURES:
            _fail(self.otel, code.name)
        self.otel.end()
        self.tracing.finish(edits)


NONE = Span()


class Tracing:
    """What makes the spans of a server; without `otlp`, none."""

    def __init__(self, otlp: Otlp | None = None) -> None:
        self._otlp = otlp
        self._calls = otlp.tracer() if otlp else None
        if otlp is None:
            return
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON

        # A forward is recorded if one of its edits is: the variables have had their say on that.
        self._forwards = otlp.tracer(ALWAYS_ON)
        self._maker = ThreadPoolExecutor(1, "spans")

    def call(self, method: str, metadata: Mapping[str, str | bytes]) -> Span:
        """The span of a call, its parent the caller's as the metadata say; until it is `answered`.

        Of ListModels only where the caller has one: gateways ask that all day.
        """
        if self._calls is None or (method == "ListModels" and "traceparent" not in metadata):
            return NONE
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        sent = {name: str(metadata.get(name, "")) for name in ("traceparent", "tracestate")}
        parent = TraceContextTextMapPropagator().extract(sent, _nowhere())
        name = f"{_SERVICE}/{method}"
        attributes: dict[str, Value] = {"rpc.system.name": "grpc", "rpc.method": name}
        # gRPC's own retries, which its caller does not see.
        if before := metadata.get("grpc-previous-rpc-attempts"):
            attributes["retouch.previous_attempts"] = str(before)
        otel = self._calls.start_span(name, parent, SpanKind.SERVER, attributes)
        return Span(otel, self if otel.is_recording() else None)

    def start(
        self,
        name: str,
        parent: OtelSpan,
        at: float | None = None,
        attributes: Mapping[str, Value] | None = None,
        links: Sequence[Link] = (),
    ) -> OtelSpan:
        """A span within `parent`. `at`: `time.monotonic()` seconds, or now."""
        from opentelemetry.trace import set_span_in_context

        if self._calls is None:
            raise RuntimeError("there are no spans to be within")
        started = None if at is None else _unix(at)
        within = set_span_in_context(parent, _nowhere())
        return self._calls.start_span(
            name, within, attributes=attributes, links=links, start_time=started
        )

    def finish(self, edits: Sequence[Edit]) -> None:
        """End the spans of edits, soon, and make those of what was done for them."""
        with suppress(RuntimeError):  # closed: the process ends, and a call was still under way
            for edit in edits:
                if edit.trace:
                    self._maker.submit(self._finish, edit, edit.trace)

    def close(self) -> None:
        """Send what is left, within seconds."""
        if self._otlp:
            self._maker.shutdown()
            self._otlp.close()

    def _finish(self, edit: Edit, trace: Trace) -> None:
        from opentelemetry.trace import Link

        for name, started, ended in edit.phases:
            shared = trace.forwards if name == "denoise" else []
            links = [Link(self._forward(forward, trace.model)) for forward in shared]
            self.start(name, trace.span, started, links=links).end(_unix(ended))
        trace.span.set_attribute("retouch.steps", edit.steps)
        if edit.future.done():
            try:
                error = edit.future.exception()
            except CancelledError:
                trace.span.add_event("cancelled")
            else:
                if error:
                    _fail(trace.span, type(error).__name__)
        trace.span.end(_unix(edit.ended_at or time.monotonic()))

    def _forward(self, forward: Forward, model: str) -> SpanContext:
        """That of a forward's span, made when the first of its edits is done."""
        if forward.context is None:
            from opentelemetry.trace import Link

            attributes: dict[str, Value] = {
                "retouch.model": model,
                "retouch.rows": forward.rows,
                "retouch.tokens": forward.tokens,
                "retouch.edits": forward.calls,
            }
            links = [Link(span.get_span_context()) for span in forward.spans]
            started = _unix(forward.started_at)
            span = self._forwards.start_span(
                "batch", _nowhere(), attributes=attributes, links=links, start_time=started
            )
            span.end(_unix(forward.ended_at))
            forward.context = span.get_span_context()
        context: SpanContext = forward.context
        return context


def _fail(span: OtelSpan, kind: str) -> None:
    """It ended by an error of that kind: a status, or a class's name; never its message, which may quote."""
    from opentelemetry.trace import StatusCode

    span.set_attribute("error.type", kind)
    span.set_status(StatusCode.ERROR)


def _unix(at: float) -> int:
    """Nanoseconds since 1970, of `time.monotonic()` seconds."""
    return time.time_ns() - int((time.monotonic() - at) * 1e9)


def _nowhere() -> Context:
    from opentelemetry.context import Context

    return Context()


OFF = Tracing()
