"""A slow, resetting, half-closing and black-holing network, before the gateway and behind it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest

from tests.faults.callers import EDITS, body
from tests.faults.conftest import BUDGET, Path
from tests.faults.ledger import Ledger, ended, ledger, under_way
from tests.faults.proxy import Then
from tests.run_up import wait_for

REACHED_SECONDS = 60.0
LONG = body(128, 100)
ONCE = ("x-should-retry", "false")
SOON = ("retry-after", "1")


@pytest.fixture
def kept(path: Path) -> Iterator[Ledger]:
    """At the end of each test the lines are as good as new, and an edit goes through."""
    with ledger(path.server, path.gateway) as kept:
        yield kept
        path.front.heal()
        path.back.heal()
        path.gateway.wait_ready()
        assert kept.call("afterwards", path.front, body()).end() == 200


# Behind the gateway.


def test_a_line_that_breaks_in_a_request_is_another_line_for_it(kept: Ledger, path: Path) -> None:
    before = ended(path.server)
    path.back.cut(path.back.up, Then.RESET, after=20_000)
    assert kept.call("uploading", path.front, body(256)).end() == 200
    assert ended(path.server) - before == 1


def test_a_line_that_breaks_in_an_answer_is_not_tried_again(kept: Ledger, path: Path) -> None:
    before = ended(path.server)
    path.back.cut(path.back.down, Then.RESET, after=2_000)
    assert kept.call("answering", path.front, body(256)).end() == 502
    assert ONCE in kept["answering"].headers.items()
    assert ended(path.server) - before == 1


@pytest.mark.parametrize("fault", ["reset", "half-closed above", "half-closed below"])
def test_a_line_that_breaks_under_edits_ends_them(kept: Ledger, path: Path, fault: str) -> None:
    before = ended(path.server)
    path.begin(kept, LONG)
    if fault == "reset":
        path.back.drop()
    else:
        path.back.cut(path.back.up if fault.endswith("above") else path.back.down, Then.END)
        kept.call("another", path.front, body())  # a line is cut by what goes through it
    outcomes = kept.outcomes()
    assert outcomes.pop("another", 200) in (200, 502, 503)
    assert outcomes == {"whole": 502, "streamed": 502}
    assert ONCE in kept["whole"].headers.items()
    wait_for(lambda: ended(path.server) - before >= 2, REACHED_SECONDS, "both have ended there too")


def test_a_black_hole_ends_with_the_budget(kept: Ledger, path: Path) -> None:
    before = ended(path.server)
    path.begin(kept, LONG)
    path.back.cut(path.back.up, Then.HOLD)
    path.back.cut(path.back.down, Then.HOLD)
    kept.call("late", path.front, body())
    assert kept.outcomes() == {"whole": 504, "streamed": 504, "late": 504}
    for caller in kept.callers.values():
        assert BUDGET * 0.9 < caller.seconds < BUDGET * 1.5
    # It knows their deadlines, and waits for nobody's word.
    wait_for(lambda: under_way(path.server) == 0, REACHED_SECONDS, "the server has given them up")
    assert ended(path.server) - before == 2


def test_nobody_answers_a_new_line(kept: Ledger, path: Path) -> None:
    path.back.silent = True
    path.back.drop()
    wait_for(lambda: not path.gateway.ready(), REACHED_SECONDS, "not ready")
    assert kept.call("connecting", path.front, body()).end() == 503
    assert SOON in kept["connecting"].headers.items()
    assert kept["connecting"].seconds < BUDGET / 2  # half a second, where nothing else runs


def test_a_slow_line_is_only_slow(kept: Ledger, path: Path) -> None:
    for proxy in (path.front, path.back):
        for way in (proxy.up, proxy.down):
            proxy.slow(way, delay=0.02, rate=300_000)
    assert kept.call("slow", path.front, body(128)).end() == 200
    assert kept.call("slow stream", path.front, body(128, stream=True)).end() == 200


# Before it.


def test_a_caller_whose_line_breaks_in_its_request(kept: Ledger, path: Path) -> None:
    before = ended(path.server)
    path.front.cut(path.front.up, Then.RESET, after=5_000)
    assert isinstance(kept.call("uploading", path.front, body(256)).end(), str)
    assert ended(path.server) == before


def test_a_caller_whose_line_breaks_frees_its_slots(kept: Ledger, path: Path) -> None:
    before = ended(path.server)
    path.begin(kept, LONG)
    path.front.drop()
    assert all(isinstance(outcome, str) for outcome in kept.outcomes().values())
    wait_for(lambda: under_way(path.server) == 0, REACHED_SECONDS, "both slots free")
    assert ended(path.server) - before == 2


def test_a_caller_whose_request_stops_coming(kept: Ledger, path: Path) -> None:
    path.front.cut(path.front.up, Then.HOLD, after=5_000)
    assert kept.call("uploading", path.front, body(256)).end() == 408
    assert kept["uploading"].seconds < BUDGET


def test_a_caller_that_closes_its_half_has_left(path: Path) -> None:
    """As for nginx: who says that nothing more comes cannot be told from who is gone."""
    before = path.gateway.metric("retouch_gateway_disconnects_total")
    sent = json.dumps(LONG).encode()
    head = f"POST {EDITS} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", path.gateway.port)) as connection:
        connection.sendall(f"{head}content-length: {len(sent)}\r\n\r\n".encode() + sent)
        wait_for(lambda: under_way(path.server) == 1, REACHED_SECONDS, "it runs")
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(REACHED_SECONDS)
        assert connection.recv(1) == b""
    wait_for(lambda: under_way(path.server) == 0, REACHED_SECONDS, "its slot is free")
    left = path.gateway.metric("retouch_gateway_disconnects_total") - before
    assert left == 1
