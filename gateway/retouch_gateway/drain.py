"""The end of a gateway: callers on connections that stay open are asked to leave before these are closed."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

import uvicorn

from retouch_gateway.logs import on_loop_error

LOOK_SECONDS = 0.05


class Server(uvicorn.Server):
    """uvicorn's, which at a stop closes at once each connection that idles: a request on its way there is lost.

    Before that, for `wait` seconds, all that comes is answered, and each answer says that its connection closes.
    Requests have `state["draining"]` from then on, so that readiness can be denied. A second SIGINT ends the wait.
    """

    def __init__(self, config: uvicorn.Config, wait: float) -> None:
        super().__init__(config)
        self._wait = wait

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(on_loop_error)
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.lifespan.state["draining"] = True
        # In place: what is under way answers with the same list.
        self.server_state.default_headers.append((b"connection", b"close"))
        with suppress(TimeoutError):
            async with asyncio.timeout(self._wait):
                while not self.force_exit:  # noqa: ASYNC110  # which uvicorn sets in a signal's handler
                    await asyncio.sleep(LOOK_SECONDS)
        await super().shutdown(sockets)
