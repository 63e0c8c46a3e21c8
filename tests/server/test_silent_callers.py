"""Callers who send nothing, or take nothing of their answers: they cost others nothing, and are gone in time."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retouch.v1 import image_edit_pb2 as pb
from retouch.v1.image_edit_pb2_grpc import ImageEditStub
from retouch_server import admission
from retouch_server.admission import Fair
from tests.hostile import frames
from tests.server.test_admission import REQUEST, House, come_to, house, refused


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


async def test_who_sends_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "RECEIVE_SECONDS", 0.1)
    async with house(8, receiving=1) as each:
        assert (await refused(await silent(each)))[0] == "DEADLINE_EXCEEDED"
        await each.counted("Edit", "DEADLINE_EXCEEDED", 1)
        monkeypatch.undo()
        each.service.gate.set()
        assert (await each.stub.Edit(REQUEST)).model == "p"
        await come_to(lambda: each.door.calls == each.door.silent == 0)


async def test_who_waits_behind_the_silent_waits_no_longer_than_they(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(admission, "RECEIVE_SECONDS", 1.0)
    async with house(8, receiving=2) as each:
        began = time.monotonic()
        calls = [await silent(each) for _ in range(8)]
        ends = Counter([(await refused(call))[0] for call in calls])
        assert time.monotonic() - began < 4  # one after the other it would be eight
        # By whether its turn came before its time was over.
        assert ends["DEADLINE_EXCEEDED"] + ends["RESOURCE_EXHAUSTED"] == 8


async def test_calls_without_a_message_take_no_place() -> None:
    async with house(1, receiving=64) as each:
        calls = [await silent(each) for _ in range(1 + admission.MARGIN)]
        assert each.door.calls == each.door.silent == len(calls)
        each.service.gate.set()
        assert (await each.stub.Edit(REQUEST)).model == "p"


async def test_of_calls_without_a_message_there_is_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "MAX_SILENT", 3)
    async with house(8, receiving=64) as each:
        calls = [await silent(each) for _ in range(3)]
        assert await refused(each.stub.Edit(REQUEST)) == ("RESOURCE_EXHAUSTED", 4)
        calls[0].cancel()
        await come_to(lambda: each.door.silent == 2)
        each.service.gate.set()
        assert (await each.stub.Edit(REQUEST)).model == "p"


async def test_who_leaves_while_sending_is_counted_and_gone() -> None:
    async with house(8, receiving=1) as each:
        for _ in range(3):
            leaving = await silent(each)
            leaving.cancel()
            await come_to(lambda: each.door.calls == 0)
        await each.counted("Edit", "CANCELLED", 3)
        each.service.gate.set()
        await each.stub.Edit(REQUEST)


async def test_who_takes_nothing_of_its_answer_keeps_no_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(admission, "SEND_SECONDS", 0.2)
    async with house(2) as each:
        each.service.gate.set()
        host, port = each.address.split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        head, body = frames.call("/retouch.v1.ImageEdit/StreamEdit"), REQUEST.SerializeToString()
        # No octet of any stream may be sent to it.
        writer.write(frames.opening((4, 0)))
        for number in (1, 3, 5):
            asked = frames.frame(frames.DATA, frames.message(body), number, frames.END_STREAM)
            writer.write(frames.begun(number, head) + asked)
        await each.settled(3)
        await come_to(lambda: each.door.calls == 0)
        await each.counted("StreamEdit", "CANCELLED", 3)
        writer.close()


async def test_what_it_takes_to_come_in_is_in_the_log_and_the_metrics(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    async with house(8, receiving=1) as each:
        each.service.gate.set()
        first = await silent(each)
        served = asyncio.ensure_future(each.stub.Edit(REQUEST))
        await asyncio.sleep(0.5)
        first.cancel()
        await served
        await come_to(lambda: len(caplog.records) >= 2)
        times = [vars(line)["ms"] for line in caplog.records if line.message == "call"]
        assert len(times) == 2
        assert min(times) >= 400
        name, labels = "retouch_server_request_seconds_sum", {"method": "Edit"}
        assert (each.metrics.registry.get_sample_value(name, labels) or 0) >= 0.8
