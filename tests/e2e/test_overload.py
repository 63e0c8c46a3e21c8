"""Ten times what both real tiers can do: what callers see, what it costs, and what the counters say of it."""

import asyncio
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest

from bench.overload import DONE, QUEUE, REFUSED, TIMES, Callers, Load, Tiers, inside, tiers

STEPS = 24  # enough that ten times as many edits are few requests for the machine that all of this runs on
SECONDS = 4
ASKED = 120
# MiB that a tier may have gained in an overload: far less than what was offered would take.
GROWTH = 150
OUTCOMES = ("done", "failed", "cancelled", "expired", "blocked")


@pytest.fixture(scope="module")
def both() -> Iterator[Tiers]:
    with tiers() as started:
        yield started


@pytest.mark.parametrize("way", ["rest", "direct"])
def test_ten_times_what_can_be_done(both: Tiers, way: str) -> None:
    asyncio.run(overload(both, way))


async def overload(both: Tiers, way: str) -> None:
    async with Callers(both, side=64, steps=STEPS) as callers:
        ask = getattr(callers, way)
        await callers.full(ask, 2, 1)
        quiet = statistics.median((await callers.full(ask, 1, 2)).times(DONE))
        full = await callers.full(ask, QUEUE, SECONDS)
        before = told(both)
        rate = TIMES * full.rate
        load = await callers.tenfold(ask, rate, max(SECONDS, ASKED / rate))
        await settled(both)
        assert set(full.counts) == {DONE}
        answered_once_each(load, told(both) - before, way)
        # Whoever is let in waits no longer for all who are not.
        slow = statistics.median(load.times(DONE)) / statistics.median(full.times(DONE))
        assert slow < 3, f"{slow:.1f} times as long"
        for tier, most in load.memory.items():
            assert most < full.memory[tier] + GROWTH, tier
        assert await callers.recovered(quiet) < 30 + 20 * quiet
    refused_at_once(both, load, way)


def told(both: Tiers) -> Counter[str]:
    """What the tiers have counted so far."""
    server, gateway = both.server.metric, both.gateway.metric
    edits = "retouch_server_edits_total"
    counts = {
        "accepted": server("retouch_server_edits_accepted_total"),
        "ended": sum(server(edits, outcome=outcome) for outcome in OUTCOMES),
        "done": server(edits, outcome="done"),
        "refused": server(
            "retouch_server_requests_total", method="Edit", code="RESOURCE_EXHAUSTED"
        ),
        "calls": server("retouch_server_requests_total", method="Edit"),
        "200": gateway("retouch_gateway_requests_total", route="/v1/images/edits", code="200"),
        "429": gateway("retouch_gateway_requests_total", route="/v1/images/edits", code="429"),
        "answers": gateway("retouch_gateway_requests_total", route="/v1/images/edits"),
    }
    return Counter({name: round(count) for name, count in counts.items()})


async def settled(both: Tiers) -> None:
    """Until nothing is under way: a call is counted when it is over, a moment after its answer."""
    for _ in range(400):
        if not both.server.metric("retouch_server_calls"):
            return
        await asyncio.sleep(0.05)
    raise AssertionError("calls are still under way")


def answered_once_each(load: Load, counted: Counter[str], way: str) -> None:
    asked, done, refused = len(load.answers), load.counts[DONE], load.counts[REFUSED]
    assert set(load.counts) == {DONE, REFUSED}
    assert refused > asked / 2
    by_gateway = {"200": done, "429": refused, "answers": asked} if way == "rest" else {}
    by_server = {"accepted": done, "ended": done, "done": done, "refused": refused, "calls": asked}
    assert counted == Counter(by_gateway | by_server)


def refused_at_once(both: Tiers, load: Load, way: str) -> None:
    """Nine of ten within 50 ms inside either tier; or, on a machine so slow, as fast as a probe that does nothing."""
    most = max(0.05, 5 * _nine_of_ten(load.healthz))
    assert _nine_of_ten(inside(both.server, code="RESOURCE_EXHAUSTED")) < most
    if way == "rest":
        assert _nine_of_ten(inside(both.gateway, route="/v1/images/edits", status=429)) < most


def _nine_of_ten(seconds: Sequence[float]) -> float:
    return statistics.quantiles(seconds, n=10)[-1]
