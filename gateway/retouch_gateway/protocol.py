"""HTTP below the routes: the envelope for what does not parse; heads, waiting requests and readers bounded."""

from __future__ import annotations

import asyncio
import math
from http import HTTPStatus
from typing import Any, cast

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from retouch_gateway.access import Access
from retouch_gateway.errors import envelope

HEAD_BYTES = 64 * 2**10
HEAD_SECONDS = 30.0
WAITING = 8  # requests on one connection, behind the one under way
STALL_SECONDS = 30.0  # for which a caller may take nothing of its answer
LINGER_SECONDS = 1  # for which a caller who was not told that the gateway stops may still ask
STOP_SECONDS = 5.0  # the same when the gateway stops; and what a body may still take to come


class EnvelopeProtocol(HttpToolsProtocol):
    """uvicorn's httptools protocol, which trusts whoever calls.

    It bounds neither a head's bytes, nor its time, nor what stands between the pieces of a body, nor the requests that
    wait, nor the time that an answer is not read. It loses the body of a request that offers another protocol (h2c),
    and does not tell the request under way that its caller has gone once another one waits behind it.

    `state["abort"]` of each request drops its connection, with what is not sent yet.
    """

    _overhead = 0  # bytes since the last piece of a body, or since the head began
    _head_timer: asyncio.TimerHandle | None = None
    _under_way: RequestResponseCycle | None = None
    _unsent = math.inf  # bytes, when last looked at
    _patience: float  # seconds from look to look

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._await_head()
        self._patience = STALL_SECONDS
        self._watch_reader()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_in()
        self._reader_timer.cancel()
        super().connection_lost(exc)
        self._tell_it_is_over()

    def shutdown(self) -> None:
        cycle = self._current
        unaware = cycle and cycle.response_started and cycle.keep_alive
        super().shutdown()
        if cycle and unaware:
            # Its head, a stream's, went out before it could say that the connection closes: the next one's will.
            cycle.keep_alive = True
            self.timeout_keep_alive = LINGER_SECONDS
        self.loop.call_later(STOP_SECONDS, self._stop_waiting)
        self._patience = STOP_SECONDS
        self._watch_anew()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_anew()

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        # Counted whole chunks at a time: what is over by less than a chunk does no harm.
        self._overhead += len(data)
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self._refuse(400, "This is no HTTP that can be understood.")
        if self._overhead > HEAD_BYTES:
            what = "The request's head, trailers or chunk extensions"
            self._refuse(431, f"{what} are larger than {HEAD_BYTES} bytes.")
        if not self._current and not self.transport.is_closing():
            self._await_head()  # a line's end begins no request, but ended the wait for the next

    def _parse(self, data: bytes) -> None:
        """Parse; a head that offers another protocol, whose body the parser leaves out, again without that."""
        while data:
            try:
                return self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as stopped:
                data = self._plain_head() + data[stopped.args[0] :]
                # It takes what is behind an upgrade for no HTTP, if it was to be the last request.
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def _plain_head(self) -> bytes:
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        if method == b"CONNECT":
            raise httptools.HttpParserError
        lines = [b"%b %b HTTP/%b" % (method, self.url, version)]
        lines += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"]["abort"] = self.transport.abort
        self._overhead = 0
        self._await_head()

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._head_is_in()
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (hosts == 0 and self.parser.get_http_version() == "1.1"):
            # RFC 9112, 3.2: proxies and we might each take another for the one that is meant.
            self._refuse(400, "There must be one Host.")
            raise httptools.HttpParserError
        if len(self.pipeline) == WAITING:
            self._refuse(400, f"More than {WAITING} requests wait on this connection.")
            raise httptools.HttpParserError  # what has come of others is not looked at
        super().on_headers_complete()
        self.headers = []  # trailers go here, and are no headers
        if len(self.pipeline) == 1:
            self.flow.resume_reading()  # or the end of the connection goes unseen

    def on_body(self, body: bytes) -> None:
        self._overhead = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._under_way = cycle
        super()._start_asgi_task(cycle, app)

    @property
    def _current(self) -> RequestResponseCycle | None:
        """The request under way, until its answer is complete."""
        cycle = self._under_way
        return None if not cycle or cycle.response_complete else cycle

    def _await_head(self) -> None:
        if not self._head_timer:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self._head_is_late)

    def _head_is_in(self) -> None:
        if self._head_timer:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._current:
            self._await_head()  # an answer comes first
        else:
            self._refuse(408, f"The request's head had not all come after {HEAD_SECONDS:g} s.")

    def _watch_anew(self) -> None:
        self._reader_timer.cancel()
        self._unsent = math.inf
        self._watch_reader()

    def _watch_reader(self) -> None:
        """Look now and then whether something was taken of what waits to be sent; if not, the caller is gone."""
        unsent = self.transport.get_write_buffer_size()
        waits = unsent and (self.flow.write_paused or self.transport.is_closing())
        if waits and unsent >= self._unsent:
            self.transport.abort()
        # Where nothing waits, more may be written until the next look, and be no sign of a stall.
        self._unsent = unsent if waits else math.inf
        self._reader_timer = self.loop.call_later(self._patience, self._watch_reader)

    def _stop_waiting(self) -> None:
        cycle = self._current
        if cycle and cycle.more_body and not cycle.response_started:
            self._refuse(503, "The gateway is stopping; try again.")

    def _tell_it_is_over(self) -> None:
        if cycle := self._current:
            cycle.disconnected = True
            cycle.message_event.set()

    def _refuse(self, status: int, message: str) -> None:
        """Answer and close; only close where another answer has begun."""
        self._head_is_in()
        if self.transport.is_closing():
            return
        if not (self._current and self._current.response_started):
            visit = cast(Access, self.config.app).refused(status)
            body = orjson.dumps(envelope(status, message))
            head = (
                f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
                "content-type: application/json\r\n"
                f"content-length: {len(body)}\r\n"
                f"x-request-id: {visit.id}\r\n"
                "openai-processing-ms: 0\r\n"
                "connection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()
        self._tell_it_is_over()
