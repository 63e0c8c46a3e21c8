"""The way out to hosts that a caller names: public addresses alone, with bounds on what a host may cost."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterable

import httpcore

from retouch_gateway.errors import SOON, Busy

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
LookUp = Callable[[str], Iterable[str]]

PORT = 443
LOOKUPS = 8
ADDRESSES = 4  # of one name that are tried
HEAD_BYTES = 2**14  # of an answer, with all interim ones before it; Node's own client takes as much

# Unicast that IANA has given out. What it has set aside for other uses is outside, or listed here:
# https://www.iana.org/assignments/iana-ipv6-special-registry and iana-ipv4-special-registry.
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC = [
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's own services, as each of its machines sees them
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",  # multicast, reserved, broadcast
        "2001::/23",  # Teredo, ORCHID, benchmarking
        "2001:db8::/32",
        "2002::/16",  # 6to4: any IPv4 address in disguise
        "3fff::/20",
    )
]


def is_public(address: Address) -> bool:
    """Whether `address` is a host on the internet, and none that stands for another address.

    Stricter than ipaddress's own is_global, which Python 3.11 says True of for NAT64, 6to4, the IPv4-compatible
    ::7f00:1 and multicast.
    """
    if address.version == 6 and address not in _GLOBAL_V6:
        return False
    return address.is_global and not any(address in network for network in _NOT_PUBLIC)


class PublicNetwork(httpcore.AsyncNetworkBackend):
    """TCP to public addresses alone, and which of those a name has.

    `look_up`: the addresses of a name, as text; it may block. `tcp`: what dials one of them.
    """

    def __init__(
        self, look_up: LookUp | None = None, tcp: httpcore.AsyncNetworkBackend | None = None
    ) -> None:
        self.look_up = look_up or _getaddrinfo
        self.tcp = tcp or httpcore.AnyIOBackend()
        self.threads = asyncio.Semaphore(LOOKUPS)

    async def addresses(self, host: str, patience: float) -> list[str]:
        """Up to ADDRESSES that `host` has. Raises httpcore.ConnectError unless all are public; Busy."""
        loop = asyncio.get_running_loop()
        looked_up: asyncio.Future[list[str]] = loop.create_future()

        def done(found: list[str]) -> None:
            self.threads.release()
            if not looked_up.done():  # else nobody waits any more
                looked_up.set_result(found)

        def looking() -> None:
            found: list[str] = []
            try:
                with contextlib.suppress(OSError, ValueError):  # no such name; none that could be
                    found = list(self.look_up(host))
            finally:
                with contextlib.suppress(RuntimeError):  # the gateway has ended meanwhile
                    loop.call_soon_threadsafe(done, found)

        await take(self.threads, patience)
        # No pool's thread: a name whose servers never answer holds it for half a minute, and no exit is to wait for it.
        try:
            threading.Thread(target=looking, name="look-up", daemon=True).start()
        except RuntimeError:  # the system has none
            self.threads.release()
            raise _busy() from None
        addresses = [ipaddress.ip_address(found) for found in await looked_up]
        if not addresses or not all(map(is_public, addresses)):
            raise httpcore.ConnectError
        return list(map(str, addresses[:ADDRESSES]))

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109
        *_others: object,
        **_named: object,
    ) -> httpcore.AsyncNetworkStream:
        """A connection to `host`, a public address. Raises httpcore.ConnectError."""
        if not is_public(ipaddress.ip_address(host)):
            raise httpcore.ConnectError
        return BeforeTLS(await self.tcp.connect_tcp(host, port, timeout))


class BeforeTLS(httpcore.AsyncNetworkStream):
    """A connection on which TLS is to start, closed if that is cut short: httpcore would leave it open."""

    def __init__(self, tcp: httpcore.AsyncNetworkStream) -> None:
        self.tcp = tcp

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        try:
            return Bounded(await self.tcp.start_tls(ssl_context, server_hostname, timeout))
        except BaseException:
            await self.tcp.aclose()
            raise


class Bounded(httpcore.AsyncNetworkStream):
    """A connection of which `left` more bytes may be read, at first those of a head.

    httpcore bounds each head of an answer, not how many interim ones come before it.
    """

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self.stream = stream
        self.left = HEAD_BYTES

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        if not self.left:
            raise httpcore.ReadError
        data = await self.stream.read(min(max_bytes, self.left), timeout)
        self.left -= len(data)
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        await self.stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self.stream.aclose()

    def get_extra_info(self, info: str) -> object:
        return self.stream.get_extra_info(info)


def _getaddrinfo(host: str) -> list[str]:
    found = socket.getaddrinfo(host, PORT, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


def _busy() -> Busy:
    return Busy("Too many images are being fetched; try again later.", headers=SOON)


async def take(places: asyncio.Semaphore, patience: float) -> None:
    """One of `places`. Raises Busy if none is free by `patience`, as the loop has time."""
    try:
        async with asyncio.timeout_at(patience):
            await places.acquire()
    except TimeoutError:
        raise _busy() from None


@contextlib.asynccontextmanager
async def place(places: asyncio.Semaphore, patience: float) -> AsyncIterator[None]:
    """Have one of `places` for a while. Raises Busy as `take` does."""
    await take(places, patience)
    try:
        yield
    finally:
        places.release()
