"""Which of OpenTelemetry's variables start its exporter, in both tiers; and that a collector can harm neither."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest

import retouch_gateway.otlp
import retouch_server.otlp
from tests.collector import Collector, run_collector

ROOT = Path(__file__).parents[1]
TIERS = [retouch_gateway.otlp, retouch_server.otlp]
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
NOWHERE = "http://127.0.0.1:1"


@pytest.fixture(params=TIERS, ids=["gateway", "server"])
def otlp(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A tier's, in an environment without variables of OpenTelemetry's."""
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)
    tier: ModuleType = request.param
    yield tier
    for name in tier._REPEATING:
        logging.getLogger(name).filters.clear()
        logging.getLogger(name).disabled = False


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with run_collector() as collector:
        yield collector


def test_the_tiers_have_the_same_file() -> None:
    texts = {Path(str(tier.__file__)).read_text() for tier in TIERS}
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("variables", "asked"),
    [
        ({}, False),
        ({ENDPOINT: ""}, False),
        ({ENDPOINT: " "}, False),
        ({ENDPOINT: NOWHERE}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": NOWHERE}, True),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": NOWHERE}, False),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": " otlp "}, True),
        ({"OTEL_TRACES_EXPORTER": "none", ENDPOINT: NOWHERE}, False),
        ({"OTEL_TRACES_EXPORTER": "", ENDPOINT: NOWHERE}, True),
        ({"OTEL_SDK_DISABLED": "true", ENDPOINT: NOWHERE}, False),
        ({"OTEL_SDK_DISABLED": "TRUE", ENDPOINT: NOWHERE}, False),
        ({"OTEL_SDK_DISABLED": "false", ENDPOINT: NOWHERE}, True),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", ENDPOINT: NOWHERE}, True),
    ],
)
def test_it_is_on_when_the_variables_ask(
    otlp: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    variables: dict[str, str],
    asked: bool,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    connected = otlp.connect("a-service")
    assert (connected is not None) == asked
    assert [each for each in caplog.records if each.levelno >= logging.WARNING] == []
    if connected:
        connected.close()


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER names others"),
        ({"OTEL_TRACES_EXPORTER": "console"}, "OTEL_TRACES_EXPORTER names others"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", ENDPOINT: NOWHERE}, "by grpc alone"),
        (
            {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json", ENDPOINT: NOWHERE},
            "by grpc alone",
        ),
        ({"OTEL_EXPORTER_OTLP_TIMEOUT": "soon", ENDPOINT: NOWHERE}, "does not take its variables"),
        ({"OTEL_EXPORTER_OTLP_COMPRESSION": "rar", ENDPOINT: NOWHERE}, "OTLP_COMPRESSION"),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "-1", ENDPOINT: NOWHERE}, "max_queue_size"),
        ({ENDPOINT: "http://user:my-secret@127.0.0.1:1"}, "has no user"),
    ],
)
def test_what_makes_no_sense_is_warned_of_and_traces_nothing(
    otlp: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    variables: dict[str, str],
    words: str,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert otlp.connect("a-service") is None
    (warning,) = [each.getMessage() for each in caplog.records if each.name == otlp.__name__]
    assert warning.startswith("no traces: ")
    assert "my-secret" not in warning
    assert words in warning


def test_without_the_extra_one_line_says_what_is_missing(
    otlp: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(ENDPOINT, NOWHERE)
    for name in [name for name in sys.modules if name.startswith("opentelemetry")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    assert otlp.connect("a-service") is None
    (warning,) = [each.getMessage() for each in caplog.records]
    assert "pip install 'retouch[tracing]'" in warning


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({}, "a-service"),
        ({"OTEL_SERVICE_NAME": "mine"}, "mine"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=other,region=north"}, "other"),
        ({"OTEL_SERVICE_NAME": "mine", "OTEL_RESOURCE_ATTRIBUTES": "service.name=other"}, "mine"),
    ],
)
def test_the_operators_names_win(
    otlp: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    collector: Collector,
    variables: dict[str, str],
    name: str,
) -> None:
    for variable, value in ({ENDPOINT: collector.endpoint} | variables).items():
        monkeypatch.setenv(variable, value)
    collector.sent.clear()
    connected = otlp.connect("a-service")
    connected.tracer().start_span("one").end()
    connected.close()
    (span,) = collector.spans
    assert (span.service, span.name) == (name, "one")
    (sent,) = collector.sent
    resource = {
        each.key: each.value.string_value for each in sent.resource_spans[0].resource.attributes
    }
    assert resource["service.version"] == version("retouch")
    assert ("region" in resource) == ("region" in str(variables))


def test_a_header_is_not_quoted(
    otlp: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(ENDPOINT, NOWHERE)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "s3cret")
    connected = otlp.connect("a-service")
    connected.close()
    assert "Header format invalid" in caplog.text
    assert "s3cret" not in caplog.text


def test_a_collector_that_is_gone_is_told_of_once(
    otlp: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(ENDPOINT, NOWHERE)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
    connected = otlp.connect("a-service")
    tracer = connected.tracer()
    for _ in range(5):
        tracer.start_span("one").end()
        connected.processor.force_flush()
    connected.close()
    told = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert len([each for each in told if each.startswith("Failed to export")]) == 1
    assert len(told) <= 2


def test_a_collector_that_answers_nothing_holds_nobody_up(
    otlp: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither who ends spans, more of them than fit the queue, nor the end."""
    with socket.create_server(("127.0.0.1", 0)) as hole:
        monkeypatch.setenv(ENDPOINT, f"http://127.0.0.1:{hole.getsockname()[1]}")
        connected = otlp.connect("a-service")
        tracer = connected.tracer()
        started = time.monotonic()
        for _ in range(3000):
            tracer.start_span("one").end()
        assert time.monotonic() - started < 5  # an export takes ten seconds to give up
        started = time.monotonic()
        connected.close()
        assert otlp.CLOSE_SECONDS <= time.monotonic() - started < otlp.CLOSE_SECONDS + 5  # not ten
        for thread in threading.enumerate():  # what it says when it gives up is part of this
            if thread.name.startswith("OtelBatch"):
                thread.join(15)
    told = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert told[-1] == "the collector took too long: the last spans are lost"
    assert len(told) <= 2  # the other: that the queue is full
