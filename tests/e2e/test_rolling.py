"""A rolling restart under load loses nothing: of servers, by a list and by a name, and of gateways."""

from __future__ import annotations

import sys

import pytest

from bench import roll
from bench.roll import Rolled

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs all of 127.0.0.0/8")


def nothing_is_lost(rolled: Rolled) -> None:
    assert not rolled.callers.failed(), rolled
    assert rolled.exits == [0, 0]


@pytest.mark.parametrize("by_name", [False, True], ids=["list", "name"])
def test_servers_restarted_where_they_were(by_name: bool) -> None:
    rolled = roll.servers(roll.in_place, by_name=by_name)
    nothing_is_lost(rolled)
    for way in ("REST", "REST stream", "gRPC"):
        assert rolled.callers.done(way) > 5


def test_servers_replaced_as_pods_are() -> None:
    rolled = roll.servers(roll.replaced, by_name=True)
    nothing_is_lost(rolled)


def test_gateways() -> None:
    nothing_is_lost(roll.gateways())
