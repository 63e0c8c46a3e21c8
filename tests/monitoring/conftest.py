"""A real Prometheus over both tiers, after half a minute of mixed load."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from scripts.grafana.prometheus import Prometheus
from tests.e2e.conftest import tool
from tests.monitoring.load import Load
from tests.monitoring.stack import Stack, running

LOAD_SECONDS = 25


@dataclass(frozen=True)
class Watched:
    """The tiers, and what Prometheus saw between `start` and `end`, in Unix seconds."""

    stack: Stack
    prometheus: Prometheus
    start: float
    end: float


@pytest.fixture(scope="session")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Skips without Prometheus, which CI does not allow. The tiers still run, and idle."""
    tool("prometheus")
    with running(tmp_path_factory.mktemp("monitoring")) as stack:
        prometheus = Prometheus(stack.prometheus)
        start, load = time.time(), Load(stack)
        load.run(LOAD_SECONDS)
        yield Watched(stack, prometheus, start, time.time())
        assert stack.alive()
        prometheus.close()
