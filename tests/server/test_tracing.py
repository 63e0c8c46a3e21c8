"""The spans of calls, as a collector gets them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import pairwise
from typing import Any, cast

import grpc
import pytest
import pytest_asyncio

from retouch.v1 import image_edit_pb2 as pb
from retouch.v1.image_edit_pb2_grpc import ImageEditStub
from retouch_server import otlp
from retouch_server.engine.edit import Edit
from retouch_server.engine.trace import remember
from retouch_server.server import Server
from retouch_server.settings import Settings
from retouch_server.tracing import Tracing
from tests.collector import Collector, Span, run_collector
from tests.server.conftest import Folder
from tests.server.test_service import edit
from tests.server.test_trace import call_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

PARENT = "00f067aa0ba902b7"
CALL = "retouch.v1.ImageEdit/Edit"
RETRYING = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 1,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
PHASES = ["queue", "encode", "denoise", "decode"]


def trace(number: int) -> str:
    return f"{number:032x}"


def sent(number: int, sampled: bool = True) -> tuple[tuple[str, str], ...]:
    """What a caller sends of its trace."""
    return (("traceparent", f"00-{trace(number)}-{PARENT}-0{int(sampled)}"),)


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with run_collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def tracing(collector: Collector) -> Iterator[Tracing]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        tracing = Tracing(otlp.connect("retouch-server"))
    yield tracing
    tracing.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tracing: Tracing, tiny_folder: Folder) -> AsyncIterator[Server]:
    models = f"instruct={tiny_folder('instruct')}"
    settings = Settings(port=0, metrics_port=0, models=models, device="cpu")
    server = Server(settings, lambda: None, tracing)
    await server.start()
    await server.load()
    yield server
    await server.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stub(server: Server) -> AsyncIterator[Any]:
    options = [("grpc.service_config", json.dumps(RETRYING))]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options) as channel:
        yield ImageEditStub(channel)


@pytest.fixture
def until(tracing: Tracing, collector: Collector) -> Callable[[Callable[[list[Span]], bool]], Any]:
    """All spans in the order of their beginning, once there are enough: the last come a moment after an answer."""

    async def wait(enough: Callable[[list[Span]], bool]) -> list[Span]:
        async with asyncio.timeout(20):
            while not enough(collector.spans):
                assert tracing._otlp
                await asyncio.to_thread(tracing._otlp.processor.force_flush)
                await asyncio.sleep(0.02)
        return sorted(collector.spans, key=lambda span: span.raw.start_time_unix_nano)

    collector.sent.clear()
    return wait


def edits(count: int) -> Callable[[list[Span]], bool]:
    return lambda spans: len([span for span in spans if span.name == "edit"]) == count


def named(spans: list[Span], name: str) -> list[Span]:
    return [span for span in spans if span.name == name]


async def test_a_call_is_a_tree(stub: Any, until: Any) -> None:
    await stub.Edit(edit(n=2, size=pb.Size(width=96, height=64)), metadata=sent(1))
    spans = await until(edits(2))
    (call,) = named(spans, CALL)
    assert (call.trace, call.parent, call.kind) == (trace(1), PARENT, "SERVER")
    assert call.attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": CALL,
        "rpc.response.status_code": "OK",
        "retouch.model": "instruct",
        "retouch.inputs": 1,
        "retouch.images": 2,
        "retouch.size": "96x64",
        "retouch.steps": 4,
    }
    parts = [span for span in spans if span.parent == call.id]
    assert [span.name for span in parts] == ["prepare", "edit", "edit", "encode reply"]
    for i, each in enumerate(parts[1:3]):
        assert each.attributes == {
            "retouch.model": "instruct",
            "retouch.image": i,
            "retouch.steps": 2,
        }
        phases = [span for span in spans if span.parent == each.id]
        assert [span.name for span in phases] == PHASES
        ends = [(p.raw.start_time_unix_nano, p.raw.end_time_unix_nano) for p in phases]
        for (_, ended), (started, _) in pairwise(ends):
            assert abs(started - ended) < 5e6
    assert not any(span.failed for span in spans)


async def test_a_forward_is_linked_with_each_edit_that_shared_it_and_they_with_it(
    stub: Any, until: Any
) -> None:
    """Though they are of two callers' traces."""
    request = edit(num_inference_steps=30)
    await asyncio.gather(*(stub.Edit(request, metadata=sent(number)) for number in (2, 3)))
    spans = await until(edits(2))
    two = {span.id: span.trace for span in named(spans, "edit")}
    assert set(two.values()) == {trace(2), trace(3)}
    forwards = named(spans, "batch")
    shared = [span for span in forwards if span.links == two.keys()]
    assert len(shared) >= 10
    for span in shared:
        assert (span.parent, span.kind) == ("", "INTERNAL")
        assert span.trace not in two.values()
        assert span.attributes["retouch.edits"] == 2
        assert span.attributes["retouch.model"] == "instruct"
        assert span.attributes["retouch.tokens"] > span.attributes["retouch.rows"] >= 2
    for denoise in named(spans, "denoise"):
        assert denoise.links == {span.id for span in forwards if denoise.parent in span.links}
        assert len(denoise.links) == 30


async def test_of_a_shared_forward_who_is_not_sampled_is_not_told(stub: Any, until: Any) -> None:
    request = edit(num_inference_steps=30)
    calls = [stub.Edit(request, metadata=sent(number, number == 4)) for number in (4, 5)]
    await asyncio.gather(*calls)
    spans = await until(edits(1))
    (sampled,) = named(spans, "edit")
    assert {span.trace for span in spans if span.name != "batch"} == {trace(4)}
    forwards = named(spans, "batch")
    assert len(forwards) == 30
    assert all(span.links == {sampled.id} for span in forwards)
    assert max(span.attributes["retouch.edits"] for span in forwards) == 2


async def test_what_nobody_samples_is_not_sent(stub: Any, until: Any) -> None:
    await stub.Edit(edit(), metadata=sent(6, sampled=False))
    await stub.Edit(edit(prompt=""), metadata=sent(7)).code()
    spans = await until(lambda spans: bool(named(spans, CALL)))
    assert {span.trace for span in spans} == {trace(7)}


async def test_without_a_callers_trace_one_begins_and_is_in_the_log(
    stub: Any, until: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    await stub.Edit(edit(), metadata=(("x-request-id", "mine-1"),))
    spans = await until(edits(1))
    (call,) = named(spans, CALL)
    assert call.parent == ""
    assert call.attributes["retouch.request_id"] == "mine-1"
    (line,) = [vars(each) for each in caplog.records if each.name == "retouch_server.access"]
    assert line["trace_id"] == call.trace


@pytest.mark.parametrize("asked", [False, True])
async def test_what_is_served_is_asked_all_day_and_has_no_trace_of_its_own(
    stub: Any, until: Any, asked: bool
) -> None:
    await stub.ListModels(pb.ListModelsRequest(), metadata=sent(8) if asked else ())
    await stub.Edit(edit())
    spans = await until(edits(1))
    assert len(named(spans, "retouch.v1.ImageEdit/ListModels")) == asked


async def test_a_refusal_is_the_callers_and_no_failure(stub: Any, until: Any) -> None:
    code = await stub.Edit(edit(prompt="", n=99), metadata=sent(9)).code()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    (call,) = await until(lambda spans: bool(named(spans, CALL)))
    assert call.attributes["rpc.response.status_code"] == "INVALID_ARGUMENT"
    assert not call.failed


async def test_an_error_has_its_type_and_not_its_words(
    stub: Any, until: Any, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError("a secret of the model's")

    monkeypatch.setattr("retouch_server.engine.coroutine.Coroutine.denoise", fail)
    code = await stub.Edit(edit(), metadata=sent(10)).code()
    assert code is grpc.StatusCode.INTERNAL
    spans = await until(edits(1))
    failed = {span.name: span.attributes["error.type"] for span in spans if span.failed}
    assert failed == {CALL: "INTERNAL", "edit": "ZeroDivisionError"}
    (whole,) = named(spans, "edit")
    assert [span.name for span in spans if span.parent == whole.id] == PHASES[:2]
    assert "secret" not in str(collector.sent)


async def test_a_caller_that_leaves(stub: Any, until: Any) -> None:
    call = stub.StreamEdit(edit(num_inference_steps=100), metadata=sent(11))
    async for event in call:
        if event.HasField("step"):
            break
    call.cancel()
    spans = await until(edits(1))
    (root,) = named(spans, "retouch.v1.ImageEdit/StreamEdit")
    assert root.attributes["rpc.response.status_code"] == "CANCELLED"
    assert not any(span.failed for span in spans)
    (whole,) = named(spans, "edit")
    assert [event.name for event in whole.raw.events] == ["cancelled"]
    assert [span.name for span in spans if span.parent == whole.id] == PHASES[:3]
    assert 1 <= len(named(spans, "denoise")[0].links) < 100


async def test_grpcs_own_retries_are_seen(stub: Any, server: Server, until: Any) -> None:
    """Which the caller's span does not show."""
    server._service.draining = True
    call = stub.Edit(edit(), metadata=sent(12))
    await until(lambda spans: bool(named(spans, CALL)))
    server._service.draining = False
    await call
    refused, *_, taken = named(await until(edits(1)), CALL)
    assert {refused.trace, taken.trace} == {trace(12)}
    assert refused.attributes["error.type"] == "UNAVAILABLE"
    assert "retouch.previous_attempts" not in refused.attributes
    assert int(taken.attributes["retouch.previous_attempts"]) >= 1


async def test_nothing_that_a_caller_wrote_or_sent_is_in_them(
    stub: Any, until: Any, collector: Collector
) -> None:
    request = edit(prompt="my secret wish", negative_prompt="another secret")
    await stub.Edit(request, metadata=(*sent(13), ("authorization", "Bearer secret")))
    await until(edits(1))
    raw = b"".join(each.SerializeToString() for each in collector.sent)
    assert b"secret" not in raw
    assert request.images[0][:24] not in raw


async def test_a_forward_is_sampled_where_an_edit_is(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though a trace that begins here would not be."""
    collector.sent.clear()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0")
    tracing, run = Tracing(otlp.connect("retouch-server")), cast(Any, None)
    now = time.monotonic()
    for number, metadata in ((20, dict(sent(20))), (21, {})):
        call, each = tracing.call("Edit", metadata), Edit(run, started_at=now, denoising_at=now)
        call.watch([each], "m")
        assert (each.trace is not None) == (number == 20)
        remember([call_of(1, 2, each.trace)], now, 0.1)
        call.answered(grpc.StatusCode.OK, [each], {})
    await asyncio.to_thread(tracing.close)
    names = sorted(span.name for span in collector.spans)
    assert names == ["batch", "denoise", "edit", "encode", "queue", CALL]
