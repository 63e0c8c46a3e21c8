"""Readiness under a flood of those who ask for it: they do not become a flood of the server's."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from retouch_gateway import target
from retouch_gateway.metrics import Metrics
from retouch_gateway.target import Target

SERVING = health_pb2.HealthCheckResponse.SERVING


class Counting(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Says that it serves, after a while."""

    def __init__(self) -> None:
        self.asked = 0

    async def Check(self, _request: Any, _context: Any) -> Any:
        self.asked += 1
        await asyncio.sleep(0.05)
        return health_pb2.HealthCheckResponse(status=SERVING)


@pytest.mark.parametrize("callers", [1, 1000])
async def test_many_who_ask_at_once_ask_the_server_once(
    callers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, "READY_SECONDS", 30)  # on a busy machine an answer takes longer
    server, counting = grpc.aio.server(), Counting()
    health_pb2_grpc.add_HealthServicer_to_server(counting, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    address = f"127.0.0.1:{port}"
    asked = Target(address, grpc.aio.insecure_channel(address), Metrics(), lambda: None)
    try:
        assert all(await asyncio.gather(*(asked.healthy() for _ in range(callers))))
        assert counting.asked == 1
        assert await asked.healthy()
        assert counting.asked == 2  # nothing is remembered
    finally:
        await asked.close()
        await server.stop(0)
