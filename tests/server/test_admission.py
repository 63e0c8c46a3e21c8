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
from hypothesis import given
from hypothesis import strategies as st

from retouch.v1 import image_edit_pb2 as pb
from retouch.v1.image_edit_pb2_grpc import (
    ImageEditServicer,
    ImageEditStub,
    add_ImageEditServicer_to_server,
)
from retouch_server import admission
from retouch_server.access import Access
from retouch_server.admission import Door, Fair
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
        assert each.answered("Edit", "RESOURCE_EXHAUSTED") == 1
        assert each.answered("StreamEdit", "RESOURCE_EXHAUSTED") == 1
        assert each.turned_away() == {"calls": 2}
        await each.stub.ListModels(pb.ListModelsRequest())
        # One that leaves makes room for one.
        stream.cancel()
        await come_to(lambda: each.door.calls < places)
        last = asyncio.ensure_future(each.stub.Edit(REQUEST))
        await each.settled(places + 1)
        each.service.gate.set()
        assert [reply.model for reply in await asyncio.gather(*inside, last)] == ["p"] * places
        await come_to(lambda: not each.door.calls)
        assert each.door.bytes == 0


async def test_with_one_model_a_full_queue_is_told_at_the_door_too() -> None:
    async with house(8) as each:
        only: Any = each.service.served["m"]
        each.service.served, only.engine.queue_size = {"m": only}, 3
        each.service.gate.set()
        await each.stub.Edit(REQUEST)
        only.engine.queued, only.decoding = 1, 2
        assert await refused(each.stub.Edit(REQUEST)) == ("RESOURCE_EXHAUSTED", 4)
        assert each.service.seen == 1
        labels = {"model": "m", "outcome": "rejected"}
        assert each.metrics.registry.get_sample_value("retouch_server_edits_total", labels) == 1
        assert each.turned_away() == {"queue": 1}
        each.service.draining = True  # which is the service's to say
        await each.stub.Edit(REQUEST)


async def test_messages_that_are_too_much_together_are_refused() -> None:
    large = pb.EditRequest(images=[bytes(600)])
    async with house(8, max_bytes=1000) as each:
        first = asyncio.ensure_future(each.stub.Edit(large))
        await each.settled(1)
        assert (await refused(each.stub.Edit(large)))[0] == "RESOURCE_EXHAUSTED"
        assert each.turned_away() == {"bytes": 1}
        small = asyncio.ensure_future(each.stub.Edit(REQUEST))
        await each.settled(2)
        each.service.gate.set()
        await asyncio.gather(first, small)
        await each.stub.Edit(large)


async def silent(each: House) -> Any:
    """A call on its way whose message does not come."""
    call, calls = each.channel.stream_unary("/retouch.v1.ImageEdit/Edit")(), each.door.calls
    await call.wait_for_connection()
    await come_to(lambda: each.door.calls > calls)
    return call


async def test_so_many_messages_are_received_at_once() -> None:
    """The others wait unread, behind one that is slow too."""
    async with house(8, receiving=1) as each:
        slow = await silent(each)
        waiting = asyncio.ensure_future(each.stub.Edit(REQUEST))
        await asyncio.sleep(0.1)
        assert each.service.seen == 0
        await slow.write(REQUEST.SerializeToString())
        each.service.gate.set()
        assert (await waiting).model == "p"
        assert pb.EditResponse.FromString(await slow).model == "p"


async def test_a_caller_that_sends_nothing_holds_up_no_other() -> None:
    """As a gateway does that is lost in the middle of its requests."""
    async with house(8, receiving=4) as each:
        each.service.gate.set()
        for _ in range(6):
            await silent(each)
        # The connection of the others is full up; this is one of its own.
        own = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(each.address, own) as other:
            for _ in range(3):
                assert (await ImageEditStub(other).Edit(REQUEST, timeout=10)).model == "p"


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.booleans()), max_size=60))
def test_places_are_shared_among_callers(turns: list[tuple[str, bool]]) -> None:
    """None is lost, nobody waits who might have one, and who has most leaves as many as it has."""

    async def check() -> None:
        fair, held, left = Fair(8), dict[str, list[asyncio.Task[None]]](), asyncio.Event()

        async def hold(caller: str) -> None:
            async with fair.place(caller):
                await left.wait()

        for caller, comes in turns:
            mine = held.setdefault(caller, [])
            if comes:
                mine.append(asyncio.ensure_future(hold(caller)))
            elif mine:
                mine.pop(0).cancel()
            for _ in range(5):
                await asyncio.sleep(0)
            assert fair.free + sum(fair._held.values()) == 8
            for who, tasks in held.items():
                has = fair._held[who]
                assert has == len(tasks) or has >= fair.free
                assert has <= 4
        left.set()
        await asyncio.gather(*(task for tasks in held.values() for task in tasks))
        assert (fair.free, fair._held, fair._waiting) == (8, {}, [])

    asyncio.run(check())


async def test_what_it_takes_to_come_in_is_in_the_log_and_the_metrics(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(admission, "RECEIVE_SECONDS", 0.5)
    async with house(8, receiving=1) as each:
        each.service.gate.set()
        first = await silent(each)
        served = asyncio.ensure_future(each.stub.Edit(REQUEST))
        await refused(first)
        await served
        lines = [vars(line) for line in caplog.records if line.message == "call"]
        assert {line["code"]: line["ms"] >= 400 for line in lines} == {
            "OK": True,
            "DEADLINE_EXCEEDED": True,
        }
        name, labels = "retouch_server_request_seconds_sum", {"method": "Edit"}
        assert (each.metrics.registry.get_sample_value(name, labels) or 0) >= 0.8


async def test_who_sends_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "RECEIVE_SECONDS", 0.1)
    async with house(8, receiving=1) as each:
        assert (await refused(await silent(each)))[0] == "DEADLINE_EXCEEDED"
        assert each.answered("Edit", "DEADLINE_EXCEEDED") == 1
        each.service.gate.set()
        assert (await each.stub.Edit(REQUEST)).model == "p"
        assert each.door.calls == 0


async def test_who_leaves_while_sending_is_counted_and_gone() -> None:
    async with house(8, receiving=1) as each:
        for _ in range(3):
            leaving = await silent(each)
            leaving.cancel()
            await come_to(lambda: each.door.calls == 0)
        assert each.answered("Edit", "CANCELLED") == 3
        each.service.gate.set()
        await each.stub.Edit(REQUEST)


@pytest.mark.parametrize("message", [b"\xff", b"\x0a\xff", b"no protobuf at all"])
async def test_what_is_no_request_is_the_callers_fault(message: bytes) -> None:
    async with house(8) as each:
        call = each.channel.unary_unary("/retouch.v1.ImageEdit/Edit")
        assert (await refused(call(message)))[0] == "INVALID_ARGUMENT"
        stream = each.channel.unary_stream("/retouch.v1.ImageEdit/StreamEdit")
        assert (await refused(stream(message).read()))[0] == "INVALID_ARGUMENT"
        assert each.door.calls == each.door.bytes == 0
