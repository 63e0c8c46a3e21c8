"""Which calls may come in, before the queue is asked: over a real socket, with a service of a few lines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import Mock

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from grpc_status import rpc_status

from retouch.v1 import image_edit_pb2 as pb
from retouch.v1.image_edit_pb2_grpc import (
    ImageEditServicer,
    ImageEditStub,
    add_ImageEditServicer_to_server,
)
from retouch_server import admission
from retouch_server.access import Access
from retouch_server.admission import Door
from retouch_server.jobs import Served
from retouch_server.metrics import Metrics

REQUEST = pb.EditRequest(prompt="p", images=[b"picture"])


class Service(ImageEditServicer):
    """Answers once `gate` is open."""

    def __init__(self, access: Access) -> None:
        self.gate, self.draining = asyncio.Event(), False
        self.access, self.seen = access, 0
        self.served: Mapping[str, Served] = {}

    async def Edit(self, request: pb.EditRequest, context: Any) -> pb.EditResponse:
        async with self.access.answering("Edit", context):
            self.seen += 1
            await self.gate.wait()
        return pb.EditResponse(model=request.prompt)

    async def StreamEdit(
        self, request: pb.EditRequest, context: Any
    ) -> AsyncIterator[pb.EditEvent]:
        async with self.access.answering("StreamEdit", context):
            self.seen += 1
            yield pb.EditEvent(queued=pb.Queued())
            await self.gate.wait()
            yield pb.EditEvent(result=pb.EditResponse(model=request.prompt))

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> Any:
        return pb.ListModelsResponse()


@dataclass
class House:
    door: Door
    service: Service
    metrics: Metrics
    address: str
    stub: Any
    channel: Any
    calls: list[Any] = field(default_factory=list)

    async def settled(self, seen: int) -> None:
        await come_to(lambda: self.service.seen == seen)

    def answered(self, method: str, code: str) -> float:
        name, labels = "retouch_server_requests_total", {"method": method, "code": code}
        return self.metrics.registry.get_sample_value(name, labels) or 0

    async def counted(self, method: str, code: str, calls: int) -> None:
        """Until it is: a caller may see its answer before the server's task is over."""
        await come_to(lambda: self.answered(method, code) == calls)

    def turned_away(self) -> dict[str, float]:
        """Calls, by the bound that they were refused for, where there were any."""
        name = "retouch_server_refused_calls_total"
        found = {
            bound: self.metrics.registry.get_sample_value(name, {"bound": bound}) or 0
            for bound in ("queue", "calls", "bytes")
        }
        return {bound: calls for bound, calls in found.items() if calls}


@asynccontextmanager
async def house(places: int, max_bytes: int = 2**20, receiving: int = 4) -> AsyncIterator[House]:
    """A server with so many places beyond the margin."""
    metrics = Metrics(["m"])
    service = Service(Access(metrics))
    for name, slots in (("m", places - 1), ("k", 1)):
        engine: Any = Mock(slots=slots, queued=0, queue_size=0, retry_after=3.2)
        service.served = {**service.served, name: Served(Mock(), engine, Mock(), Mock())}
    door = Door(service, metrics.refused, max_bytes, receiving)
    server = grpc.aio.server(interceptors=[door])
    add_ImageEditServicer_to_server(service, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            yield House(door, service, metrics, address, ImageEditStub(channel), channel)
    finally:
        await server.stop(0)


async def come_to(condition: Callable[[], bool]) -> None:
    for _ in range(20_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it did not come to that")


async def refused(call: Any) -> tuple[str, float]:
    """Its status, and when it may come again."""
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await call
    status = rpc_status.from_call(failure.value)
    info = RetryInfo()
    if status and status.details:
        status.details[0].Unpack(info)
    return failure.value.code().name, info.retry_delay.seconds


async def test_calls_beyond_all_places_are_refused_at_the_door() -> None:
    places = 2 + admission.MARGIN
    async with house(2) as each:
        inside = [asyncio.ensure_future(each.stub.Edit(REQUEST)) for _ in range(places - 1)]
        stream = each.stub.StreamEdit(REQUEST)
        await stream.read()
        await each.settled(places)
        assert each.door.calls == places
        assert each.door.bytes == places * REQUEST.ByteSize()
        assert await refused(each.stub.Edit(REQUEST)) == ("RESOURCE_EXHAUSTED", 4)
        assert await refused(each.stub.StreamEdit(REQUEST).read()) == ("RESOURCE_EXHAUSTED", 4)
        assert each.service.seen == places
        await each.counted("Edit", "RESOURCE_EXHAUSTED", 1)
        await each.counted("StreamEdit", "RESOURCE_EXHAUSTED", 1)
        assert each.turned_away() == {"calls": 2}
        await each.stub.ListModels(pb.ListModelsRequest())
        # One that leaves makes room for one.
        await come_to(lambda: each.door.calls == places)
        stream.cancel()
        await come_to(lambda: each.door.calls < places)
        last = asyncio.ensure_future(each.stub.Edit(REQUEST))
        await each.settled(places + 1)
        each.service.gate.set()
        assert [reply.model for reply in await asyncio.gather(*inside, last)] == ["p"] * places
        await come_to(lambda: not each.door.calls)
        assert each.door.bytes == each.door.silent == 0


async def test_with_one_model_a_full_queue_is_told_at_the_door_too() -> None:
    async with house(8) as each:
        only: Any = each.service.served["m"]
        each.service.served, only.engine.queue_size = {"m": only}, 3
        each.service.gate.set()
        await each.stub.Edit(REQUEST)
        only.engine.queued, only.decoding = 1, 2
        assert await refused(each.stub.Edit(REQUEST)) == ("RESOURCE_EXHAUSTED", 4)
        assert each.service.seen == 1
        await come_to(lambda: each.turned_away() == {"queue": 1})
        labels = {"model": "m", "outcome": "rejected"}
        assert each.metrics.registry.get_sample_value("retouch_server_edits_total", labels) == 1
        each.service.draining = True  # which is the service's to say
        await each.stub.Edit(REQUEST)


async def test_messages_that_are_too_much_together_are_refused() -> None:
    large = pb.EditRequest(images=[bytes(600)])
    async with house(8, max_bytes=1000) as each:
        first = asyncio.ensure_future(each.stub.Edit(large))
        await each.settled(1)
        assert (await refused(each.stub.Edit(large)))[0] == "RESOURCE_EXHAUSTED"
        await come_to(lambda: each.turned_away() == {"bytes": 1})
        small = asyncio.ensure_future(each.stub.Edit(REQUEST))
        await each.settled(2)
        each.service.gate.set()
        await asyncio.gather(first, small)
        await each.stub.Edit(large)


@pytest.mark.parametrize("message", [b"\xff", b"\x0a\xff", b"no protobuf at all"])
async def test_what_is_no_request_is_the_callers_fault(message: bytes) -> None:
    async with house(8) as each:
        call = each.channel.unary_unary("/retouch.v1.ImageEdit/Edit")
        assert (await refused(call(message)))[0] == "INVALID_ARGUMENT"
        stream = each.channel.unary_stream("/retouch.v1.ImageEdit/StreamEdit")
        assert (await refused(stream(message).read()))[0] == "INVALID_ARGUMENT"
        await come_to(lambda: each.door.calls == each.door.bytes == each.door.silent == 0)
