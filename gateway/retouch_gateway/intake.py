"""Taking a request in: its body, bounded in bytes and time; whether its caller is still there."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from retouch_gateway.dialects import Edit, from_form, from_json
from retouch_gateway.errors import (
    SOON,
    BodyTimeout,
    Busy,
    ClientGone,
    GatewayError,
    TooLarge,
    WrongContentType,
)
from retouch_gateway.metrics import Metrics
from retouch_gateway.multipart import Form
from retouch_gateway.settings import Settings

T = TypeVar("T")

# How long, and for how many bytes, an answered caller that is still sending is listened to.
LINGER_SECONDS = 2.0
LINGER_BYTES = 64 * 2**20
# Bytes of a body that is parsed in 0.1 ms, or 4 ms at the worst, about what a thread takes.
SMALL = 256 * 2**10
HELD = "body_bytes"  # in a request's state: what it counts for
FULL = "The bodies of the edits under way leave no room for this one; try again."


class Intake:
    """Takes the bodies of edits in. One for the process: it counts what they hold together.

    A body counts from its arrival until its request is answered, byte by byte: what is only announced takes no room.
    An image that is still to be fetched counts as the largest that it may be. One caller gets half of the room, so that
    others get in beside the slowest; or as much as one body needs, if that is more.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.max_held = settings.max_in_flight_bytes
        self.max_bytes = min(settings.body_bytes, self.max_held)
        self.max_share = max(self.max_held // 2, self.max_bytes)
        self.max_image_bytes = settings.max_image_bytes
        self.max_fetched_bytes = settings.max_image_bytes if settings.fetch_images else 0
        self.seconds = settings.body_timeout
        self.metrics = metrics
        self.held = self.taken = 0  # bytes, now and ever
        self.shares: Counter[str] = Counter()  # bytes now, by caller

    async def read(self, request: Request) -> Edit:
        """The edit that a request's body asks for.

        Raises WrongContentType, BadRequest, TooLarge and Busy (at once, where Content-Length tells), BodyTimeout and
        ClientGone; and counts what it refuses.
        """
        try:
            edit = await self._read(request)
            self._hold(request.scope, len(edit.links) * self.max_fetched_bytes)
        except GatewayError as error:
            self.metrics.rejected(error.status)
            raise
        return edit

    def answered(self, scope: Scope) -> None:
        """Give back what the request's body held."""
        self._change(scope, -scope["state"].get(HELD, 0))

    async def _read(self, request: Request) -> Edit:
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise WrongContentType("The body must come as it is, without a Content-Encoding.")
        add, parse = self._reader(request.headers.get("content-type", ""))
        declared = request.headers.get("content-length", "")
        if declared.isdecimal():
            self._bound(int(declared))
            self._room_for(request.scope, int(declared))
        try:
            async with asyncio.timeout(self.seconds):
                size = await self._receive(request, add)
        except TimeoutError:
            text = f"The request's body had not all come after {self.seconds:g} s."
            raise BodyTimeout(text) from None
        except ClientDisconnect:
            raise ClientGone from None
        return parse() if size <= SMALL else await run_in_threadpool(parse)

    def _reader(self, content_type: str) -> tuple[Callable[[bytes], None], Callable[[], Edit]]:
        """Where the pieces of such a body go, and what makes an edit of them once all are there."""
        media_type = content_type.partition(";")[0].strip().lower()
        if media_type == "multipart/form-data":
            form = Form(content_type)
            return form.feed, lambda: from_form(form.parts(), self.max_image_bytes)
        if media_type != "application/json":
            raise WrongContentType
        body = bytearray()
        return body.extend, lambda: from_json(body, self.max_image_bytes)

    async def _receive(self, request: Request, add: Callable[[bytes], None]) -> int:
        size = 0
        async for piece in request.stream():
            size += len(piece)
            self._bound(size)
            self._hold(request.scope, len(piece))
            add(piece)
        return size

    def _bound(self, size: int) -> None:
        if size > self.max_bytes:
            raise TooLarge(f"The request's body is larger than {self.max_bytes} bytes.")

    def _room_for(self, scope: Scope, count: int) -> None:
        if scope["state"].get(HELD, 0) + count > self.max_share:
            raise TooLarge(f"The request and its images are larger than {self.max_share} bytes.")
        share = self.shares[_caller(scope)] + count
        if share > self.max_share or self.held + count > self.max_held:
            raise Busy(FULL, headers=SOON)

    def _hold(self, scope: Scope, count: int) -> None:
        self._room_for(scope, count)
        self.taken += count
        self._change(scope, count)

    def _change(self, scope: Scope, count: int) -> None:
        caller = _caller(scope)
        scope["state"][HELD] = scope["state"].get(HELD, 0) + count
        self.held += count
        self.shares[caller] += count
        if not self.shares[caller]:
            del self.shares[caller]
        self.metrics.body_bytes.set(self.held)


def _caller(scope: Scope) -> str:
    """Who sends it, as the door says; else its peer."""
    peer = scope.get("client") or ("",)
    return str(scope["state"].get("caller", peer[0]))


async def while_connected(request: Request, work: Coroutine[None, None, T]) -> T:
    """`work`'s result; cancels it and raises ClientGone when the caller hangs up first."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Linger:
    """ASGI middleware: an answer given before the body was read closes the connection, gently.

    Closing a socket with unread bytes resets it, and the caller may lose the answer that says why.
    So the answer goes out whole, what still comes is thrown away for a while, then it closes.
    And an answered request's body counts no more.
    """

    def __init__(self, app: ASGIApp, intake: Intake) -> None:
        self.app = app
        self.intake = intake

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _has_body(scope):
            await self.app(scope, receive, send)
            return
        unread = True

        async def receiving() -> Message:
            nonlocal unread
            message = await receive()
            unread = unread and message.get("more_body", False)
            return message

        async def sending(message: Message) -> None:
            if unread and message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            elif unread and not message.get("more_body", False):
                await send({**message, "more_body": True})
                await _discard(receive)
                message = {"type": "http.response.body"}
            await send(message)

        try:
            await self.app(scope, receiving, sending)
        finally:
            self.intake.answered(scope)


async def _discard(receive: Receive) -> None:
    """Read on until the body ends, the caller hangs up, or enough has been heard."""
    left = LINGER_BYTES
    try:
        async with asyncio.timeout(LINGER_SECONDS):
            while left > 0:
                message = await receive()
                if not message.get("more_body", False):
                    return
                left -= len(message["body"])
    except TimeoutError:
        pass


def _has_body(scope: Scope) -> bool:
    headers = dict(scope["headers"])
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"
