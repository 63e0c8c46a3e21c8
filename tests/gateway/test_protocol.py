"""HTTP below the routes: heads that are wrong, requests on top of each other, the end. Over plain sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
from pathlib import Path

import pytest

from retouch_gateway import protocol
from retouch_gateway.settings import Settings
from tests.gateway.conftest import Live, Upstream, b64, picture, run_gateway
from tests.gateway.plain import BODY, CHUNKED, FORM, answer, chunk, dialled, head, whole

HEALTH = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
# As curl --http2 and Java's own client send it.
H2C = "connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQ\r\n"
STREAM = BODY[:-1] + b', "stream": true}'
LARGE = json.dumps(
    {"images": [b64(picture() + os.urandom(3 * 2**20))], "prompt": "x", "n": 4, "stream": True}
).encode()


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


async def test_a_caller_that_leaves_with_another_request_waiting(
    gateway: Live, upstream: Upstream
) -> None:
    upstream.echo.delay = 30
    async with dialled(gateway) as (_, writer):
        writer.write(whole())
        await asyncio.wait_for(upstream.echo.started.wait(), 10)
        writer.write(whole())
        await asyncio.sleep(0.1)
        assert not upstream.echo.cancelled.is_set()
    await asyncio.wait_for(upstream.echo.cancelled.wait(), 10)
    await asyncio.sleep(0.1)
    assert len(upstream.echo.requests) == 1  # the other was never begun


async def test_requests_in_one_go_are_answered_in_order(gateway: Live, upstream: Upstream) -> None:
    async with dialled(gateway) as (reader, writer):
        writer.write(whole() + whole(FORM) + b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        answers = [json.loads((await answer(reader))[2]) for _ in range(3)]
    assert ["data" in body for body in answers] == [True, True, False]
    assert len(upstream.echo.requests) == 2


async def test_a_body_that_stalls_does_not_hold_up_the_end(
    upstream: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "STOP_SECONDS", 0.2)
    settings = Settings(upstream=upstream.target, store=str(tmp_path))
    upstream.echo.delay = 0.5
    async with contextlib.AsyncExitStack() as stack:
        async with run_gateway(settings) as gateway:
            stalled, whole_one = [
                await stack.enter_async_context(dialled(gateway)) for _ in range(2)
            ]
            stalled[1].write(whole()[:-10])
            whole_one[1].write(whole())
            await asyncio.wait_for(upstream.echo.started.wait(), 10)
        status, headers, body = await answer(stalled[0])
        assert (status, headers["connection"]) == (503, "close")
        assert json.loads(body)["error"]["code"] == 503
        assert (await answer(whole_one[0]))[0] == 200  # an edit under way is finished


async def test_what_is_refused_below_the_routes_is_logged_and_counted(
    gateway: Live, caplog: pytest.LogCaptureFixture
) -> None:
    labels = {"route": "other", "method": "other", "code": "400"}
    refused = gateway.value("requests_total", **labels)
    with caplog.at_level(logging.INFO):
        async with dialled(gateway) as (reader, writer):
            writer.write(b"EDIT me\r\n\r\n")
            _, headers, _ = await answer(reader)
    (record,) = caplog.records
    assert record.message == "request"
    assert record.__dict__["request_id"] == headers["x-request-id"]
    assert (record.__dict__["route"], record.__dict__["status"]) == ("other", 400)
    assert gateway.value("requests_total", **labels) == refused + 1


@pytest.mark.parametrize("extra", ["", "connection: close\r\n", "expect: 100-continue\r\n"])
@pytest.mark.parametrize("cut", [10, 70, 100, 113, 120, -20, -1])
async def test_another_protocol_that_is_offered_is_passed_over(
    gateway: Live, upstream: Upstream, cut: int, extra: str, caplog: pytest.LogCaptureFixture
) -> None:
    sent = whole(extra=H2C + extra)
    async with dialled(gateway) as (reader, writer):
        for _ in range(1 if "close" in extra else 2):
            writer.write(sent[:cut])
            await asyncio.sleep(0.01)
            writer.write(sent[cut:])
            if "expect" in extra:
                assert b" 100 " in await reader.readuntil(b"\r\n\r\n")
            assert (await answer(reader))[0] == 200
    assert {request.prompt for request in upstream.echo.requests} == {"x"}
    assert not caplog.records


async def test_several_that_offer_another_protocol_in_one_go(
    gateway: Live, upstream: Upstream
) -> None:
    get = HEALTH[:-2] + H2C.encode() + b"\r\n"
    chunked = head(H2C + CHUNKED) + chunk(BODY[:9]) + chunk(BODY[9:]) + chunk(b"")
    async with dialled(gateway) as (reader, writer):
        writer.write(get + whole(extra=H2C) + get + chunked + whole(FORM, extra=H2C) + HEALTH)
        answers = [json.loads((await answer(reader))[2]) for _ in range(6)]
    assert ["data" in body for body in answers] == [False, True, False, True, True, False]
    assert len(upstream.echo.requests) == 3


async def test_a_body_behind_an_offer_is_no_request(gateway: Live) -> None:
    """Or a proxy in front of us would let requests through that it never saw."""
    async with dialled(gateway) as (reader, writer):
        writer.write(head(H2C + f"content-length: {len(HEALTH)}\r\n"))
        await asyncio.sleep(0.05)
        writer.write(HEALTH + b"GET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n")
        assert [(await answer(reader))[0] for _ in range(2)] == [400, 404]


async def test_no_tunnel(gateway: Live) -> None:
    async with dialled(gateway) as (reader, writer):
        writer.write(b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await answer(reader))[0] == 400


async def test_as_many_requests_wait_as_may(gateway: Live) -> None:
    async with dialled(gateway) as (reader, writer):
        writer.write(whole() + b"\r\n" + HEALTH * protocol.WAITING)
        assert [(await answer(reader))[0] for _ in range(1 + protocol.WAITING)] == [200] * 9


async def test_more_requests_than_may_wait(gateway: Live, upstream: Upstream) -> None:
    upstream.echo.delay = 30
    async with dialled(gateway) as (reader, writer):
        writer.write(whole())
        await asyncio.wait_for(upstream.echo.started.wait(), 10)
        writer.write(HEALTH * 10_000)
        status, headers, _ = await answer(reader)
        assert (status, headers["connection"]) == (400, "close")
    await asyncio.wait_for(upstream.echo.cancelled.wait(), 10)


@pytest.mark.parametrize("before", [chunk(BODY) + b"0\r\n", chunk(BODY) + b"5;"])
@pytest.mark.parametrize("filler", [b"x: " + b"a" * 8000 + b"\r\n", b"a" * 8000])
async def test_what_stands_beside_a_body_without_end(
    gateway: Live, before: bytes, filler: bytes
) -> None:
    async with dialled(gateway) as (reader, writer):
        writer.write(head(CHUNKED) + before)
        if before.endswith(b"0\r\n") and b"\r\n" not in filler:
            writer.write(b"x: ")
        elif before.endswith(b";"):
            filler = filler[3:].rstrip() + b";"
        with contextlib.suppress(ConnectionError):
            for _ in range(200):
                writer.write(filler)
                await writer.drain()
        assert (await answer(reader))[0] == 431


async def test_trailers_are_no_headers(gateway: Live, upstream: Upstream) -> None:
    upstream.echo.delay = 0.2
    trailed = head(CHUNKED) + chunk(BODY) + b"0\r\nx-request-id: forged\r\n\r\n"
    async with dialled(gateway) as (reader, writer):
        writer.write(whole() + trailed)
        await answer(reader)
        status, headers, _ = await answer(reader)
    assert (status, headers["x-request-id"][:4]) == (200, "req_")


async def test_a_stray_byte_behind_an_edit_is_judged_after_it(
    gateway: Live, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.1)
    upstream.echo.delay = 0.5
    async with dialled(gateway) as (reader, writer):
        writer.write(whole() + b"P")
        assert (await answer(reader))[0] == 200
        assert (await answer(reader))[0] == 408


async def test_nothing_is_written_into_an_answer_that_has_begun(
    gateway: Live, upstream: Upstream
) -> None:
    upstream.echo.delay = 30
    async with dialled(gateway) as (reader, writer):
        writer.write(whole(body=STREAM))
        await reader.readuntil(b": queued")
        writer.write(b"garbage\r\n\r\n")
        assert b"HTTP" not in await asyncio.wait_for(reader.read(), 10)
    await asyncio.wait_for(upstream.echo.cancelled.wait(), 10)


async def test_an_idle_connection_does_not_live_by_line_ends(
    gateway: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.2)
    async with dialled(gateway) as (reader, writer):
        writer.write(HEALTH)
        await answer(reader)
        writer.write(b"\r\n")
        assert (await asyncio.wait_for(answer(reader), 10))[0] == 408


async def test_a_stream_that_nobody_reads_is_cut(
    gateway: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "STALL_SECONDS", 0.2)
    async with dialled(gateway) as (reader, writer):
        writer.write(whole(body=LARGE))
        await writer.drain()
        await reader.readuntil(b": queued")
        assert gateway.value("in_flight") == 1
        async with asyncio.timeout(10):
            while gateway.value("in_flight") or gateway.value("body_bytes"):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        with contextlib.suppress(ConnectionError):
            assert len(await reader.read()) < 2**23  # and of its 16 MiB is the rest dropped


async def test_what_is_not_read_does_not_hold_up_the_end_of_a_connection(gateway: Live) -> None:
    async with dialled(gateway) as (reader, writer):
        writer.write(whole(body=LARGE))
        await reader.readuntil(b": queued")
        await asyncio.sleep(0.3)
        writer.write(b"garbage\r\n\r\n")
        async with asyncio.timeout(10):
            while gateway.value("in_flight"):  # noqa: ASYNC110
                await asyncio.sleep(0.05)


async def test_an_answer_that_nobody_reads_is_cut_though_it_is_all_written(
    gateway: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "STALL_SECONDS", 0.2)
    async with dialled(gateway) as (reader, writer):
        body = LARGE.replace(b'"stream": true', b'"response_format": "b64_json"')
        writer.write(whole(body=body, extra="connection: close\r\n"))
        raw = await reader.readuntil(b"\r\n\r\n")
        assert b" 200 OK" in raw
        await asyncio.sleep(1)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(int(raw.lower().split(b"content-length: ")[1].split()[0]))


async def test_who_reads_slowly_gets_all(gateway: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "STALL_SECONDS", 0.4)
    async with dialled(gateway) as (reader, writer):
        writer.write(whole(body=LARGE))
        read = bytearray()
        for _ in range(40):
            read += await reader.readexactly(200_000)
            await asyncio.sleep(0.03)
        async with asyncio.timeout(5):
            while not read.endswith(b"\r\n0\r\n\r\n"):
                read += await reader.read(2**20)
    assert read.count(b"event: image_edit.completed") == 4


async def test_who_does_not_read_does_not_hold_up_the_end(
    upstream: Upstream,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(protocol, "STOP_SECONDS", 0.1)
    settings = Settings(upstream=upstream.target, store=str(tmp_path))
    stack = contextlib.AsyncExitStack()
    async with stack, run_gateway(settings) as gateway:
        reader, writer = await stack.enter_async_context(dialled(gateway))
        writer.write(whole(body=LARGE))
        await reader.readuntil(b": queued")
        await asyncio.sleep(0.1)
    assert "graceful" not in caplog.text  # as uvicorn says when it has to end what is under way
