"""Real clients, each a process of its own, before a gateway whose server does as the prompt says."""

from __future__ import annotations

import asyncio
import io
import json
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from PIL import Image

from retouch.v1 import image_edit_pb2 as pb
from retouch.v1 import image_edit_pb2_grpc
from retouch_gateway.settings import Settings
from tests.conformance import matrix
from tests.gateway.conftest import MODEL, SERVICE, Echo, Live, Refusal, busy, picture, run_gateway

KEY = "sk-conformance"
Context = grpc.aio.ServicerContext[Any, Any]


def mask() -> bytes:
    """A mask of the photo's size whose left half is to be edited."""
    image = Image.new("RGBA", (16, 12), (0, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 8, 12))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


PICTURES = {"photo.png": picture(), "other.jpg": picture((24, 24), "JPEG"), "mask.png": mask()}


@dataclass
class Call:
    """What reached the server."""

    request: pb.EditRequest
    metadata: dict[str, Any]
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)


class Actor(Echo):
    """An echo that does as the prompt's last word says: `python: busy` is refused the first time."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, list[Call]] = defaultdict(list)

    async def Edit(self, request: pb.EditRequest, context: Context) -> pb.EditResponse:
        await self._act(request, context)
        return await super().Edit(request, context)

    async def StreamEdit(
        self, request: pb.EditRequest, context: Context
    ) -> AsyncIterator[pb.EditEvent]:
        async for event in super().StreamEdit(request, context):
            if event.HasField("result"):
                await self._act(request, context)
            yield event

    async def _act(self, request: pb.EditRequest, context: Context) -> None:
        calls = self.calls[request.prompt]
        call = Call(request, dict(context.invocation_metadata() or ()))
        calls.append(call)
        # A gateway that tries a request again by itself does so under the same id.
        first = call.metadata["x-request-id"] == calls[0].metadata["x-request-id"]
        match request.prompt.rpartition(" ")[2]:
            case "busy" if first:
                await busy(1).abort(context)
            case "unready" if first:
                await Refusal(grpc.StatusCode.UNAVAILABLE).abort(context)
            case "lost":
                await context.send_initial_metadata((("retouch-accepted", "1"),))
                await Refusal(grpc.StatusCode.UNAVAILABLE).abort(context)
            case "broken":
                await Refusal(grpc.StatusCode.INTERNAL, "/secret/path").abort(context)
            case "cancel" | "hang_up":
                try:
                    await asyncio.sleep(60)
                finally:
                    call.cancelled.set()


@dataclass
class World:
    """A gateway, what reached the server behind it, and what each client has seen."""

    actor: Actor
    gateway: Live
    folder: Path
    runs: dict[str, asyncio.Task[dict[str, Any]]] = field(default_factory=dict)

    async def saw(self, client: str) -> dict[str, Any]:
        """What a client saw, by scenario; its process runs once, through all of them at once."""
        if client not in self.runs:
            url = f"http://127.0.0.1:{self.gateway.port}/v1"
            running = run(client, matrix.of(client), url, self.folder)
            self.runs[client] = asyncio.create_task(running)
        return await self.runs[client]

    def calls(self, client: str, scenario: str) -> list[Call]:
        return self.actor.calls[f"{client}: {scenario}"]


def need(client: str) -> None:
    """Skips where the client is not installed."""
    if not matrix.CLIENTS[client].installed:
        pytest.skip(f"{client} is not installed: scripts/client-tools installs it")


async def run(
    client: str, scenarios: list[str], base_url: str, folder: Path, model: str = MODEL.id
) -> dict[str, Any]:
    """What a client's program tells of each scenario."""
    tool = matrix.CLIENTS[client]
    for name, data in PICTURES.items():
        (folder / name).write_bytes(data)
    config = {"base_url": base_url, "key": KEY, "client": client, "model": model}
    process = await asyncio.create_subprocess_exec(
        tool.runtime,
        str(matrix.HERE / tool.program),
        json.dumps(config | {"pictures": str(folder)}),
        *scenarios,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(60):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, err.decode()
    found: dict[str, Any] = json.loads(out)
    return found


@pytest_asyncio.fixture(loop_scope="session", scope="session")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("conformance")
    keys = folder / "keys.toml"
    keys.write_text(f'[[keys]]\nid = "ada"\nhash = "sha256:{sha256(KEY.encode()).hexdigest()}"\n')
    server, actor, checks = grpc.aio.server(), Actor(), health.aio.HealthServicer()
    image_edit_pb2_grpc.add_ImageEditServicer_to_server(actor, server)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await checks.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
    settings = Settings(upstream=f"127.0.0.1:{port}", store=str(folder / "store"), keys=keys)
    async with run_gateway(settings) as live:
        yield World(actor, live, folder)
    await server.stop(0)
