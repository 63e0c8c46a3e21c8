"""Bodies that never end, crawl or break off; callers that leave. Over plain sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator

import pytest

from retouch_gateway import protocol
from tests.gateway.conftest import Live, StartGateway, Upstream, b64, error_of, picture

BODY = json.dumps({"images": [b64(picture())], "prompt": "x"}).encode()
CHUNKED = "transfer-encoding: chunked\r\n"


def head(extra: str) -> bytes:
    return (
        "POST /v1/images/edits HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"{extra}\r\n"
    ).encode()


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def dialled(gateway: Live) -> AsyncIterator[Streams]:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of one answer."""
    raw = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in raw[1:] if line)
    return int(raw[0].split()[1]), headers, await reader.readexactly(int(headers["content-length"]))


async def test_a_declared_length_is_refused_unread(gateway: Live) -> None:
    async with dialled(gateway) as (reader, writer):
        writer.write(head(f"content-length: {10**12}\r\nexpect: 100-continue\r\n"))
        began = time.monotonic()
        status, headers, body = await answer(reader)
        assert time.monotonic() - began < 0.5
    assert (status, headers["connection"]) == (413, "close")
    assert json.loads(body)["error"]["code"] == 413


async def test_a_body_without_end(start: StartGateway) -> None:
    gateway = await start(max_body_bytes=10_000)
    began = time.monotonic()
    async with dialled(gateway) as (reader, writer):
        writer.write(head(CHUNKED) + b"3e8\r\n%b\r\n" % (b" " * 1000) * 20)

        async def on_and_on() -> None:
            while True:
                writer.write(b"3e8\r\n%b\r\n" % (b" " * 1000))
                await writer.drain()
                await asyncio.sleep(0.01)

        sending = asyncio.create_task(on_and_on())
        assert (await answer(reader))[0] == 413
        assert time.monotonic() - began < 1
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


async def test_a_trickle(start: StartGateway) -> None:
    gateway = await start(body_timeout=0.3)
    async with dialled(gateway) as (reader, writer):
        writer.write(head(f"content-length: {len(BODY)}\r\n") + BODY[:10])
        await asyncio.sleep(0.2)
        writer.write(BODY[10:11])
        began = time.monotonic()
        status, headers, body = await answer(reader)
        assert time.monotonic() - began < 1
    assert (status, headers["connection"]) == (408, "close")
    assert json.loads(body)["error"]["code"] == 408
    assert gateway.value("body_rejections_total", reason="time") == 1


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_bodies_in_pieces(gateway: Live, framing: str) -> None:
    async with dialled(gateway) as (reader, writer):
        chunked = framing == "chunked"
        writer.write(head(CHUNKED if chunked else f"content-length: {len(BODY)}\r\n"))
        for at in range(0, len(BODY), 100):
            piece = BODY[at : at + 100]
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            await asyncio.sleep(0)
        writer.write(b"0\r\n\r\n" if chunked else b"")
        status, headers, _ = await answer(reader)
    assert status == 200
    assert "connection" not in headers


async def test_expect_100_continue(gateway: Live) -> None:
    async with dialled(gateway) as (reader, writer):
        writer.write(head(f"content-length: {len(BODY)}\r\nexpect: 100-continue\r\n"))
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(BODY)
        assert (await answer(reader))[0] == 200


async def test_a_caller_that_leaves_cancels_the_edit(gateway: Live, upstream: Upstream) -> None:
    before = gateway.value("disconnects_total")
    upstream.echo.delay = 30
    async with dialled(gateway) as (_, writer):
        writer.write(head(f"content-length: {len(BODY)}\r\n") + BODY)
        await asyncio.wait_for(upstream.echo.started.wait(), 2)
        assert not upstream.echo.cancelled.is_set()
    await asyncio.wait_for(upstream.echo.cancelled.wait(), 1)
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


async def test_http_too_broken_to_route(gateway: Live) -> None:
    async with dialled(gateway) as (reader, writer):
        writer.write(b"EDIT me\r\n\r\n")
        status, headers, body = await answer(reader)
    assert (status, headers["content-type"]) == (400, "application/json")
    assert json.loads(body)["error"]["code"] == 400


async def test_a_head_without_end(gateway: Live) -> None:
    async with dialled(gateway) as (reader, writer):
        writer.write(b"GET /healthz HTTP/1.1\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                writer.write(b"x-filler: " + b"a" * 10_000 + b"\r\n")
                await writer.drain()
        status, headers, body = await answer(reader)
    assert (status, headers["connection"]) == (431, "close")
    assert headers["x-request-id"].startswith("req_")
    assert json.loads(body)["error"]["code"] == 431


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nhost: x\r\n"])
async def test_a_head_that_does_not_come(
    gateway: Live, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.2)
    async with dialled(gateway) as (reader, writer):
        writer.write(sent)
        status, _, body = await answer(reader)
    assert status == json.loads(body)["error"]["code"] == 408


async def test_a_slow_body_is_no_slow_head(gateway: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.2)
    async with dialled(gateway) as (reader, writer):
        writer.write(head(f"content-length: {len(BODY)}\r\n") + BODY[:50])
        await asyncio.sleep(0.5)
        writer.write(BODY[50:])
        assert (await answer(reader))[0] == 200


async def test_a_connection_is_kept_and_used_again(gateway: Live) -> None:
    async with dialled(gateway) as (reader, writer):
        for _ in range(3):
            writer.write(head(f"content-length: {len(BODY)}\r\n") + BODY)
            assert (await answer(reader))[0] == 200
