"""What callers see of a rolling restart, on this machine: `python -m bench.roll`.

Real processes with `pocket`, and callers that never pause and try nothing twice. Two servers behind one gateway, and
two gateways behind a balancer of connections, are stopped by SIGTERM in turn. What must come out is 0 failed edits.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from bench.cluster.balancer import balancer
from bench.cluster.callers import Callers, calling, direct, rest
from bench.cluster.cluster import Cluster, cluster
from bench.common import machine

LONG = 12  # steps: such an edit is under way whenever something is stopped
CALM = 1.0  # seconds of load before and after
# Seconds for which one has been ready before the next is stopped: callers look for it every 2 s, more or less.
SETTLED = 4.0

Way = Callable[[Cluster], Iterator[int]]
"""Stops each server in turn, and says its exit status."""


@dataclass
class Rolled:
    """What came of it. `exits`: the exit status of each process that was stopped, in order."""

    callers: Callers
    exits: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        failed, done = self.callers.failed(), self.callers.done
        told = ", ".join(f"{count} x {what}" for what, count in failed.items())
        return (
            f"{failed.total()} failed{f' ({told})' if told else ''}, {done()} done, "
            f"{done('REST stream')} of them streams, {done('gRPC')} by gRPC; "
            f"longest {self.callers.longest():.1f} s; "
            f"{len(self.exits)} stopped, exit statuses {sorted(set(self.exits))}"
        )


def in_place(each: Cluster) -> Iterator[int]:
    """Each is started again where it was, and has been ready for a while before the next is stopped."""
    for server in each.servers:
        yield server.stop()
        server.start()
        server.wait_ready()
        time.sleep(SETTLED)


def replaced(each: Cluster) -> Iterator[int]:
    """As a Deployment with a surge of one: a new one, elsewhere, is ready and named before the old one stops."""
    for old in list(each.servers):
        (new,) = each.start_servers(1)
        each.serve(*(server for server in each.servers if server is not old), new)
        yield old.stop()


def servers(way: Way, *, by_name: bool, rounds: int = 1) -> Rolled:
    """Two servers, behind a gateway that has their list or their name; one caller asks them directly, by gRPC."""
    with cluster(2) as each:
        (gateway,) = each.start_gateways(1, each.name if by_name else each.addresses)
        by_grpc = each.name if by_name else f"ipv4:{each.addresses}"
        crowd = [
            rest(gateway.url),
            rest(gateway.url),
            rest(gateway.url, LONG),
            rest(gateway.url, stream=True),
            direct(by_grpc),
        ]
        with calling(crowd) as callers:
            rolled = Rolled(callers)
            time.sleep(CALM)
            for _ in range(rounds):
                rolled.exits += way(each)
            time.sleep(CALM)
    return rolled


def gateways(*, rounds: int = 1) -> Rolled:
    """Two gateways; each gets no new connections from the moment on at which it is stopped, and keeps those it has."""
    with cluster(1) as each, balancer() as front:
        both = each.start_gateways(2, each.addresses, DRAIN_WAIT="2")
        front.backends = [gateway.port for gateway in both]
        url = f"http://127.0.0.1:{front.port}"
        crowd = [rest(url, 1), rest(url, 1), rest(url, 1), rest(url, LONG), rest(url, stream=True)]
        with calling(crowd) as callers:
            rolled = Rolled(callers)
            time.sleep(CALM)
            for gateway in both * rounds:
                front.backends = [other.port for other in both if other is not gateway]
                rolled.exits.append(gateway.stop())
                gateway.start()
                gateway.wait_ready()
                front.backends = [gateway.port for gateway in both]
            time.sleep(CALM)
    return rolled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=10, help="in which each process is stopped once"
    )
    rounds = parser.parse_args().rounds
    print(machine(), flush=True)
    rolls: dict[str, Callable[..., Rolled]] = {
        "servers by a list, restarted in place": partial(servers, in_place, by_name=False),
        "servers by a name, restarted in place": partial(servers, in_place, by_name=True),
        "servers by a name, replaced": partial(servers, replaced, by_name=True),
        "gateways behind a balancer": gateways,
    }
    for name, roll in rolls.items():
        print(f"{name}: {roll(rounds=rounds)}", flush=True)


if __name__ == "__main__":
    main()
