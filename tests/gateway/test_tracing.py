"""The spans of requests, as a collector gets them: names, parents, how they end, and what is not in them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import pytest_asyncio

from retouch_gateway import otlp
from retouch_gateway.settings import Settings
from retouch_gateway.tracing import Tracing
from tests.collector import Collector, Span, run_collector
from tests.gateway.conftest import (
    Live,
    Refusal,
    Upstream,
    b64,
    busy,
    picture,
    run_gateway,
    start_upstream,
)

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
EDIT, CALL = "POST /v1/images/edits", "retouch.v1.ImageEdit/Edit"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def servers() -> AsyncIterator[list[Upstream]]:
    both = [await start_upstream() for _ in range(2)]
    yield both
    for each in both:
        await each.server.stop(0)


class Traced:
    """A gateway in front of two servers, its tracing, and the collector that it sends to."""

    def __init__(
        self, live: Live, servers: list[Upstream], tracing: Tracing, collector: Collector
    ) -> None:
        self.live, self.servers, self.collector = live, servers, collector
        self._tracing = tracing

    def spans(self) -> list[Span]:
        """All so far, in the order of their beginning."""
        assert self._tracing._otlp
        self._tracing._otlp.processor.force_flush()
        return sorted(self.collector.spans, key=lambda span: span.raw.start_time_unix_nano)

    async def until(self, enough: Callable[[list[Span]], bool]) -> list[Span]:
        """The same, once there are enough: a request's own ends a moment after its answer."""
        async with asyncio.timeout(5):
            while not enough(self.spans()):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        return self.spans()

    async def request(
        self, method: str, path: str, **more: Any
    ) -> tuple[httpx.Response, list[Span]]:
        """An answer, and the spans of its request alone: its own, then its parts."""
        answer = await self.live.client.request(method, path, **more)
        spans = await self.until(lambda spans: any(not span.parent for span in spans))
        (root,) = (span for span in spans if not span.parent)
        return answer, [root, *(span for span in spans if span.parent == root.id)]


@pytest_asyncio.fixture(loop_scope="session")
async def traced(
    servers: list[Upstream], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Traced]:
    for each in servers:
        each.echo.reset()
    settings = Settings(
        upstream=",".join(each.target for each in servers), store=str(tmp_path), playground=False
    )
    with run_collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        tracing = Tracing(otlp.connect("retouch-gateway"))
        async with run_gateway(settings, tracing) as live:
            yield Traced(live, servers, tracing, collector)
        tracing.close()


def body(**fields: Any) -> dict[str, Any]:
    return {"images": [b64(picture())], "prompt": "my secret wish"} | fields


async def test_an_edit_is_a_tree(traced: Traced) -> None:
    answer, spans = await traced.request("POST", "/v1/images/edits", json=body(n=2))
    assert answer.status_code == 200
    named = [(span.name, span.kind) for span in spans]
    assert named == [
        (EDIT, "SERVER"),
        ("read body", "INTERNAL"),
        (CALL, "CLIENT"),
        ("store images", "INTERNAL"),
    ]
    assert not any(span.failed for span in spans)
    assert spans[0].attributes == {
        "http.request.method": "POST",
        "http.route": "/v1/images/edits",
        "http.response.status_code": 200,
        "retouch.request_id": answer.headers["x-request-id"],
        "retouch.model": "acme/echo",
        "retouch.images": 2,
    }
    assert spans[2].attributes["server.address"] in [each.target for each in traced.servers]
    assert spans[2].attributes | {"server.address": ""} == {
        "rpc.system.name": "grpc",
        "rpc.method": CALL,
        "rpc.response.status_code": "OK",
        "server.address": "",
    }


@pytest.mark.parametrize("stream", [False, True])
async def test_the_callers_trace_goes_on_to_the_server(traced: Traced, stream: bool) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "a=1"}
    answer = await traced.live.client.post(
        "/v1/images/edits", json=body(stream=stream), headers=headers
    )
    assert answer.status_code == 200
    spans = await traced.until(lambda spans: any(span.parent == PARENT for span in spans))
    assert {span.trace for span in spans} == {TRACE}
    (call,) = (span for span in spans if span.kind == "CLIENT")
    assert call.name == ("retouch.v1.ImageEdit/StreamEdit" if stream else CALL)
    (sent,) = (each for server in traced.servers for each in server.echo.metadata)
    assert sent["traceparent"] == f"00-{TRACE}-{call.id}-01"
    assert sent["tracestate"] == "a=1"


async def test_what_the_caller_does_not_sample_is_passed_on_and_not_sent(traced: Traced) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
    answer = await traced.live.client.post("/v1/images/edits", json=body(), headers=headers)
    assert answer.status_code == 200
    (sent,) = (each for server in traced.servers for each in server.echo.metadata)
    assert sent["traceparent"].startswith(f"00-{TRACE}-")
    assert sent["traceparent"].endswith("-00")
    await traced.request("GET", "/v1/models")
    assert TRACE not in {span.trace for span in traced.spans()}


async def test_the_log_has_the_traces_id(traced: Traced, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    _, spans = await traced.request("POST", "/v1/images/edits", json=body())
    (line,) = [vars(each) for each in caplog.records if each.name == "retouch_gateway.access"]
    assert line["trace_id"] == spans[0].trace


@pytest.mark.parametrize("probe", ["/healthz", "/readyz"])
async def test_probes_have_none(traced: Traced, probe: str) -> None:
    assert (await traced.live.client.get(probe)).status_code == 200
    await traced.request("GET", "/v1/models")
    assert [span.name for span in traced.spans()] == ["GET /v1/models"]


@pytest.mark.parametrize(
    ("method", "path", "name"),
    [
        ("GET", "/images/a-secret-name.png", "GET /images/{name}"),
        ("GET", "/v1/models/acme/echo", "GET /v1/models/{id}"),
        ("GET", "/a-secret-name", "GET"),
        ("PROPFIND", "/a-secret-name", "HTTP"),
    ],
)
async def test_names_are_routes_and_never_paths(
    traced: Traced, method: str, path: str, name: str
) -> None:
    _, spans = await traced.request(method, path)
    assert [span.name for span in spans] == [name]
    assert "secret" not in str(traced.collector.sent)


async def test_a_callers_mistake_is_no_failure_of_the_request(traced: Traced) -> None:
    answer, spans = await traced.request("POST", "/v1/images/edits", json=body(wish="secret"))
    assert answer.status_code == 400
    assert [(span.name, span.failed) for span in spans] == [(EDIT, False), ("read body", True)]
    assert spans[0].attributes["http.response.status_code"] == 400
    assert spans[1].attributes == {"error.type": "BadRequest"}


async def test_an_error_has_its_type_and_not_its_words(traced: Traced) -> None:
    for each in traced.servers:
        each.echo.refusals = [Refusal(grpc.StatusCode.INTERNAL, "a secret of the model's")]
    answer, spans = await traced.request("POST", "/v1/images/edits", json=body())
    assert answer.status_code == 500
    failed = {span.name: span.attributes["error.type"] for span in spans if span.failed}
    assert failed == {EDIT: "500", CALL: "INTERNAL"}
    assert "secret" not in str(traced.collector.sent)


async def test_who_does_not_take_it_and_who_does_are_both_seen(traced: Traced) -> None:
    for each in traced.servers:
        each.echo.refusals = [busy(3)]
    answer, spans = await traced.request("POST", "/v1/images/edits", json=body())
    assert answer.status_code == 429
    calls = [span for span in spans if span.kind == "CLIENT"]
    assert [span.attributes["error.type"] for span in calls] == ["RESOURCE_EXHAUSTED"] * 2
    addresses = {span.attributes["server.address"] for span in calls}
    assert addresses == {each.target for each in traced.servers}
    assert [event.name for event in spans[0].raw.events] == ["another target"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_caller_that_leaves(traced: Traced, stream: bool) -> None:
    for each in traced.servers:
        each.echo.delay = 30
    with contextlib.suppress(httpx.TimeoutException):
        await traced.live.client.post("/v1/images/edits", json=body(stream=stream), timeout=0.5)
    spans = await traced.until(lambda spans: any(span.name == EDIT for span in spans))
    (root,) = (span for span in spans if span.name == EDIT)
    assert root.attributes["http.response.status_code"] == 499
    assert not root.failed
    (call,) = (span for span in spans if span.kind == "CLIENT")
    assert call.attributes["error.type"] == "CANCELLED"
    assert call.parent == root.id


async def test_nothing_that_a_caller_wrote_or_sent_is_in_them(traced: Traced) -> None:
    key = {"authorization": "Bearer my-secret-key"}
    answer, _ = await traced.request(
        "POST", "/v1/images/edits?secret=1", json=body(user="secret"), headers=key
    )
    assert answer.status_code == 200
    url = answer.json()["data"][0]["url"]
    sent = b"".join(each.SerializeToString() for each in traced.collector.sent)
    for secret in (b"secret", picture()[:24], url.rpartition("/")[2][:24].encode()):
        assert secret not in sent


async def test_without_tracing_the_caller_is_the_servers_parent(
    servers: list[Upstream], tmp_path: Path
) -> None:
    servers[0].echo.reset()
    settings = Settings(upstream=servers[0].target, store=str(tmp_path), playground=False)
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    async with run_gateway(settings) as live:
        await live.client.post("/v1/images/edits", json=body(), headers=headers)
    assert servers[0].echo.metadata[0]["traceparent"] == headers["traceparent"]
