"""A server and two gateways, one of which wants keys, for this folder's tests; and the report of what they found."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest

from tests.hostile.bodies import JSON, ROUTE, good, written
from tests.hostile.report import Report
from tests.hostile.tiers import Tier

SIGNING_KEY = "a signing key for the tests"
API_KEY = "rt_of_the_tests"
# In files that no route may show.
CANARY = b"a canary that nobody may see"
BODY_SECONDS = 8


_FOUND = pytest.StashKey[Report]()


@pytest.fixture(scope="session")
def report(pytestconfig: pytest.Config) -> Iterator[Report]:
    found = pytestconfig.stash[_FOUND] = Report()
    yield found
    found.write()


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if found := config.stash.get(_FOUND, None):
        terminalreporter.section("hostile input")
        for line in found.lines():
            terminalreporter.write_line(line)


@dataclass(frozen=True)
class Tiers:
    """`gateway` is open to all, `locked` wants API_KEY; both are before `server`, and share a store."""

    server: Tier
    gateway: Tier
    locked: Tier

    def __iter__(self) -> Iterator[Tier]:
        yield from (self.server, self.gateway, self.locked)

    def edit(self, tier: Tier, **fields: bytes) -> str:
        """A good edit through a gateway; the path of its image."""
        reply = httpx.post(
            f"http://127.0.0.1:{tier.port}{ROUTE}",
            content=written(good(**fields)),
            headers={"content-type": JSON.partition(b": ")[2].decode(), "x-api-key": API_KEY},
            timeout=60,
            trust_env=False,
        )
        assert reply.status_code == 200, reply.text
        return httpx.URL(reply.json()["data"][0]["url"]).path


@pytest.fixture(scope="session")
def tiers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiers]:
    folder = tmp_path_factory.mktemp("hostile")
    store, keys = folder / "state" / "store", folder / "keys.toml"
    store.mkdir(parents=True)
    for place in (store / "canary.png", store / ".signing-key", store.parent / "canary.png"):
        place.write_bytes(CANARY)
    digest = hashlib.sha256(API_KEY.encode()).hexdigest()
    keys.write_text(f'[[keys]]\nid = "ada"\nhash = "sha256:{digest}"\n')
    server = Tier("server", folder, {"OMP_NUM_THREADS": "1"})
    shared = {
        "RETOUCH_GATEWAY_UPSTREAM": f"127.0.0.1:{server.port}",
        "RETOUCH_GATEWAY_STORE": str(store),
        "RETOUCH_GATEWAY_SIGNING_KEY": SIGNING_KEY,
        "RETOUCH_GATEWAY_BODY_TIMEOUT": str(BODY_SECONDS),
    }
    gateway = Tier("gateway", folder, shared)
    locked = Tier("gateway-locked", folder, {**shared, "RETOUCH_GATEWAY_KEYS": str(keys)})
    all_three = Tiers(server, gateway, locked)
    started: list[Tier] = []
    try:
        for tier in all_three:
            tier.start()
            started.append(tier)
        for tier in all_three:
            tier.wait_ready()
        yield all_three
        for tier in all_three:
            assert tier.stop() == 0, tier.log.read_text()[-2000:]
    finally:
        for tier in started:
            tier.process.kill()
            tier.process.wait()
