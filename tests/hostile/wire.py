"""HTTP as no client would send it, many requests in one go; every answer is read, judged and counted."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

# Requests on their way at once on one connection: as many as may wait there.
DEPTH = 8
CONNECTIONS = 24
# Within which each answer begins. What it takes on a quiet machine is in the report.
PATIENCE = 60.0
REFUSED = frozenset(range(400, 500))


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as bytes. `allowed`: the statuses that it may be answered with."""

    kind: str
    raw: bytes
    allowed: frozenset[int] = REFUSED

    @property
    def bodiless(self) -> bool:
        return self.raw.startswith(b"HEAD ")


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


class Misbehaved(AssertionError):
    """An answer that breaks the promise; shows the request."""

    def __init__(self, why: str, asked: Asked) -> None:
        super().__init__(f"{why}\n{asked.kind}: {asked.raw[:1500]!r}")


@dataclass
class Tally:
    """What came of all requests so far, by kind. `slowest`: seconds from a request's sending to its answer."""

    answered: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    slowest: float = 0.0
    connections: int = 0
    # What no answer may hold: what is kept beside the images, say.
    secrets: Sequence[bytes] = ()

    @property
    def total(self) -> int:
        return self.answered.total()

    def judge(self, asked: Asked, answer: Answer, seconds: float) -> None:
        """Count it. Raises Misbehaved."""
        if answer.status not in asked.allowed:
            shown = f"{answer.status}, not {sorted(asked.allowed)[:8]}: {answer.body[:500]!r}"
            raise Misbehaved(shown, asked)
        if "x-request-id" not in answer.headers or "x-injected" in answer.headers:
            raise Misbehaved(f"headers {answer.headers}", asked)
        if answer.status >= 400 and not asked.bodiless:
            _check_envelope(asked, answer)
        if any(secret in answer.body for secret in self.secrets):
            raise Misbehaved(f"tells a secret: {answer.body[:500]!r}", asked)
        self.answered[asked.kind] += 1
        self.statuses[answer.status] += 1
        self.slowest = max(self.slowest, seconds)


def _check_envelope(asked: Asked, answer: Answer) -> None:
    try:
        error = json.loads(answer.body)["error"]
    except (ValueError, KeyError, TypeError):
        raise Misbehaved(f"no envelope: {answer.body[:500]!r}", asked) from None
    if error.keys() != {"message", "type", "param", "code"} or error["code"] != answer.status:
        raise Misbehaved(f"not the envelope: {error}", asked)
    if len(answer.body) > 8192:
        raise Misbehaved(f"a refusal of {len(answer.body)} bytes", asked)


async def flood(
    port: int, requests: Iterable[Asked], tally: Tally, connections: int = CONNECTIONS
) -> None:
    """Send all of them over that many connections, up to DEPTH at a time, and judge each answer."""
    source = iter(requests)

    async def caller() -> None:
        waiting: deque[Asked] = deque()
        # Of what is refused with the connection closed, all behind it are to be sent again: then fewer go at once.
        depth = 1
        while True:
            waiting.extend(islice(source, max(0, depth - len(waiting))))
            if not waiting:
                return
            tally.connections += 1
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                while waiting:
                    if not await _round(reader, writer, waiting, tally):
                        depth = max(1, depth // 2)
                        break
                    depth = min(DEPTH, depth + 1)
                    waiting.extend(islice(source, depth))
            finally:
                writer.close()
                with contextlib.suppress(ConnectionError):
                    await writer.wait_closed()

    async with asyncio.TaskGroup() as callers:
        for _ in range(connections):
            callers.create_task(caller())


async def _round(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    waiting: deque[Asked],
    tally: Tally,
) -> bool:
    """Send what waits and take answers off it; whether the connection is still good."""
    began, before = time.monotonic(), len(waiting)
    writer.write(b"".join(each.raw for each in waiting))
    while waiting:
        try:
            answer = await asyncio.wait_for(answered(reader, waiting[0].bodiless), PATIENCE)
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            if len(waiting) == before:
                raise Misbehaved(f"no answer: {error!r}", waiting[0]) from None
            return False
        except TimeoutError:
            raise Misbehaved("hangs", waiting[0]) from None
        tally.judge(waiting.popleft(), answer, time.monotonic() - began)
        if answer.headers.get("connection") == "close":
            return False
    return True


async def answered(reader: asyncio.StreamReader, bodiless: bool = False) -> Answer:
    """The next answer. Raises IncompleteReadError and ConnectionError."""
    status, headers = 100, {}
    while status < 200:  # 100 Continue comes before the answer
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        status = int(head[0].split()[1])
        headers = {n.lower(): v for n, _, v in (line.partition(": ") for line in head[1:] if line)}
    if bodiless or status in (204, 304):
        return Answer(status, headers, b"")
    if headers.get("transfer-encoding") == "chunked":
        return Answer(status, headers, await _chunks(reader))
    return Answer(status, headers, await reader.readexactly(int(headers["content-length"])))


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readexactly(2)
    return body


async def spoken(
    port: int, raw: bytes, seconds: float = PATIENCE, first: float = PATIENCE
) -> bytes:
    """All that comes back for `raw`, until the other side closes or nothing more has come for so long.

    first: seconds within which something comes, if anything does.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    said = b""
    try:
        writer.write(raw)
        with contextlib.suppress(ConnectionError, TimeoutError):
            while more := await asyncio.wait_for(reader.read(2**16), seconds if said else first):
                said += more
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    return said


def request(
    method: str, path: str | bytes, headers: Iterable[bytes] = (), body: bytes | None = None
) -> bytes:
    """An HTTP/1.1 request. `path` and `headers` go as they are."""
    target = path if isinstance(path, bytes) else path.encode("latin-1")
    lines = [b"%b %b HTTP/1.1" % (method.encode(), target), b"host: x", *headers]
    if body is not None:
        lines.append(b"content-length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + (body or b"")
