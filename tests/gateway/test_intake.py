"""Bodies that never end, crawl or break off; callers that leave. Over plain sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from typing import Any

import pytest

from retouch_gateway.errors import Busy, TooLarge
from retouch_gateway.intake import Intake
from retouch_gateway.metrics import Metrics
from retouch_gateway.settings import Settings
from tests.gateway.conftest import Live, StartGateway, Upstream, error_of
from tests.gateway.plain import BODIES, BODY, CHUNKED, answer, dialled, head, whole


async def test_a_declared_length_is_refused_unread(gateway: Live) -> None:
    async with dialled(gateway) as (reader, writer):
        writer.write(head(f"content-length: {10**12}\r\nexpect: 100-continue\r\n"))
        began = time.monotonic()
        status, headers, body = await answer(reader)
        assert time.monotonic() - began < 4  # a body has 5
    assert (status, headers["connection"]) == (413, "close")
    assert json.loads(body)["error"]["code"] == 413


@pytest.mark.parametrize("kind", BODIES)
async def test_a_body_without_end(start: StartGateway, kind: str) -> None:
    gateway = await start(max_body_bytes=10_000)
    began = time.monotonic()
    async with dialled(gateway) as (reader, writer):
        writer.write(head(CHUNKED, kind))
        writer.write(b"64\r\n%b\r\n" % BODIES[kind][:100])
        writer.write(b"3e8\r\n%b\r\n" % (b" " * 1000) * 20)

        async def on_and_on() -> None:
            while True:
                writer.write(b"3e8\r\n%b\r\n" % (b" " * 1000))
                await writer.drain()
                await asyncio.sleep(0.01)

        sending = asyncio.create_task(on_and_on())
        assert (await answer(reader))[0] == 413
        assert time.monotonic() - began < 5  # it goes on for longer
        # Told why, then cut off: it is not listened to for ever.
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 4) == b""
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
    assert gateway.value("body_rejections_total", reason="size") == 1
    assert (await gateway.edit()).status_code == 200


async def test_a_large_body_hears_why(start: StartGateway) -> None:
    """A client that sends all before it reads still gets the answer."""
    gateway = await start(max_body_bytes=10_000)
    for _ in range(5):
        response = await gateway.edit(prompt="x" * 3_000_000)
        error_of(response, 413)
    error_of(await gateway.client.post("/nowhere", content=b"x" * 3_000_000), 404)


@pytest.mark.parametrize("kind", BODIES)
async def test_a_trickle(start: StartGateway, kind: str) -> None:
    gateway = await start(body_timeout=0.3)
    async with dialled(gateway) as (reader, writer):
        writer.write(whole(kind)[:-100])

        async def trickle() -> None:
            for at in range(100):
                await asyncio.sleep(0.1)
                writer.write(BODIES[kind][at - 100 :][:1])

        began, trickling = time.monotonic(), asyncio.create_task(trickle())
        status, headers, body = await answer(reader)
        assert time.monotonic() - began < 5  # all of it is there after 10
        trickling.cancel()
    assert (status, headers["connection"]) == (408, "close")
    assert json.loads(body)["error"]["code"] == 408
    assert gateway.value("body_rejections_total", reason="time") == 1


@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_bodies_in_pieces(gateway: Live, framing: str, kind: str) -> None:
    body = BODIES[kind]
    async with dialled(gateway) as (reader, writer):
        chunked = framing == "chunked"
        writer.write(head(CHUNKED if chunked else f"content-length: {len(body)}\r\n", kind))
        for at in range(0, len(body), 10):
            piece = body[at : at + 10]
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            await asyncio.sleep(0)
        writer.write(b"0\r\n\r\n" if chunked else b"")
        status, headers, _ = await answer(reader)
    assert status == 200
    assert "connection" not in headers


@pytest.mark.parametrize("kind", BODIES)
async def test_expect_100_continue(gateway: Live, kind: str) -> None:
    async with dialled(gateway) as (reader, writer):
        length = len(BODIES[kind])
        writer.write(head(f"content-length: {length}\r\nexpect: 100-continue\r\n", kind))
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(BODIES[kind])
        assert (await answer(reader))[0] == 200


async def test_a_caller_that_leaves_cancels_the_edit(gateway: Live, upstream: Upstream) -> None:
    before = gateway.value("disconnects_total")
    upstream.echo.delay = 30
    async with dialled(gateway) as (_, writer):
        writer.write(head(f"content-length: {len(BODY)}\r\n") + BODY)
        await asyncio.wait_for(upstream.echo.started.wait(), 10)
        assert not upstream.echo.cancelled.is_set()
    await asyncio.wait_for(upstream.echo.cancelled.wait(), 10)
    await gateway.eventually("disconnects_total", before + 1)
    await gateway.eventually(
        "requests_total", 1, route="/v1/images/edits", method="POST", code="499"
    )
    upstream.echo.delay = 0
    assert (await gateway.edit()).status_code == 200


async def test_a_caller_that_leaves_with_half_a_body(gateway: Live, upstream: Upstream) -> None:
    before = gateway.value("disconnects_total")
    async with dialled(gateway) as (_, writer):
        writer.write(head(f"content-length: {len(BODY)}\r\n") + BODY[:50])
        await writer.drain()
    await gateway.eventually("disconnects_total", before + 1)
    assert upstream.echo.requests == []


def held(gateway: Live) -> float:
    """Bytes that the gateway counts as under way."""
    return gateway.value("body_bytes")


async def nothing_held(gateway: Live) -> None:
    async with asyncio.timeout(10):
        while held(gateway):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("kind", BODIES)
async def test_bodies_under_way_have_a_common_bound(
    start: StartGateway, upstream: Upstream, kind: str
) -> None:
    size = len(BODIES[kind])
    gateway = await start(max_in_flight_bytes=size * 5 // 2)
    upstream.echo.delay = 0.5
    async with contextlib.AsyncExitStack() as stack:
        callers = [await stack.enter_async_context(dialled(gateway)) for _ in range(4)]
        for _, writer in callers[:2]:
            writer.write(whole(kind))
        await gateway.eventually("body_bytes", 2 * size)
        callers[2][1].write(whole(kind))  # refused by its length
        callers[3][1].write(head(CHUNKED, kind) + b"%x\r\n%b\r\n" % (size, BODIES[kind]))
        for reader, _ in callers[2:]:
            status, headers, body = await answer(reader)
            assert (status, headers["retry-after"], headers["connection"]) == (429, "1", "close")
            assert json.loads(body)["error"]["type"] == "rate_limit_error"
        assert held(gateway) == 2 * size
        assert gateway.value("body_rejections_total", reason="room") == 2
        for reader, _ in callers[:2]:
            assert (await answer(reader))[0] == 200
    await nothing_held(gateway)
    async with dialled(gateway) as (reader, writer):
        writer.write(whole(kind))
        assert (await answer(reader))[0] == 200


async def test_whatever_becomes_of_a_body_it_counts_no_more(
    start: StartGateway, upstream: Upstream
) -> None:
    gateway = await start(body_timeout=0.3)
    error_of(await gateway.edit(n="x"), 400, "n")
    await nothing_held(gateway)
    async with dialled(gateway) as (reader, writer):  # too slow
        writer.write(whole()[:-1])
        assert (await answer(reader))[0] == 408
    await nothing_held(gateway)
    async with dialled(gateway) as (_, writer):  # gone half-way
        writer.write(whole()[:-1])
        await gateway.eventually("body_bytes", len(BODY) - 1)
    await nothing_held(gateway)
    upstream.echo.delay = 30
    async with dialled(gateway) as (_, writer):  # gone during its edit
        writer.write(whole())
        await asyncio.wait_for(upstream.echo.started.wait(), 10)
        assert held(gateway) == len(BODY)
    await nothing_held(gateway)


async def test_what_can_never_fit_is_too_large(start: StartGateway) -> None:
    gateway = await start(max_in_flight_bytes=100)
    error_of(await gateway.edit(), 413)


async def test_one_caller_gets_half_of_the_room(start: StartGateway) -> None:
    size = len(BODY)
    gateway = await start(max_in_flight_bytes=6 * size, max_body_bytes=size)
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(3):  # which take their time
            _, writer = await stack.enter_async_context(dialled(gateway))
            writer.write(whole()[:-1])
        await gateway.eventually("body_bytes", 3 * (size - 1))
        reader, writer = await stack.enter_async_context(dialled(gateway))
        writer.write(whole())
        assert (await answer(reader))[0] == 429
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", gateway.port, local_addr=("127.0.0.2", 0)
        )
        writer.write(whole())  # another's
        assert (await answer(reader))[0] == 200
        writer.close()
    await nothing_held(gateway)


async def test_who_a_caller_is(start: StartGateway) -> None:
    """By the door's word where there is one; one that holds nothing is forgotten."""
    intake = Intake(Settings(upstream="x:1", max_in_flight_bytes=100, max_body_bytes=40), Metrics())
    scopes: list[dict[str, Any]] = [
        {"client": ("1.1.1.1", 1), "state": {"caller": "key"}},
        {"client": ("2.2.2.2", 2), "state": {"caller": "key"}},
        {"client": ("1.1.1.1", 3), "state": {}},
        {"client": None, "state": {}},
    ]
    intake._hold(scopes[0], 40)
    with pytest.raises(Busy):
        intake._hold(scopes[1], 11)
    intake._hold(scopes[1], 10)
    intake._hold(scopes[2], 40)
    with pytest.raises(TooLarge):
        intake._hold(scopes[2], 11)
    intake._hold(scopes[3], 10)
    with pytest.raises(Busy):
        intake._hold(scopes[3], 1)
    assert intake.shares == {"key": 50, "1.1.1.1": 40, "": 10}
    for scope in scopes:
        intake.answered(scope)
        intake.answered(scope)
    assert (intake.held, intake.shares) == (0, {})


async def test_images_to_be_fetched_count(start: StartGateway) -> None:
    settings = {"max_in_flight_bytes": 10_000, "max_image_bytes": 4000, "max_body_bytes": 9000}
    gateway = await start(fetch_images=True, **settings)
    error_of(await gateway.edit(images=["https://localhost/a.png"] * 2), 400, "images[0]")
    error_of(await gateway.edit(images=["https://localhost/a.png"] * 3), 413)  # never room
    await nothing_held(gateway)
    gateway = await start(**settings)  # nothing is fetched
    response = await gateway.edit(images=["https://localhost/a.png"] * 3)
    assert "not fetched here" in error_of(response, 400, "images[0]")["message"]
