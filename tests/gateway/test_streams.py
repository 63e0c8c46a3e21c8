"""An edit's events on their way from a server: in order, whole, cancelled when nobody wants them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2_grpc

from retouch.v1 import image_edit_pb2 as pb
from retouch_gateway import target as target_module
from retouch_gateway.errors import ONCE, BadUpstream, Unavailable
from retouch_gateway.metrics import Metrics
from retouch_gateway.upstream import Upstream
from tests.gateway.conftest import SERVICE
from tests.gateway.several import Serves, answer, request, several, value


async def test_events_come_in_order() -> None:
    async with several("m") as (upstream, a):
        stream = upstream.stream(request("m", partial_images=1), 5, (("x-request-id", "r"),))
        kinds = [event.WhichOneof("event") async for event in stream]
        assert kinds == ["queued", "step", "preview", "step", "result"]
        assert a.echo.metadata[0]["x-request-id"] == "r"
        assert value(upstream, "upstream_requests_total", rpc="StreamEdit", code="OK") == 1


@pytest.mark.parametrize("how", ["close", "cancel"])
async def test_a_stream_that_is_left_is_cancelled(how: str) -> None:
    async with several("m") as (upstream, a):
        a.echo.delay = 5
        stream = upstream.stream(request("m"), 5, ())
        assert (await anext(stream)).HasField("queued")
        if how == "cancel":
            waiting = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0.05)
            waiting.cancel()
            await asyncio.wait({waiting})
        await stream.aclose()
        await asyncio.wait_for(a.echo.cancelled.wait(), 10)
        assert upstream.targets[0].calls == 0


class Short(Serves):
    """Its streams are `events` and no more; `broken` after the last."""

    def __init__(self, *events: pb.EditEvent, broken: bool = False) -> None:
        super().__init__("m")
        self.events, self.broken = events, broken

    async def StreamEdit(self, _request: Any, context: Any) -> AsyncIterator[pb.EditEvent]:
        for event in self.events:
            yield event
        if self.broken:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")


QUEUED, RESULT = pb.EditEvent(queued=pb.Queued()), pb.EditEvent(result=pb.EditResponse())


@pytest.mark.parametrize("events", [(), (QUEUED,)])
async def test_a_stream_without_a_result_breaks_the_contract(
    events: tuple[pb.EditEvent, ...],
) -> None:
    async with several(Short(*events)) as (upstream, _):
        with pytest.raises(BadUpstream) as caught:
            async for _ in upstream.stream(request("m"), 5, ()):
                pass
        assert caught.value.headers == ONCE


async def test_what_breaks_after_the_result_breaks_nothing() -> None:
    async with several(Short(QUEUED, RESULT, broken=True)) as (upstream, _):
        assert [event async for event in upstream.stream(request("m"), 5, ())] == [QUEUED, RESULT]


async def test_messages_that_cannot_be_read_break_the_contract(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And nothing else: what is served is asked again."""
    monkeypatch.setattr(target_module, "LIST_AGAIN", 0.05)
    said = [b"\xff\xff"]

    async def unary(_request: bytes, _context: Any) -> bytes:
        return said[-1]

    async def stream(_request: bytes, _context: Any) -> AsyncIterator[bytes]:
        yield said[-1]

    handlers: dict[str, Any] = {
        name: grpc.unary_unary_rpc_method_handler(unary) for name in ("Edit", "ListModels")
    }
    handlers["StreamEdit"] = grpc.unary_stream_rpc_method_handler(stream)
    async with several("m") as (_, healthy):
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        health_pb2_grpc.add_HealthServicer_to_server(healthy.health, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        upstream = Upstream([f"127.0.0.1:{port}"], None, 2**20, Metrics())
        await upstream.start()
        for streamed in (False, True):
            with pytest.raises(BadUpstream) as caught:
                await answer(upstream, streamed)
            assert caught.value.headers == ONCE
        with pytest.raises(Unavailable):
            await upstream.models()
        said.append(pb.ListModelsResponse(models=[pb.Model(id="m")]).SerializeToString())
        assert [model.id for model in await upstream.models()] == ["m"]
        await upstream.close()
        await server.stop(0)
