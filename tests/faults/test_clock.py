"""The wall clock jumps under a gateway: URLs, keys, limits, claims and the sweep."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from bench.cluster.tiers import Gateway, Server
from tests.faults.callers import Caller, body
from tests.faults.conftest import REACHED_SECONDS, StartGateway
from tests.run_up import wait_for

TTL = 24  # so that it sweeps every 6 s
RATE = 20  # edits a minute
HOURS = 3600 * 2
KEY, SHORT_KEY = "rt_for-as-long-as-there-are-clocks", "rt_for-an-hour"
BY_URL = body(response_format="url")


@dataclass(frozen=True)
class Clocked:
    """A gateway whose clock is wrong by as many seconds as it is told."""

    gateway: Gateway
    file: Path

    def wrong_by(self, seconds: float) -> None:
        fresh = self.file.with_suffix(".new")
        fresh.write_text(str(seconds))
        fresh.replace(self.file)

    def edit(self, key: str = KEY, **headers: str) -> Caller:
        return Caller(self.gateway.url, BY_URL, {"authorization": f"Bearer {key}", **headers})

    def hosted(self) -> str:
        caller = self.edit()
        assert caller.end() == 200
        return str(caller.json["data"][0]["url"])

    def status(self, url: str) -> int:
        return httpx.get(url, trust_env=False, timeout=30).status_code


@pytest.fixture(scope="module")
def one_clocked(one_server: Server, start_gateway: StartGateway, place: Path) -> Clocked:
    keys = place / "keys.toml"
    ends = datetime.now(UTC) + timedelta(hours=1)
    entries = {
        "ada": (KEY, f'rate_limit = "{RATE}/minute"'),
        "bob": (SHORT_KEY, f"expires = {ends:%Y-%m-%dT%H:%M:%SZ}"),
    }
    keys.write_text(
        "\n".join(
            f'[[keys]]\nid = "{name}"\nhash = "sha256:{hashlib.sha256(key.encode()).hexdigest()}"\n{more}'
            for name, (key, more) in entries.items()
        )
    )
    injected = str(Path(__file__).with_name("clock"))
    paths = [injected, *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {"TESTS_CLOCK": str(place / "clock"), "PYTHONPATH": os.pathsep.join(paths)}
    gateway = start_gateway(
        one_server.address, variables=variables, KEYS=str(keys), TTL=str(TTL), TIMEOUT="60"
    )
    return Clocked(gateway, place / "clock")


@pytest.fixture
def clocked(one_clocked: Clocked, server: Server) -> Iterator[Clocked]:
    one_clocked.wrong_by(0)
    one_clocked.gateway.wait_ready()
    yield one_clocked
    one_clocked.wrong_by(0)


def test_a_url_lives_by_the_clock(clocked: Clocked) -> None:
    url = clocked.hosted()
    clocked.wrong_by(HOURS)
    assert clocked.status(url) == 410
    assert clocked.status(clocked.hosted()) == 200  # whatever its hour, an hour is an hour
    clocked.wrong_by(-HOURS)
    assert clocked.status(url) == 200
    assert clocked.status(clocked.hosted()) == 200


def test_a_key_expires_by_the_clock(clocked: Clocked) -> None:
    for wrong, status in ((0, 200), (HOURS, 401), (-HOURS, 200)):
        clocked.wrong_by(wrong)
        assert clocked.edit(SHORT_KEY).end() == status


def test_a_jump_there_and_back_sweeps_nothing(clocked: Clocked) -> None:
    log = clocked.gateway.log
    url = clocked.hosted()
    before = log.read_text().count("the clock has jumped")
    # As no other test's clock is: the last sweep may have seen theirs, for which this would be no jump.
    clocked.wrong_by(2 * HOURS)
    wait_for(lambda: log.read_text().count("the clock has jumped") > before, TTL, "noticed")
    clocked.wrong_by(0)
    assert clocked.status(url) == 200


def test_a_clock_that_stays_wrong_is_believed(clocked: Clocked) -> None:
    swept = clocked.gateway.metric("retouch_gateway_swept_images_total")
    clocked.hosted()
    clocked.wrong_by(HOURS)
    wait_for(
        lambda: clocked.gateway.metric("retouch_gateway_swept_images_total") > swept,
        REACHED_SECONDS,
        "swept, as of a clock that has been set right",
    )


def test_nobody_is_refused_until_the_clock_is_there_again(clocked: Clocked) -> None:
    clocked.wrong_by(HOURS)
    outcomes = [clocked.edit().end() for _ in range(RATE + 1)]
    assert outcomes[-1] == 429
    clocked.wrong_by(0)
    assert clocked.edit().end() == 200


@pytest.mark.parametrize("wrong", [HOURS, -HOURS])
def test_an_edit_with_a_key_outlives_a_jump(clocked: Clocked, wrong: float) -> None:
    """It is done once, whatever the time, and its repeat gets an answer: the same one, or a new one."""
    name = f"jump-{wrong}-{time.monotonic()}"
    first = clocked.edit(**{"idempotency-key": name})
    clocked.wrong_by(wrong)
    assert first.end() == 200
    wait_for(
        lambda: clocked.edit(**{"idempotency-key": name}).end() == 200, REACHED_SECONDS, "answered"
    )
