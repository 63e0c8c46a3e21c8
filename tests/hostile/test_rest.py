"""A hundred thousand requests to the REST tier: each is answered as it should be, and nothing is left of them.

A tenth is sent first; what the processes hold then is what they may hold at the end.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial

import pytest

from tests.hostile import bodies, heads, tokens
from tests.hostile.conftest import CANARY, SIGNING_KEY, Tiers
from tests.hostile.report import LONG, Report
from tests.hostile.tiers import Held, within
from tests.hostile.wire import Asked, Misbehaved, Tally, flood

pytestmark = pytest.mark.timeout(3000 if LONG else 1200)
Make = Callable[[int, int], Iterator[Asked]]
COUNTS = {
    "json": 30_000,
    "form": 10_000,
    "picture": 8_000,
    "path": 18_000,
    "headers": 10_000,
    "method": 6_000,
    "token": 16_000,
    "key": 6_000,
}
TIMES = 10 if LONG else 1
# What may be more at the end than after a tenth. Descriptors and tasks: connections to the server, what is under way.
# Memory: a gateway's grows by 10 MiB; if each request left 200 bytes it would be 18 more. A server's by 4 to 50:
# kernels for shapes that it has not had before.
MORE = {
    "server": Held(mebibytes=96, descriptors=4, threads=24, tasks=4, objects=8000),
    "gateway": Held(mebibytes=20, descriptors=4, threads=24, tasks=4, objects=8000),
    "gateway-locked": Held(mebibytes=20, descriptors=4, threads=24, tasks=4, objects=8000),
}


@dataclass
class Campaign:
    """All of it, done. `wrong`: by kind, the first answer that should not be."""

    tally: Tally
    wrong: dict[str, str] = field(default_factory=dict)
    first: list[Held] = field(default_factory=list)
    last: list[Held] = field(default_factory=list)
    # What the gateways' own metrics say was answered meanwhile, by status.
    counted: Counter[int] = field(default_factory=Counter)
    seconds: float = 0.0


def makers(tiers: Tiers) -> Mapping[str, Make]:
    one, other = (tiers.edit(tiers.gateway) for _ in range(2))
    key = SIGNING_KEY.encode()
    return {
        "json": bodies.jsons,
        "form": bodies.forms,
        "picture": bodies.pictured,
        "path": heads.paths,
        "headers": lambda count, seed: heads.headers(count, seed, one),
        "method": heads.methods,
        "token": lambda count, seed: tokens.forged(count, seed, one, other, key),
        "key": heads.unknown_keys,
    }


def send(tiers: Tiers, campaign: Campaign, made: Mapping[str, Make], share: float) -> None:
    """That share of each kind's count."""
    for kind, make in made.items():
        port = (tiers.locked if kind == "key" else tiers.gateway).port
        requests = make(int(COUNTS[kind] * TIMES * share), round(share * 100))
        try:
            asyncio.run(flood(port, requests, campaign.tally))
        except* Misbehaved as wrong:
            campaign.wrong.setdefault(kind, str(_first(wrong)))


def _first(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group


def counts(tiers: Tiers) -> Counter[int]:
    found: Counter[int] = Counter()
    for tier in (tiers.gateway, tiers.locked):
        found += tier.by_label("retouch_gateway_requests_total", "code")
    return found


@pytest.fixture(scope="module")
def campaign(tiers: Tiers, report: Report) -> Campaign:
    done = Campaign(Tally(secrets=[CANARY]))
    made, before, began = makers(tiers), counts(tiers), time.monotonic()
    send(tiers, done, made, 0.1)
    done.first = [tier.settled() for tier in tiers]
    send(tiers, done, made, 0.9)
    done.seconds = time.monotonic() - began
    done.last = [
        tier.settled(60, partial(within, MORE[tier.name], first))
        for tier, first in zip(tiers, done.first, strict=True)
    ]
    done.counted = counts(tiers) - before
    report.note(
        "requests",
        total=done.tally.total,
        seconds=round(done.seconds, 1),
        slowest=round(done.tally.slowest, 2),
        connections=done.tally.connections,
        **done.tally.answered,
        statuses=dict(sorted(done.tally.statuses.items())),
    )
    for tier, first, last in zip(tiers, done.first, done.last, strict=True):
        report.note(tier.name, first=asdict(first), last=asdict(last))
    return done


@pytest.mark.parametrize("kind", COUNTS)
def test_every_answer_is_as_it_should_be(campaign: Campaign, kind: str) -> None:
    assert kind not in campaign.wrong, campaign.wrong[kind]
    assert campaign.tally.answered[kind] >= COUNTS[kind] * TIMES


def test_as_many_as_were_promised(campaign: Campaign) -> None:
    assert campaign.tally.total >= 100_000


def test_the_gateways_counted_them_all(campaign: Campaign) -> None:
    """What was sent again behind a closed connection may have been counted: as refused, or as its caller's leaving."""
    for status, answered in campaign.tally.statuses.items():
        assert campaign.counted[status] >= answered
    not_ready = campaign.tally.statuses[503]
    assert (
        sum(campaign.counted[status] for status in campaign.counted if status >= 500) >= not_ready
    )
    assert not [status for status in campaign.counted if status >= 500 and status != 503]


def test_nobody_died_and_nothing_grew(campaign: Campaign, tiers: Tiers) -> None:
    for tier, first, last in zip(tiers, campaign.first, campaign.last, strict=True):
        assert tier.process.poll() is None
        assert within(MORE[tier.name], first, last), f"{tier.name}: from {first} to {last}"


def test_an_edit_is_done_after_all_that(campaign: Campaign, tiers: Tiers) -> None:
    assert tiers.edit(tiers.gateway, n=b"2").endswith(".png")
    assert tiers.edit(tiers.locked).endswith(".png")
    assert tiers.server.metric("retouch_server_queued") == 0
    assert tiers.gateway.metric("retouch_gateway_in_flight") == 0


def test_the_logs_are_lines_of_json_without_tracebacks_and_secrets(
    campaign: Campaign, tiers: Tiers
) -> None:
    for tier in tiers:
        log = tier.log.read_text()
        for word in ("Traceback", "Warning:", SIGNING_KEY, CANARY.decode()):
            assert word not in log, log[max(0, log.index(word) - 2000) :][:4000]
        for line in log.splitlines():
            assert json.loads(line)["level"] in ("INFO", "WARNING"), line
