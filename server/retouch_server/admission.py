"""What may be under way before the queue is asked: calls, messages being received, pixels being decoded."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import Executor, Future
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeAlias, TypeVar

import grpc
from google.protobuf.message import DecodeError

from retouch.v1 import image_edit_pb2 as pb

from .access import Access, Context, arrived
from .errors import Busy, InvalidRequest, OutOfTime, Violation
from .jobs import Served

T = TypeVar("T")
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Find: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]"

# Calls beyond those that have a place: they are being answered.
MARGIN = 16
# Calls whose messages are not there yet: each costs little, but for that they are many.
MAX_SILENT = 256
# For a call's message, its turn to be received included; and for one event of an answer to be taken.
RECEIVE_SECONDS = SEND_SECONDS = 60.0
METHODS = {f"/{pb.DESCRIPTOR.package}.ImageEdit/{name}": name for name in ("Edit", "StreamEdit")}


class Service(Protocol):
    """What answers the calls; see service.ImageEdit."""

    served: Mapping[str, Served]
    draining: bool
    access: Access


class Door(grpc.aio.ServerInterceptor):
    """Refuses calls for edits for which there can be no place, before their messages are read; and bounds those.

    on_refused: called with the model that a call would have been for, where that can be no other.
    max_bytes: of the messages of all calls under way, most: from when one is there until its call is answered.
    receiving: messages that are being received at once, most, each caller's by `Fair`. The others wait where they are.
    calls, bytes: of those under way. silent: how many of the calls have sent no whole message yet.

    grpc.aio hands a call over when its whole message is there. To be asked before that, each is taken as a stream, of
    one message: on the wire that is the same.
    """

    def __init__(
        self,
        service: Service,
        on_refused: Callable[[str], object],
        max_bytes: int,
        receiving: int,
    ) -> None:
        self.calls = self.silent = self.bytes = 0
        self._service, self._on_refused, self._max_bytes = service, on_refused, max_bytes
        self._receiving = Fair(receiving)

    async def intercept_service(
        self, continuation: Find, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        name = METHODS.get(handler_call_details.method)
        if name is None or handler is None:
            return handler
        answer = handler.response_serializer
        if handler.unary_unary:
            edit = partial(self._edit, name, handler.unary_unary)
            return grpc.stream_unary_rpc_method_handler(edit, None, answer)
        stream = partial(self._stream, name, handler.unary_stream)
        return grpc.stream_stream_rpc_method_handler(stream, None, answer)

    async def _edit(
        self, name: str, work: Any, messages: AsyncIterator[bytes], context: Context
    ) -> pb.EditResponse:
        with _Stay(self) as stay:
            response: pb.EditResponse = await work(
                await self._take_in(name, stay, messages, context), context
            )
            return response

    async def _stream(
        self, name: str, work: Any, messages: AsyncIterator[bytes], context: Context
    ) -> None:
        with _Stay(self) as stay:
            request = await self._take_in(name, stay, messages, context)
            async with aclosing(work(request, context)) as events:
                async for event in events:
                    await _send(event, context)

    async def _take_in(
        self, name: str, stay: _Stay, messages: AsyncIterator[bytes], context: Context
    ) -> pb.EditRequest:
        """A call's request. What fails here is answered, counted and logged like what fails later."""
        try:
            self._look()
            message = await self._receive(messages, context)
            if self.bytes + len(message) > self._max_bytes:
                raise Busy(self._soon, "bytes")
            stay.hold(len(message))
            return pb.EditRequest.FromString(message)
        except DecodeError:
            async with self._service.access.answering(name, context):
                raise InvalidRequest([Violation("request", "is no EditRequest")]) from None
        except BaseException:
            async with self._service.access.answering(name, context):
                raise

    async def _receive(self, messages: AsyncIterator[bytes], context: Context) -> bytes:
        """The one message of a call; empty where there is none, which is a request without any field."""
        begun = False
        try:
            async with asyncio.timeout(RECEIVE_SECONDS), self._receiving.place(context.peer()):
                self._look()  # it may have waited
                begun = True
                async for message in messages:
                    return message
        except TimeoutError:
            if not begun:
                raise Busy(self._soon, "bytes") from None
            text = f"the request had not all come after {RECEIVE_SECONDS:g} s"
            raise OutOfTime(text) from None
        return b""

    def _look(self) -> None:
        """Raises Busy where no edit could have a place."""
        models = self._service.served
        if self._service.draining:
            return  # which the service says
        if len(models) == 1:
            ((name, served),) = models.items()
            if not served.has_room(1):
                self._on_refused(name)
                raise Busy(self._soon)
        engines = [served.engine for served in models.values()]
        places = MARGIN + sum(each.slots + each.queue_size for each in engines)
        if self.silent > MAX_SILENT or self.calls - self.silent >= places:
            raise Busy(self._soon, "calls")

    @property
    def _soon(self) -> float:
        served = self._service.served.values()
        return min((each.engine.retry_after for each in served), default=1.0)


class Fair:
    """Places of which nobody takes more than are free then: half of them, the next caller half of the rest, and so on.

    So one who keeps all that it can get, a gateway that is lost in the middle of its requests, stops nobody else.
    (Switches share their buffers so: Choudhury and Hahne, "Dynamic queue length thresholds".)
    """

    def __init__(self, places: int) -> None:
        self.free = places
        self._held = Counter[str]()
        self._waiting: list[asyncio.Future[None]] = []

    @asynccontextmanager
    async def place(self, caller: str) -> AsyncIterator[None]:
        """Hold one, once there is one for `caller`."""
        while self._held[caller] >= self.free:
            self._waiting.append(asyncio.get_running_loop().create_future())
            await self._waiting[-1]
        self.free -= 1
        self._held[caller] += 1
        try:
            yield
        finally:
            self._give_back(caller)

    def _give_back(self, caller: str) -> None:
        self.free += 1
        self._held[caller] -= 1
        if not self._held[caller]:
            del self._held[caller]
        for waiting in self._waiting:  # each looks again, in this order
            if not waiting.done():
                waiting.set_result(None)
        self._waiting.clear()


class _Stay:
    """What a call counts for while it is under way."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._bytes: int | None = None

    def hold(self, size: int) -> None:
        """Its message is there."""
        self._bytes = size
        self._door.bytes += size
        self._door.silent -= 1

    def __enter__(self) -> _Stay:
        arrived.set(time.monotonic())
        self._door.calls += 1
        self._door.silent += 1
        return self

    def __exit__(self, *reason: object) -> None:
        self._door.calls -= 1
        if self._bytes is None:
            self._door.silent -= 1
        else:
            self._door.bytes -= self._bytes


async def _send(event: pb.EditEvent, context: Context) -> None:
    """Write it. Ends the call of a caller who takes nothing: it would hold its place until its deadline."""
    try:
        async with asyncio.timeout(SEND_SECONDS):
            await context.write(event)
    except TimeoutError:
        raise asyncio.CancelledError from None


class Decoding:
    """Work in a pool whose pictures together have at most so many pixels; what is larger than all that goes alone.

    Small ones go first, so that one caller's large ones hold up others' for one of them and not for all; but whoever
    has waited longest is passed over so many times at most.
    """

    PASSED = 16

    def __init__(self, pool: Executor, pixels: int) -> None:
        self.pixels = self.free = pixels
        self._pool = pool
        self._waiting: list[_Turn] = []

    async def run(self, pixels: int, work: Callable[..., T], *arguments: Any) -> T:
        """`work`, in the pool, when its turn has come: never, if its caller leaves before."""
        pixels = min(pixels, self.pixels)
        await self._take(pixels)
        loop = asyncio.get_running_loop()

        def ended(_: Future[T]) -> None:
            with suppress(RuntimeError):  # the loop has ended before
                loop.call_soon_threadsafe(self._give, pixels)

        try:
            working = self._pool.submit(work, *arguments)
        except BaseException:  # no thread can be started
            self._give(pixels)
            raise
        # And not when its caller leaves: nothing ends a thread's work.
        working.add_done_callback(ended)
        return await asyncio.wrap_future(working)

    async def _take(self, pixels: int) -> None:
        if not self._waiting and pixels <= self.free:
            self.free -= pixels
            return
        turn = _Turn(pixels, asyncio.get_running_loop().create_future())
        self._waiting.append(turn)
        self._give(0)
        try:
            await turn.come
        except asyncio.CancelledError:
            self._give(0 if turn.come.cancelled() else pixels)
            raise

    def _give(self, pixels: int) -> None:
        """Give back so many, and turns to whom there is room for."""
        self.free += pixels
        self._waiting = [turn for turn in self._waiting if not turn.come.cancelled()]
        while self._waiting:
            first = self._waiting[0]
            turn = first
            if first.passed < self.PASSED:
                turn = min(self._waiting, key=lambda each: each.pixels)
            if turn.pixels > self.free:
                return
            first.passed += turn is not first
            self._waiting.remove(turn)
            self.free -= turn.pixels
            turn.come.set_result(None)


@dataclass(eq=False)
class _Turn:
    """One who waits. `come` is done when its turn is there; `passed`: others since it is the first."""

    pixels: int
    come: asyncio.Future[None]
    passed: int = 0
