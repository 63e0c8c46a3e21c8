"""What came of each edit, held against what both tiers counted: one end for each, and nothing left over."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.cluster.tiers import Gateway, Server
from tests.faults.callers import EDITS, Caller
from tests.faults.proxy import Proxy
from tests.run_up import wait_for

SETTLES_SECONDS = 30.0  # a step of the engine and a look of the test's, on a slow machine
LEFT = 499  # how a gateway counts a caller whose connection broke
ENDS = ("done", "failed", "cancelled", "expired")


@dataclass
class Ledger:
    """The callers of some gateways, by name, and what the gateways had counted before."""

    gateways: Sequence[Gateway]
    before: Counter[int]
    callers: dict[str, Caller] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Caller:
        return self.callers[name]

    def call(
        self,
        name: str,
        gateway: Gateway | Proxy,
        sent: Mapping[str, Any],
        headers: Mapping[str, str] | None = None,
    ) -> Caller:
        """Send one edit, straight to a gateway or through a proxy in front of it."""
        assert name not in self.callers
        url = f"http://127.0.0.1:{gateway.port}"
        self.callers[name] = Caller(url, sent, headers)
        return self.callers[name]

    def outcomes(self) -> dict[str, int | str]:
        """What each caller got, once all have got something."""
        return {name: caller.end() for name, caller in self.callers.items()}

    def counted(self) -> Counter[int]:
        """Edits that the gateways have answered since, by status."""
        return _counted(self.gateways) - self.before

    def told(self) -> Counter[int]:
        """What the callers got."""
        outcomes = self.outcomes().values()
        return Counter(each if isinstance(each, int) else LEFT for each in outcomes)


@contextlib.contextmanager
def ledger(server: Server, *gateways: Gateway) -> Iterator[Ledger]:
    """Inside it edits meet their faults; at its end each has had one end, and nothing of it is left on either tier."""
    kept = Ledger(gateways, _counted(gateways))
    yield kept
    told = kept.told()
    wait_for(
        lambda: _agree(kept.counted(), told), SETTLES_SECONDS, f"{told}, counted {kept.counted()}"
    )
    for gateway in gateways:
        assert gateway.metric("retouch_gateway_in_flight") == 0
        assert gateway.metric("retouch_gateway_body_bytes") == 0
    wait_for(lambda: under_way(server) == 0, SETTLES_SECONDS, "nothing under way on the server")


def under_way(server: Server) -> float:
    """Edits that hold a slot of it, or wait for one."""
    return server.metric("retouch_server_running") + server.metric("retouch_server_queued")


def ended(server: Server) -> float:
    """Edits that it accepted and that have ended, one way or another, since it started."""
    return sum(server.metric("retouch_server_edits_total", outcome=end) for end in ENDS)


def _agree(counted: Counter[int], told: Counter[int]) -> bool:
    """Whether these are the same; but an answer that was lost on its way counts for the gateway as given."""
    lost = told[LEFT] - counted[LEFT]
    return lost >= 0 and counted + Counter({LEFT: lost}) == told + Counter({200: lost})


def _counted(gateways: Sequence[Gateway]) -> Counter[int]:
    counted: Counter[int] = Counter()
    for gateway in gateways:
        for code in (200, 400, 408, 409, 429, LEFT, 500, 502, 503, 504):
            sample = "retouch_gateway_requests_total"
            counted[code] += int(gateway.metric(sample, route=EDITS, code=str(code)))
    return counted
