"""Three servers of unequal speed behind one gateway, on this machine: `python -m bench.scale_out`.

Real processes with `pocket`, a thread each. The second and the third run for a half and a quarter of every tenth of a
second, as under a quota of CPU. First each alone, then all behind a gateway, by each way of balancing: who gets how
much, and what comes out in all. Then: how long until a new server is found, and what callers see of one that is killed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from bench.cluster.callers import DONE, Callers, calling, direct, rest
from bench.cluster.cluster import Cluster, cluster
from bench.cluster.tiers import Gateway, Server, paced, wait_until
from bench.common import machine

SHARES = (1.0, 0.5, 0.25)
STEPS = 4
WARM = 6.0  # seconds: gRPC takes a server's weight a second or two after its first edit
ACCEPTED = "retouch_server_edits_accepted_total"
WEIGHTED, TURNS, FEWEST = "weighted round robin", "round robin", "fewest under way"
# The gateway as it is, but for what it tells gRPC to balance by.
IN_TURNS = (
    "-c",
    "from retouch_gateway import __main__, channels\n"
    "channels.SERVICE_CONFIG['loadBalancingConfig'] = [{'round_robin': {}}]\n"
    "__main__.main()",
)


@dataclass(frozen=True)
class Split:
    """What a while behind one gateway came to. `edits`: done by each server. Seconds."""

    edits: Sequence[float]
    seconds: float
    latencies: Sequence[float]
    failed: int

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds

    @property
    def shares(self) -> list[float]:
        return [each / sum(self.edits) for each in self.edits]

    def __str__(self) -> str:
        shares = " ".join(f"{share:6.2f}" for share in self.shares)
        *_, p95 = statistics.quantiles(self.latencies, n=20, method="inclusive")
        middle = statistics.median(self.latencies)
        return f"{shares} {self.rate:8.2f} {middle:8.2f} {p95:7.2f} {self.failed:7}"


def alone(server: Server, callers: int, seconds: float) -> float:
    """Its edits per second, with so many callers and nobody else on the machine."""
    with calling([direct(server.address, STEPS)] * callers) as state:
        time.sleep(1)
        began, before = time.monotonic(), state.done()
        time.sleep(seconds)
        return (state.done() - before) / (time.monotonic() - began)


def split(each: Cluster, gateway: Gateway, callers: int, warm: float, seconds: float) -> Split:
    """Behind `gateway`, after so many seconds of the same."""
    with calling([rest(gateway.url, STEPS)] * callers) as state:
        time.sleep(warm)
        began, before = time.monotonic(), [server.edits() for server in each.servers]
        time.sleep(seconds)
        ended, after = time.monotonic(), [server.edits() for server in each.servers]
    return _split([b - a for a, b in zip(before, after, strict=True)], state, began, ended)


def _split(edits: Sequence[float], state: Callers, began: float, ended: float) -> Split:
    outcomes = state.between(began, ended)
    latencies = [outcome.seconds for outcome in outcomes if outcome.status == DONE]
    return Split(edits, ended - began, latencies, len(outcomes) - len(latencies))


@contextmanager
def unequal(each: Cluster, shares: Sequence[float]) -> Iterator[None]:
    """Its servers at these parts of their speed."""
    with ExitStack() as stack:
        for server, share in zip(each.servers, shares, strict=True):
            stack.enter_context(paced(server, share))
        yield


@contextmanager
def balancing(each: Cluster, way: str) -> Iterator[Gateway]:
    """A gateway in front of it that balances so."""
    target, command = {
        WEIGHTED: (each.name, ()),
        TURNS: (each.name, IN_TURNS),
        FEWEST: (each.addresses, ()),
    }[way]
    (gateway,) = each.start_gateways(1, target, *command)
    yield gateway
    gateway.stop()


def found(each: Cluster, gateway: Gateway) -> float:
    """Seconds from when the name has one more server, under load, until that has done an edit."""
    with calling([rest(gateway.url)] * 2):
        (new,) = each.start_servers(1)
        each.serve(*each.servers, new)
        return wait_until(lambda: new.edits() > 0, 90, "the new server is found")


@dataclass(frozen=True)
class Killed:
    """What callers saw. `again`: seconds from when the server was ready again until it had an edit."""

    state: Callers
    again: float

    def __str__(self) -> str:
        return (
            f"{dict(self.state.failed())} failed, {self.state.done()} done, longest "
            f"{self.state.longest():.1f} s; found {self.again:.1f} s after it was ready again"
        )


def killed(each: Cluster, gateway: Gateway, callers: int, steps: int) -> Killed:
    """SIGKILL the first of its servers in the middle of edits, and start it again."""
    lost, *_ = each.servers
    with calling([rest(gateway.url, steps)] * callers) as state:
        wait_until(lambda: lost.metric("retouch_server_running") > 1, 60, "edits under way there")
        lost.kill()
        wait_until(lambda: state.done() >= 2 * callers, 60, "edits after it")
        lost.start()
        lost.wait_ready()
        again = wait_until(lambda: lost.metric(ACCEPTED) > 0, 60, "it is found again")
    return Killed(state, again)


def compare(callers: int, seconds: float) -> None:
    print(
        f"{'':22}" + " ".join(f"{name:>6}" for name in ("1/1", "1/2", "1/4")),
        "  edits/s   median     p95  failed",
    )
    with cluster(len(SHARES)) as each, unequal(each, SHARES):
        speeds = [alone(server, callers, seconds) for server in each.servers]
        of_all = " ".join(f"{speed / sum(speeds):6.2f}" for speed in speeds)
        print(f"{'each alone':22}{of_all} {sum(speeds):8.2f}", flush=True)
        for way in (TURNS, WEIGHTED, FEWEST):
            with balancing(each, way) as gateway:
                print(f"{way:22}{split(each, gateway, callers, WARM, seconds)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--callers", type=int, default=12, help="at once")
    parser.add_argument("--seconds", type=float, default=60, help="of each measurement")
    options = parser.parse_args()
    print(machine(), flush=True)
    compare(options.callers, options.seconds)
    with cluster(1, MAX_CONNECTION_AGE="10") as each:
        (gateway,) = each.start_gateways(1, each.name)
        print(f"a new server is found in {found(each, gateway):.1f} s", flush=True)
        print(f"one killed in the middle of edits: {killed(each, gateway, options.callers, 20)}")


if __name__ == "__main__":
    main()
