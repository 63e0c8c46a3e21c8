"""Several servers and the way to them, without the HTTP in front."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from retouch.v1 import image_edit_pb2 as pb
from retouch_gateway.metrics import Metrics
from retouch_gateway.upstream import Upstream
from tests.gateway.conftest import Echo, Refusal, picture, start_upstream

DOWN = Refusal(grpc.StatusCode.UNAVAILABLE)
DEAD = ""  # in the place of a server: nobody listens there


class Serves(Echo):
    """An echo of other models."""

    def __init__(self, *ids: str) -> None:
        super().__init__()
        self.ids = ids

    async def ListModels(self, _request: Any, _context: Any) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=[pb.Model(id=each) for each in self.ids])

    def _refuse(self, request: pb.EditRequest) -> None:
        if self.refusals:
            raise self.refusals.pop(0)
        if request.model not in self.ids:
            raise Refusal(grpc.StatusCode.NOT_FOUND, f"no model {request.model!r}")


@contextlib.asynccontextmanager
async def several(*each: str | Echo) -> AsyncIterator[tuple[Any, ...]]:
    """An Upstream, then its servers, each an echo or the ids that it serves: `several("a", "b a", DEAD)`."""
    async with contextlib.AsyncExitStack() as stack:
        servers = []
        for ids in each:
            echo = Serves(*ids.split()) if isinstance(ids, str) else ids
            servers.append(await start_upstream(echo=echo) if ids != DEAD else None)
            if servers[-1]:
                stack.push_async_callback(servers[-1].server.stop, 0)
        targets = [server.target if server else dead() for server in servers]
        upstream = Upstream(targets, None, 2**24, Metrics())
        stack.push_async_callback(upstream.close)
        await upstream.start()
        yield upstream, *servers


def dead() -> str:
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


def request(model: str = "", **fields: Any) -> pb.EditRequest:
    return pb.EditRequest(images=[picture()], prompt="x", model=model, **fields)


async def answer(upstream: Upstream, stream: bool) -> pb.EditResponse:
    if not stream:
        return await upstream.edit(request("m"), 5, ())
    return [event async for event in upstream.stream(request("m"), 5, ())][-1].result


def asked(*servers: Any) -> list[int]:
    return [len(server.echo.requests) for server in servers]


def value(upstream: Upstream, name: str, **labels: str) -> float:
    """A sample of its metrics."""
    found = upstream.targets[0]._metrics.registry.get_sample_value(
        f"retouch_gateway_{name}", labels
    )
    assert found is not None, name
    return found


async def until(look: Callable[[], bool], seconds: float = 3) -> None:
    async with asyncio.timeout(seconds):
        while not look():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
