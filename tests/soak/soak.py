"""The soak itself: rounds of callers, and a look at everything in the quiet after each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from random import Random

from bench.local import total
from retouch_gateway.limits import REDIS_AT_ONCE
from tests.keys import keys_of
from tests.soak import direct, rest, trouble, watch
from tests.soak.accounts import Accounts, Books, mistakes
from tests.soak.caller import Caller, opened
from tests.soak.ledger import Ledger
from tests.soak.tiers import GUEST, KEYS, Stack
from tests.soak.watch import Peaks, Point

CALLERS = 6
# After an answer: connections are closed, threads of pools end, memory is given back.
SETTLE_SECONDS = 2.5
QUIET_SECONDS = 120.0
KEYS_SECONDS = 1.5
# Of callers, before a look; and how many rounds there are on a machine so slow that each takes very long to end.
ROUND_SECONDS, LEAST_ROUNDS = 45.0, 6

Scenario = Callable[[Caller], Awaitable[None]]
Deck = Iterator[Scenario]
# What callers do, and how often.
SCENARIOS: Mapping[Scenario, int] = {
    rest.in_json: 8,
    rest.by_url: 8,
    rest.in_a_form: 5,
    rest.streamed: 5,
    rest.once: 3,
    rest.come_late: 2,
    rest.look_around: 6,
    trouble.mistaken: 8,
    trouble.no_edit_at_all: 5,
    trouble.blocked: 3,
    trouble.a_guest: 3,
    trouble.beyond_own_limits: 2,
    trouble.a_crowd: 1,
    trouble.big_bodies: 1,
    trouble.no_http: 1,
    trouble.dawdle: 1,
    trouble.leave: 10,
    direct.edited: 4,
    direct.streamed: 3,
    direct.cancelled: 4,
    direct.left: 3,
    direct.late: 4,
    direct.gone: 1,
    direct.mistaken: 3,
    direct.looked_around: 1,
}


@dataclass
class Soak:
    """What came of it: a point for each round, what did not add up after one, and what is in the logs."""

    ledger: Ledger
    peaks: Mapping[str, float]
    points: list[Point] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)
    accounts: Accounts = field(init=False)
    complaints: Mapping[str, list[str]] = field(init=False)


def soak(stack: Stack, seconds: float, seed: int, tell: Callable[[Soak], object]) -> Soak:
    """Rounds of all scenarios, in an order drawn from `seed`, for `seconds` or a little more.

    `tell` is called after each round.
    """
    ledger, opening = Ledger(), Books.of(stack)
    with Peaks(stack) as peaks:
        came = Soak(ledger, peaks.most)
        asyncio.run(_fill(stack, ledger))
        started, deck = time.monotonic(), _deck(Random(seed))
        while len(came.points) < LEAST_ROUNDS or time.monotonic() < started + seconds:
            random = Random(seed + len(came.points))
            asyncio.run(_round(stack, ledger, random, deck, min(ROUND_SECONDS, seconds / 12)))
            watch.wait_until_quiet(stack, QUIET_SECONDS)
            wrong = asyncio.run(_alone(stack, ledger))
            time.sleep(SETTLE_SECONDS)
            came.points.append(watch.look(stack, time.monotonic() - started))
            came.accounts = Accounts(opening, Books.of(stack), ledger)
            wrong += mistakes(came.accounts, stack)
            came.mistakes += [f"round {len(came.points)}: {line}" for line in wrong]
            tell(came)
    came.complaints = {tier.name: tier.complaints for tier in stack.tiers}
    return came


async def _fill(stack: Stack, ledger: Ledger) -> None:
    """The largest forwards, and the most at once, first: heaps and pools are then as large as they will be."""
    async with opened(stack, ledger) as shared:
        caller = Caller(shared, Random(0))
        large = caller.body(n=4, size="256x256", num_inference_steps=1, guidance_scale=3.0)
        await caller.edit(large)
        for tier in stack.gateways:
            small = caller.body(n=1, size="64x64")
            await asyncio.gather(
                *(caller.edit(small, key="bob", gateway=tier) for _ in range(REDIS_AT_ONCE))
            )


async def _alone(stack: Stack, ledger: Ledger) -> list[str]:
    """What is wrong with some edits for which there is all the room, of callers who stay: each is done, once."""
    before, images = _done(stack), 2
    async with opened(stack, ledger) as shared:
        caller = Caller(shared, Random(0))
        body = caller.body(n=images, size="64x64", num_inference_steps=1, model="pocket")
        answers = [await caller.edit(body, gateway=tier) for tier in stack.gateways]
        done = _done(stack) - before
    if all(answers) and done == images * len(answers):
        return []
    return [f"alone {[bool(each) for each in answers]} were let in, {done:g} images done"]


def _done(stack: Stack) -> float:
    return total(stack.server.metrics(), "retouch_server_edits_total", outcome="done")


async def _round(stack: Stack, ledger: Ledger, random: Random, deck: Deck, seconds: float) -> None:
    end = time.monotonic() + seconds
    async with opened(stack, ledger) as shared, asyncio.TaskGroup() as callers:
        for _ in range(CALLERS):
            callers.create_task(_call(Caller(shared, Random(random.random())), deck, end))
        callers.create_task(_change_keys(stack, random, end))


def _deck(random: Random) -> Deck:
    """All scenarios, each as often as it weighs, shuffled; and again, so that none is left out for long."""
    while True:
        cards = [scenario for scenario, weight in SCENARIOS.items() for _ in range(weight)]
        random.shuffle(cards)
        yield from cards


async def _call(caller: Caller, deck: Deck, end: float) -> None:
    while time.monotonic() < end:
        scenario = next(deck)
        name = f"{scenario.__module__.rpartition('.')[2]}.{scenario.__name__}"
        started = time.monotonic()
        await scenario(caller)
        took, ledger = time.monotonic() - started, caller.ledger
        ledger.scenarios[name] += 1
        ledger.longest[name] = max(took, ledger.longest.get(name, 0))


async def _change_keys(stack: Stack, random: Random, end: float) -> None:
    """One key comes and goes; now and then the file has a mistake for a while."""
    while time.monotonic() < end:
        kind = random.choice(("with", "without", "broken"))
        text = keys_of(KEYS | GUEST if kind == "with" else KEYS)
        stack.keys.write_text("[[keys" if kind == "broken" else text)
        await asyncio.sleep(KEYS_SECONDS * (0.5 + random.random()))
    stack.keys.write_text(keys_of(KEYS))
    await asyncio.sleep(KEYS_SECONDS * 2)
