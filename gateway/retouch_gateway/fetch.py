"""Images given as addresses: fetched from public hosts alone, over https, bounded in bytes and time.

A caller names the host, so the gateway must not become the way into its own network. Names are resolved here, every
address that a name has must be public, and the address that was checked is the one that is dialled: a name that
resolves to something else a moment later gains nothing. Each redirect is a fetch of its own by the same rules.
What failed on the way to a host is told in one sentence, whatever it was: else this would be a port scanner.
Only where other edits hold all threads or connections is it Busy instead: that is no fault of the address.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from contextlib import suppress
from dataclasses import dataclass, field

import httpcore
import httpx

from retouch_gateway.dialects import Edit
from retouch_gateway.errors import BadRequest, Busy, Violation
from retouch_gateway.network import HEAD_BYTES, PORT, PublicNetwork, place
from retouch_gateway.pictures import is_image

# Its debug lines tell hosts and whole heads, with the signed addresses that some redirect to.
logging.getLogger("httpcore").setLevel(logging.INFO)

REDIRECTS = 3
AT_ONCE_PER_EDIT = 4
AT_ONCE = 32
# A body in pieces of one byte takes half a second of this process's time per 100 kB: so many may be small, then they
# must have this many bytes on average.
CRUMBS, CRUMB_BYTES = 1000, 512

_REDIRECT = frozenset({301, 302, 303, 307, 308})
_HEADERS = [
    (b"accept", b"image/png, image/jpeg, image/webp"),
    (b"accept-encoding", b"identity"),
    (b"user-agent", b"retouch-gateway"),
]
_FAILURES = (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException)
OFF = "addresses are not fetched here; send the image itself, in base64 or as a file"
UNREACHED = "could not be fetched from that address"


class Refused(Exception):
    """Why an image does not come, in words for the caller."""


@dataclass
class Turns:
    """What the images of one edit share."""

    deadline: float  # as the loop has time
    # After it a place would come too late to be of use, and before the deadline: what is waited for is then told.
    patience: float
    fetches: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE_PER_EDIT))
    # One name at a time: one that hangs keeps its thread long after its edit is over.
    lookups: asyncio.Lock = field(default_factory=asyncio.Lock)


class Fetcher:
    """Fetches what an edit gave as addresses.

    `max_bytes`: the largest image. `seconds`: for all of an edit's images together.
    `network`, `tls`: the way out and whom to trust; the defaults are what a gateway runs with.
    """

    def __init__(
        self,
        enabled: bool,
        max_bytes: int,
        seconds: float,
        *,
        network: PublicNetwork | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.enabled = enabled
        self.max_bytes = max_bytes
        self.seconds = seconds
        self.network = network or PublicNetwork()
        self.places = asyncio.Semaphore(AT_ONCE)
        self.pool = httpcore.AsyncConnectionPool(
            ssl_context=tls or (httpx.create_ssl_context() if enabled else None),
            max_connections=AT_ONCE,
            max_keepalive_connections=0,
            network_backend=self.network,
        )

    async def fill(self, edit: Edit) -> None:
        """Put the images at `edit.links` into `edit.request`.

        Raises BadRequest, naming every field whose image did not come; Busy if nothing but other edits was in the way.
        """
        if edit.links and not self.enabled:
            raise BadRequest.of([(field, OFF) for field in edit.links])
        now = asyncio.get_running_loop().time()
        turns = Turns(now + self.seconds, now + self.seconds * 0.9)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._filling(edit, field, url, turns))
                for field, url in edit.links.items()
            ]
        failed = [found for task in tasks if (found := task.result())]
        if violations := [found for found in failed if not isinstance(found, Busy)]:
            raise BadRequest.of(violations)
        for found in failed:
            if isinstance(found, Busy):
                raise found

    async def close(self) -> None:
        await self.pool.aclose()

    async def _filling(
        self, edit: Edit, field: str, url: str, turns: Turns
    ) -> Violation | Busy | None:
        """Put one image in; or why not."""
        try:
            async with asyncio.timeout_at(turns.deadline), turns.fetches:
                _put(edit, field, await self._fetch(url, turns))
        except Refused as refused:
            return field, str(refused)
        except (*_FAILURES, OSError, ValueError):  # time is up; a name that TLS cannot have
            return field, UNREACHED
        except Busy as busy:
            return busy
        return None

    async def _fetch(self, url: str, turns: Turns) -> bytes:
        """The image at `url`. Raises Refused and Busy."""
        at = _parsed(url)
        for _ in range(REDIRECTS + 1):
            async with turns.lookups:
                addresses = await self.network.addresses(at.raw_host.decode(), turns.patience)
            async with place(self.places, turns.patience):
                found = await self._get(at, addresses)
            if isinstance(found, bytes):
                return found
            at = found
        raise Refused(f"is redirected more than {REDIRECTS} times")

    async def _get(self, at: httpx.URL, addresses: list[str]) -> bytes | httpx.URL:
        """The image at `at`, or where it says that it is, from the first of `addresses` that can be reached."""
        for address in addresses:
            url = httpcore.URL(scheme=b"https", host=address, port=PORT, target=at.raw_path)
            extensions = {
                "sni_hostname": at.raw_host.decode(),  # whose the certificate must be
                # The rest is bounded by the edit's deadline.
                "timeout": {"connect": self.seconds / len(addresses)},
            }
            headers = [(b"host", at.netloc), *_HEADERS]
            with suppress(httpcore.ConnectError, httpcore.ConnectTimeout):
                async with self.pool.stream(
                    "GET", url, headers=headers, extensions=extensions
                ) as response:
                    return await self._answer(response, at)
        raise httpcore.ConnectError

    async def _answer(self, response: httpcore.Response, at: httpx.URL) -> bytes | httpx.URL:
        headers = {name.lower(): value for name, value in response.headers}
        if response.status in _REDIRECT and b"location" in headers:
            return _parsed(headers[b"location"].decode("utf-8", "replace"), base=at)
        if response.status != 200:
            raise Refused(f"its host answered {response.status}")
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise Refused("came compressed")
        # Chunks may have heads of any length: as much again for those.
        response.extensions["network_stream"].left = HEAD_BYTES + 2 * self.max_bytes
        chunks, length = [], 0
        async for chunk in response.aiter_stream():
            chunks.append(chunk)
            length += len(chunk)
            if length > self.max_bytes:
                raise Refused(f"has more than the {self.max_bytes} bytes that are allowed")
            if len(chunks) > CRUMBS + length // CRUMB_BYTES:
                raise Refused("came in crumbs")
        data = b"".join(chunks)
        if not is_image(data):
            raise Refused("is not a PNG, JPEG or WebP image")
        return data


def _parsed(url: str, base: httpx.URL | None = None) -> httpx.URL:
    """`url`, or where it leads from `base`. Raises Refused unless it may be fetched."""
    try:
        at = base.join(url) if base else httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        raise Refused("is not an address") from None
    if at.scheme != "https" or at.port is not None or at.userinfo or not at.raw_host:
        raise Refused(f"must be an https address at port {PORT}, without user or password")
    return at


def _put(edit: Edit, field: str, data: bytes) -> None:
    if field == "mask":
        edit.request.mask = data
    else:
        edit.request.images[int(field[len("images[") : -1])] = data
