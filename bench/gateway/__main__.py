"""What the gateway adds to an edit: `python -m bench.gateway`, a quarter of an hour; Linux.

`retouch-gateway` in front of a server that answers at once, beside the floor (the same bytes through base64 and JSON
alone, in a minimal ASGI application), the hop (the floor with a bare gRPC call to such a server in it) and, where
`scripts/bench-peers` has put them, LitServe and the LiteLLM proxy. Wire is bare sockets that give each request a ready
answer: what the callers can do. Each has processes of its own. They take turns within each round, and ratios are of
values of the same round.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench.gateway import served
from bench.gateway.bodies import ASKS, Ask, noisy, photo, request
from bench.gateway.floor import decoded, encoded
from bench.gateway.served import FLOOR, GATEWAY, HOP, LITELLM, PEERS, VENVS, Candidate, Served

CALLS = 51
TICK = 0.01  # seconds: how finely Linux tells a process's CPU


@dataclass
class Turns:
    """What came of one candidate's: a value per round, of `latencies` one per edit. Seconds."""

    p50: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    # Edits per second of CPU of the candidate's own processes.
    per_core: list[float] = field(default_factory=list)
    # Of the callers' CPU per edit.
    callers: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)

    def take(self, server: Served, body: Path, clients: int, seconds: float) -> None:
        before = server.cpu()
        load = server.load(body, clients, seconds)
        edits = len(load.latencies)
        self.per_core.append(edits / max(server.cpu() - before, TICK))
        self.p50.append(statistics.median(load.latencies))
        self.rate.append(edits / load.seconds)
        self.callers.append(load.cpu / edits)
        self.latencies += load.latencies


def measure(
    servers: Sequence[Served], body: Path, clients: int, rounds: int, seconds: float
) -> dict[str, Turns]:
    """Each of `servers` in turn, `rounds` times over, another one first each time."""
    turns = {server.name: Turns() for server in servers}
    for server in servers:
        server.load(body, clients, seconds / 4)  # warm
    for first in range(rounds):
        for i in range(len(servers)):
            server = servers[(first + i) % len(servers)]
            turns[server.name].take(server, body, clients, seconds)
    return turns


def ratio(these: Sequence[float], those: Sequence[float]) -> str:
    """Median and quartiles of `these` to `those`, pair by pair; two pairs or more."""
    pairs = [one / other for one, other in zip(these, those, strict=True)]
    low, middle, high = statistics.quantiles(pairs, n=4, method="inclusive")
    return f"{middle:.2f} ({low:.2f}, {high:.2f})"


HEAD = (
    f"{'':10}{'p50 ms':>8}{'p99 ms':>9}{'edits/s':>9}{'edits/core-s':>14}{'callers ms':>12}"
    f"   {'p50 / floor':20} {'p50 / hop'}"
)


def rows(turns: Mapping[str, Turns]) -> Iterator[str]:
    """The table; `callers ms` is their own CPU per edit."""
    yield HEAD
    floor, hop = turns[FLOOR.name].p50, turns[HOP.name].p50
    for name, turn in turns.items():
        p99 = statistics.quantiles(turn.latencies, n=100)[98]
        figures = (turn.p50, turn.rate, turn.per_core, turn.callers)
        p50, rate, per_core, callers = map(statistics.median, figures)
        yield (
            f"{name:10}{1e3 * p50:8.2f}{1e3 * p99:9.2f}{rate:9.1f}{per_core:14.1f}"
            f"{1e3 * callers:12.2f}   {ratio(turn.p50, floor):20} {ratio(turn.p50, hop)}"
        )


def in_process(body: bytes, ask: Ask) -> float:
    """Median seconds of the floor's own work, without HTTP."""
    took = []
    for _ in range(CALLS):
        started = time.perf_counter()
        encoded(decoded(body), ask.answer)
        took.append(time.perf_counter() - started)
    return statistics.median(took)


def compare(
    side: int, ask: Ask, candidates: Sequence[Candidate], place: Path, options: argparse.Namespace
) -> None:
    """Print the tables of one way to ask."""
    picture = photo(side)
    whole = request(picture, ask)
    file = place / "request"
    file.write_bytes(whole)
    body = whole.partition(b"\r\n\r\n")[2]
    with ExitStack() as stack:
        servers = [
            stack.enter_context(one.start(place, ask.answer))
            for one in candidates
            if ask in one.asks
        ]
        for server in servers:
            server.check(picture, ask)
        wire = stack.enter_context(served.wire(place, encoded(picture, ask.answer)))
        took = 1e3 * in_process(body, ask)
        print(
            f"\n{ask.body} in, {ask.answer} out, {side}x{side}, {len(picture) / 1e6:.2f} MB;"
            f" base64 and JSON alone, in process: {took:.2f} ms"
        )
        for clients in options.clients:
            print(f" {clients} at once", flush=True)
            turns = measure([*servers, wire], file, clients, options.rounds, options.seconds)
            for row in rows(turns):
                print(row, flush=True)
            if GATEWAY.name in turns and LITELLM.name in turns:
                mine, its = turns[GATEWAY.name], turns[LITELLM.name]
                print(
                    f" gateway / litellm: edits/s {ratio(mine.rate, its.rate)},"
                    f" edits/core-s {ratio(mine.per_core, its.per_core)}"
                )


def memory(
    candidates: Sequence[Candidate], place: Path, clients: int, side: int, seconds: float
) -> None:
    """Print what each takes at most with so many callers of large bodies, from a fresh start."""
    picture = noisy(side)
    print(f"\nMiB resident, {clients} at once, pictures of {len(picture) / 1e6:.2f} MB")
    for one in candidates:
        ask, file = one.asks[0], place / "request"
        file.write_bytes(request(picture, ask))
        with one.start(place, ask.answer) as server:
            server.check(picture, ask)
            idle, _ = server.resident()
            edits = len(server.load(file, clients, seconds).latencies)
            now, peak = server.resident()
        print(
            f"{one.name:10}{idle:8.0f} idle{peak:8.0f} peak{now:8.0f} after"
            f"   {edits} edits, {ask.body} in, {ask.answer} out",
            flush=True,
        )


def installed(candidate: Candidate) -> bool:
    if candidate not in PEERS or (VENVS / candidate.name).exists():
        return True
    print(f"{candidate.name} is not there: scripts/bench-peers installs it")
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="two or more")
    parser.add_argument("--seconds", type=float, default=1.5, help="of each turn")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--sides", type=int, nargs="+", default=[1024, 256], help="of the pictures")
    parser.add_argument("--crowd", type=int, default=64, help="callers while memory is looked at")
    names = [one.name for one in (GATEWAY, *PEERS)]
    parser.add_argument("--beside", nargs="*", choices=names, default=names, metavar="NAME")
    options = parser.parse_args()
    asked = [one for one in (GATEWAY, *PEERS) if one.name in options.beside]
    candidates = [FLOOR, HOP, *filter(installed, asked)]
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for side in options.sides:
            for ask in ASKS:
                compare(side, ask, candidates, place, options)
        memory(candidates, place, options.crowd, max(options.sides), options.seconds)


if __name__ == "__main__":
    main()
