"""A server is killed, stands still or is restarted, with edits in every phase: what each caller got."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from bench.cluster.tiers import Gateway, Server
from tests.faults.callers import Caller, body
from tests.faults.conftest import BUDGET, SLOTS, Path, StartGateway
from tests.faults.ledger import Ledger, ended, ledger, under_way
from tests.faults.proxy import Proxy, Then
from tests.run_up import wait_for

REACHED_SECONDS = 60.0
LONG = body(128, 60)  # longer than it takes to have an edit in every phase
PING_SECONDS = 9.0  # gRPC gives a line up on which a ping has had no answer for 10
ONCE = ("x-should-retry", "false")
SOON = ("retry-after", "1")
BEGUN = {"answering", "stepping", "stepping, streamed", "queued", "queued, streamed"}


@dataclass(frozen=True)
class Ways:
    """Gateways to one server: over a line of its own, and two whose lines can be made worse."""

    straight: Gateway
    uploading: Gateway
    upload: Proxy
    answering: Gateway
    answer: Proxy

    @property
    def gateways(self) -> tuple[Gateway, ...]:
        return self.straight, self.uploading, self.answering

    def heal(self) -> None:
        self.upload.heal()
        self.answer.heal()


@pytest.fixture(scope="module")
def all_ways(
    one_server: Server, start_gateway: StartGateway, start_proxy: Callable[[int], Proxy]
) -> Ways:
    port = int(one_server.address.rpartition(":")[2])
    upload, answer = start_proxy(port), start_proxy(port)
    straight = start_gateway(one_server.address)
    others = [start_gateway(f"127.0.0.1:{each.port}") for each in (upload, answer)]
    return Ways(straight, others[0], upload, others[1], answer)


@pytest.fixture
def ways(all_ways: Ways, server: Server) -> Iterator[Ways]:
    # Over connections that were never held: of one that was, the kernel may remember for how long.
    all_ways.upload.drop()
    all_ways.answer.drop()
    for gateway in all_ways.gateways:
        gateway.wait_ready()
        wait_for(lambda each=gateway: serves(each), REACHED_SECONDS, "a new line")  # type: ignore[misc]
    yield all_ways
    all_ways.heal()


def serves(gateway: Gateway) -> bool:
    return Caller(gateway.url, body()).end() == 200


@contextlib.contextmanager
def at_every_phase(ways: Ways, server: Server) -> Iterator[Ledger]:
    """One edit in each phase, by its name. What is held back on the lines is until they are healed."""
    with ledger(server, *ways.gateways) as kept:
        # Its first bytes say that it was accepted. Of so large an answer HTTP/2 lets no server send all at once.
        ways.answer.cut(ways.answer.down, Then.HOLD, after=500)
        kept.call("answering", ways.answering, body(512))
        wait_for(lambda: ways.answer.down.held, REACHED_SECONDS, "an answer on its way")
        ways.upload.cut(ways.upload.up, Then.HOLD, after=20_000)
        kept.call("uploading", ways.uploading, body(256))
        wait_for(lambda: ways.upload.up.held, REACHED_SECONDS, "a request on its way")

        kept.call("stepping", ways.straight, LONG)
        kept.call("stepping, streamed", ways.straight, LONG | {"stream": True})
        wait_for(lambda: kept["stepping, streamed"].saw("step"), REACHED_SECONDS, "a step")
        wait_for(lambda: under_way(server) == SLOTS, REACHED_SECONDS, "no slot free")
        kept.call("queued", ways.straight, body())
        kept.call("queued, streamed", ways.straight, body(stream=True))
        wait_for(lambda: kept["queued, streamed"].saw("queued"), REACHED_SECONDS, "a place")
        wait_for(lambda: under_way(server) == SLOTS + 2, REACHED_SECONDS, "both queued")
        yield kept


def held_back(began: float) -> set[int]:
    """What an answer that was held on its way since then may come to."""
    return {200} if time.monotonic() - began < PING_SECONDS else {200, 502}


def start_again(server: Server, ways: Ways, kept: Ledger) -> None:
    """And an edit through each gateway."""
    server.start()
    server.wait_ready()
    ways.heal()
    for gateway in ways.gateways:
        gateway.wait_ready()
        assert kept.call(f"after, by {gateway.port}", gateway, body()).end() == 200


def test_a_server_is_killed(ways: Ways, server: Server) -> None:
    with at_every_phase(ways, server) as kept:
        server.kill()
        ways.heal()
        # 503: nothing had begun, so gRPC asked again, and nobody was there. 502: it had, and the next may die of it.
        outcomes = kept.outcomes()
        assert outcomes.pop("answering") in (200, 502)  # all of it may have been on its way
        assert outcomes == {"uploading": 503} | dict.fromkeys(BEGUN - {"answering"}, 502)
        assert SOON in kept["uploading"].headers.items()
        for phase in ("stepping", "queued"):
            assert ONCE in kept[phase].headers.items()
        start_again(server, ways, kept)


def test_a_server_stands_still_for_a_while(ways: Ways, server: Server) -> None:
    before, began = ended(server), time.monotonic()
    with at_every_phase(ways, server) as kept:
        server.process.send_signal(signal.SIGSTOP)
        kept.call("connecting", ways.straight, body()).join(1)
        assert kept["connecting"].is_alive()
        server.process.send_signal(signal.SIGCONT)
        ways.heal()
        answered = held_back(began)
        outcomes = kept.outcomes()
        assert outcomes.pop("answering") in answered
        assert set(outcomes.values()) == {200}
    assert ended(server) - before == len(kept.callers)


def test_a_server_is_restarted(ways: Ways, server: Server) -> None:
    began = time.monotonic()
    with at_every_phase(ways, server) as kept:
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: not ways.straight.ready(), REACHED_SECONDS, "no server ready")
        refused = kept.call("late", ways.straight, body())
        assert refused.end() == 503
        assert SOON in refused.headers.items()
        ways.answer.heal()
        answered = held_back(began)
        assert kept["answering"].end() in answered
        for phase in BEGUN - {"answering"}:
            assert kept[phase].end() == 200, phase
        assert kept["uploading"].end() == 503
        assert SOON in kept["uploading"].headers.items()
        assert server.process.wait(60) == 0
        start_again(server, ways, kept)


def test_a_server_that_never_goes_on_costs_the_budget(path: Path, server: Server) -> None:
    before = ended(server)
    with ledger(server, path.gateway) as kept:
        path.begin(kept, LONG)
        server.process.send_signal(signal.SIGSTOP)
        kept.call("late", path.front, body())
        assert set(kept.outcomes().values()) == {504}
        for caller in kept.callers.values():
            assert BUDGET * 0.9 < caller.seconds < BUDGET * 1.5
        assert ONCE in kept["whole"].headers.items()
        server.process.send_signal(signal.SIGCONT)
        wait_for(lambda: under_way(server) == 0, REACHED_SECONDS, "nothing goes on")
        assert (
            2 <= ended(server) - before <= 3
        )  # it may read what came meanwhile, and finds it late
        assert server.metric("retouch_server_edits_total", outcome="expired") >= 2
        assert kept.call("afterwards", path.front, body()).end() == 200


if os.environ.get("RETOUCH_TESTS_LONG") == "1":  # it takes a minute

    def test_a_server_that_never_goes_on_is_given_up(ways: Ways, server: Server) -> None:
        """By gRPC's pings, long before the budget of 300 s; what has begun is lost, what has not is tried again."""
        with ledger(server, ways.straight) as kept:
            kept.call("stepping", ways.straight, LONG | {"stream": True})
            wait_for(lambda: kept["stepping"].saw("step"), REACHED_SECONDS, "a step")
            server.process.send_signal(signal.SIGSTOP)
            kept.call("late", ways.straight, body())
            assert kept.outcomes() == {"stepping": 502, "late": 503}
            assert max(caller.seconds for caller in kept.callers.values()) < 60
            server.process.send_signal(signal.SIGCONT)
            ways.straight.wait_ready()


def test_a_server_is_killed_as_edits_begin_and_end(ways: Ways, server: Server) -> None:
    with ledger(server, ways.straight) as kept:
        kept.call("decoding", ways.straight, body(128, 20, stream=True))
        wait_for(lambda: kept["decoding"].saw('step {"image_index":0,"step":20'), 60, "all steps")
        kept.call("encoding", ways.straight, body(256, 20, stream=True))
        wait_for(lambda: kept["encoding"].saw("queued"), REACHED_SECONDS, "accepted")
        server.kill()
        assert kept["decoding"].end() in (200, 502)  # it may have been done
        assert kept["encoding"].end() == 502
        server.start()
        server.wait_ready()
        ways.straight.wait_ready()
        assert kept.call("afterwards", ways.straight, body()).end() == 200
