"""Requests to a gateway: tried again as long as that helps, and whatever goes wrong said as a Failure."""

import asyncio
import itertools
import json
import os
import random
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx

from retouch_cli.errors import Busy, Failure, Refused, Unauthorised, Unreachable
from retouch_cli.gateway import KEY, Gateway

CONNECT_SECONDS = 10.0
# A stream that is alive says something every 10 s.
SILENCE_SECONDS = 60.0
# Where the gateway does not say when to come back: doubled each time, up to the second, less up to a quarter.
FIRST_WAIT, LONGEST_WAIT = 0.5, 8.0
MAX_ERROR_BYTES = 65_536
BUSY = (429, 503)
# What reading an answer raises where it is not what it should be.
NONSENSE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
KINDS = {401: Unauthorised, 403: Unauthorised, **dict.fromkeys(BUSY, Busy), 408: Failure}
# `images[0]: `, `size.width: `, at the start of a message or of one of its parts.
FAULT = re.compile(r"(^|; )([a-z_]+(?:\[\d+\])?)(?:\.(\w+))?: ")

Waiting = Callable[[Failure, float], None]


class Session:
    """One command's requests. `names`: what the command's user calls a field of the API, such as `--size`."""

    def __init__(
        self,
        gateway: Gateway,
        client: httpx.AsyncClient,
        limit: asyncio.Timeout,
        names: Mapping[str, str],
    ) -> None:
        self.gateway, self._client, self._limit, self._names = gateway, client, limit, names
        self.refusal: Failure | None = None  # the last one, while it is asked again

    @asynccontextmanager
    async def answer(
        self,
        method: str,
        path: str,
        waiting: Waiting = lambda failure, seconds: None,
        **body: Any,
    ) -> AsyncIterator[httpx.Response]:
        """The first answer that is no error, its body still to come.

        What was refused before any work was done is asked again, after what Retry-After says: `waiting` is told. Raises
        Failure for any other error, and where there is no time left to ask again.
        """
        for attempt in itertools.count():
            async with self._client.stream(method, path, **body) as reply:
                if reply.is_success:
                    self.refusal = None
                    yield reply
                    return
                failure = await self._failure(reply)
                seconds = self._wait(reply, attempt)
            if seconds is None:
                raise failure
            self.refusal = failure
            waiting(failure, seconds)
            await asyncio.sleep(seconds)

    async def json(self, path: str) -> Any:
        """What a GET answers. Raises Failure."""
        async with self.answer("GET", path) as reply:
            try:
                return json.loads(await reply.aread())
            except (ValueError, RecursionError):
                raise self.stranger(reply) from None

    async def content(self, path: str) -> bytes:
        """What a GET answers, to the end. Raises Failure."""
        async with self.answer("GET", path) as reply:
            return await reply.aread()

    def stranger(self, reply: httpx.Response) -> Failure:
        """What answers, and is no gateway; or a proxy before one, whose status says enough."""
        said = f"it answered {reply.status_code} {reply.reason_phrase}".strip()
        if reply.status_code in KINDS:
            return self.failure(reply.status_code, {"message": f"{self.gateway.url}: {said}"}, None)
        if reply.has_redirect_location:
            said += f", which leads to {reply.headers['location']}"
        message = f"{self.gateway.url} is not a Retouch gateway: {said}"
        return Failure(message, http=reply.status_code)

    def failure(self, http: int, error: Mapping[str, Any], request_id: str | None) -> Failure:
        """An error as the API says it, in the words of the command line."""
        kind = KINDS.get(http) or (Refused if http < 500 else Failure)
        message = self._in_options(str(error["message"]))
        if http == 401:
            if not self.gateway.key:
                message = f"{self.gateway.url} wants an API key: {KEY}, see --help"
            elif "expired" not in message:
                # Its own words would be that one is needed.
                message = f"{self.gateway.url} does not know this API key"
            return kind(message, http=http, request_id=request_id)
        option = self._names.get(str(error.get("param")))
        if option and not message.startswith(option):
            message = f"{option}: {message}"
        if http >= 500 and request_id:
            message = f"{message} (request {request_id})"
        return kind(message, http=http, option=option, request_id=request_id)

    async def _failure(self, reply: httpx.Response) -> Failure:
        content = bytearray()
        async for chunk in reply.aiter_bytes():
            content += chunk
            if len(content) > MAX_ERROR_BYTES:
                break
        try:
            error = json.loads(content)["error"]
            return self.failure(reply.status_code, error, reply.headers.get("x-request-id"))
        except NONSENSE:
            return self.stranger(reply)

    def _in_options(self, message: str) -> str:
        """`size.width: must be` -> `--size: width must be`; and other fields by their options' names."""

        def fault(found: re.Match[str]) -> str:
            part = f"{found[3]} " if found[3] else ""
            return f"{found[1]}{self._names.get(found[2], found[2])}: {part}"

        message = FAULT.sub(fault, message)
        # Of the others only what can be no word of a sentence.
        return re.sub(
            r"\b[a-z]+_[a-z_]+\b", lambda word: self._names.get(word[0], word[0]), message
        )

    def _wait(self, reply: httpx.Response, attempt: int) -> float | None:
        """Seconds until it is worth asking again; None where it is not, or not within the time that is left."""
        should = reply.headers.get("x-should-retry")
        if should == "false" or (should != "true" and reply.status_code not in BUSY):
            return None
        told = reply.headers.get("retry-after", "")
        own = min(LONGEST_WAIT, FIRST_WAIT * 2**attempt) * random.uniform(0.75, 1.0)  # noqa: S311
        seconds = float(told) if re.fullmatch(r"[1-9]\d{0,8}", told) else own
        left = (self._limit.when() or 0.0) - asyncio.get_running_loop().time()
        return seconds if seconds < left else None


@asynccontextmanager
async def session(gateway: Gateway, names: Mapping[str, str]) -> AsyncIterator[Session]:
    """A session that ends with the gateway's time. Raises Failure for all that can go wrong on the way there."""
    talk = None
    try:
        async with asyncio.timeout(gateway.seconds) as limit, http_client(gateway) as client:
            talk = Session(gateway, client, limit, names)
            yield talk
    except TimeoutError:
        late = Failure(f"not done within {gateway.seconds:g} s (--timeout)")
        raise (talk and talk.refusal) or late from None
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
        up = gateway.here and gateway.url.startswith("http:")
        hint = ". Is it running? `retouch up` starts one here" if up else ""
        raise Unreachable(f"cannot reach {gateway.url}: {reason(error)}{hint}") from error
    except httpx.ReadTimeout as error:
        raise Failure(f"{gateway.url} has said nothing for {SILENCE_SECONDS:g} s") from error
    except httpx.HTTPError as error:
        raise Failure(f"lost {gateway.url} before all was said: {reason(error)}") from error


def http_client(gateway: Gateway) -> httpx.AsyncClient:
    """Certificates' authorities are the environment's, and proxies too where the gateway is elsewhere.

    Raises Failure where these are wrong.
    """
    limits = httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS)
    try:
        return httpx.AsyncClient(
            base_url=gateway.url,
            headers=gateway.headers,
            timeout=limits,
            # A transport that is given is what httpx uses instead of the environment's proxies.
            transport=httpx.AsyncHTTPTransport() if gateway.here else None,
        )
    except (ImportError, ValueError, OSError, httpx.InvalidURL) as error:
        raise Failure(f"the environment's proxy or certificates are wrong: {error}") from error


def reason(error: BaseException) -> str:
    """What the system said at the bottom of it; where it said nothing, the error's own words."""
    at: BaseException | None = error
    while at is not None:
        if isinstance(at, OSError) and at.strerror:
            # asyncio's own words would hide the system's.
            if at.errno and at.strerror.startswith("Connect call failed"):
                return os.strerror(at.errno)
            return at.strerror
        at = at.__cause__ or at.__context__
    return str(error) or type(error).__name__
