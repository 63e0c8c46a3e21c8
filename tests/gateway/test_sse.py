"""Streamed edits: what is said, in which order, and what happens when one side stops."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import orjson
import pytest
from openai.types import ImageEditCompletedEvent, ImageEditPartialImageEvent

from retouch.v1 import image_edit_pb2 as pb
from retouch_gateway import replies, sse
from retouch_gateway.access import Visit
from retouch_gateway.dialects import Edit
from retouch_gateway.errors import OutOfTime
from retouch_gateway.hosting import Hosted
from retouch_gateway.sse import EventStream
from tests.gateway.several import until

BASE = "https://pics.example"
QUEUED = pb.EditEvent(queued=pb.Queued(position=3))
STEP = pb.EditEvent(step=pb.Step(image_index=0, step=4, total=20))
PNG = pb.OutputFormat.OUTPUT_FORMAT_PNG


def image(data: bytes = b"one", **given: Any) -> pb.EditedImage:
    shown: dict[str, Any] = {
        "format": PNG,
        "width": 64,
        "height": 48,
        "revised_prompt": "sepia",
    } | given
    return pb.EditedImage(data=data, **shown)


PREVIEW = pb.EditEvent(preview=pb.Preview(image_index=0, preview_index=1, image=image(b"half")))


def result(*images: pb.EditedImage) -> pb.EditEvent:
    spent = pb.Usage(input_images=2, output_images=len(images), steps=20 * len(images))
    return pb.EditEvent(result=pb.EditResponse(images=images, usage=spent, model="acme/echo"))


RESULT = result(image())


class Upstream:
    """A stream of `events`; an exception among them is raised, a number is slept, what is to be set is waited for."""

    def __init__(self, *events: pb.EditEvent | Exception | float | asyncio.Event) -> None:
        self.events = events
        self.asked = 0
        self.closed = asyncio.Event()

    async def stream(self) -> AsyncGenerator[pb.EditEvent, None]:
        try:
            for event in self.events:
                self.asked += 1
                if isinstance(event, Exception):
                    raise event
                if isinstance(event, pb.EditEvent):
                    yield event
                elif isinstance(event, asyncio.Event):
                    await event.wait()
                else:
                    await asyncio.sleep(event)
        finally:
            await asyncio.sleep(0)  # to close takes a moment
            self.closed.set()


class Caller:
    """The other end of an ASGI connection."""

    def __init__(self) -> None:
        self.visit = Visit("req_1")
        self.head: dict[str, Any] = {}
        self.chunks: list[bytes] = []
        self.ended = False
        self.gone, self.reading = asyncio.Event(), asyncio.Event()
        self.reading.set()

    async def receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        await self.reading.wait()
        if message["type"] == "http.response.start":
            self.head = message
        else:
            assert not self.ended
            self.chunks.append(message.get("body", b""))
            self.ended = not message.get("more_body", False)

    async def asks(
        self,
        upstream: Upstream,
        hosted: Sequence[Hosted | None] | None = None,
        ignored: tuple[str, ...] = (),
        keep_alive: float = 5,
        keep: Callable[[bytes], None] | None = None,
        seconds: float = 60,
    ) -> list[tuple[str, Any]]:
        """Everything said, once it has ended."""

        async def host(response: pb.EditResponse) -> Sequence[Hosted | None]:
            assert hosted is not None
            return hosted

        edit = Edit(pb.EditRequest(), hosted is not None, hosted is None, True, ignored, {})
        events = upstream.stream()
        first = await anext(events)
        answer = EventStream(first, events, edit, host, BASE, seconds, keep, keep_alive)
        state = {"visit": self.visit, "abort": self.gone.set}
        scope: Any = {"type": "http", "headers": [], "state": state}
        await answer(scope, self.receive, self.send)  # type: ignore[arg-type]
        assert upstream.closed.is_set()
        return self.said()

    def said(self) -> list[tuple[str, Any]]:
        return read(b"".join(self.chunks))


def read(stream: bytes) -> list[tuple[str, Any]]:
    """What a stream says, as (event's name or `:` and word, data)."""
    return [_read(block) for block in stream.decode().split("\n\n")[:-1]]


def _read(block: str) -> tuple[str, Any]:
    if block.startswith(":"):
        assert "\n" not in block
        word, _, data = block[2:].partition(" ")
        return f": {word}", orjson.loads(data) if data else None
    name, data = block.split("\n")
    return name.removeprefix("event: "), orjson.loads(data.removeprefix("data: "))


async def test_a_whole_stream() -> None:
    caller = Caller()
    said = await caller.asks(Upstream(QUEUED, STEP, PREVIEW, RESULT))
    headers = dict(caller.head["headers"])
    assert headers[b"content-type"].startswith(b"text/event-stream")
    assert headers[b"cache-control"] == b"no-store"
    assert headers[b"x-accel-buffering"] == b"no"
    assert b"content-length" not in headers
    assert said[:2] == [
        (": queued", {"position": 3}),
        (": step", {"image_index": 0, "step": 4, "total": 20}),
    ]
    assert [name for name, _ in said[2:]] == ["image_edit.partial_image", "image_edit.completed"]
    partial, completed = said[2][1], said[3][1]
    assert abs(partial.pop("created_at") - completed.pop("created_at")) < 5
    assert partial == {
        "type": "image_edit.partial_image",
        "b64_json": "aGFsZg==",
        "size": "64x48",
        "quality": "auto",
        "background": "auto",
        "output_format": "png",
        "partial_image_index": 1,
        "image_index": 0,
    }
    assert completed == {
        "type": "image_edit.completed",
        "b64_json": "b25l",
        "size": "64x48",
        "quality": "auto",
        "background": "auto",
        "output_format": "png",
        "usage": {"input_images": 2, "output_images": 1, "steps": 20} | replies.NO_TOKENS,
        "revised_prompt": "sepia",
        "seed": 0,
        "image_index": 0,
        "model": "acme/echo",
    }
    assert caller.ended
    assert (caller.visit.model, caller.visit.images) == ("acme/echo", 1)


async def test_its_events_are_what_the_official_sdk_declares() -> None:
    said = await Caller().asks(Upstream(QUEUED, PREVIEW, RESULT))
    ImageEditPartialImageEvent.model_validate(said[1][1], strict=True)
    ImageEditCompletedEvent.model_validate(said[2][1], strict=True)


@pytest.mark.parametrize("n", [1, 2, 3, 10])
async def test_one_completed_event_for_each_image(n: int) -> None:
    images = [image(b"%d" % i, seed=i) for i in range(n)]
    said = await Caller().asks(Upstream(QUEUED, result(*images)))
    completed = [data for name, data in said if name == "image_edit.completed"]
    assert [data["image_index"] for data in completed] == list(range(n))
    assert [data["seed"] for data in completed] == list(range(n))
    spent = [data["usage"] for data in completed]
    for name, total in (("input_images", 2), ("output_images", n), ("steps", 20 * n)):
        assert sum(usage[name] for usage in spent) == total


async def test_by_url() -> None:
    said = await Caller().asks(Upstream(QUEUED, PREVIEW, RESULT), [Hosted("/images/a", 9)])
    completed = said[-1][1]
    assert (completed["url"], completed["expires_at"]) == (BASE + "/images/a", 9)
    assert "b64_json" not in completed
    assert "b64_json" in said[1][1]  # previews are not worth a place in the store


async def test_a_store_that_fails() -> None:
    stored = [Hosted("/images/a", 9), None]
    said = await Caller().asks(Upstream(QUEUED, result(image(), image(b"two"))), stored)
    kept, failed = said[1][1], said[2][1]
    assert "warning" not in kept
    assert failed["b64_json"] == "dHdv"
    assert failed["warning"] == replies.STORE_FAILED


async def test_what_was_ignored_is_told() -> None:
    said = await Caller().asks(Upstream(QUEUED, RESULT), ignored=("quality",))
    assert said[-1][1]["ignored"] == ["quality"]


async def test_what_went_well_can_be_kept() -> None:
    caller, kept = Caller(), list[bytes]()
    await caller.asks(Upstream(QUEUED, result(image(), image(b"two"))), keep=kept.append)
    assert kept == [b"".join(caller.chunks[-3:])]
    await Caller().asks(Upstream(QUEUED, OutOfTime()), keep=kept.append)
    assert len(kept) == 1


async def test_who_leaves_among_the_completed_has_an_edit_that_is_done() -> None:
    caller, kept = Caller(), list[bytes]()
    upstream = Upstream(QUEUED, 0.05, result(image(), image(b"two")))
    asking = asyncio.create_task(caller.asks(upstream, keep=kept.append))
    while not caller.chunks:  # noqa: ASYNC110
        await asyncio.sleep(0)
    caller.reading.clear()
    await asyncio.sleep(0.1)
    caller.gone.set()
    assert len(await asking) == 1
    assert [name for name, _ in read(kept[0])] == ["image_edit.completed"] * 2


async def test_its_time_is_over() -> None:
    caller, upstream = Caller(), Upstream(QUEUED, 60)
    said = await caller.asks(upstream, seconds=0.05)
    assert [name for name, _ in said] == [": queued", "error"]
    assert said[-1][1]["error"]["message"] == OutOfTime.default
    assert (caller.ended, caller.visit.status) == (True, 504)


async def test_its_time_is_over_and_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "LAST_WORD_SECONDS", 0.05)
    caller, upstream = Caller(), Upstream(QUEUED, 0.05, *[STEP] * 9)
    asking = asyncio.create_task(caller.asks(upstream, seconds=0.1))
    while not caller.chunks:  # noqa: ASYNC110
        await asyncio.sleep(0)
    caller.reading.clear()
    assert await asyncio.wait_for(asking, 10) == [(": queued", {"position": 3})]
    assert caller.gone.is_set()  # the connection was dropped
    assert not caller.ended


async def test_an_error_ends_it() -> None:
    caller = Caller()
    said = await caller.asks(Upstream(QUEUED, OutOfTime(), RESULT))
    error = {"message": OutOfTime.default, "type": "api_error", "param": None, "code": 504}
    assert said == [(": queued", {"position": 3}), ("error", {"error": error})]
    assert caller.ended
    assert caller.visit.status == 504


async def test_an_error_that_nobody_foresaw(caplog: pytest.LogCaptureFixture) -> None:
    caller = Caller()
    said = await caller.asks(Upstream(QUEUED, RuntimeError("/secret/path")))
    assert said[-1][1]["error"]["code"] == 500
    assert "secret" not in str(said)
    assert "/secret/path" in caplog.text
    assert caller.visit.status == 500


@pytest.mark.parametrize(
    "events",
    [
        (),
        (STEP,),
        (result(),),
        (result(image(format=pb.OutputFormat.OUTPUT_FORMAT_UNSPECIFIED)),),
        (pb.EditEvent(preview=pb.Preview(image=image(format=99))), RESULT),
    ],
)
async def test_an_upstream_that_breaks_the_contract(events: tuple[pb.EditEvent, ...]) -> None:
    said = await Caller().asks(Upstream(QUEUED, *events))
    assert [name for name, _ in said if not name.startswith(":")] == ["error"]
    assert said[-1][1]["error"]["code"] == 502


async def test_events_from_a_newer_server_are_passed_over() -> None:
    said = await Caller().asks(Upstream(QUEUED, pb.EditEvent(), RESULT))
    assert [name for name, _ in said] == [": queued", "image_edit.completed"]


async def test_it_says_so_when_there_is_nothing_to_say() -> None:
    caller, enough = Caller(), asyncio.Event()
    upstream, began = Upstream(QUEUED, enough, RESULT), time.monotonic()
    asking = asyncio.create_task(caller.asks(upstream, keep_alive=0.05))
    await until(lambda: len(caller.chunks) >= 4, 10)
    took = time.monotonic() - began
    enough.set()
    said = await asking
    alive = said.count((": keep-alive", None))
    assert 3 <= alive <= took / 0.05 + 1  # no more often than that
    assert said[-1][0] == "image_edit.completed"


async def test_a_caller_that_hangs_up_cancels_the_edit() -> None:
    caller, upstream = Caller(), Upstream(QUEUED, 60)
    asking = asyncio.create_task(caller.asks(upstream))
    while not caller.chunks:  # noqa: ASYNC110
        await asyncio.sleep(0)
    caller.gone.set()
    assert await asking == [(": queued", {"position": 3})]
    assert not caller.ended


async def test_a_caller_that_neither_reads_nor_stays() -> None:
    caller, upstream = Caller(), Upstream(QUEUED, STEP, RESULT)
    caller.reading.clear()
    asking = asyncio.create_task(caller.asks(upstream))
    await asyncio.sleep(0.01)
    caller.gone.set()
    assert await asking == []
    assert upstream.asked == 1


async def test_a_cancelled_answer_cancels_the_edit() -> None:
    """As when the process stops."""
    caller, upstream = Caller(), Upstream(QUEUED, 60)
    asking = asyncio.create_task(caller.asks(upstream))
    while not caller.chunks:  # noqa: ASYNC110
        await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert upstream.closed.is_set()


async def test_the_next_event_is_asked_for_once_the_last_is_taken() -> None:
    caller, upstream = Caller(), Upstream(QUEUED, *[STEP] * 50, RESULT)
    caller.reading.clear()
    asking = asyncio.create_task(caller.asks(upstream))
    await asyncio.sleep(0.01)
    assert upstream.asked == 1
    caller.reading.set()
    assert len(await asking) == 52
