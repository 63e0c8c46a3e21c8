"""A gateway is killed in the middle: what its caller has, what remains, and what another replica makes of it."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from bench.cluster.tiers import Gateway, Server
from bench.local import free_port
from tests.faults.callers import Caller, body
from tests.faults.conftest import REACHED_SECONDS, StartGateway
from tests.faults.ledger import ended, under_way
from tests.faults.proxy import Proxy, Then
from tests.object_store import ObjectStore
from tests.run_up import wait_for

BUDGET, BODY_SECONDS, TTL = 6, 1, 8
CLAIM_SECONDS = BUDGET + 5  # and the margin for clocks that differ
KEPT = {"idempotency-key": "once"}
SENT = body(64, 2, response_format="url")
SLACK_SECONDS = 6  # of a machine that is busy; by default an edit's place would be held for 360
CLAIM_BYTES = 4_000  # a claim's request is smaller than that, an image's larger


@dataclass(frozen=True)
class Pair:
    """Two replicas with one bucket; the line of the first one to it can be made worse."""

    doomed: Gateway
    line: Proxy
    other: Gateway
    bucket: ObjectStore

    def holds_images(self) -> bool:
        names = [part.partition("</Key>")[0] for part in self.bucket.names().split("<Key>")]
        return any(name.startswith("replicas/") and name.endswith(".png") for name in names)


@pytest.fixture(scope="module")
def replicas(
    one_server: Server,
    start_gateway: StartGateway,
    start_proxy: Callable[[int], Proxy],
    bucket: ObjectStore,
) -> Pair:
    line = start_proxy(httpx.URL(bucket.url).port or 80)

    def start(port: int) -> Gateway:
        return start_gateway(
            one_server.address,
            store=f"s3://{bucket.bucket}/replicas",
            variables=ObjectStore(f"http://127.0.0.1:{port}").variables,
            TIMEOUT=str(BUDGET),
            BODY_TIMEOUT=str(BODY_SECONDS),
            TTL=str(TTL),
        )

    return Pair(start(line.port), line, start(line.target), bucket)


@pytest.fixture
def pair(replicas: Pair, server: Server) -> Iterator[Pair]:
    for gateway in (replicas.doomed, replicas.other):
        if gateway.process.poll() is not None:
            gateway.start()
        gateway.wait_ready()
    yield replicas
    replicas.line.heal()


def sent_until_done(gateway: Gateway, headers: Mapping[str, str]) -> list[Caller]:
    """Those who send an edit again and again, as they are told, until one has it."""
    callers: list[Caller] = []

    def done() -> bool:
        callers.append(Caller(gateway.url, SENT, headers))
        if callers[-1].end() != 200:
            assert int(callers[-1].headers["retry-after"]) >= 1
        return callers[-1].end() == 200

    wait_for(done, CLAIM_SECONDS + REACHED_SECONDS, "an edit that is done")
    return callers


def test_it_is_killed_in_an_edit(pair: Pair, server: Server) -> None:
    """Its servers hear of it at once."""
    before = server.metric("retouch_server_edits_total", outcome="cancelled")
    callers = [
        Caller(pair.doomed.url, body(128, 100, stream=streamed)) for streamed in (False, True)
    ]
    wait_for(lambda: callers[1].saw("step"), REACHED_SECONDS, "a step")
    wait_for(lambda: under_way(server) == 2, REACHED_SECONDS, "both under way")
    pair.doomed.kill()
    assert all(isinstance(caller.end(), str) for caller in callers)
    wait_for(lambda: under_way(server) == 0, REACHED_SECONDS, "its slots are free")
    assert server.metric("retouch_server_edits_total", outcome="cancelled") - before == 2


def test_it_is_killed_between_storing_and_replying(pair: Pair, server: Server) -> None:
    before = ended(server)
    pair.line.cut(pair.line.up, Then.HOLD, after=CLAIM_BYTES)
    caller = Caller(pair.doomed.url, SENT, KEPT)
    wait_for(lambda: pair.line.up.held, REACHED_SECONDS, "the image on its way")
    assert Caller(pair.other.url, SENT, KEPT).end() == 409
    pair.line.cut(pair.line.down, Then.HOLD)
    pair.line.cut(pair.line.up, Then.HOLD, after=10**9)
    wait_for(pair.holds_images, REACHED_SECONDS, "the image stored")
    pair.doomed.kill()
    assert isinstance(caller.end(), str)

    # Nobody knows whether it was done. The claim of the dead ends by itself; then the edit is made anew, once.
    *refused, again = sent_until_done(pair.other, KEPT)
    assert {caller.status for caller in refused} <= {409}
    assert ended(server) - before == 2
    replayed = Caller(pair.other.url, SENT, KEPT)
    assert replayed.end() == 200
    assert replayed.lines == again.lines
    assert ended(server) - before == 2
    # The image that nobody has the URL of goes with its time, as the other does.
    wait_for(lambda: not pair.holds_images(), TTL * 2 + REACHED_SECONDS, "swept")


def test_it_is_killed_after_its_reply_was_kept(pair: Pair, server: Server) -> None:
    before = ended(server)
    first = Caller(pair.doomed.url, SENT, {"idempotency-key": "twice"})
    assert first.end() == 200
    wait_for(lambda: _replays(pair.doomed, first), REACHED_SECONDS, "kept")
    pair.doomed.kill()
    assert _replays(pair.other, first)
    assert ended(server) - before == 1


def _replays(gateway: Gateway, first: Caller) -> bool:
    again = Caller(gateway.url, SENT, {"idempotency-key": "twice"})
    if again.end() == 409:  # it is kept just after it is sent
        return False
    assert again.lines == first.lines
    return again.headers["idempotent-replayed"] == "true"


# Redis.


@pytest.fixture(scope="module")
def redis_port(place: Path) -> Iterator[int]:
    program = shutil.which("redis-server")
    if not program:
        pytest.skip("redis-server is not installed: scripts/ci-tools installs it on Debian")
    port = free_port()
    command = [program, "--bind", "127.0.0.1", "--save", "", "--port", str(port)]
    with subprocess.Popen(command, cwd=place, stdout=subprocess.DEVNULL) as process:
        yield port
        process.kill()


@dataclass(frozen=True)
class Limited:
    """One edit at once for a caller, as a Redis says whose line can be made worse."""

    gateway: Gateway
    line: Proxy


@pytest.fixture(scope="module")
def one_limited(
    one_server: Server,
    start_gateway: StartGateway,
    start_proxy: Callable[[int], Proxy],
    redis_port: int,
) -> Limited:
    line = start_proxy(redis_port)
    gateway = start_gateway(
        one_server.address,
        LIMITS_STORE=f"redis://127.0.0.1:{line.port}",
        RATE_LIMIT="100000/minute",
        CONCURRENCY="1",
    )
    return Limited(gateway, line)


@pytest.fixture
def limited(one_limited: Limited, server: Server) -> Iterator[Limited]:
    one_limited.gateway.wait_ready()
    wait_for(lambda: degraded(one_limited) == 0, REACHED_SECONDS, "Redis found")
    redis = one_limited.line.target
    yield one_limited
    one_limited.line.target = redis
    one_limited.line.heal()


def degraded(limited: Limited) -> float:
    return limited.gateway.metric("retouch_gateway_limits_degraded")


@pytest.mark.parametrize("fault", ["breaks", "holds", "is not there", "crawls"])
def test_the_line_to_redis(limited: Limited, fault: str) -> None:
    """No edit is refused for it, and one at once is still one at once."""
    if fault == "breaks":
        limited.line.silent = True  # or a new connection would mend it unseen
        limited.line.drop()
    elif fault == "holds":
        limited.line.cut(limited.line.down, Then.HOLD)
    elif fault == "is not there":
        redis, limited.line.target = limited.line.target, free_port()
        limited.line.drop()
    else:
        limited.line.slow(limited.line.down, delay=2)
    first = Caller(limited.gateway.url, body(64, 5, stream=True))
    assert first.end() == 200
    assert degraded(limited) == 1
    running = Caller(limited.gateway.url, body(128, 30, stream=True))
    wait_for(lambda: running.saw("queued"), REACHED_SECONDS, "an edit under way")
    assert Caller(limited.gateway.url, body()).end() == 429
    assert running.end() == 200
    if fault == "is not there":
        limited.line.target = redis
    limited.line.heal()
    wait_for(lambda: degraded(limited) == 0, REACHED_SECONDS, "back with Redis")
    assert Caller(limited.gateway.url, body()).end() == 200


def test_what_a_dead_gateway_held_is_free_again(
    server: Server, start_gateway: StartGateway, redis_port: int
) -> None:
    """Once its edits would be over: after the longest that they may take."""
    doomed, other = (
        start_gateway(
            server.address,
            LIMITS_STORE=f"redis://127.0.0.1:{redis_port}",
            CONCURRENCY="1",
            TIMEOUT=str(BUDGET),
            BODY_TIMEOUT=str(BODY_SECONDS),
        )
        for _ in range(2)
    )
    for gateway in (doomed, other):
        gateway.wait_ready()
    caller = Caller(doomed.url, body(128, 100, stream=True))
    wait_for(lambda: caller.saw("queued"), REACHED_SECONDS, "an edit under way")
    doomed.process.send_signal(signal.SIGKILL)
    doomed.process.wait()
    killed = time.monotonic()
    assert isinstance(caller.end(), str)
    first, *refused, _ = sent_until_done(other, {})
    assert time.monotonic() - killed < BUDGET + BODY_SECONDS + SLACK_SECONDS
    assert first.status == 429
    assert {caller.status for caller in refused} <= {429}
    other.kill()
