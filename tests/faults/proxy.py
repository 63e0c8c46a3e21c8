"""A network that can be made worse while it is in use: a TCP proxy on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

CHUNK = 2**14
LOOK_SECONDS = 0.005
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: on, for no time


class Then(Enum):
    """What becomes of connections once a way has passed all that it may. But for HOLD it becomes of one, once."""

    HOLD = "nothing more comes through, nor is it known whether the other end is still there"
    RESET = "both ends are reset"
    END = "the far end sees the end of the stream; the way back stays open"


@dataclass
class Way:
    """One direction of all connections.

    `delay`: seconds that each piece takes. `rate`: bytes/s. `left`: bytes that still come through, and `then`.
    `passed`: bytes that came through. `held`: whether some wait.
    """

    delay: float = 0.0
    rate: float = math.inf
    left: float = math.inf
    then: Then = Then.HOLD
    passed: int = 0
    held: bool = False


class Proxy:
    """Listens on `port` of loopback and leads each connection to the port `target` there.

    `up`: from those who connect; `down`: to them. `silent`: new connections are taken and led nowhere.
    """

    def __init__(self, target: int, listener: socket.socket) -> None:
        self.target, self.port = target, int(listener.getsockname()[1])
        self.up, self.down = Way(), Way()
        self.silent = False
        self._listener = listener
        self._lines: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()

    def slow(self, way: Way, *, delay: float = 0.0, rate: float = math.inf) -> None:
        way.delay, way.rate = delay, rate

    def cut(self, way: Way, then: Then, *, after: int = 0) -> None:
        """`after` so many more bytes."""

        def do() -> None:
            way.then, way.left = then, after

        self._now(do)

    def heal(self) -> None:
        """What is held comes through, and all is well from now on."""

        def do() -> None:
            self.silent = False
            for way in (self.up, self.down):
                way.delay, way.rate, way.left = 0.0, math.inf, math.inf

        self._now(do)

    def drop(self) -> None:
        """Reset all connections."""
        self._now(lambda: [line.cancel() for line in self._lines])

    def run(self) -> None:
        """Until it is stopped."""
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(
            asyncio.start_server(self._serve, sock=self._listener, limit=CHUNK)
        )
        self._loop.run_forever()
        server.close()
        for line in self._lines:
            line.cancel()
        self._loop.run_until_complete(asyncio.gather(*self._lines, return_exceptions=True))
        self._loop.close()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _now(self, do: Callable[[], object]) -> None:
        """On the loop, so that no piece on its way sees half of it."""
        done = threading.Event()

        def now() -> None:
            do()
            done.set()

        self._loop.call_soon_threadsafe(now)
        assert done.wait(60)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = asyncio.current_task()
        assert line
        self._lines.add(line)
        line.add_done_callback(self._lines.discard)
        writers = [writer]
        try:
            while self.silent:  # noqa: ASYNC110
                await asyncio.sleep(LOOK_SECONDS)
            far_reader, far_writer = await self._connect()
            writers.append(far_writer)
            await _together(
                _pump(self.up, reader, far_writer), _pump(self.down, far_reader, writer)
            )
        except (OSError, asyncio.CancelledError):
            for each in writers:
                _reset(each)
        finally:
            for each in writers:
                each.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Taking in no more than a router would: what is held is held at its sender."""
        far = socket.socket()
        far.setblocking(False)
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, CHUNK)
        try:
            await asyncio.get_running_loop().sock_connect(far, ("127.0.0.1", self.target))
        except BaseException:
            far.close()
            raise
        return await asyncio.open_connection(sock=far, limit=CHUNK)


async def _pump(way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Bytes from one to the other, then the end of them. Raises OSError to have both ends reset."""
    while piece := await reader.read(CHUNK):
        while piece:
            if way.left > 0:
                way.held = False
                piece = await _pass(way, piece, writer)
            elif way.then is Then.HOLD:
                way.held = True
                await asyncio.sleep(LOOK_SECONDS)
            else:
                way.left = math.inf
                if way.then is Then.RESET:
                    raise ConnectionResetError
                return writer.write_eof()
    writer.write_eof()


async def _pass(way: Way, piece: bytes, writer: asyncio.StreamWriter) -> bytes:
    """As much of it as may be; returns what is left."""
    await asyncio.sleep(way.delay)
    # Of a slow way at once what comes in 50 ms.
    size = int(min(len(piece), way.left, max(1, way.rate / 20)))
    way.left -= size
    way.passed += size
    writer.write(piece[:size])
    await writer.drain()
    await asyncio.sleep(size / way.rate)
    return piece[size:]


def _reset(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):  # it is closed
        writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE
        )
    writer.transport.abort()


async def _together(*works: Coroutine[Any, Any, None]) -> None:
    """Until all have ended well or one has failed; then none of them goes on."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.contextmanager
def proxy(target: int) -> Iterator[Proxy]:
    """One that leads to that port of loopback."""
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        made = Proxy(target, listener)
        thread = threading.Thread(target=made.run)
        thread.start()
        try:
            yield made
        finally:
            made.stop()
            thread.join()
