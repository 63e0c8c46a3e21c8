"""Taking a request in: its body, bounded in bytes and time; whether its caller is still there."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from retouch_gateway.errors import BodyTimeout, ClientGone, TooLarge, WrongContentType

T = TypeVar("T")

# How long, and for how many bytes, an answered caller that is still sending is listened to.
LINGER_SECONDS = 2.0
LINGER_BYTES = 64 * 2**20


async def read_json_body(request: Request, max_bytes: int, seconds: float) -> bytearray:
    """The whole body of a JSON request.

    Raises WrongContentType, TooLarge (at once, where Content-Length tells), BodyTimeout when it
    has not all come after `seconds`, and ClientGone.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise WrongContentType
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    try:
        async with asyncio.timeout(seconds):
            return await _read(request, max_bytes)
    except TimeoutError:
        raise BodyTimeout(f"The request's body had not all come after {seconds:g} s.") from None
    except ClientDisconnect:
        raise ClientGone from None


async def _read(request: Request, max_bytes: int) -> bytearray:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
    return body


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge(f"The request's body is larger than {max_bytes} bytes.")


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
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

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

        await self.app(scope, receiving, sending)


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
