"""More servers behind one gateway: the quicker gets more, a new one is found, one that is killed takes nobody along."""

from __future__ import annotations

import sys

import pytest

from bench import scale_out
from bench.cluster.cluster import cluster
from bench.scale_out import FEWEST, WEIGHTED

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs all of 127.0.0.0/8")

CALLERS = 6


@pytest.mark.parametrize(("way", "warm"), [(FEWEST, 2.0), (WEIGHTED, scale_out.WARM)])
def test_work_goes_where_it_is_done_sooner(way: str, warm: float) -> None:
    with (
        cluster(2) as each,
        scale_out.unequal(each, (1.0, 0.25)),
        scale_out.balancing(each, way) as gateway,
    ):
        split = scale_out.split(each, gateway, CALLERS, warm, seconds=8)
    quick, slow = split.shares
    assert not split.failed
    assert quick > 1.5 * slow, split


def test_a_new_server_is_found_when_connections_are_renewed() -> None:
    with cluster(1, MAX_CONNECTION_AGE="10") as each:
        (gateway,) = each.start_gateways(1, each.name)
        assert scale_out.found(each, gateway) < 20


@pytest.mark.parametrize("by_name", [False, True], ids=["list", "name"])
def test_one_that_is_killed_fails_what_it_had_begun_and_nothing_else(by_name: bool) -> None:
    with cluster(2) as each:
        (gateway,) = each.start_gateways(1, each.name if by_name else each.addresses)
        killed = scale_out.killed(each, gateway, CALLERS, steps=20)
    # 502: it had begun, and to do it again may be to kill the next.
    assert set(killed.state.failed()) == {"REST 502"}
    assert killed.state.failed().total() <= CALLERS
    assert killed.state.longest() < 30
    # Callers look for it every 2 s, and send when one of their edits has ended.
    assert killed.again < 10 + killed.state.longest()
