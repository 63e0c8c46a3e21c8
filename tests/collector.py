"""An OTLP collector: OpenTelemetry's own service on a real socket, that keeps what it is sent."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.trace.v1 import trace_pb2


@dataclass(frozen=True)
class Span:
    """One span as it arrived. Ids in hexadecimal; `parent` empty for a root."""

    service: str
    raw: trace_pb2.Span

    @property
    def name(self) -> str:
        return self.raw.name

    @property
    def id(self) -> str:
        return self.raw.span_id.hex()

    @property
    def trace(self) -> str:
        return self.raw.trace_id.hex()

    @property
    def parent(self) -> str:
        return self.raw.parent_span_id.hex()

    @property
    def kind(self) -> str:
        return trace_pb2.Span.SpanKind.Name(self.raw.kind).removeprefix("SPAN_KIND_")

    @property
    def failed(self) -> bool:
        return self.raw.status.code == trace_pb2.Status.STATUS_CODE_ERROR

    @property
    def attributes(self) -> dict[str, Any]:
        values = {each.key: each.value for each in self.raw.attributes}
        return {name: getattr(v, str(v.WhichOneof("value"))) for name, v in values.items()}

    @property
    def links(self) -> set[str]:
        """Ids of the spans that it is linked with."""
        return {link.span_id.hex() for link in self.raw.links}


@dataclass
class Collector(TraceServiceServicer):
    """`sent`: all that came, as it came."""

    port: int = 0
    sent: list[ExportTraceServiceRequest] = field(default_factory=list)

    def Export(self, request: ExportTraceServiceRequest, context: Any) -> Any:
        self.sent.append(request)
        return ExportTraceServiceResponse()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def spans(self) -> list[Span]:
        return [
            Span(_service(resource), span)
            for request in list(self.sent)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def of(self, trace: str) -> list[Span]:
        """The spans of one trace."""
        return [span for span in self.spans if span.trace == trace]


def _service(resource: trace_pb2.ResourceSpans) -> str:
    named = {each.key: each.value.string_value for each in resource.resource.attributes}
    return named["service.name"]


@contextmanager
def run_collector() -> Iterator[Collector]:
    """A collector on a free port."""
    server = grpc.server(ThreadPoolExecutor(4))
    collector = Collector()
    add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    collector.port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield collector
    finally:
        server.stop(0).wait()
