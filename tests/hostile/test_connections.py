"""Connections that are slow, or say two things at once: each ends as documented, and others are served meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import psutil
import pytest

from tests.hostile import heads
from tests.hostile.bodies import JSON, ROUTE, good, written
from tests.hostile.conftest import BODY_SECONDS, Tiers
from tests.hostile.report import Report
from tests.hostile.smuggling import HIDDEN, PAIRS
from tests.hostile.tiers import Tier
from tests.hostile.wire import Tally, answered, flood, request, spoken

pytestmark = pytest.mark.timeout(600)
HEAD_SECONDS = 30  # the gateway's own
PAGE_SECONDS = 10  # either tier's, on the metrics port
SLOW = 100  # connections of each kind
# What a slow machine may add.
LATE = 30.0


@pytest.mark.parametrize("name", PAIRS)
async def test_what_hides_in_a_request_is_never_answered(tiers: Tiers, name: str) -> None:
    said = await spoken(tiers.gateway.port, PAIRS[name], 2)
    statuses = [
        int(line.split()[1]) for line in said.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")
    ]
    # Never 404, as the hidden one would get; 408 where a chunk is as long as it says, and does not come.
    assert statuses in ([400], [431], [408])
    assert json.loads(said.partition(b"\r\n\r\n")[2])["error"]["code"] == statuses[0]


async def test_the_hidden_one_would_be_seen(tiers: Tiers) -> None:
    """What the test above looks for."""
    last = HIDDEN[:-2] + b"connection: close\r\n\r\n"
    said = await spoken(tiers.gateway.port, HIDDEN + last)
    assert said.count(b"HTTP/1.1 404 ") == 2


Drip = Callable[[asyncio.StreamWriter], AsyncIterator[bytes]]


async def slow_head(_: asyncio.StreamWriter) -> AsyncIterator[bytes]:
    yield b"GET /healthz HTTP/1.1\r\nhost: x\r\n"
    while True:
        yield b"x: y\r\n"


async def slow_body(_: asyncio.StreamWriter) -> AsyncIterator[bytes]:
    yield request("POST", ROUTE, [JSON, b"content-length: 999999"])[:-4] + b"\r\n\r\n{"
    while True:
        yield b" "


async def slow_chunks(_: asyncio.StreamWriter) -> AsyncIterator[bytes]:
    yield request("POST", ROUTE, [JSON, b"transfer-encoding: chunked"])
    while True:
        yield b"1\r\n \r\n"


async def silent(_: asyncio.StreamWriter) -> AsyncIterator[bytes]:
    while True:
        yield b""


SLOWNESS: dict[str, tuple[Drip, int]] = {
    "heads": (slow_head, HEAD_SECONDS),
    "silence": (silent, HEAD_SECONDS),
    "bodies": (slow_body, BODY_SECONDS),
    "chunks": (slow_chunks, BODY_SECONDS),
}


async def dripped(port: int, drip: Drip) -> tuple[int, float]:
    """The status that comes of bytes sent one by one, two a second; and the seconds until then."""
    began = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = asyncio.ensure_future(answered(reader))
    try:
        async for piece in drip(writer):
            if answer.done():
                break
            with contextlib.suppress(ConnectionError):
                writer.write(piece)
            await asyncio.wait({answer}, timeout=0.5)
        return (await answer).status, time.monotonic() - began
    finally:
        answer.cancel()
        writer.close()


async def cut_off(tier: Tier) -> None:
    """Who says nothing on the metrics port is hung up on in time, and leaves no thread."""
    before = psutil.Process(tier.process.pid).num_threads()
    silent_ones = [await asyncio.open_connection("127.0.0.1", tier.metrics_port) for _ in range(50)]
    async with asyncio.timeout(PAGE_SECONDS + LATE):
        for reader, writer in silent_ones:
            await reader.read()
            writer.close()
    async with asyncio.timeout(LATE):
        while psutil.Process(tier.process.pid).num_threads() > before + 8:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def test_who_is_slow_is_cut_off_and_holds_up_nobody(tiers: Tiers, report: Report) -> None:
    """Slow-loris, by heads and by bodies: 408 in time, while all others are served."""
    port = tiers.gateway.port
    slow = {
        name: [asyncio.create_task(dripped(port, drip)) for _ in range(SLOW)]
        for name, (drip, _) in SLOWNESS.items()
    }
    silent_ones = [asyncio.create_task(cut_off(tier)) for tier in (tiers.gateway, tiers.server)]
    await asyncio.sleep(1)
    tally, began = Tally(), time.monotonic()
    await flood(port, heads.methods(2000, 1), tally, connections=4)
    done: Awaitable[str] = asyncio.to_thread(tiers.edit, tiers.gateway)
    assert (await done).endswith(".png")
    report.note(
        "slow-loris",
        connections=SLOW * len(slow),
        others=tally.total,
        slowest=round(tally.slowest, 2),
    )
    assert time.monotonic() - began < HEAD_SECONDS + LATE
    for name, (_, seconds) in SLOWNESS.items():
        for status, took in await asyncio.gather(*slow[name]):
            assert status == 408
            assert seconds - 1 < took < seconds + LATE, name
    await asyncio.gather(*silent_ones)


async def test_bodies_that_end_early_are_let_go(tiers: Tiers) -> None:
    whole = request("POST", ROUTE, [JSON], written(good()))
    before = tiers.gateway.metric("retouch_gateway_body_bytes")
    for end in range(150, len(whole), 7):
        reader, writer = await asyncio.open_connection("127.0.0.1", tiers.gateway.port)
        writer.write(whole[:end])
        writer.write_eof() if end % 2 else writer.close()
        with contextlib.suppress(ConnectionError):
            said = await asyncio.wait_for(reader.read(), 20)
            assert b" 5" not in said[8:10]
        writer.close()
    async with asyncio.timeout(LATE):
        while tiers.gateway.metric("retouch_gateway_body_bytes") != before:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def test_heads_too_large_in_number_and_in_size(tiers: Tiers) -> None:
    many = request("GET", "/healthz", [b"x-%d: y" % i for i in range(20_000)])
    long = request("GET", "/healthz", [b"x: " + b"y" * 200_000])
    name = request("GET", "/healthz", [b"x" * 200_000 + b": y"])
    path = request("GET", "/" + "x" * 200_000)
    for raw in (many, long, name, path):
        said = await spoken(tiers.gateway.port, raw)
        # It may be reset over what is still on its way.
        assert not said or said.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 400 "))


async def test_a_gateway_takes_all_descriptors_that_it_may(tiers: Tiers) -> None:
    for tier in (tiers.gateway, tiers.locked):
        soft, hard = resource.prlimit(tier.process.pid, resource.RLIMIT_NOFILE)
        assert soft == hard


async def served(port: int) -> bool:
    """Whether a new connection is, now."""
    asked = request("GET", "/healthz", [b"connection: close"])
    with contextlib.suppress(ConnectionError):
        return (await spoken(port, asked, first=5)).startswith(b"HTTP/1.1 200 ")
    return False


async def test_without_descriptors_it_serves_whom_it_has_and_recovers(tiers: Tiers) -> None:
    port, pid = tiers.locked.port, tiers.locked.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request("GET", "/healthz"))
    await answered(reader)
    few = psutil.Process(pid).num_fds() + 20
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (few, before[1]))
    try:
        others = [socket.create_connection(("127.0.0.1", port)) for _ in range(200)]
        spent = sum(psutil.Process(pid).cpu_times()[:2])
        await asyncio.sleep(1)
        assert (
            sum(psutil.Process(pid).cpu_times()[:2]) - spent < 0.5
        )  # it does not try again and again
        writer.write(request("GET", "/healthz"))
        assert (await answered(reader)).status == 200
        for each in others:
            each.close()
        async with asyncio.timeout(LATE):
            while not await served(port):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        writer.close()
