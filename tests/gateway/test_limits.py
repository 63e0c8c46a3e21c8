"""Limits, counted in this process and in a real Redis: exact, shared, given back, never in the way."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import re
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest
import pytest_asyncio
import redis
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retouch_gateway import limits
from retouch_gateway.counts import Counts, Memory, Quota, duration
from retouch_gateway.errors import OverLimit
from retouch_gateway.keys import ANONYMOUS, Key, rates
from retouch_gateway.limits import Lease, Limits
from retouch_gateway.metrics import Metrics
from retouch_gateway.slots import Slots, SlotsHere, SlotsInRedis

NUMBERS = itertools.count()
HALF_A_SECOND = limits.REDIS_SECONDS
DURATION = re.compile(r"(?:(?:(\d+)h)?(\d+)m)?(\d+)s")
HERE = "192.0.2.7"


def key(**more: Any) -> Key:
    """A key that nobody else counts for."""
    return Key(id=f"key-{next(NUMBERS)}", hash=f"sha256:{'0' * 64}", **more)


def in_seconds(text: str) -> int:
    """A duration as OpenAI's headers have it."""
    found = DURATION.fullmatch(text)
    assert found, text
    hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return hours * 3600 + minutes * 60 + seconds


@dataclass
class Server:
    """A redis-server of one's own."""

    port: int
    folder: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, decode_responses=True)

    def start(self) -> None:
        program = shutil.which("redis-server")
        if not program:
            pytest.skip("redis-server is not installed: scripts/ci-tools installs it on Debian")
        self.process = subprocess.Popen(
            [program, "--bind", "127.0.0.1", "--save", "", "--port", str(self.port)],
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 20
        with self.client as client:
            while time.monotonic() < deadline:
                with contextlib.suppress(redis.ConnectionError):
                    client.ping()
                    return
                time.sleep(0.02)
        raise TimeoutError("redis-server does not answer")

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    running = Server(port, tmp_path_factory.mktemp("redis"))
    running.start()
    yield running
    running.kill()


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest) -> str:
    if request.param == "memory":
        return limits.MEMORY
    url: str = request.getfixturevalue("server").url
    return url


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy is no Redis that hangs."""
    monkeypatch.setattr(limits, "REDIS_SECONDS", 10.0)


Open = Callable[..., Limits]


@pytest_asyncio.fixture(loop_scope="session")
async def opened() -> AsyncIterator[Open]:
    """Makes limits, and closes them at the end."""
    made: list[Limits] = []

    def opening(
        store: str = limits.MEMORY,
        rate_limit: str | None = None,
        concurrency: int | None = None,
        lease_seconds: float = 60,
    ) -> Limits:
        made.append(Limits(store, rate_limit, concurrency, lease_seconds, Metrics()))
        return made[-1]

    yield opening
    for each in made:
        await each.close()


async def refused(limited: Limits, of: Key, client: str = HERE) -> OverLimit:
    with pytest.raises(OverLimit) as caught:
        await limited.take(of, client)
    assert 1 <= int(caught.value.headers["retry-after"]) <= 60
    return caught.value


def sample(limited: Limits, name: str, **labels: str) -> float | None:
    return limited.metrics.registry.get_sample_value(f"retouch_gateway_{name}_total", labels)


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets this process's clock forward, which both stores take their time stamps from."""
    now, ahead = time.time, 0.0

    def moving(seconds: float) -> None:
        nonlocal ahead
        ahead += seconds

    monkeypatch.setattr(time, "time", lambda: now() + ahead)
    return moving


async def let_in(limited: Limits, of: Key) -> Lease:
    """Leave, once what was given back behind the scenes has been."""
    async with asyncio.timeout(5):
        while True:
            with contextlib.suppress(OverLimit):
                return await limited.take(of, HERE)
            await asyncio.sleep(0.01)


# What is allowed


async def test_without_limits_there_is_nothing_to_count(opened: Open) -> None:
    limited = opened("redis://127.0.0.1:1")  # nobody is there, and nobody is asked
    for of in (ANONYMOUS, key()):
        lease = await limited.take(of, HERE)
        assert lease.headers == {}
        await lease.release()
    assert sample(limited, "limits_outages") == 0


async def test_a_rate(opened: Open, store: str) -> None:
    limited, ada = opened(store, "3/minute"), key()
    leases = [await limited.take(ada, HERE) for _ in range(3)]
    for i, lease in enumerate(leases):
        await lease.release()  # to be done is not to be undone
        assert lease.headers["x-ratelimit-limit-requests"] == "3"
        assert lease.headers["x-ratelimit-remaining-requests"] == str(2 - i)
        assert 30 < in_seconds(lease.headers["x-ratelimit-reset-requests"]) <= 60
    error = await refused(limited, ada)
    assert error.headers["x-ratelimit-limit-requests"] == "3"
    assert error.headers["x-ratelimit-remaining-requests"] == "0"
    assert 30 < int(error.headers["retry-after"]) <= 60
    assert "x-should-retry" not in error.headers
    said, _, wait = error.message.rpartition(" ")
    assert said == "This key has used up its 3 edits per minute; the next is free in"
    assert in_seconds(wait.rstrip(".")) == int(error.headers["retry-after"])
    assert sample(limited, "limited", limit="rate") == 1
    await limited.take(key(), HERE)  # another key has its own


async def test_a_rate_is_free_again_when_the_headers_say(
    opened: Open, store: str, later: Callable[[float], None]
) -> None:
    limited, ada = opened(store, "2/minute"), key()
    await limited.take(ada, HERE)
    later(20)
    await limited.take(ada, HERE)
    for _ in range(3):  # what is refused puts nothing off
        wait = int((await refused(limited, ada)).headers["retry-after"])
        assert 30 < wait <= 40  # until the first is a minute old
        later(wait - 10)
        await refused(limited, ada)
        later(10.01)
        lease = await limited.take(ada, HERE)
        assert lease.headers["x-ratelimit-remaining-requests"] == "0"
        reset = in_seconds(lease.headers["x-ratelimit-reset-requests"])
        assert 10 < reset <= 20  # the second's turn
        later(reset + 0.01)
        await limited.take(ada, HERE)


async def test_a_long_wait_is_not_worth_a_retry(opened: Open, store: str) -> None:
    limited, ada = opened(store, "1/hour"), key()
    await limited.take(ada, HERE)
    error = await refused(limited, ada)
    assert error.headers["retry-after"] == "60"
    assert error.headers["x-should-retry"] == "false"
    assert 3500 < in_seconds(error.headers["x-ratelimit-reset-requests"]) <= 3600


@pytest.mark.parametrize("rates", ["2/minute;3/hour", "3/hour;2/minute"])
async def test_of_several_rates_a_refused_edit_counts_for_none(
    opened: Open, store: str, rates: str, later: Callable[[float], None]
) -> None:
    limited, ada = opened(store, rates), key()
    first = await limited.take(ada, HERE)
    assert first.headers["x-ratelimit-limit-requests"] == "2"  # the one that is nearer its end
    await limited.take(ada, HERE)
    for _ in range(3):
        assert "2 edits per minute" in (await refused(limited, ada)).message
    later(60.01)
    third = await limited.take(ada, HERE)  # so the hour had one left
    assert third.headers["x-ratelimit-limit-requests"] == "3"
    assert "3 edits per hour" in (await refused(limited, ada)).message


async def test_when_several_rates_are_spent_the_longest_wait_is_told(
    opened: Open, store: str
) -> None:
    limited, ada = opened(store, "1/minute;1/day"), key()
    await limited.take(ada, HERE)
    error = await refused(limited, ada)
    assert 80000 < in_seconds(error.headers["x-ratelimit-reset-requests"]) <= 86400


async def test_concurrency(opened: Open, store: str) -> None:
    limited, ada = opened(store, None, 2), key()
    first, second = await limited.take(ada, HERE), await limited.take(ada, HERE)
    assert first.headers == {}
    error = await refused(limited, ada)
    assert error.message == (
        "This key may have 2 edits under way, and has; try again when one is done."
    )
    assert set(error.headers) == {"retry-after"}
    assert sample(limited, "limited", limit="concurrency") == 1
    await first.release()
    third = await limited.take(ada, HERE)
    await first.release()  # once is once: its place is the third's now
    await refused(limited, ada)
    await second.release()
    await third.release()


async def test_a_refusal_for_one_limit_uses_up_nothing_of_the_other(
    opened: Open, store: str, later: Callable[[float], None]
) -> None:
    limited, ada = opened(store, "2/minute", 1, 600), key()
    first = await limited.take(ada, HERE)
    for _ in range(3):
        error = await refused(limited, ada)
        assert "under way" in error.message
        assert error.headers["x-ratelimit-remaining-requests"] == "1"
    later(60.01)
    error = await refused(limited, ada)
    assert error.headers["x-ratelimit-remaining-requests"] == "2"
    assert error.headers["x-ratelimit-reset-requests"] == "0s"
    await first.release()
    await (await limited.take(ada, HERE)).release()
    await (await limited.take(ada, HERE)).release()
    for _ in range(3):
        assert "per minute" in (await refused(limited, ada)).message


async def test_a_keys_own_limits_win(opened: Open, store: str) -> None:
    limited = opened(store, "1/minute", 1)
    ada = key(rate_limit="3/minute", concurrency=2)
    first, _ = await limited.take(ada, HERE), await limited.take(ada, HERE)
    assert "may have 2" in (await refused(limited, ada)).message
    await first.release()
    await limited.take(ada, HERE)


async def test_a_keys_limits_apply_where_the_gateway_has_none(opened: Open, store: str) -> None:
    limited, ada = opened(store), key(rate_limit="1/minute")
    await limited.take(ada, HERE)
    await refused(limited, ada)


@pytest.mark.parametrize(
    ("client", "same", "other"),
    [
        ("198.51.100.1", "198.51.100.1", "198.51.100.2"),
        ("::ffff:198.51.100.3", "198.51.100.3", "::ffff:198.51.100.4"),
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", "2001:db8:0:2::1"),
        ("fe80::1%eth0", "fe80::2%eth0", "fe80:0:0:1::1%eth0"),
        ("", "", "unix"),
    ],
)
async def test_without_keys_each_address_has_its_own(
    opened: Open, client: str, same: str, other: str
) -> None:
    limited = opened(limits.MEMORY, "1/minute")
    await limited.take(ANONYMOUS, client)
    assert "This address has used up" in (await refused(limited, ANONYMOUS, same)).message
    await limited.take(ANONYMOUS, other)


async def test_an_address_is_no_key(opened: Open) -> None:
    limited = opened(limits.MEMORY, "1/minute")
    ada = key()
    await limited.take(ada, HERE)
    await limited.take(ANONYMOUS, ada.id)


# Several at once


async def test_a_crowd_gets_exactly_what_is_allowed(opened: Open, store: str) -> None:
    limited, ada = opened(store, "7/minute", 20), key()
    answers = await asyncio.gather(
        *(limited.take(ada, HERE) for _ in range(300)), return_exceptions=True
    )
    assert sum(isinstance(answer, Lease) for answer in answers) == 7
    assert sum(isinstance(answer, OverLimit) for answer in answers) == 293
    assert sample(limited, "limits_outages") == 0  # which it is not to be taken for


async def test_two_gateways_share_their_counts(opened: Open, server: Server) -> None:
    one, two = opened(server.url, "5/minute", 2), opened(server.url, "5/minute", 2)
    ada = key()
    first, second = await one.take(ada, HERE), await two.take(ada, HERE)
    assert second.headers["x-ratelimit-remaining-requests"] == "3"
    await refused(one, ada)
    await refused(two, ada)
    await first.release()
    third = await two.take(ada, HERE)
    await refused(one, ada)
    await second.release()
    await third.release()
    for limited in (one, two):
        await (await limited.take(ada, HERE)).release()
    for limited in (one, two):
        assert "5 edits per minute" in (await refused(limited, ada)).message


async def test_what_redis_holds_is_named_and_expires(opened: Open, server: Server) -> None:
    limited, ada = opened(server.url, "5/minute", 2, 30.2), key()
    with server.client as client:
        client.flushall()
        lease = await limited.take(ada, HERE)
        names = sorted(client.scan_iter("*"))
        assert names[0] == f"retouch:LIMITER/key/{ada.id}/5/1/minute"
        assert names[1] == f"retouch:key/{ada.id}/slots"
        assert 55 < int(client.ttl(names[0])) <= 60
        assert 25 < int(client.ttl(names[1])) <= 31
        await lease.release()
        assert [*client.scan_iter("*")] == names[:1]


async def test_a_gateway_that_dies_gives_back_what_it_held(opened: Open, store: str) -> None:
    limited, ada = opened(store, None, 2, 4), key()
    dead = await limited.take(ada, HERE)
    await asyncio.sleep(2)
    await limited.take(ada, HERE)  # which prolongs nothing for the first
    await refused(limited, ada)
    await asyncio.sleep(2.05)
    alive = await limited.take(ada, HERE)
    await dead.release()  # it was not so dead; but what it held is another's now
    await refused(limited, ada)
    await alive.release()
    await limited.take(ada, HERE)


async def test_a_lease_does_not_go_by_this_machines_time(
    opened: Open, store: str, later: Callable[[float], None]
) -> None:
    limited, ada = opened(store, None, 1, 60), key()
    await limited.take(ada, HERE)
    later(3600)  # a clock that was set, or that is another gateway's
    await refused(limited, ada)


async def test_a_token_is_in_once_and_out_once(store: str) -> None:
    pool = None if store == limits.MEMORY else redis.asyncio.ConnectionPool.from_url(store)
    slots: Slots = SlotsInRedis(pool, "test", 60) if pool else SlotsHere(60)
    who = key().id
    assert await slots.take(who, "a", 2)
    assert await slots.take(who, "b", 2)
    assert await slots.take(who, "b", 2)  # as a client does that got no answer
    assert not await slots.take(who, "c", 2)
    await slots.free(who, "c")
    await slots.free(who, "a")
    await slots.free(who, "a")
    assert not await slots.take(who, "c", 1)  # a limit that was lowered
    assert await slots.take(who, "c", 2)
    assert not await slots.take(who, "d", 2)
    if pool:
        await pool.aclose()


async def test_a_full_limit_costs_one_round_trip_however_large(
    opened: Open, server: Server
) -> None:
    async with between(server) as road:
        limited, ada = opened(road.url, None, 100), key()
        for _ in range(100):
            await limited.take(ada, HERE)
        asked = road.asked
        await refused(limited, ada)
        await limited.close()  # there is nothing to be given back
        assert road.asked == asked + 1


@pytest.mark.parametrize(
    ("rate_limit", "concurrency", "trips"),
    [(None, 1, 1), ("9/minute", None, 2), ("9/minute;9/hour", None, 5), ("9/minute", 1, 3)],
)
async def test_round_trips_of_an_edit(
    opened: Open, server: Server, rate_limit: str | None, concurrency: int | None, trips: int
) -> None:
    """As docs/operating.md has them."""
    async with between(server) as road:
        limited, ada = opened(road.url, rate_limit, concurrency), key()
        await (await limited.take(ada, HERE)).release()  # it knows the scripts from here on
        asked = road.asked
        lease = await limited.take(ada, HERE)
        assert road.asked == asked + trips
        await lease.release()
        assert road.asked == asked + trips + bool(concurrency)


@settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(most=st.integers(1, 4), plan=st.lists(st.tuples(st.booleans(), st.integers(0, 7))))
async def test_never_more_at_once_than_allowed(
    opened: Open, store: str, most: int, plan: list[tuple[bool, int]]
) -> None:
    ada = key(concurrency=most)
    gateways = [opened(store), opened(store)]
    if store == limits.MEMORY:
        gateways[1] = gateways[0]
    held: list[Lease] = []
    for takes, number in plan:
        if takes:
            taken = await asyncio.gather(
                *(gateways[i % 2].take(ada, HERE) for i in range(number)), return_exceptions=True
            )
            new = [lease for lease in taken if isinstance(lease, Lease)]
            assert len(new) == min(number, most - len(held))
            held += new
        elif held:
            await held.pop(number % len(held)).release()


# What is known in this process is forgotten, at little cost


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many threads' turns were asked for."""
    turns = 0
    real = asyncio.to_thread

    async def counting(*work: Any, **more: Any) -> Any:
        nonlocal turns
        turns += 1
        return await real(*work, **more)

    monkeypatch.setattr(asyncio, "to_thread", counting)
    return lambda: turns


async def test_an_edit_does_not_go_through_all_addresses(threads: Callable[[], int]) -> None:
    memory = Memory()
    counted = Counts(memory, SlotsHere(60))
    await counted.hit(Quota("first", rates("9/hour"), None))
    await until(lambda: memory.timer is not None and memory.timer.done())  # its sweep is over
    before = threads()
    for number in range(100):
        await counted.hit(Quota(f"address/{number}", rates("9/hour"), None))
        await asyncio.sleep(0.001)
    assert threads() == before


async def test_old_addresses_are_forgotten(
    threads: Callable[[], int], later: Callable[[float], None]
) -> None:
    memory = Memory()
    counted = Counts(memory, SlotsHere(60))
    await counted.hit(Quota("first", rates("9/hour"), None))
    await until(lambda: memory.timer is not None and memory.timer.done())
    for number in range(50):
        await counted.hit(Quota(f"address/{number}", rates("9/minute"), None))
    later(61)
    memory._next_sweep = 0.0
    await counted.hit(Quota("last", rates("9/hour"), None))
    await until(lambda: len(memory.events) == 2)
    assert threads() <= 53


async def test_who_has_nothing_under_way_is_forgotten() -> None:
    slots = SlotsHere(60)
    for number in range(9):
        assert await slots.take(f"address/{number}", "a", 1)
        assert not await slots.take(f"address/{number}", "b", 1)
        await slots.free(f"address/{number}", "b")
        await slots.free(f"address/{number}", "a")
    assert slots.held == {}


# Callers that leave


@settings(
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(turns=st.integers(0, 12))
async def test_a_caller_that_leaves_while_it_is_let_in_holds_nothing(
    opened: Open, store: str, turns: int
) -> None:
    limited, ada = opened(store, None, 1), key()
    taking = asyncio.create_task(limited.take(ada, HERE))
    for _ in range(turns):
        await asyncio.sleep(0)
    taking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await (await taking).release()
    await (await let_in(limited, ada)).release()


async def test_a_caller_that_leaves_before_redis_has_answered_holds_nothing(
    opened: Open, server: Server
) -> None:
    async with between(server) as road:
        limited, ada = opened(road.url, None, 1), key()
        await (await limited.take(ada, HERE)).release()
        road.hang()
        taking = asyncio.create_task(limited.take(ada, HERE))
        with server.client as client:
            await until(lambda: client.exists(f"retouch:key/{ada.id}/slots"))
            taking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await taking
            road.mend()
            await (await let_in(limited, ada)).release()
            assert not client.exists(f"retouch:key/{ada.id}/slots")
    assert sample(limited, "limits_outages") == 0


async def test_a_release_survives_its_cancellation(opened: Open, store: str) -> None:
    limited, ada = opened(store, None, 1), key()
    lease = await limited.take(ada, HERE)
    releasing = asyncio.create_task(lease.release())
    await asyncio.sleep(0)
    releasing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await releasing
    await let_in(limited, ada)


async def test_closing_waits_for_what_is_given_back(server: Server) -> None:
    ada = key(concurrency=1)
    limited = Limits(server.url, None, None, 60, Metrics())
    lease = await limited.take(ada, HERE)
    releasing = asyncio.create_task(lease.release())
    await asyncio.sleep(0)
    await limited.close()
    await releasing
    again = Limits(server.url, None, None, 60, Metrics())
    await again.take(ada, HERE)
    await again.close()


# Redis comes and goes


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RECOVER_SECONDS", 0.05)


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Server]:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    running = Server(port, tmp_path)
    running.start()
    yield running
    running.kill()


@pytest.mark.usefixtures("quick")
async def test_redis_dies_and_comes_back(
    opened: Open, own: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "retouch_gateway.limits")
    limited, ada = opened(own.url, "4/minute", 2), key()
    there = await limited.take(ada, HERE)

    own.kill()
    started = time.monotonic()
    here = [await limited.take(ada, HERE), await limited.take(ada, HERE)]
    assert "under way" in (await refused(limited, ada)).message  # limited all the same
    await there.release()
    assert time.monotonic() - started < 5  # nobody waits for what is not there
    [message] = caplog.messages
    assert message.startswith("limits: counting in this process alone: ")
    assert sample(limited, "limits_outages") == 1
    degraded = limited.metrics.registry.get_sample_value
    assert degraded("retouch_gateway_limits_degraded") == 1

    await asyncio.to_thread(own.start)
    await until(lambda: len(caplog.messages) == 2)
    assert caplog.messages[1] == "limits: counting in Redis again"
    await until(lambda: degraded("retouch_gateway_limits_degraded") == 0)
    with own.client as client:
        fresh = [await limited.take(ada, HERE) for _ in range(2)]
        assert [name for name in client.scan_iter("*") if ada.id in name]
        for lease in [*here, *fresh]:
            await lease.release()
        assert not [*client.scan_iter("*slot*")]
    assert sample(limited, "limits_outages") == 1


@pytest.mark.parametrize("loop", [asyncio, uvloop])
@pytest.mark.parametrize("reset", [False, True])
def test_connections_that_were_closed_while_they_idled_are_no_outage(
    server: Server, loop: Any, reset: bool
) -> None:
    """As by Redis' own `timeout`, by a balancer, or where another Redis takes over."""

    async def main() -> None:
        async with between(server) as road:
            limited, ada = Limits(road.url, "1000/minute", 100, 60, Metrics()), key()
            for several in range(1, 9):
                leases = await asyncio.gather(*(limited.take(ada, HERE) for _ in range(several)))
                await asyncio.gather(*(lease.release() for lease in leases))
                assert road.drop(reset=reset) > 0
                await asyncio.sleep(0.02 * (several % 2))  # seen to be closed, or not yet
            assert sample(limited, "limits_outages") == 0
            with server.client as client:
                assert client.zcard(f"retouch:key/{ada.id}/slots") == 0
                [rate] = [name for name in client.scan_iter("*") if ada.id in name]
                assert client.llen(rate) == sum(range(1, 9))
            await limited.close()

    loop.run(main())


class Odd:
    """Answers whatever it is asked with the same bytes; without any it resets the connection."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer

    def __enter__(self) -> str:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()
        return f"redis://127.0.0.1:{self.listener.getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.thread.join()
        self.listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # the listener's end
            while True:
                line, _ = self.listener.accept()
                with line, contextlib.suppress(OSError):
                    self._answer(line)

    def _answer(self, line: socket.socket) -> None:
        line.settimeout(5)
        if not self.answer:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return
        while line.recv(65536):
            line.sendall(self.answer)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("loop", [asyncio, uvloop])
@pytest.mark.parametrize(
    "answer",
    [b"", b":abc\r\n", b"$abc\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"x" * 70_000 + b"\r\n"],
    ids=["reset", "a number", "a length", "HTTP", "a line"],
)
def test_what_answers_nonsense_is_no_redis_and_fails_no_edit(answer: bytes, loop: Any) -> None:
    async def main(url: str) -> None:
        limited, ada = Limits(url, "9/minute", 1, 60, Metrics()), key()
        for outages in range(1, 9):
            await (await limited.take(ada, HERE)).release()
            assert sample(limited, "limits_outages") == outages
            recovering = limited._recovering
            assert recovering
            await asyncio.sleep(0.02)
            assert not recovering.done()
            recovering.cancel()  # and so the next edit asks again
            limited._recovering = None
        await limited.close()

    with Odd(answer) as url:
        loop.run(main(url))


@pytest.mark.usefixtures("quick")
async def test_redis_is_asked_again_whatever_it_met(
    opened: Open, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And of what nobody foresaw no words are logged."""
    caplog.set_level(logging.DEBUG, "retouch_gateway.limits")
    limited, ada = opened(server.url, "9/minute"), key()
    settle, met = limited._settle, 0

    async def odd(counts: Counts) -> None:
        nonlocal met
        met += 1
        if met < 4:
            raise (ValueError, RuntimeError, LookupError)[met - 1]("secret")
        await settle(counts)

    monkeypatch.setattr(limited, "_settle", odd)
    assert limited._redis
    limited._lost(limited._redis, OSError())
    await until(lambda: not limited._recovering)
    assert met == 4
    assert "alone: LookupError at " in caplog.text
    assert "secret" not in caplog.text
    await limited.take(ada, HERE)
    with server.client as client:
        assert [name for name in client.scan_iter("*") if ada.id in name]


@pytest.mark.usefixtures("quick")
async def test_what_could_not_be_given_back_is_once_redis_is_back(
    opened: Open, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "retouch_gateway.limits")
    async with between(server) as road:
        limited, ada = opened(road.url, None, 1), key()
        lease = await limited.take(ada, HERE)
        road.cut()
        await lease.release()
        await (await limited.take(ada, HERE)).release()  # here
        road.mend()
        await until(lambda: "limits: counting in Redis again" in caplog.messages)
        await limited.take(ada, HERE)


@pytest.mark.usefixtures("quick")
async def test_what_was_taken_in_an_answer_that_was_lost_is_given_back(
    opened: Open,
    server: Server,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO, "retouch_gateway.limits")
    async with between(server) as road:
        limited, ada = opened(road.url, None, 1), key()
        await (await limited.take(ada, HERE)).release()
        road.hang()
        monkeypatch.setattr(limits, "REDIS_SECONDS", 0.5)
        with server.client as client:
            lease = await limited.take(ada, HERE)  # here
            assert client.zcard(f"retouch:key/{ada.id}/slots") == 1  # and there, unknown to us
        await lease.release()
        road.mend()
        await until(lambda: "limits: counting in Redis again" in caplog.messages)
        await limited.take(ada, HERE)


@pytest.mark.usefixtures("quick")
async def test_a_redis_that_hangs_costs_half_a_second_once(
    opened: Open, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here it is 3 s, so that a machine which is busy is told apart from a caller that waits too."""
    assert HALF_A_SECOND == 0.5
    async with between(server) as road:
        limited, ada = opened(road.url, "1000/minute", 1000), key()
        await (await limited.take(ada, HERE)).release()
        road.hang()
        monkeypatch.setattr(limits, "REDIS_SECONDS", 3.0)
        started = time.monotonic()
        leases = await asyncio.gather(*(limited.take(ada, HERE) for _ in range(100)))
        assert 2.9 < time.monotonic() - started < 5.9
        started = time.monotonic()
        for lease in leases:
            await lease.release()
            await (await limited.take(ada, HERE)).release()
        assert time.monotonic() - started < 2.9
        assert sample(limited, "limits_outages") == 1


async def test_a_redis_that_never_was(opened: Open) -> None:
    limited, ada = opened("redis://127.0.0.1:1", "1/minute"), key()
    started = time.monotonic()
    await limited.take(ada, HERE)
    assert time.monotonic() - started < 5  # where nobody listens there is nothing to wait for
    await refused(limited, ada)
    assert sample(limited, "limits_outages") == 1


@pytest.mark.usefixtures("quick")
async def test_a_redis_that_takes_no_writes_is_no_redis(
    opened: Open, own: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "retouch_gateway.limits")
    limited, ada = opened(own.url, "9/minute"), key()
    with own.client as client:
        client.config_set("maxmemory", "1")
        await limited.take(ada, HERE)
        await asyncio.sleep(0.3)
        assert len(caplog.messages) == 1  # it answers; but it is not taken for one that is back
        client.config_set("maxmemory", "0")
        await until(lambda: len(caplog.messages) == 2)


async def test_a_wrong_password_is_in_no_log(
    opened: Open, own: Server, caplog: pytest.LogCaptureFixture
) -> None:
    with own.client as client:
        client.config_set("requirepass", "the-right-one")
    limited = opened(own.url.replace("//", "//:the-wrong-one@"), "9/minute")
    await limited.take(key(), HERE)
    assert len(caplog.messages) == 1
    assert "-one" not in caplog.text
    limited = opened(own.url.replace("//", "//:the-right-one@"), "9/minute")
    await limited.take(key(), HERE)
    assert len(caplog.messages) == 1


@pytest.mark.parametrize(
    "store",
    [
        "memory://",
        "redis://h:6379",
        "redis://user:secret@h:6379/2?socket_timeout=2",
        "rediss://[::1]:6379?ssl_ca_certs=/etc/ca.pem",
    ],
)
def test_places_to_count(store: str) -> None:
    limits.check(store)


@pytest.mark.parametrize(
    "store",
    [
        "",
        "memory",
        "h:6379",
        "redis://h",
        "redis://h:port",
        "redis://:sec/ret@h:6379",
        "redis://h:99999",
        "redis://[::1",
        "redis://h:6379?colour=1",
        "redis://h:6379?socket_timeout=x",
        "memcached://h:6379",
    ],
)
def test_places_that_are_none(store: str) -> None:
    with pytest.raises(ValueError, match=r"^must be memory://, or redis://") as caught:
        limits.check(store)
    assert "sec" not in str(caught.value)


class Listens(Protocol):
    """A server at that port of loopback."""

    port: int


class Road:
    """A way to a server's port that can be cut, or bring back no answers, and be mended."""

    def __init__(self, server_port: int) -> None:
        self.server_port = server_port
        self.open = asyncio.Event()
        self.open.set()
        self.refusing = False
        self.asked = 0  # round trips, of a client that awaits each answer
        self.writers: list[asyncio.StreamWriter] = []
        self.tasks: list[asyncio.Task[None]] = []

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    async def start(self) -> asyncio.Server:
        listening = await asyncio.start_server(self._joined, "127.0.0.1", 0)
        self.port = listening.sockets[0].getsockname()[1]
        return listening

    async def _joined(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refusing:
            writer.close()
            return
        there, back = await asyncio.open_connection("127.0.0.1", self.server_port)
        self.writers += [writer, back]
        self.tasks.append(asyncio.create_task(self._carry(reader, back, waits=False)))
        self.tasks.append(asyncio.create_task(self._carry(there, writer, waits=True)))

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, waits: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if waits:
                    await self.open.wait()
                else:
                    self.asked += 1
                writer.write(data)
        writer.close()

    def cut(self) -> None:
        self.refusing = True
        self.drop()

    def drop(self, *, reset: bool = False) -> int:
        """Close what is open, or reset it: how many lines. New ones may be."""
        dropped, self.writers = self.writers, []
        for writer in dropped:
            if reset and not writer.is_closing():
                line = writer.get_extra_info("socket")
                line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
            writer.close()
        return len(dropped)

    def hang(self) -> None:
        self.open.clear()

    def mend(self) -> None:
        self.refusing = False
        self.open.set()


@contextlib.asynccontextmanager
async def between(server: Listens) -> AsyncIterator[Road]:
    road = Road(server.port)
    listening = await road.start()
    try:
        yield road
    finally:
        listening.close()
        road.mend()
        for writer in road.writers:
            writer.close()
        for task in road.tasks:
            task.cancel()
        await asyncio.gather(*road.tasks, return_exceptions=True)


# OpenAI's way to write a duration


@given(seconds=st.floats(0, 10**7))
def test_a_duration_is_what_it_says_rounded_up(seconds: float) -> None:
    text = duration(seconds)
    found = DURATION.fullmatch(text)
    assert found, text
    assert in_seconds(text) == math.ceil(seconds)
    assert all(int(part or 0) < 60 for part in found.groups()[1:])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.02, "1s"), (59.5, "1m0s"), (61, "1m1s"), (3600, "1h0m0s"), (86400, "24h0m0s")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
