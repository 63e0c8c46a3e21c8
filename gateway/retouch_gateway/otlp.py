"""The way of spans to a collector, by OpenTelemetry's standard variables; nothing of it is imported unless they ask.

The other tier has this file too, to the letter, as a test knows: the tiers share the contract and nothing else.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Thread
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import Sampler
    from opentelemetry.trace import Tracer

log = logging.getLogger(__name__)

CLOSE_SECONDS = 2.0
QUIET_SECONDS = 600.0
PREFIX = "OTEL_EXPORTER_OTLP_"
# Whose records come again with each batch of spans, for as long as a collector is gone; the last one quotes headers.
_REPEATING = (
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
    "opentelemetry.sdk._shared_internal",
    "opentelemetry.util.re",
)


@dataclass(frozen=True)
class Otlp:
    """An exporter on a thread of its own, over a queue that is bounded: who ends a span never waits."""

    resource: Resource
    processor: BatchSpanProcessor

    def tracer(self, sampler: Sampler | None = None) -> Tracer:
        """What makes spans; without a `sampler`, as `OTEL_TRACES_SAMPLER` says."""
        from opentelemetry.sdk.trace import TracerProvider

        provider = TracerProvider(sampler, self.resource, shutdown_on_exit=False)
        provider.add_span_processor(self.processor)
        return provider.get_tracer("retouch")

    def close(self) -> None:
        """Send what is left; within CLOSE_SECONDS, for a collector that is gone must not hold up the end."""
        closing = Thread(target=self.processor.shutdown, daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)
        if closing.is_alive():
            log.warning("the collector took too long: the last spans are lost")
            for name in _REPEATING:
                logging.getLogger(name).disabled = True  # what they would add is no news
            self.processor.span_exporter.shutdown()  # what it waits for ends at once


def connect(service: str) -> Otlp | None:
    """Where the spans of `service` go; None unless the variables ask for traces.

    What is wrong with the variables, or not installed, is warned of, and is no reason not to serve.
    """
    if not _asked(os.environ):
        return None
    try:
        return _connect(service)
    except ImportError:
        log.warning("no traces: they are asked for, and need pip install 'retouch[tracing]'")
    except Exception as error:  # rubbish in one of a dozen variables, of which each has its own
        log.warning("no traces: OpenTelemetry does not take its variables: %s", error)
    return None


def _asked(variables: Mapping[str, str]) -> bool:
    """By the specification: an exporter by name, or an endpoint; unless all of OpenTelemetry is disabled."""
    said = {name: value.strip() for name, value in variables.items()}
    if said.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    exporters = [name.strip() for name in said.get("OTEL_TRACES_EXPORTER", "").split(",")]
    if any(exporters) and "otlp" not in exporters:
        if exporters != ["none"]:
            log.warning("no traces: OTEL_TRACES_EXPORTER names others than otlp and none")
        return False
    if not any(exporters) and not _of("ENDPOINT", said):
        return False
    if _of("PROTOCOL", said) not in ("", "grpc"):
        log.warning("no traces: OTLP is spoken by grpc alone, and %sPROTOCOL has another", PREFIX)
        return False
    if "@" in _of("ENDPOINT", said):  # of no use to gRPC, and the exporter would log all of it
        log.warning("no traces: a collector's address has no user; %sHEADERS is for tokens", PREFIX)
        return False
    return True


def _of(name: str, said: Mapping[str, str]) -> str:
    """A variable of the exporter's: that of traces, else that of all signals."""
    return said.get(f"{PREFIX}TRACES_{name}") or said.get(f"{PREFIX}{name}", "")


def _connect(service: str) -> Otlp:
    from importlib.metadata import version

    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    for name in _REPEATING:
        logging.getLogger(name).addFilter(_Seldom())
    ours = {"service.name": service, "service.version": version("retouch")}
    # Given last they would win over OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES.
    resource = Resource.create({**ours, **OTELResourceDetector().detect().attributes})
    otlp = Otlp(resource, BatchSpanProcessor(OTLPSpanExporter()))
    log.info("spans go to a collector, as %s", resource.attributes["service.name"])
    return otlp


class _Seldom(logging.Filter):
    """Lets each message through once in QUIET_SECONDS, and none of a header's value."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name == "opentelemetry.util.re":
            record.args = ("(not shown)",)
        now = time.monotonic()
        if now - self._said.get(record.msg, float("-inf")) < QUIET_SECONDS:
            return False
        self._said[record.msg] = now
        return True
