"""Callers who leave, many of them: what stays of their calls to a server."""

from __future__ import annotations

import asyncio
import ctypes
import gc
from typing import Any

import pytest

from retouch_gateway.upstream import Upstream
from tests.gateway.several import request, several
from tests.soak.launch import heap_bytes


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="glibc's")
async def test_who_leaves_takes_little_memory_along() -> None:
    """For a unary call gRPC's library would keep 950 bytes each time, for ever; of a stream it is 100."""

    async def leave(upstream: Upstream, a: Any, times: int) -> int:
        for _ in range(times):
            edits = [asyncio.create_task(upstream.edit(request("m"), 60, ())) for _ in range(25)]
            await asyncio.sleep(0.02)
            for each in edits:
                each.cancel()
            await asyncio.wait(edits)
        for kept in (a.echo.requests, a.echo.metadata, a.echo.seconds_left):
            kept.clear()
        gc.collect()
        return heap_bytes()

    async with several("m") as (upstream, a):
        a.echo.delay = 60
        before = await leave(upstream, a, 20)
        grown = await leave(upstream, a, 40) - before
    assert grown / 1000 < 500  # bytes for each
