"""An hour of everything at once, or some minutes of it: nothing grows, nothing is lost, the metrics add up."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from tests.soak import watch
from tests.soak.soak import SCENARIOS, Soak, soak
from tests.soak.tiers import running

LONG = os.environ.get("RETOUCH_TESTS_LONG") == "1"
SECONDS = float(os.environ.get("RETOUCH_TESTS_SOAK_SECONDS") or (3600 if LONG else 300))
SEED = 7
OUTPUT = Path(__file__).parents[1] / "output"

pytestmark = pytest.mark.timeout(2 * SECONDS + 400)

ENDS = ("done", "cancelled", "expired", "blocked", "rejected")
TIERS = ("server", "gateway-memory", "gateway-redis")
# What may be more in the last third of the soak than in the middle one, for an hour as for minutes: a pool that has not
# been at its largest yet, a connection that is being renewed, a scrape under way, and gaps that heaps keep.
EACH = {
    **{"fds": 3, "threads": 3, "connections": 3, "tasks": 1, "live tasks": 1, "temporary files": 0},
    **{"objects": 1500, "blocks": 4000, "tensor_mib": 1},
}
ROOM: dict[str, float] = {
    **{f"{tier} {name}": room for tier in TIERS for name, room in EACH.items()},
    "server heap_mib": 6,
    # Of an hour's thirds: 1 KiB for each caller who hangs up would be 0.7, and was.
    "gateway-memory heap_mib": 0.5 if LONG else 1,
    "gateway-redis heap_mib": 0.5 if LONG else 1,
    "server rss_mib": 25 if LONG else 40,
    "gateway-memory rss_mib": 4,
    "gateway-redis rss_mib": 4,
    "server encoding_mib": 1,
    "redis keys": 6,
    "redis connections": 3,
    "store parts": 0,
}


@pytest.fixture(scope="module")
def soaked(tmp_path_factory: pytest.TempPathFactory) -> Soak:
    """All of it, once; its figures go into tests/output/soak.txt."""
    with running(tmp_path_factory.mktemp("soak")) as stack:
        return soak(stack, SECONDS, SEED, write)


def write(came: Soak) -> None:
    OUTPUT.mkdir(exist_ok=True)
    points = [{"edits": each.edits, "held": each.held} for each in came.points]
    (OUTPUT / "soak.json").write_text(json.dumps(points))
    (OUTPUT / "soak.txt").write_text("\n".join(report(came)))


def report(came: Soak) -> list[str]:
    ledger, last = came.ledger, came.points[-1]
    calls = {f"{rpc} {code}": count for (rpc, code), count in sorted(ledger.calls.items())}
    outcomes = {each: came.accounts.server("edits_total", outcome=each) for each in ENDS}
    return [
        f"{last.seconds:.0f} s, {len(came.points)} rounds, {last.edits:.0f} edits",
        *("", *watch.table(came.points)),
        *("", "most under load:", *(f"{name:34} {most:9.1f}" for name, most in came.peaks.items())),
        *("", f"edits: {came.accounts.server('edits_accepted_total')} accepted, {outcomes}"),
        f"answers to edits: {dict(sorted(ledger.statuses().items()))}, {sum(ledger.left.values())} left",
        f"answers to all: {sum(ledger.answers.values())}; calls by gRPC: {calls}",
        f"images got: {ledger.images}, replayed: {ledger.replayed}, deleted: {ledger.deleted}",
        *(
            "",
            *(
                f"{way:34} {n:6} {ledger.longest[way]:9.1f} s"
                for way, n in ledger.scenarios.items()
            ),
        ),
        *("", *came.mistakes, *ledger.surprises[:50]),
        *(line for tier in TIERS for line in ("", tier, *_more(came, tier))),
    ]


def _more(came: Soak, tier: str) -> list[str]:
    """Of which types more objects are alive than after a third of it."""
    more = Counter(came.points[-1].types[tier])
    more.subtract(came.points[len(came.points) // 3].types[tier])
    return [f"{n:+7} {name}" for name, n in more.most_common(10) if n > 0]


def test_all_of_it_happened(soaked: Soak) -> None:
    ledger, accounts = soaked.ledger, soaked.accounts
    assert len(ledger.scenarios) == len(SCENARIOS)
    assert {200, 400, 401, 408, 409, 413, 415, 422, 429} <= ledger.statuses().keys()
    assert {200, 204, 403, 404, 410} <= ledger.statuses("/images/{name}").keys()
    assert {"OK", "CANCELLED", "DEADLINE_EXCEEDED"} <= {code for _, code in ledger.calls}
    outcomes = {each: accounts.server("edits_total", outcome=each) for each in ENDS}
    assert all(outcomes.values()), outcomes
    assert accounts.gateways("swept_images_total")
    assert ledger.deleted
    assert ledger.replayed
    assert ledger.left
    for tier in TIERS:  # what is flat while all is quiet is so because all is quiet
        assert soaked.peaks[f"{tier} tasks"] > soaked.points[-1].held[f"{tier} tasks"]


def test_callers_got_what_they_should(soaked: Soak) -> None:
    assert soaked.ledger.surprises == []


def test_no_tier_complains(soaked: Soak) -> None:
    assert {name: said[:5] for name, said in soaked.complaints.items() if said} == {}


def test_the_metrics_add_up(soaked: Soak) -> None:
    """After every round, to the last one: see accounts.py."""
    assert soaked.mistakes == []


@pytest.mark.parametrize("figure", ROOM)
def test_nothing_grows(soaked: Soak, figure: str) -> None:
    """Medians of the last third of the quiet moments and of the middle one."""
    assert watch.growth(soaked.points, figure) <= ROOM[figure], (
        [round(point.held[figure], 1) for point in soaked.points],
        *(line for tier in TIERS for line in _more(soaked, tier)),
    )
