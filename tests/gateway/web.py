"""Hosts to fetch images from: names, addresses and pages, all on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable

import httpcore
import pytest
import pytest_asyncio

from retouch.v1.image_edit_pb2 import EditRequest
from retouch_gateway.dialects import Edit
from retouch_gateway.errors import BadRequest
from retouch_gateway.fetch import Fetcher
from retouch_gateway.network import PublicNetwork
from tests.certificates import Authority
from tests.gateway.conftest import picture

PUBLIC, OTHER, PUBLIC_V6 = "93.184.215.14", "8.8.8.8", "2606:2800:21f::1"
NAMES = ("pictures.example", "other.example", "stranger.example")
Page = bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]


def page(body: bytes, head: str = "200 OK", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {head}", f"content-length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Web(httpcore.AnyIOBackend):
    """Some hosts: one TLS server on loopback, whatever address is dialled, and names for it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.pages: dict[str, Page] = {"/cat.png": page(picture())}
        self.names: dict[str, list[list[str]]] = {name: [[PUBLIC]] for name in NAMES}
        self.dead: set[str] = set()
        self.dialled: list[tuple[str, int]] = []
        self.heads: list[str] = []
        self.open = 0  # connections

    def look_up(self, name: str) -> list[str]:
        answers = self.names.get(name, [[]])
        return answers.pop(0) if len(answers) > 1 else answers[0]

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109
        *args: object,
    ) -> httpcore.AsyncNetworkStream:
        self.dialled.append((host, port))
        if host in self.dead:
            raise httpcore.ConnectError("refused")
        return await super().connect_tcp("127.0.0.1", self.port, timeout)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.heads.append(head)
            answer = self.pages.get(head.split(" ")[1], page(b"", "404 Not Found"))
            if isinstance(answer, bytes):
                writer.write(answer)
                await writer.drain()
            else:
                await answer(writer)
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass  # the fetcher hung up, as it may
        finally:
            writer.transport.abort()
            self.open -= 1


@contextlib.asynccontextmanager
async def hosts(authority: Authority) -> AsyncIterator[Web]:
    """Running, with a certificate for two of the names; in the end nothing is left open."""
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    host = authority.issue("host", "pictures.example", "other.example")
    tls.load_cert_chain(host.cert, host.key)
    web = Web(0)
    server = await asyncio.start_server(web.serve, "127.0.0.1", 0, ssl=tls)
    web.port = server.sockets[0].getsockname()[1]
    yield web
    server.close()
    async with asyncio.timeout(5):
        while web.open:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def fetching(
    authority: Authority, web: Web, look_up: Callable[[str], list[str]], seconds: float
) -> AsyncIterator[Fetcher]:
    """A fetcher of images of 100 kB at most that trusts `authority`; in the end it holds no connection."""
    tls = ssl.create_default_context(cafile=str(authority.cert))
    fetcher = Fetcher(True, 100_000, seconds, network=PublicNetwork(look_up, web), tls=tls)
    yield fetcher
    assert fetcher.pool.connections == []
    await fetcher.close()


class Names:
    """Names that hang until `answer` is set; one does not."""

    def __init__(self) -> None:
        self.answer = threading.Event()
        self.asked: list[str] = []

    def look_up(self, name: str) -> list[str]:
        self.asked.append(name)
        if name != "pictures.example":
            self.answer.wait(10)
        return [PUBLIC]


async def silence(_writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(1)


def edit_of(**links: str) -> Edit:
    """An edit with these images still to come; `image` is `images[0]`."""
    named = {
        name.replace("image", "images[") + "]" * (name != "mask"): url
        for name, url in links.items()
    }
    request = EditRequest(images=[b""] * sum(name != "mask" for name in links), prompt="warmer")
    return Edit(request=request, hosted=True, inline=False, stream=False, ignored=(), links=named)


async def refusal(fetcher: Fetcher, url: str) -> str:
    """Why the image at `url` does not come."""
    with pytest.raises(BadRequest) as refused:
        await fetcher.fill(edit_of(image0=url))
    assert refused.value.param == "images[0]"
    return refused.value.message.removeprefix("images[0]: ")


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest_asyncio.fixture(loop_scope="session")
async def web(authority: Authority) -> AsyncIterator[Web]:
    async with hosts(authority) as web:
        yield web


@pytest_asyncio.fixture(loop_scope="session")
async def fetcher(web: Web, authority: Authority) -> AsyncIterator[Fetcher]:
    async with fetching(authority, web, web.look_up, 2) as fetcher:
        yield fetcher
