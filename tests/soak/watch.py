"""What the processes hold, looked at while nothing is under way; and whether that grows."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import redis

from bench.local import total
from tests.soak.tiers import Stack, Tier

PAUSE_SECONDS = 1.0  # from look to look under load


@dataclass(frozen=True)
class Point:
    """A quiet moment.

    edits: finished by then.
    held:  figures by name, such as `server rss_mib`.
    types: by tier, how many objects of each type are alive.
    """

    seconds: float
    edits: float
    held: Mapping[str, float]
    types: Mapping[str, Mapping[str, int]]


def look(stack: Stack, seconds: float) -> Point:
    """All figures; those of the processes as they are by themselves before they are made to collect their garbage."""
    held: dict[str, float] = {}
    types = {}
    for tier in stack.tiers:
        held |= {f"{tier.name} {name}": value for name, value in _of(tier).items()}
        census = tier.census()
        types[tier.name] = census["types"]
        held |= {f"{tier.name} {name}": value for name, value in census["counts"].items()}
    with redis.Redis(port=stack.redis) as asked:
        held["redis keys"] = asked.dbsize()
        held["redis connections"] = asked.info("clients")["connected_clients"]
    names = [path.name for path in stack.store.iterdir()] if stack.store.exists() else []
    held["store parts"] = sum(name.startswith(".part-") for name in names)
    page = stack.server.metrics()
    held["server encoding_mib"] = total(page, "retouch_server_encoding_bytes") / 2**20
    return Point(seconds, total(page, "retouch_server_edits_total"), held, types)


def _of(tier: Tier) -> dict[str, float]:
    page = tier.metrics()
    kind = tier.name.partition("-")[0]
    with tier.seen.oneshot():
        return {
            "rss_mib": tier.seen.memory_info().rss / 2**20,
            "fds": tier.seen.num_fds(),
            "threads": tier.seen.num_threads(),
            "connections": len(tier.seen.net_connections("tcp")),
            "tasks": total(page, f"retouch_{kind}_tasks"),
            "temporary files": sum(1 for path in tier.temporary.rglob("*") if path.is_file()),
        }


def growth(points: Sequence[Point], figure: str) -> float:
    """By how much the last third of `points` is above the middle one: medians, which one odd moment does not move.

    The first third is warm-up: pools, heaps and caches fill.
    """
    third = len(points) // 3
    values = [point.held[figure] for point in points]
    return statistics.median(values[-third:]) - statistics.median(values[-2 * third : -third])


def table(points: Sequence[Point]) -> list[str]:
    """A line for each figure: its first, middle and last, its least and most."""
    lines = [f"{'':34} {'first':>9} {'middle':>9} {'last':>9} {'least':>9} {'most':>9}"]
    for name in points[0].held:
        values = [point.held[name] for point in points]
        shown = (values[0], values[len(values) // 2], values[-1], min(values), max(values))
        lines.append(f"{name:34} " + " ".join(f"{value:9.1f}" for value in shown))
    return lines


@dataclass
class Peaks:
    """A thread that looks at the tiers while they are under load, and keeps the highest of what it saw."""

    stack: Stack
    most: dict[str, float] = field(default_factory=dict)
    looks: int = 0
    error: BaseException | None = None

    def __enter__(self) -> Peaks:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *reason: Any) -> None:
        self._over.set()
        self._thread.join()
        if self.error:
            raise self.error

    def _run(self) -> None:
        try:
            while not self._over.wait(PAUSE_SECONDS):
                for tier in self.stack.tiers:
                    for name, value in _of(tier).items():
                        key = f"{tier.name} {name}"
                        self.most[key] = max(self.most.get(key, 0), value)
                self.looks += 1
        except BaseException as error:
            self.error = error


def wait_until_quiet(stack: Stack, seconds: float) -> None:
    """Until no tier has anything under way; then as long as it takes what follows an answer to be over."""
    deadline = time.monotonic() + seconds
    while busy := _under_way(stack):
        assert time.monotonic() < deadline, f"not quiet within {seconds:g} s: {busy}"
        time.sleep(0.1)


def _under_way(stack: Stack) -> dict[str, float]:
    server = stack.server.metrics()
    found = {name: total(server, f"retouch_server_{name}") for name in ("queued", "running")}
    for tier in stack.gateways:
        page = tier.metrics()
        for name in ("in_flight", "body_bytes"):
            found[f"{tier.name} {name}"] = total(page, f"retouch_gateway_{name}")
    return {name: value for name, value in found.items() if value}
