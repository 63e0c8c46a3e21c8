"""A streamed edit as server-sent events: OpenAI's own, and how it comes along in comments.

Comments, because every client's parser passes over them, while an event of an unknown name trips
some up. An edit that fails before its first event never gets here: it is answered as plain JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any

import orjson
import pybase64
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from retouch.v1.image_edit_pb2 import EditedImage, EditEvent, EditResponse, Preview, Usage
from retouch_gateway import replies
from retouch_gateway.access import Visit
from retouch_gateway.dialects import Edit
from retouch_gateway.errors import (
    BadUpstream,
    ClientGone,
    GatewayError,
    ModerationBlocked,
    OutOfTime,
    error_body,
)
from retouch_gateway.hosting import Hosted
from retouch_gateway.intake import while_connected

log = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 10.0
LAST_WORD_SECONDS = 1.0  # what it may take to say that the time is over
PARTIAL, COMPLETED = "image_edit.partial_image", "image_edit.completed"

Host = Callable[[EditResponse], Awaitable[Sequence[Hosted | None]]]
Say = Callable[[bytes], Awaitable[None]]


class EventStream(Response):
    """The answer to an edit with `stream`.

    `first`: the upstream's first event, `rest`: the others, closed here whatever happens.
    `host`: puts a result's images into the store; asked only if the edit is to be hosted.
    `seconds`: what it may take in all; past them it ends with OutOfTime, or, where not even that can be said, its
    connection is dropped (the request's `state.abort`).
    `keep`: is given the completed events before the first of them is out, or moderation's refusal: what is to be given
    again.

    Ends with one `image_edit.completed` for each image, in order, or with one `error`. Nothing is
    queued: the next event is asked for once the caller has taken the last. A caller that hangs up
    closes `rest`, and so cancels the edit.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        first: EditEvent,
        rest: AsyncGenerator[EditEvent, None],
        edit: Edit,
        host: Host,
        base_url: str,
        seconds: float,
        keep: Callable[[bytes], None] | None = None,
        keep_alive: float = KEEP_ALIVE_SECONDS,
    ) -> None:
        self.status_code, self.background = 200, None
        self.first, self.rest = first, rest
        self.edit, self.host, self.base_url = edit, host, base_url
        self.keep, self.keep_alive, self.seconds = keep, keep_alive, seconds
        # Proxies that gather an answer before they hand it on would gather all of it.
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        with contextlib.suppress(ClientGone):
            await while_connected(request, self._answer(request, send))

    async def _answer(self, request: Request, send: Send) -> None:
        async with contextlib.aclosing(self.rest):
            try:
                async with asyncio.timeout(self.seconds + LAST_WORD_SECONDS):
                    await self._say_all(request.state.visit, send)
            except TimeoutError:
                request.state.abort()
                await asyncio.Event().wait()  # until it is seen that the caller has gone

    async def _say_all(self, visit: Visit, send: Send) -> None:
        async def say(chunk: bytes) -> None:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})

        head = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **head})
        limit = asyncio.timeout(self.seconds)
        try:
            async with limit:
                result = await self._until_result(say)
                visit.model, visit.images = result.model, len(result.images)
                await self._complete(result, say)
        except Exception as raised:
            error = OutOfTime() if limit.expired() else raised
            visit.error = type(error).__name__
            if not isinstance(error, GatewayError):
                log.exception("unforeseen", extra={"request_id": visit.id})
                error = GatewayError()
            # The head said 200 before anyone knew: logs and metrics have how it ended.
            visit.status = error.status
            last = _event("error", error_body(error))
            if self.keep and isinstance(error, ModerationBlocked):
                self.keep(last)
            await say(last)
        await send({"type": "http.response.body"})

    async def _until_result(self, say: Say) -> EditResponse:
        """Say each event as it comes; the result, once the upstream has ended."""
        event: EditEvent | None = self.first
        result: EditResponse | None = None
        while event:
            if event.HasField("result"):
                result = event.result
            elif event.HasField("preview"):
                replies.check([event.preview.image])
                await say(await replies.off_loop(event.ByteSize(), _partial, event.preview))
            elif event.HasField("queued"):
                await say(_comment("queued", replies.fields(event.queued)))
            elif event.HasField("step"):
                await say(_comment("step", replies.fields(event.step)))
            event = await self._next(say)
        if not result:
            raise BadUpstream
        replies.check(result.images)
        return result

    async def _next(self, say: Say) -> EditEvent | None:
        """The next event, None after the last; while it is not there, comments that we still are."""
        coming = asyncio.ensure_future(anext(self.rest, None))
        try:
            while not (await asyncio.wait((coming,), timeout=self.keep_alive))[0]:
                await say(b": keep-alive\n\n")
            return coming.result()
        finally:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)

    async def _complete(self, result: EditResponse, say: Say) -> None:
        hosted = await self.host(result) if self.edit.hosted else []
        chunks = []
        for i, image in enumerate(result.images):
            shown = (result, i, self.edit, hosted, self.base_url)
            chunks.append(await replies.off_loop(image.ByteSize(), _completed, *shown))
        if self.keep:  # before they are said: who leaves among them has an edit that is done
            self.keep(await replies.off_loop(sum(map(len, chunks)), b"".join, chunks))
        for chunk in chunks:
            await say(chunk)


def _completed(
    result: EditResponse, i: int, edit: Edit, hosted: Sequence[Hosted | None], base_url: str
) -> bytes:
    image, place = result.images[i], hosted[i] if hosted else None
    body = {
        **_head(COMPLETED, image),
        **replies.picture(image, edit, place, base_url),
        **replies.origin(image),
        "image_index": i,
        "model": result.model,
        "usage": replies.usage(_share(result.usage, i, len(result.images))),
        **replies.remarks(edit, hosted[i : i + 1]),
    }
    return _event(COMPLETED, body)


def _partial(preview: Preview) -> bytes:
    body = {
        **_head(PARTIAL, preview.image),
        "b64_json": pybase64.b64encode_as_string(preview.image.data),
        "image_index": preview.image_index,
        "partial_image_index": preview.preview_index,
    }
    return _event(PARTIAL, body)


def _head(name: str, image: EditedImage) -> dict[str, Any]:
    """What OpenAI's events say of every image; `quality` and `background` have no effect here."""
    said = {"type": name, "created_at": int(time.time()), "quality": "auto", "background": "auto"}
    return said | replies.look(image)


def _share(spent: Usage, i: int, n: int) -> Usage:
    """Image `i`'s part of what `n` images took; the parts add up to the whole."""
    parts = {
        name: total * (i + 1) // n - total * i // n for name, total in replies.fields(spent).items()
    }
    return Usage(**parts)


def _event(name: str, body: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps(body))


def _comment(word: str, body: dict[str, Any]) -> bytes:
    return b": %b %b\n\n" % (word.encode(), orjson.dumps(body))
